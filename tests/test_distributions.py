"""The cache's Parquet file: what is written comes back equal, and damage has its own sentence."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from efficientface import FerError
from efficientface.cache.distributions import Distributions, join
from efficientface.cache.parquet import check_class_names, distributions_table, read_shards, write_shard

CLASSES = ("neutral", "happiness", "surprise")


def make(ids, views=2, seed=0, classes=CLASSES) -> Distributions:
    rng, n, c = np.random.default_rng(seed), len(ids), len(classes)
    return Distributions(
        classes=tuple(classes),
        face_id=np.array(ids, object),
        image_hash=np.array([f"{k:032x}" for k in range(n)], object),
        split=np.array(["train"] * n, object),
        label=rng.integers(-1, c, n),
        fold=rng.integers(-3, 4, n).astype(np.int8),
        canonical=rng.dirichlet(np.ones(c), n).astype(np.float32),
        view_box=rng.integers(0, 224, (n, views, 4)).astype(np.uint16),
        view_flip=rng.random((n, views)) < 0.5,
        view_distribution=rng.dirichlet(np.ones(c), (n, views)).astype(np.float32),
    )


def assert_equal(a: Distributions, b: Distributions) -> None:
    assert a.classes == b.classes
    for name in ("face_id", "image_hash", "split", "label", "fold", "canonical"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
    for name in ("view_box", "view_flip", "view_distribution"):
        assert getattr(a, name).dtype == getattr(b, name).dtype, name
        assert np.array_equal(getattr(a, name), getattr(b, name)), name


# face ids are paths below their source
IDS = st.text(max_size=20).filter(lambda text: not text.startswith("/") and ".." not in text.split("/"))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(IDS, unique=True, min_size=1, max_size=6), views=st.integers(0, 3))
def test_what_is_written_comes_back_equal(tmp_path, ids, views):
    part = make(ids, views)
    write_shard(part, tmp_path / "part.parquet")
    assert_equal(read_shards([tmp_path / "part.parquet"]), part)


def test_shards_come_back_in_their_order(tmp_path):
    first, second = make(["a", "b"], seed=1), make(["c"], seed=2)
    write_shard(first, tmp_path / "0.parquet")
    write_shard(second, tmp_path / "1.parquet")
    assert_equal(read_shards([tmp_path / "0.parquet", tmp_path / "1.parquet"]), join([first, second]))


def test_pandas_reads_the_columns_that_people_look_for(tmp_path):
    part = make(["a", "b", "c"])
    write_shard(part, tmp_path / "part.parquet")
    frame = pd.read_parquet(tmp_path / "part.parquet")
    assert np.array_equal(frame[list(CLASSES)].to_numpy(np.float32), part.canonical)
    assert list(frame["face_id"]) == ["a", "b", "c"]
    assert frame["view_distribution"][1][0].tolist() == part.view_distribution[1, 0].tolist()


def test_classes_in_another_order_are_matched_by_name():
    part = make(["a", "b", "c", "d"])
    turned = part.in_order_of(("surprise", "neutral", "happiness"), "cache")
    assert np.array_equal(turned.canonical[:, 1], part.canonical[:, 0])
    assert np.array_equal(turned.view_distribution[..., 0], part.view_distribution[..., 2])
    named = [None if k < 0 else part.classes[k] for k in part.label]
    assert [None if k < 0 else turned.classes[k] for k in turned.label] == named


def test_other_classes_are_refused():
    with pytest.raises(FerError) as error:
        make(["a"]).in_order_of(("neutral", "anger", "fear"), "cache")
    assert str(error.value) == (
        "cache has the classes neutral, happiness, surprise, the faces have neutral, anger, fear; "
        "give a cache made from these faces (fer teach)"
    )


def test_missing_faces_are_named_and_counted():
    part = make(["a", "b"])
    with pytest.raises(FerError) as error:
        part.rows_of(np.array(["a", "x", "y"]), np.array([""] * 3), "cache")
    assert str(error.value) == "cache has no distribution for 2 of 3 faces, first x; run fer teach again"


def test_another_picture_under_the_same_id_is_refused():
    part = make(["a", "b"])
    with pytest.raises(FerError) as error:
        part.rows_of(part.face_id, np.array([part.image_hash[0], "other"]), "cache")
    assert str(error.value) == (
        "cache is about other pictures than faces/ for 1 of 2 faces, first b (image_hash differs); run fer teach again"
    )


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda p: p.canonical.__setitem__((1, 0), np.nan), "1 canonical distributions"),
        (lambda p: p.canonical.__setitem__(1, p.canonical[1] * 1.01), "1 canonical distributions"),
        (lambda p: p.view_distribution.__setitem__((1, 0), [-0.5, 1, 0.5]), "1 view distributions"),
    ],
)
def test_what_is_no_distribution_is_refused(tmp_path, spoil, what):
    part = make(["a", "b"])
    spoil(part)
    write_shard(part, tmp_path / "part.parquet")
    with pytest.raises(FerError) as error:
        read_shards([tmp_path / "part.parquet"])
    assert str(error.value) == (
        f"{tmp_path}/part.parquet has {what} that are not finite, not positive or do not sum to 1, "
        "first of face b; restore it, or run fer teach again"
    )


def test_a_face_id_twice_is_refused(tmp_path):
    write_shard(make(["a", "b", "a"]), tmp_path / "part.parquet")
    with pytest.raises(FerError, match=r"has 1 face ids more than once, first a; restore it, or run fer teach again$"):
        read_shards([tmp_path / "part.parquet"])


def test_a_face_id_in_two_shards_is_refused(tmp_path):
    write_shard(make(["a", "b"]), tmp_path / "0.parquet")
    write_shard(make(["c", "b"]), tmp_path / "1.parquet")
    with pytest.raises(FerError) as error:
        read_shards([tmp_path / "0.parquet", tmp_path / "1.parquet"])
    assert str(error.value) == (
        f"{tmp_path} has 1 face ids more than once, first b; restore it, or run fer teach again"
    )


def test_a_label_of_no_class_is_refused(tmp_path):
    part = make(["a", "b"])
    part.label[1] = 3
    write_shard(part, tmp_path / "part.parquet")
    with pytest.raises(FerError, match=r"has 1 labels that are the number of none of its 3 classes, first of face b;"):
        read_shards([tmp_path / "part.parquet"])


def test_a_truncated_shard_is_refused(tmp_path):
    path = tmp_path / "part.parquet"
    write_shard(make(["a", "b"]), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        FerError, match=r"part.parquet cannot be read as Parquet .*; restore it, or run fer teach again$"
    ):
        read_shards([path])


def test_a_table_of_others_is_refused(tmp_path):
    pq.write_table(pa.table({"face_id": ["a"]}), tmp_path / "part.parquet")
    with pytest.raises(FerError) as error:
        read_shards([tmp_path / "part.parquet"])
    assert str(error.value) == (
        f"{tmp_path}/part.parquet is not a table that fer teach wrote (no efficientface metadata)"
    )


def test_a_newer_format_is_refused(tmp_path):
    table = distributions_table(make(["a"]))
    newer = table.schema.metadata[b"efficientface"].replace(b'"version": 1', b'"version": 9')
    pq.write_table(table.replace_schema_metadata({"efficientface": newer}), tmp_path / "part.parquet")
    with pytest.raises(FerError) as error:
        read_shards([tmp_path / "part.parquet"])
    assert str(error.value) == (
        f"{tmp_path}/part.parquet has format version 9, this program reads up to 1; update efficientface"
    )


@pytest.mark.parametrize("classes", [["joy", "Joy"], ["joy", "LABEL"]])
def test_class_names_that_collide_with_columns_are_refused(classes):
    with pytest.raises(FerError) as error:
        check_class_names(classes)
    assert str(error.value) == (
        f"class {classes[1]!r} has the name of another column of distributions/; rename the class"
    )
