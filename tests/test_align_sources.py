"""`fer align` with several sources, with faces that are aligned already, and with photographs in two splits."""

import json
import tracemalloc

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image
from small_sources import write

from efficientface import FerError
from efficientface.cli import cli
from efficientface.data import columns, duplicates, words
from efficientface.data.drawn import draw_face, mixture
from efficientface.data.duplicates import NEAR, Photographs, between_splits, dhash
from efficientface.data.faces import decode_face
from efficientface.data.layouts import tables
from efficientface.pipeline import align, photographs
from efficientface.pipeline.artifact import data_files, read_manifest, write_manifest
from efficientface.pipeline.config import AlignConfig
from efficientface.pipeline.photographs import digests_of, named_sources, read_inputs
from efficientface.pipeline.verify_run import verify

RNG = np.random.default_rng(0)
NOISE = [cv2.resize(RNG.integers(0, 256, (12, 12, 3), np.uint8), (48, 48)) for _ in range(12)]  # smooth, all different
AS_GIVEN = AlignConfig(aligned=True, crop=48, encode="png", workers=2)


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)


def rows_of(run):
    tables = [pq.read_table(path) for path in data_files(run / "faces", read_manifest(run / "faces", "faces"))]
    return {row["face_id"]: row for table in tables for row in table.to_pylist()}


# --- several sources ---


@pytest.fixture
def raf(tmp_path):
    """RAF-DB's aligned faces, three a split."""
    names = [f"train_{k:05d}.jpg" for k in range(3)] + [f"test_{k:04d}.jpg" for k in range(3)]
    write(
        tmp_path / "RAF-DB/basic/EmoLabel/list_patition_label.txt",
        "\n".join(f"{name} {4 + k % 3}" for k, name in enumerate(names)),
    )
    for k, name in enumerate(names):
        save(tmp_path / f"RAF-DB/basic/Image/aligned/{name[:-4]}_aligned.jpg", NOISE[k])
    return tmp_path / "RAF-DB"


@pytest.fixture
def voted(tmp_path):
    """A table with votes on two other classes and people, four images."""
    for k in range(4):
        save(tmp_path / f"voted/{k}.png", NOISE[6 + k])
    rows = "".join(f"{k}.png,{split},ann,{9 - k},{k}\n" for k, split in enumerate(["train", "train", "val", "val"]))
    write(tmp_path / "voted/votes.csv", f"file,split,group,contempt,happy\n{rows}")
    return tmp_path / "voted"


def test_sources_are_joined_by_the_names_of_their_classes(raf, voted, tmp_path):
    summary = align.run({"raf-db": raf, "mine": voted}, tmp_path / "run", AS_GIVEN)
    rows = rows_of(tmp_path / "run")
    assert list(rows)[0] == "raf-db/basic/Image/aligned/train_00000_aligned.jpg"
    assert list(rows)[-1] == "mine/3.png"
    manifest = read_manifest(tmp_path / "run/faces", "faces")
    assert manifest["classes"] == ["happiness", "sadness", "anger", "contempt"]
    assert [manifest["classes"][row["label"]] for row in rows.values()][:3] == ["happiness", "sadness", "anger"]
    assert rows["mine/0.png"]["votes"] == [0, 0, 0, 9]
    assert rows["mine/1.png"]["votes"] == [1, 0, 0, 8]
    assert rows["raf-db/basic/Image/aligned/test_0000_aligned.jpg"]["votes"] is None
    assert rows["mine/0.png"]["group"] == "mine/ann"
    assert rows["mine/0.png"]["source"] == "mine/0.png"
    assert {name: (place["path"], place["layout"]) for name, place in manifest["made_from"].items()} == {
        "raf-db": ("../../RAF-DB", "raf-db"),
        "mine": ("../../voted", "table"),
    }
    # each source's splits are its own: raf-db has no val, and none of its classes has two faces to carve one from
    assert summary["splits"] == {"test": 3, "train": 5, "val": 2}
    assert any(note.startswith("raf-db: Read ") for note in summary["notes"])
    assert any(note.startswith("mine: There is no test split.") for note in summary["notes"])


