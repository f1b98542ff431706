"""The two files of a cache: one content, one way to open them, damage named in a sentence."""

import json
import os
import shutil
from dataclasses import replace

import h5py
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_caches import CLASSES, change, make, write_cache

from efficientface import FerError
from efficientface.cache import hdf5
from efficientface.cache.hdf5 import USER_BLOCK, check_digest, read_hdf5
from efficientface.cache.parquet import write_shard
from efficientface.cli import cli
from efficientface.pipeline.artifact import DIGEST, MANIFEST, write_manifest
from efficientface.pipeline.caches import ONE_FILE, convert, open_cache

SHARED = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@pytest.fixture
def folder(tmp_path):
    return write_cache(tmp_path / "distributions", make(["a", "b", "c", "d", "e"]))


@pytest.fixture
def file(folder, tmp_path):
    convert(folder, tmp_path / "cache.h5")
    return tmp_path / "cache.h5"


def refused(call, *arguments) -> str:
    with pytest.raises(FerError) as error:
        call(*arguments)
    return str(error.value)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# --- one content


def relative(text: str) -> bool:
    return "\0" not in text and not text.startswith("/") and ".." not in text.split("/")


@st.composite
def caches(draw):
    text = st.text(max_size=12).filter(relative) | st.sampled_from(["\n", "🙂/ü.jpg", " ", "a ", "%00", "ﷺ" * 20])
    ids = draw(st.lists(text, unique=True, min_size=1, max_size=7))
    classes = draw(st.lists(st.text("abcé🙂 .\n", min_size=1, max_size=4), unique_by=str.lower, min_size=1, max_size=4))
    views = draw(st.integers(0, 3))
    split = np.array([draw(st.sampled_from([None, "train", "", "none", "none-"])) for _ in ids], object)
    n, c = len(ids), len(classes)
    made = make(ids, views, draw(st.integers(0, 9)), [name if name != "." else "dot" for name in classes], split=split)
    # any bits that are a distribution: zeros, one-hot, denormals
    tiny = np.zeros((n, c), np.float32)
    tiny[:, 0] = 1
    tiny[:, -1] = tiny[:, -1] + np.float32(1e-42)
    return made if draw(st.booleans()) else replace(made, canonical=tiny)


@settings(max_examples=25, **SHARED)
@given(cached=caches(), parts=st.integers(1, 3))
def test_parquet_to_hdf5_to_parquet_is_the_identity(tmp_path_factory, cached, parts):
    tmp_path = tmp_path_factory.mktemp("identity")
    first = write_cache(tmp_path / "first", cached, parts)
    convert(first, tmp_path / "middle.h5")
    convert(tmp_path / "middle.h5", tmp_path / "second")
    assert sorted(os.listdir(first)) == sorted(os.listdir(tmp_path / "second"))
    for name in os.listdir(first):  # shards, manifest and its digest: every byte of every file
        assert (first / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name
    through = open_cache(tmp_path / "middle.h5").read()
    assert through.classes == cached.classes
    for name in ("face_id", "image_hash", "split"):
        assert getattr(through, name).tolist() == getattr(cached, name).tolist()
    for name in ("label", "fold", "canonical", "view_box", "view_flip", "view_distribution"):
        assert same_bits(getattr(through, name), getattr(cached, name)), name
    shutil.rmtree(tmp_path)


def test_the_same_cache_gives_the_same_file(folder, file, tmp_path):
    convert(folder, tmp_path / "again.h5")
    assert (tmp_path / "again.h5").read_bytes() == file.read_bytes()


def test_a_file_of_a_file_is_the_same(file, tmp_path):
    convert(file, tmp_path / "copy.h5")
    assert (tmp_path / "copy.h5").read_bytes() == file.read_bytes()


def test_h5py_alone_reads_it(folder, file):
    frame = pd.concat([pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))], ignore_index=True)
    with h5py.File(file) as opened:
        assert (opened.attrs["format"], opened.attrs["version"]) == ("efficientface distributions", 1)
        assert opened.attrs["classes"].tolist() == list(CLASSES)
        assert opened["happiness"][:].tolist() == frame["happiness"].tolist()
        assert opened["face_id"].asstr()[:].tolist() == frame["face_id"].tolist()
        assert opened["label"][:].tolist() == frame["label"].fillna(opened["label"].attrs["none"]).tolist()
        assert opened["view_flip"][:].tolist() == [row.tolist() for row in frame["view_flip"]]
        boxes = [[box.tolist() for box in row] for row in frame["view_box"]]
        assert opened["view_box"][:].tolist() == boxes
        assert all("meaning" in opened[name].attrs for name in opened)
        wanted = (opened["happiness"][:] > 0.4) & (opened["surprise"][:] > 0.1)
    assert wanted.tolist() == ((frame.happiness > np.float32(0.4)) & (frame.surprise > np.float32(0.1))).tolist()


