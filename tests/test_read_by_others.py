"""Our files opened by programs that know nothing of us, with no more than a user would type."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from small_caches import CLASSES, make, write_cache

duckdb = pytest.importorskip("duckdb")


@pytest.fixture
def cache(tmp_path):
    return write_cache(tmp_path / "distributions", make([f"{k}.jpg" for k in range(200)], seed=4), parts=3)


@pytest.fixture
def blends(cache):
    """Ids of faces that are both happy and surprised, by numpy."""
    from efficientface.pipeline.caches import open_cache

    cached = open_cache(cache).read()
    happy, surprised = (cached.canonical[:, CLASSES.index(name)] for name in ("happiness", "surprise"))
    found = cached.face_id[(happy > np.float32(0.4)) & (surprised > np.float32(0.4))].tolist()
    assert 0 < len(found) < len(cached)
    return found


def test_duckdb(cache, blends):
    rows = duckdb.sql(
        f"SELECT face_id FROM '{cache}/*.parquet' WHERE happiness > .4 AND surprise > .4"
    ).fetchall()  # fmt: skip
    assert sorted(row[0] for row in rows) == sorted(blends)
    count, views = duckdb.sql(
        f"SELECT count(label), min(len(view_distribution)) FROM '{cache}/*.parquet'"
    ).fetchall()[0]  # fmt: skip
    assert 0 < count < 200
    assert views == 2


def test_pandas(cache, blends):
    frame = pd.concat([pd.read_parquet(path) for path in sorted(cache.glob("*.parquet"))])
    assert frame.query("happiness > .4 and surprise > .4").face_id.tolist() == blends
    assert frame[list(CLASSES)].describe().loc["count"].tolist() == [200.0] * 3


def test_pyarrow(cache, blends):
    files = pyarrow.dataset.dataset([str(path) for path in sorted(cache.glob("*.parquet"))])
    wanted = (pyarrow.dataset.field("happiness") > 0.4) & (pyarrow.dataset.field("surprise") > 0.4)
    assert files.to_table(filter=wanted)["face_id"].to_pylist() == blends
    boxes = pq.read_table(cache / "part-00000.parquet")["view_box"]
    assert str(boxes.type) == "fixed_size_list<element: fixed_size_list<element: uint16>[4]>[2]"


def test_hugging_face_datasets_opens_faces_and_distributions(run, cache, tmp_path):
    pytest.importorskip("datasets")
    # in a process of its own: it sets up caches and logging on import
    code = (
        "import sys, datasets\n"
        "faces = datasets.load_dataset('parquet', data_files=sys.argv[1] + '/*.parquet', split='train')\n"
        "face = faces[4]\n"
        "print(len(faces), faces.features['label'].names, face['image'].size, face['face_id'], face['label'],"
        " len(face['votes']), faces[60]['image'])\n"
        "opinions = datasets.load_dataset('parquet', data_files=sys.argv[2] + '/*.parquet', split='train')\n"
        "print(len(opinions), opinions[7]['face_id'], round(sum(opinions[7][name] for name in sys.argv[3:]), 5),"
        " len(opinions[7]['view_box']))\n"
    )
    home = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code, run / "faces", cache, *CLASSES], capture_output=True, text=True, env=home
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "61 ['neutral', 'happiness', 'sadness'] (64, 64) face-004.png 1 3 None\n200 7.jpg 1.0 2\n"