def test_the_listing_is_the_same_in_small_parts_and_mapped(raf, voted, monkeypatch):
    sources = {"raf-db": raf, "mine": voted, "boxed": raf}
    whole = read_inputs(sources, AS_GIVEN)
    monkeypatch.setattr(columns, "HELD", 0)
    for module in (columns, words, tables):
        monkeypatch.setattr(module, "ROWS", 3)
    monkeypatch.setattr(photographs, "AT_ONCE", 4)
    parts = read_inputs(sources, AS_GIVEN)
    assert list(parts.photos) == list(whole.photos) == [whole.photos[k] for k in range(-16, 0)]
    assert parts.photos[5:11] == list(whole.photos)[5:11]
    assert list(parts.photos.at(range(5, 11))) == parts.photos[5:11]
    assert digests_of(parts) == digests_of(whole)
    assert parts.notes == whole.notes


def test_a_listing_does_not_grow_in_memory(tmp_path, monkeypatch):
    """Of votes, people and names Python and numpy hold a part at a time; what is left is numbers, for a moment."""
    monkeypatch.setattr(columns, "HELD", 0)
    for module in (columns, words, tables):
        monkeypatch.setattr(module, "ROWS", 1000)
    monkeypatch.setattr(photographs, "AT_ONCE", 500)
    peaks = []
    for count in (2000, 5000, 20_000):
        table = {"image": [{"bytes": b"x", "path": f"{k:020d}.png"} for k in range(count)]}
        table |= {name: [k % 7 for k in range(count)] for name in ("happy", "sad", "fear", "unknown")}
        table |= {"group": [f"person {k // 3}" for k in range(count)], "split": ["train", "val"] * (count // 2)}
        pq.write_table(pa.table(table), tmp_path / "t.parquet", row_group_size=1000)
        tracemalloc.start()
        digests_of(read_inputs({"": tmp_path}, AS_GIVEN))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 100 * 15_000, "the first has imported what is needed"


def test_joined_sources_are_not_aligned_twice_and_others_are_refused(raf, voted, tmp_path, monkeypatch):
    first = align.run({"raf-db": raf, "mine": voted}, tmp_path / "run", AS_GIVEN)
    monkeypatch.setattr(align, "write_shards", None)
    again = align.run({"raf-db": raf, "mine": voted}, tmp_path / "run", AS_GIVEN)
    assert {**again, "seconds": 0} == {**first, "seconds": 0}
    for others in ({"raf-db": raf}, {"mine": voted, "raf-db": raf}, {"raf": raf, "mine": voted}, voted):
        with pytest.raises(FerError, match="was made from other photographs, labels or boxes"):
            align.run(others, tmp_path / "run", AS_GIVEN)


def test_the_command_takes_names_and_a_layout_each(raf, voted, tmp_path):
    sources = [f"raf={raf}", f"mine={voted}"]
    options = ["--aligned", "--crop", "48", "--layout", "raf=raf-db,mine=table", "--json"]
    done = CliRunner().invoke(cli, ["align", *sources, str(tmp_path / "run"), *options])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["images"] == 10
    done = CliRunner().invoke(cli, ["align", *sources, str(tmp_path / "run"), "--layout", "rav=raf-db"])
    assert done.stderr == "Error: --layout rav=raf-db is about no source; the sources are called raf, mine\n"
    done = CliRunner().invoke(cli, ["align", str(raf), str(voted), str(tmp_path / "run")])
    assert done.stderr == (
        f"Error: {raf} lacks a name; of several sources each needs one, of letters, digits, '-', '_' and '.', "
        f"that begins its faces' ids: NAME={raf}\n"
    )


def test_names_of_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "year=2020").mkdir()
    assert named_sources(["photos"]) == named_sources(["./photos"]) != named_sources(["./photos/x"])
    assert str(named_sources(["year=2020"])) == "year=2020"
    assert {name: str(path) for name, path in named_sources(["a=year=2020"]).items()} == {"a": "year=2020"}
    monkeypatch.setenv("HOME", "/home/ann")
    assert str(named_sources(["raf-db=~/RAF"])["raf-db"]) == "/home/ann/RAF"
    for bad in ("../a=x", "=x", "a/b=x", ".a=x"):
        with pytest.raises(FerError, match="lacks a name"):
            named_sources(["b=y", bad])
    with pytest.raises(FerError) as caught:
        named_sources(["a=x", "a=y"])
    assert str(caught.value) == "two sources are called a; give each a name of its own"


def test_a_run_from_before_these_settings_is_still_finished(tmp_path):
    for k, name in enumerate(["happy", "sad"]):
        save(tmp_path / f"photos/{name}/1.png", draw_face(mixture(3, k), np.random.default_rng(k), 224))
    config = AlignConfig(crop=64)
    first = align.run(tmp_path / "photos", tmp_path / "run", config)
    folder = tmp_path / "run/faces"
    manifest = read_manifest(folder, "faces")
    del manifest["settings"]["aligned"], manifest["facts"]["duplicates"]
    parts = {name: manifest[name] for name in ("classes", "made_from", "settings", "facts")}
    write_manifest(folder, "faces", files=list(manifest["files"]), **parts)
    assert {**align.run(tmp_path / "photos", tmp_path / "run", config), "seconds": first["seconds"]} == first
    with pytest.raises(FerError, match="was made with aligned False, not True"):
        align.run(tmp_path / "photos", tmp_path / "run", AlignConfig(crop=64, aligned=True))


# --- faces that are aligned already ---


@pytest.fixture
def aligned(tmp_path, monkeypatch):
    """Images of four shapes taken as they are, with no detector at hand; rows by id."""
    monkeypatch.setattr(align, "Detector", None)
    save(tmp_path / "photos/train/happy/same.png", NOISE[0])
    save(tmp_path / "photos/train/sad/half.png", cv2.resize(NOISE[1], (24, 24)))
    save(tmp_path / "photos/train/happy/wide.png", NOISE[2][:24])
    save(tmp_path / "photos/train/sad/speck.png", NOISE[3][:9])
    summary = align.run(tmp_path / "photos", tmp_path / "run", AS_GIVEN)
    assert summary["statuses"] == {"as given": 3, "too small": 1}
    return rows_of(tmp_path / "run")


def test_an_image_of_the_crops_size_stays_as_it_is(aligned):
    row = aligned["train/happy/same.png"]
    assert np.array_equal(decode_face(row["image"]["bytes"]), NOISE[0])
    assert (row["status"], row["reason"], row["matrix"]) == ("as given", None, [1, 0, 0, 0, 1, 0])
    assert [row[name] for name in ("box", "landmarks", "score", "yaw", "n_faces")] == [None] * 5


def test_other_sizes_are_resized_and_other_shapes_filled_up(aligned):
    large = decode_face(aligned["train/sad/half.png"]["image"]["bytes"]).astype(int)
    assert large.shape == (48, 48, 3)
    half = cv2.resize(NOISE[1], (24, 24))
    assert np.abs(large - cv2.resize(half, (48, 48), interpolation=cv2.INTER_CUBIC)).max() <= 3
    wide = decode_face(aligned["train/happy/wide.png"]["image"]["bytes"])
    assert np.array_equal(wide[12:36], NOISE[2][:24])
    assert (wide[:12] == NOISE[2][0]).all()
    assert (wide[36:] == NOISE[2][23]).all()
    assert aligned["train/sad/speck.png"]["reason"] == "9.0 pixels, less than 16"


def test_fer2013_is_aligned_from_its_table(tmp_path):
    pixels = [image[..., 0] for image in NOISE[:4]]
    usages = ["Training", "Training", "PublicTest", "PrivateTest"]
    rows = [f"{k},{' '.join(map(str, pixels[k].ravel()))},{usage}" for k, usage in enumerate(usages)]
    write(tmp_path / "fer2013.csv", "\n".join(["emotion,pixels,Usage", *rows, "0,1 2 3,Training"]) + "\n")
    summary = align.run(tmp_path, tmp_path / "run", AS_GIVEN)
    assert summary["unreadable"] == {"damaged (not the numbers 0 to 255 of a square picture)": 1}
    for k in range(4):
        face = rows_of(tmp_path / "run")[f"fer2013.csv/{k}"]
        assert np.array_equal(decode_face(face["image"]["bytes"])[..., 0], pixels[k])
    align.run(tmp_path, tmp_path / "run", AS_GIVEN)
    rows[3] = rows[3].replace(" ", " 7 ", 1).rsplit(" ", 1)[0] + ",PrivateTest"
    write(tmp_path / "fer2013.csv", "\n".join(["emotion,pixels,Usage", *rows, "0,1 2 3,Training"]) + "\n")
    with pytest.raises(FerError, match="from other photographs, labels or boxes"):
        align.run(tmp_path, tmp_path / "run", AS_GIVEN)


def test_faces_of_another_run_are_a_source(tmp_path):
    """Parquet with pictures inside: also nulls among them, for photographs without a face."""
    save(tmp_path / "photos/train/happy/1.png", NOISE[0])
    save(tmp_path / "photos/test/sad/2.png", NOISE[1])
    write(tmp_path / "photos/train/sad/3.png", "no picture")
    align.run(tmp_path / "photos", tmp_path / "first", AS_GIVEN)
    summary = align.run(tmp_path / "first/faces", tmp_path / "second", AS_GIVEN)
    assert summary["statuses"] == {"as given": 2, "unreadable": 1}
    assert summary["unreadable"] == {"no bytes in the table": 1}
    first, second = rows_of(tmp_path / "first"), rows_of(tmp_path / "second")
    assert list(second) == [f"part-00000.parquet/{k}" for k in range(3)]
    for before, after in zip(first.values(), second.values(), strict=True):
        assert [before[name] for name in ("split", "label")] == [after[name] for name in ("split", "label")]
        assert before["image_hash"] == after["image_hash"]


# --- photographs in two splits ---


def test_dhash_is_what_its_definition_says():
    grey = np.random.default_rng(1).integers(0, 256, (16, 17), np.uint8)
    bits = "".join("1" if grey[y, x] < grey[y, x + 1] else "0" for y in range(16) for x in range(16))
    expected = "".join(f"{int(bits[k : k + 4], 2):x}" for k in range(0, 256, 4))
    image = np.repeat(grey[..., None], 3, axis=2)
    assert dhash(image) == expected
    assert dhash(cv2.resize(image, None, fx=3, fy=3, interpolation=cv2.INTER_NEAREST)) == expected


@pytest.mark.parametrize(("height", "width"), [(48, 48), (350, 333), (1501, 2003), (4201, 4099)])
def test_dhash_is_of_opencvs_areas_whatever_the_size(height, width):
    """The last one's pixels add up to more than 32 bits hold; rounding may differ in a pixel."""
    image = np.random.default_rng(4).integers(230, 256, (height, width, 3), np.uint8)
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (17, 16), interpolation=cv2.INTER_AREA)
    expected = int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes())
    assert (int(dhash(image), 16) ^ expected).bit_count() <= 2