def test_a_conversion_holds_one_shard_with_views_at_a_time(tmp_path, monkeypatch):
    folder = write_cache(tmp_path / "many", make([f"{k}" for k in range(40)], views=3), parts=8)
    taken, real = [], hdf5.write_hdf5

    def watched(path, manifest, shards, read):
        def counted(name, views):
            part = read(name, views)
            taken.append(len(part) if views else 0)
            return part

        real(path, manifest, shards, counted)

    monkeypatch.setattr(hdf5, "write_hdf5", watched)
    convert(folder, tmp_path / "many.h5")
    assert max(taken) == 5


def test_paths_to_what_it_was_made_from_stay_right(tmp_path):
    made_from = {
        "faces": {"path": "../faces", "manifest": "0" * 64},
        "teacher": {"path": "../../other/teacher", "manifest": "1" * 64},
        "votes": "photographs of somebody",
    }
    folder = write_cache(tmp_path / "run" / "distributions", make(["a"]), 1, made_from)
    convert(folder, tmp_path / "far" / "away" / "cache.h5")
    convert(tmp_path / "far" / "away" / "cache.h5", tmp_path / "elsewhere")
    inside = open_cache(tmp_path / "far" / "away" / "cache.h5").manifest["made_from"]
    assert inside["faces"] == {"path": "../../run/faces", "manifest": "0" * 64}
    assert inside["votes"] == "photographs of somebody"
    beside = json.loads((tmp_path / "elsewhere" / MANIFEST).read_text())["made_from"]
    assert beside["faces"]["path"] == "../run/faces"
    assert beside["teacher"]["path"] == "../other/teacher"


def test_what_exists_is_not_written_over(folder, file):
    assert refused(convert, folder, file) == f"{file} exists; give another name, or remove it"
    assert refused(convert, file, folder) == f"{folder} exists; give another name, or remove it"


def test_a_failed_conversion_leaves_nothing(folder, tmp_path, monkeypatch):
    for target in ("new.h5", "new"):
        monkeypatch.setattr("efficientface.pipeline.caches._checked", lambda *a: (_ for _ in ()).throw(OSError("full")))
        before = sorted(os.listdir(tmp_path))
        with pytest.raises(OSError, match="full"):
            convert(folder, tmp_path / target)
        assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("name", ["a/b", ".", "", "nul\0"])
def test_class_names_that_are_no_dataset_names(tmp_path, name):
    folder = write_cache(tmp_path / "distributions", make(["a"], classes=(name, "neutral")), 1)
    assert refused(convert, folder, tmp_path / "cache.h5") == (
        f"class {name!r} cannot be a dataset's name in HDF5 (empty, '.', or with '/' or NUL); "
        "rename the class, or use Parquet"
    )
    assert not (tmp_path / "cache.h5").exists()


def test_a_nul_in_an_id(tmp_path):
    folder = write_cache(tmp_path / "distributions", make(["a", "b\0c"]), 1)
    assert refused(convert, folder, tmp_path / "cache.h5").endswith(
        "cannot hold the face_id of 1 of 2 faces, first 'b\\x00c': text in HDF5 ends at a NUL; use Parquet"
    )