def test_dhash_of_any_shape_has_its_digits():
    for shape in ((1, 1, 3), (2, 900, 3), (900, 1, 3)):
        assert len(dhash(np.full(shape, 200, np.uint8))) == 64


def brute_force(photos):
    """Twins by definition, pair by pair."""
    order = sorted(photos["split"].unique(), key=lambda split: (split != "train", split))
    found = {}
    for a in photos.itertuples():
        for b in photos.itertuples():
            if order.index(b.split) < order.index(a.split):
                bits = (int(a.source_dhash, 16) ^ int(b.source_dhash, 16)).bit_count()
                bits = -1 if a.source_hash == b.source_hash else bits
                best = found.get((a.face_id, b.split), (NEAR + 1, None))
                if bits < best[0]:
                    found[a.face_id, b.split] = bits, b.face_id
    return found


@pytest.mark.parametrize("pairs", [7, duplicates.PAIRS])
def test_twins_are_those_of_a_search_pair_by_pair(pairs, monkeypatch):
    monkeypatch.setattr(duplicates, "PAIRS", pairs)
    rng = np.random.default_rng(2)
    rows = []
    for k in range(150):
        bits = int.from_bytes(rng.bytes(32)) if k < 50 else int(rows[rng.integers(50)]["source_dhash"], 16)
        for place in rng.integers(0, 256, rng.integers(0, 30)):
            bits ^= 1 << int(place)
        split = ("train", "val", "test")[k % 3]
        digest = f"{k:032x}" if k % 10 else f"{0:032x}"
        rows.append({"face_id": f"{k}", "split": split, "label": None, "source_hash": digest})
        rows[-1]["source_dhash"] = f"{bits:064x}"
    photos = pd.DataFrame(rows)
    label = pa.nulls(75, pa.int64())
    tables = [pa.table({**part.to_dict("list"), "label": label}) for part in (photos[:75], photos[75:])]
    found = between_splits(Photographs.of(tables))
    assert len(found) > 30
    assert {(row.face_id, row.twin_split): (row.bits, row.twin) for row in found.itertuples()} == brute_force(photos)


def test_photographs_in_two_splits_are_told_and_listed(tmp_path, caplog):
    photos = tmp_path / "photos"
    for k in range(4):
        save(photos / f"train/{'happy' if k % 2 else 'sad'}/{k}.png", NOISE[k])
    save(photos / "test/happy/copy of 0.png", NOISE[0])  # labelled sad in train
    save(photos / "test/happy/smaller 1.png", cv2.resize(NOISE[1], (36, 36), interpolation=cv2.INTER_AREA))
    save(photos / "test/sad/other.png", NOISE[7])
    save(photos / "val/sad/again 2.jpg", NOISE[2], quality=80)
    save(photos / "train/sad/2 in train too.png", NOISE[2])  # twice in one split is nobody's leak
    with caplog.at_level("INFO"):
        summary = align.run(photos, tmp_path / "run", AS_GIVEN)
    assert summary["duplicates"] == [
        {"split": "test", "twin_split": "train", "equal": 1, "near": 1, "other_label": 1},
        {"split": "val", "twin_split": "train", "equal": 0, "near": 1, "other_label": 0},
    ]
    told = (
        "Both in test and in train: 1 photograph byte for byte and 1 nearly; 1 with another label "
        "(first test/happy/copy of 0.png and train/sad/0.png; all in duplicates.csv)."
    )
    assert told in summary["notes"]
    assert told in caplog.text
    listed = pd.read_csv(tmp_path / "run/duplicates.csv")
    assert listed[["face_id", "label", "twin", "twin_label"]].values.tolist() == [
        ["test/happy/copy of 0.png", "happiness", "train/sad/0.png", "sadness"],
        ["test/happy/smaller 1.png", "happiness", "train/happy/1.png", "happiness"],
        ["val/sad/again 2.jpg", "sadness", "train/sad/2 in train too.png", "sadness"],
    ]
    assert (listed["bits"] < 0).tolist() == [True, False, False]
    assert align.run(photos, tmp_path / "run", AS_GIVEN)["duplicates"] == summary["duplicates"]