# --- damage


def test_every_flipped_byte_is_noticed(file):
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    for place in {*range(USER_BLOCK), *rng.integers(0, len(whole), 300).tolist()}:
        spoiled = bytearray(whole)
        spoiled[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(spoiled)
        with pytest.raises(FerError):
            check_digest(file)
    file.write_bytes(whole)
    check_digest(file)


def test_a_damaged_file(file):
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert refused(open_cache, file) == (
        f"{file} is damaged, or was changed after it was written (see the digest in its first 512 bytes); "
        "restore it, or make it again"
    )


def test_a_file_of_others(tmp_path):
    path = tmp_path / "theirs.h5"
    with h5py.File(path, "w") as opened:
        opened["happiness"] = [1.0]
    assert refused(open_cache, path) == (
        f"{path} is not an HDF5 file of cached distributions (it does not begin with 'efficientface distributions')"
    )
    with h5py.File(path, "w", userblock_size=USER_BLOCK) as opened:
        opened["happiness"] = [1.0]
    change(path, lambda opened: None)
    assert refused(open_cache, path) == (
        f"{path} is not an HDF5 file of cached distributions (no attribute format 'efficientface distributions')"
    )
    path.write_text("not HDF5 at all")
    assert "is not an HDF5 file of cached distributions" in refused(open_cache, path)
    assert refused(open_cache, tmp_path / "none.h5") == (
        f"{tmp_path}/none.h5 does not exist; give a cache that fer teach or fer cache convert wrote"
    )


def test_a_newer_file(file):
    change(file, lambda opened: opened.attrs.__setitem__("version", 9))
    assert refused(open_cache, file) == (
        f"{file} has format version 9, this program reads up to 1; update efficientface"
    )


def replaced(name, value):
    def alter(opened):
        del opened[name]
        opened[name] = value

    return alter


def linked(name):
    def alter(opened):
        del opened[name]
        opened[name] = h5py.ExternalLink("other.h5", "/secret")

    return alter


@pytest.mark.parametrize(
    ("alter", "sentence"),
    [
        (lambda f: f.__delitem__("surprise"), "{} lacks the datasets surprise; restore it, or make it again"),
        (linked("fold"), "{}: fold is not a dataset of the file itself; make the file again"),
        (
            replaced("happiness", np.zeros(5)),
            "{}: happiness is float64 (5,), not as docs/files.md says; make the file again",
        ),
        (
            replaced("label", np.zeros(4, np.int64)),
            "{}: label is int64 (4,), not as docs/files.md says; make the file again",
        ),
        (
            lambda f: f.attrs.__setitem__("shards", json.dumps({"../../up.parquet": 5})),
            "{} cannot be read as HDF5 ('../../up.parquet' cannot be a shard's name); restore it, or make it again",
        ),
        (
            lambda f: f.attrs.__setitem__("manifest", json.dumps({"kind": "faces"})),
            "{} has no manifest of distributions inside; restore it, or make it again",
        ),
        (
            lambda f: f["happiness"].__setitem__(1, np.nan),
            "{} has 1 canonical distributions that are not finite, not positive or do not sum to 1, "
            "first of face b; restore it, or run fer teach again",
        ),
        (
            lambda f: f["face_id"].__setitem__(1, b"a"),
            "{} has 1 face ids more than once, first a; restore it, or run fer teach again",
        ),
        (
            lambda f: f["face_id"].__setitem__(1, b"/"),
            "{} has 1 face ids that lead out of their source, first /; "
            "take it from somebody you trust, or run fer teach again",
        ),
    ],
)
def test_a_file_that_is_not_as_it_should_be(file, alter, sentence):
    change(file, alter)
    assert refused(lambda: open_cache(file).read()) == sentence.format(file)


def test_a_dataset_that_claims_more_than_the_file_can_hold(file):
    def grown(opened):
        for name in ("face_id", *CLASSES):
            kind = opened[name].dtype
            del opened[name]
            opened.create_dataset(name, (10**12,), kind, chunks=(1024,))
        opened.attrs["shards"] = json.dumps({"part-00000.parquet": 10**12})

    change(file, grown)
    assert refused(lambda: open_cache(file).read()) == (
        f"{file}: face_id says to have 1000000000000 bytes, more than the file can hold"
    )


@pytest.mark.parametrize("face_id", ["/etc/passwd", "..", "a/../../b"])
def test_an_id_that_leads_out_of_its_source(tmp_path, face_id):
    folder = write_cache(tmp_path / "distributions", make(["a", face_id]), 1)
    assert refused(lambda: open_cache(folder).read()) == (
        f"{folder}/part-00000.parquet has 1 face ids that lead out of their source, first {face_id}; "
        "take it from somebody you trust, or run fer teach again"
    )


def test_another_class_order_in_one_shard(tmp_path):
    folder = tmp_path / "distributions"
    folder.mkdir()
    write_shard(make(["a"]), folder / "part-00000.parquet")
    write_shard(make(["b"], classes=CLASSES[::-1]), folder / "part-00001.parquet")
    names = ["part-00000.parquet", "part-00001.parquet"]
    write_manifest(folder, "distributions", files=names, classes=CLASSES, made_from={}, settings={}, facts={})
    assert refused(lambda: open_cache(folder).read()) == (
        f"{folder}/part-00001.parquet has other classes or another number of views than "
        f"{folder}/part-00000.parquet; run fer teach again"
    )


def test_a_missing_shard(folder):
    (folder / "part-00001.parquet").unlink()
    assert refused(open_cache, folder) == (
        f"{folder}/part-00001.parquet is missing; restore it, or remove {folder} and run fer teach again"
    )


# --- the commands


def fer(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


def test_the_command_converts_and_inspect_reads_both(folder, tmp_path):
    done = fer("cache", "convert", folder, tmp_path / "cache.h5", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {
        "distributions": str(tmp_path / "cache.h5"),
        "faces": 5,
        "views": 2,
        "bytes": (tmp_path / "cache.h5").stat().st_size,
    }
    for words in ((), ("--top", "ambiguous"), ("--face", "d")):
        results = [fer("inspect", path, *words, "--json") for path in (folder, tmp_path / "cache.h5")]
        assert [result.exit_code for result in results] == [0, 0], results[1].output
        a, b = [json.loads(result.stdout) for result in results]
        assert {k: v for k, v in a.items() if k not in ("path", "bytes")} == {
            k: v for k, v in b.items() if k not in ("path", "bytes")
        }
    done = fer("inspect", tmp_path / "cache.h5", "--face", "x")
    assert done.stderr == f"Error: {tmp_path}/cache.h5 has no face x among its 5; its first is a\n"


def test_reading_hdf5_without_views(file):
    part = read_hdf5(file, views=False)
    assert (len(part), part.views) == (5, 0)
    assert not (file.parent / DIGEST).exists()
    assert ONE_FILE == "distributions.h5"


@pytest.mark.parametrize("seed", range(3))
def test_a_shard_with_changed_bytes_is_read_or_refused(tmp_path, seed):
    """Reading checks no digests of Parquet: what is damaged may never be more than a sentence."""
    folder = write_cache(tmp_path / "distributions", make([f"{k}.jpg" for k in range(20)]), 1)
    path, rng, sentences = folder / "part-00000.parquet", np.random.default_rng(seed), []
    whole = path.read_bytes()
    for _ in range(60):
        spoiled = bytearray(whole)
        spoiled[int(rng.integers(len(whole)))] = int(rng.integers(256))
        path.write_bytes(spoiled)
        try:
            open_cache(folder).read()
        except FerError as error:
            sentences.append(str(error))
    assert len(sentences) > 20
    assert all(str(folder) in sentence for sentence in sentences)