def test_the_list_of_duplicates_is_replaced_with_its_faces(tmp_path, monkeypatch):
    photos, run = tmp_path / "photos", tmp_path / "run"
    for k in range(4):
        save(photos / f"train/{'happy' if k % 2 else 'sad'}/{k}.png", NOISE[k])
    for name in ("happy", "sad"):
        save(photos / f"test/{name}/other.png", NOISE[7 if name == "sad" else 6])
    twin = photos / "test/happy/again 0.png"
    save(twin, NOISE[0])
    align.run(photos, run, AS_GIVEN)
    listed = (run / "duplicates.csv").read_bytes()
    twin.unlink()

    class Killed(BaseException):
        pass

    def killed(*args, **more):
        raise Killed

    with monkeypatch.context() as patched:  # after the duplicates were looked for
        patched.setattr(align, "write_manifest", killed)
        with pytest.raises(Killed):
            align.run(photos, run, AS_GIVEN, replace=True)
    assert (run / "duplicates.csv").read_bytes() == listed
    assert [check["state"] for check in verify(run)["checks"] if check["check"] == "duplicates"] == ["ok"]
    align.run(photos, run, AS_GIVEN, replace=True)
    assert {path.name for path in run.iterdir()} <= {"faces", ".align.lock"}
    save(twin, NOISE[0])
    align.run(photos, run, AS_GIVEN, replace=True)
    assert (run / "duplicates.csv").read_bytes() == listed
    assert not (run / "faces" / "duplicates.csv").exists()
    assert verify(run)["failed"] == 0
