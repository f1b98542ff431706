"""`fer align` on drawn faces with the real detector: what is stored, what is told, what survives an interruption."""

import io
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from efficientface import FerError
from efficientface.data import photos
from efficientface.data.detect import Detector
from efficientface.data.drawn import draw_face, mixture
from efficientface.data.faces import decode_face, hash_image, read_faces
from efficientface.data.geometry import similarity, template, transform
from efficientface.pipeline import align
from efficientface.pipeline.artifact import check_files, data_files, read_manifest
from efficientface.pipeline.config import AlignConfig

FACES = [draw_face(mixture(3, k), np.random.default_rng(k), 224) for k in range(5)]
CONFIG = AlignConfig(workers=2, shard_faces=3)


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=95)


def couple():
    """Two people, the left one larger."""
    photograph = np.full((300, 500, 3), 128, np.uint8)
    photograph[40:264, 10:234] = FACES[2]
    photograph[100:260, 300:460] = cv2.resize(FACES[3], (160, 160), interpolation=cv2.INTER_AREA)
    return photograph


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Class folders with splits: usable photographs, one of two people, one too small, and two that are of no use."""
    root = tmp_path_factory.mktemp("photos")
    write(root / "train/happy/1.jpg", FACES[0])
    write(root / "train/happy/2.png", FACES[1][..., 1].copy())
    write(root / "train/sad/couple.jpg", couple())
    speck = np.full((150, 150, 3), 128, np.uint8)
    speck[60:90, 60:90] = cv2.resize(FACES[0], (30, 30), interpolation=cv2.INTER_AREA)
    write(root / "val/sad/speck.png", speck)
    write(root / "val/happy/wall.jpg", np.full((200, 200, 3), 90, np.uint8))
    write(root / "test/sad/cut.jpg", FACES[4])
    write(root / "test/sad/100% #1.jpg", FACES[4])
    cut = (root / "test/sad/cut.jpg").read_bytes()
    (root / "test/sad/cut.jpg").write_bytes(cut[: len(cut) // 2])
    return root


@pytest.fixture(scope="module")
def aligned(source, tmp_path_factory):
    """The run folder, and what the stage returned."""
    run = tmp_path_factory.mktemp("run")
    return run, align.run(source, run, CONFIG)


def rows_of(run):
    manifest = read_manifest(run / "faces", "faces")
    tables = [pq.read_table(path) for path in data_files(run / "faces", manifest)]
    return {row["face_id"]: row for table in tables for row in table.to_pylist()}


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_photograph_has_a_row_that_says_what_became_of_it(aligned):
    rows = rows_of(aligned[0])
    told = {name: (row["status"], row["reason"], row["n_faces"]) for name, row in rows.items()}
    assert told == {
        "train/happy/1.jpg": ("found", None, 1),
        "train/happy/2.png": ("found", None, 1),
        "train/sad/couple.jpg": ("several faces", "largest of 2", 2),
        "val/sad/speck.png": ("too small", told["val/sad/speck.png"][1], 1),
        "val/happy/wall.jpg": ("no face", "none in 200 x 200 pixels", 0),
        "test/sad/cut.jpg": ("unreadable", "truncated", 0),
        "test/sad/100%25 %231.jpg": ("found", None, 1),
    }
    assert told["val/sad/speck.png"][1].endswith("pixels, less than 16")
    for row in rows.values():
        usable = row["status"] in ("found", "several faces")
        assert (row["image"] is not None) == (row["image_hash"] is not None) == (row["matrix"] is not None) == usable
        assert row["source_hash"] is not None


def test_sums_of_pixels_are_exact():
    rng = np.random.default_rng(0)
    small = [rng.integers(200, 256, (*rng.integers(1, 40, 2), 3), np.uint8) for _ in range(300)]
    for image in (*small, np.full((1500, 1500, 3), 255, np.uint8)):
        wide = image.reshape(-1, 3).astype(np.int64)
        assert align.pixel_sums(image).tolist() == [[len(wide)] * 3, wide.sum(0).tolist(), (wide**2).sum(0).tolist()]


def test_no_picture_is_decoded_twice(source, tmp_path, monkeypatch):
    """Also where the detector tries the photograph with a border and at other sizes."""
    opened, looks, stored = [], [], []
    open_image, look, decode = photos.Image.open, Detector._detect_as_is, align.decode_face
    monkeypatch.setattr(
        photos.Image, "open", lambda file, **known: opened.append(file.getvalue()) or open_image(file, **known)
    )
    monkeypatch.setattr(Detector, "_detect_as_is", lambda self, image: looks.append(1) or look(self, image))
    monkeypatch.setattr(align, "decode_face", lambda data: stored.append(data) or decode(data))
    result = align.run(source, tmp_path / "run", CONFIG)
    assert sorted(opened) == sorted(path.read_bytes() for path in source.rglob("*.*"))
    assert len(looks) > len(opened)
    assert len(stored) == result["faces"]


def test_summary_counts_what_the_table_holds(aligned, source):
    run, summary = aligned
    assert summary["images"] == 7
    assert summary["faces"] == 4
    assert summary["statuses"] == {"found": 3, "several faces": 1, "no face": 1, "too small": 1, "unreadable": 1}
    assert summary["splits"] == {"test": 1, "train": 3}
    assert summary["labels"] == {"happiness": 2, "sadness": 2}
    assert summary["unlabelled"] == 0
    assert summary["unreadable"] == {"truncated": 1}
    assert any("folders" in note for note in summary["notes"])


def test_the_landmarks_land_on_the_template(aligned):
    rows = rows_of(aligned[0])
    detector = Detector()
    for row in rows.values():
        if row["image"] is None:
            continue
        landmarks = np.array(row["landmarks"]).reshape(5, 2)
        matrix = np.array(row["matrix"]).reshape(2, 3)
        assert matrix == pytest.approx(similarity(landmarks, template(224)), abs=1e-3)
        seen = detector.detect(decode_face(row["image"]["bytes"]))[0].landmarks
        off = np.abs(seen - transform(matrix, landmarks))
        assert np.median(off) < 5  # 2 % of the crop: what the detector differs by when it sees another size
        assert off.max() < 14
        assert abs(seen[0, 1] - seen[1, 1]) < 7  # the eyes are level


def test_stored_faces_are_what_their_hash_says(aligned, source):
    for name, row in rows_of(aligned[0]).items():
        path = source / align.photo_of(name)
        assert row["source_hash"] == hash_image(path.read_bytes())
        if row["image"] is not None:
            assert row["image_hash"] == hash_image(row["image"]["bytes"])
            assert decode_face(row["image"]["bytes"]).shape == (224, 224, 3)


def test_colour_is_stored_without_subsampling_and_grey_with_one_channel(aligned):
    rows = rows_of(aligned[0])
    colour = Image.open(io.BytesIO(rows["train/happy/1.jpg"]["image"]["bytes"]))
    grey = Image.open(io.BytesIO(rows["train/happy/2.png"]["image"]["bytes"]))
    assert (colour.format, colour.mode) == ("JPEG", "RGB")
    assert [component[1:3] for component in colour.layer] == [(1, 1)] * 3
    assert grey.mode == "L"


def test_mean_and_std_are_those_of_the_training_faces(aligned):
    run, _ = aligned
    facts = read_manifest(run / "faces", "faces")["facts"]
    train = [
        decode_face(row["image"]["bytes"]) / 255
        for row in rows_of(run).values()
        if row["split"] == "train" and row["image"] is not None
    ]
    assert facts["mean"] == pytest.approx(np.stack(train).mean((0, 1, 2)).tolist())
    assert facts["std"] == pytest.approx(np.stack(train).std((0, 1, 2)).tolist())
    assert facts["mean_over"] == "train"


def test_the_artifact_is_whole_and_read_by_the_next_stage(aligned):
    folder = aligned[0] / "faces"
    manifest = read_manifest(folder, "faces")
    check_files(folder, manifest)
    assert manifest["settings"]["crop"] == 224
    assert "workers" not in manifest["settings"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*manifest["files"], "manifest.json", "manifest.blake2b"]
    )
    faces = read_faces(data_files(folder, manifest))
    assert faces.classes == ("happiness", "sadness")
    assert len(faces) == 7
    assert faces.usable.sum() == 4


def test_all_faces_of_a_photograph(source, tmp_path):
    summary = align.run(source, tmp_path, AlignConfig(keep="all", workers=2))
    rows = rows_of(tmp_path)
    couple = {name: row for name, row in rows.items() if "couple" in name}
    assert list(couple) == ["train/sad/couple.jpg", "train/sad/couple.jpg#1"]
    largest, further = couple.values()
    assert (largest["reason"], further["reason"]) == ("largest of 2", "largest but 1 of 2")
    assert largest["box"][2] < further["box"][0]
    assert largest["source_hash"] == further["source_hash"]
    assert largest["image_hash"] != further["image_hash"]
    assert (summary["images"], summary["faces"]) == (7, 5)


def raf_db_of_couples(root, boxes):
    """RAF-DB with the same photograph of two people twice, happy and sad, and a file of boxes for each."""
    for name in ("train_00001", "test_0001"):
        write(root / f"Image/original/{name}.jpg", couple())
    (root / "EmoLabel").mkdir()
    (root / "EmoLabel/list_patition_label.txt").write_text("train_00001.jpg 4\ntest_0001.jpg 5\n")
    (root / "Annotation/boundingbox").mkdir(parents=True)
    for name, box in boxes.items():
        (root / f"Annotation/boundingbox/{name}_boundingbox.txt").write_text(box)
    return root


def test_of_several_faces_the_one_in_the_data_sets_box_has_the_label(tmp_path):
    boxes = {"train_00001": "290.5 90.0 470.0 270.0", "test_0001": "0 30 240 270 "}
    source = raf_db_of_couples(tmp_path / "RAF", boxes)
    align.run(source, tmp_path / "run", AlignConfig(workers=1))
    right, left = rows_of(tmp_path / "run").values()
    assert (right["label"], right["reason"]) == (0, "largest but 1, in the box of the label, of 2")
    assert (left["label"], left["reason"]) == (1, "largest, in the box of the label, of 2")
    assert left["box"][2] < 240 < 290 < right["box"][0]

    align.run(source, tmp_path / "all", AlignConfig(keep="all", workers=1))
    rows = rows_of(tmp_path / "all")
    assert [row["label"] for row in rows.values()] == [0, None, 1, None]
    assert [row["box"][0] > 240 for row in rows.values()] == [True, False, False, True]


def test_a_face_elsewhere_than_the_data_sets_box_does_not_get_the_label(tmp_path):
    source = raf_db_of_couples(tmp_path / "RAF", {"train_00001": "235 0 295 60"})
    summary = align.run(source, tmp_path / "run", AlignConfig(workers=1))
    nobody, largest = rows_of(tmp_path / "run").values()
    assert (nobody["status"], nobody["reason"]) == ("no face", "none of 2 in the box of the label")
    assert (largest["status"], largest["reason"]) == ("several faces", "largest of 2")  # it has no box
    assert f"Without a box of the labelled face in {source / 'Annotation/boundingbox'}: 1 of 2." in summary["notes"]


def test_png_faces_are_what_was_cut(source, tmp_path):
    align.run(source, tmp_path, AlignConfig(encode="png", crop=96, workers=1))
    row = rows_of(tmp_path)["train/happy/1.jpg"]
    assert row["image"]["bytes"].startswith(b"\x89PNG")
    photograph = np.array(Image.open(source / "train/happy/1.jpg"))
    matrix = similarity(np.array(row["landmarks"]).reshape(5, 2), template(96))
    stored = decode_face(row["image"]["bytes"]).astype(int)
    assert np.abs(stored - align.cut(photograph, matrix, 96)).max() <= 1  # landmarks went through float32


def test_one_worker_writes_the_bytes_that_many_write(source, aligned, tmp_path):
    align.run(source, tmp_path, AlignConfig(workers=1, shard_faces=3))
    shards = {name: data for name, data in files_of(tmp_path / "faces").items() if name.endswith(".parquet")}
    others = files_of(aligned[0] / "faces")
    assert len(shards) == 3
    assert all(others[name] == data for name, data in shards.items())


@pytest.mark.parametrize("after", [1, 4])
def test_interrupted_equals_uninterrupted(source, aligned, tmp_path, monkeypatch, after):
    """Also: what an interruption leaves is not mistaken for a finished artifact, and whole shards are kept."""
    run = tmp_path / "run"
    plain, seen = align.Aligner.rows, []

    def interrupted(self, photo):
        seen.append(photo.file)
        if len(seen) > after:
            raise KeyboardInterrupt
        return plain(self, photo)

    monkeypatch.setattr(align.Aligner, "rows", interrupted)
    one_thread = AlignConfig(workers=1, shard_faces=3)
    with pytest.raises(KeyboardInterrupt):
        align.run(source, run, one_thread)
    with pytest.raises(FerError, match="is unfinished"):
        read_manifest(run / "faces", "faces")
    kept = after // 3
    assert len(list((run / "faces").glob("part-*.parquet"))) == kept

    seen.clear()
    monkeypatch.setattr(align.Aligner, "rows", lambda self, photo: seen.append(photo.file) or plain(self, photo))
    resumed = align.run(source, run, one_thread)
    assert len(seen) == 7 - 3 * kept
    whole = {**aligned[1], "folder": resumed["folder"], "seconds": resumed["seconds"]}
    assert resumed == whole
    ours, theirs = files_of(run / "faces"), files_of(aligned[0] / "faces")
    assert ours.keys() == theirs.keys()
    assert all(ours[name] == theirs[name] for name in ours if name.endswith(".parquet"))
    facts = [json.loads(files["manifest.json"])["facts"] for files in (ours, theirs)]
    assert facts[0] == facts[1]


def test_what_a_killed_run_leaves_is_cleared_away(source, tmp_path):
    align.run(source, tmp_path, CONFIG)
    folder = tmp_path / "faces"
    whole = files_of(folder)
    # as a kill in the middle of the last shard would leave it
    plan = json.loads(whole["manifest.json"])
    (folder / "manifest.json").unlink()
    (folder / "part-00002.parquet").unlink()
    (folder / ".part-00002.parquet.99.part").write_bytes(b"half")
    listed = {"settings": plan["settings"], "source": plan["made_from"]["source"]["digest"]}
    (folder / "plan.json").write_text(json.dumps(listed))
    align.run(source, tmp_path, CONFIG)
    assert files_of(folder) == whole


def test_a_finished_folder_is_not_aligned_again(source, aligned, monkeypatch):
    run, summary = aligned
    monkeypatch.setattr(align, "write_shards", None)
    again = align.run(source, run, AlignConfig(workers=1, shard_faces=3))
    assert {**again, "seconds": 0} == {**summary, "seconds": 0}


def test_other_settings_are_refused(source, aligned):
    run = aligned[0]
    with pytest.raises(FerError) as caught:
        align.run(source, run, AlignConfig(shard_faces=3, crop=112))
    assert str(caught.value) == (
        f"{run / 'faces'} was made with crop 224, not 112; choose another run folder, or start over with --replace"
    )


def test_other_photographs_are_refused_and_replaced_on_demand(source, tmp_path):
    photos, run = tmp_path / "photos", tmp_path / "run"
    shutil.copytree(source, photos)
    align.run(photos, run, CONFIG)
    (photos / "train/happy/1.jpg").unlink()
    with pytest.raises(FerError, match="from other photographs, labels or boxes of faces; choose another run folder"):
        align.run(photos, run, CONFIG)
    summary = align.run(photos, run, AlignConfig(crop=64), replace=True)
    assert summary["images"] == 6
    assert read_manifest(run / "faces", "faces")["settings"]["crop"] == 64
    assert len(list((run / "faces").glob("part-*"))) == 1
    assert {path.name for path in run.iterdir()} <= {"faces", ".align.lock"}


def test_faces_stay_until_others_have_taken_their_place(source, aligned, tmp_path, monkeypatch):
    run = shutil.copytree(aligned[0], tmp_path / "run")
    before = files_of(run / "faces")
    for k in range(3):
        write(tmp_path / f"walls/{'happy' if k else 'sad'}/{k}.png", np.full((99, 99, 3), 40 * k, np.uint8))
    with pytest.raises(FerError, match="gave a face"):
        align.run(tmp_path / "walls", run, CONFIG, replace=True)
    assert files_of(run / "faces") == before
    assert {path.name for path in run.iterdir()} <= {"faces", ".align.lock"}

    class Killed(BaseException):
        pass

    for step in (1, 2):  # either rename
        real, renamed = Path.rename, []

        def rename(path, target, real=real, renamed=renamed, step=step):
            renamed.append(path)
            if len(renamed) == step:
                raise Killed
            return real(path, target)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", rename)
            with pytest.raises(Killed):
                align.run(source, run, AlignConfig(crop=64 * step), replace=True)
        align.run(source, run, AlignConfig(crop=64 * step), replace=step == 1)
        assert read_manifest(run / "faces", "faces")["settings"]["crop"] == 64 * step
        assert {path.name for path in run.iterdir()} <= {"faces", ".align.lock"}


def test_faces_without_a_manifest_may_be_replaced(source, aligned, tmp_path):
    run = shutil.copytree(aligned[0], tmp_path / "run")
    (run / "faces" / "manifest.json").unlink()
    with pytest.raises(
        FerError, match=r"faces has faces but no manifest\.json; restore it, or start over with --replace"
    ):
        align.run(source, run, CONFIG)
    assert align.run(source, run, CONFIG, replace=True)["faces"] == 4


def test_names_that_are_not_utf_8(source, tmp_path):
    odd = tmp_path / os.fsdecode(b"odd\xff")
    shutil.copytree(source, odd)
    align.run(odd, tmp_path / "run", CONFIG)
    assert read_manifest(tmp_path / "run" / "faces", "faces")["made_from"]["source"]["path"] == "../../odd%FF"
    with pytest.raises(FerError, match=r"odd./run/faces is no UTF-8, the tables' text; give another folder"):
        align.run(source, odd / "run", CONFIG)


def test_a_source_may_move(source, aligned, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(source, moved)
    assert align.run(moved, aligned[0], CONFIG)["faces"] == 4


def test_a_folder_with_other_things_is_left_alone(source, tmp_path):
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "holiday.jpg").touch()
    with pytest.raises(FerError, match="holds 1 file of unknown origin, first holiday.jpg"):
        align.run(source, tmp_path, CONFIG)


def test_photographs_without_any_face_are_an_error_that_counts_them(tmp_path):
    for k in range(3):
        write(tmp_path / f"photos/{'happy' if k else 'sad'}/{k}.png", np.full((99, 99, 3), 40 * k, np.uint8))
    (tmp_path / "photos/sad/0.png").write_bytes(b"no picture")
    with pytest.raises(FerError, match=r"gave a face \(2 no face, 1 unreadable, most often: not an image\)"):
        align.run(tmp_path / "photos", tmp_path / "run", CONFIG)
    with pytest.raises(FerError, match="is unfinished"):
        read_manifest(tmp_path / "run/faces", "faces")


def test_a_source_without_training_faces_has_the_mean_of_all(tmp_path):
    write(tmp_path / "photos/test/happy/1.png", FACES[0])
    write(tmp_path / "photos/val/sad/1.png", FACES[1])
    align.run(tmp_path / "photos", tmp_path / "run", CONFIG)
    facts = read_manifest(tmp_path / "run/faces", "faces")["facts"]
    faces = np.stack([decode_face(row["image"]["bytes"]) / 255 for row in rows_of(tmp_path / "run").values()])
    assert facts["mean"] == pytest.approx(faces.mean((0, 1, 2)).tolist())
    assert facts["mean_over"] == "all splits"


def test_a_file_in_the_way_of_the_folder(source, tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(FerError, match="cannot be made: a file is in the way"):
        align.run(source, tmp_path / "run", CONFIG)


def test_opencv_keeps_its_threads(source, tmp_path):
    before = cv2.getNumThreads()
    align.run(source, tmp_path, CONFIG)
    assert cv2.getNumThreads() == before


@pytest.mark.slow
def test_hugging_face_opens_the_folder(aligned, tmp_path):
    datasets = pytest.importorskip("datasets")
    found = datasets.load_dataset(str(aligned[0] / "faces"), cache_dir=str(tmp_path))["train"]
    assert found.features["label"].names == ["happiness", "sadness"]
    by_id = {row["face_id"]: row for row in found}
    assert by_id["train/happy/1.jpg"]["image"].size == (224, 224)
    assert by_id["val/happy/wall.jpg"]["image"] is None


# --- names ------------------------------------------------------------------------------------------------------


def test_face_ids_by_hand():
    assert align.face_id("a/b c é.jpg") == "a/b c é.jpg"
    assert align.face_id("100%#\n\x7f.jpg", 2) == "100%25%23%0A%7F.jpg#2"
    assert align.face_id(os.fsdecode(b"caf\xe9.jpg")) == "caf%E9.jpg"
    assert align.face_id(os.fsdecode("caf\xe9.jpg".encode())) == "café.jpg"


@given(name=st.binary(min_size=1, max_size=20), further=st.integers(0, 3))
def test_a_face_id_leads_back_to_the_file(name, further):
    file = os.fsdecode(name)
    face = align.face_id(file, further)
    assert align.photo_of(face) == file
    assert face.encode("utf-8")  # text for any reader
    assert face.isprintable() or not any(ord(c) < 32 or ord(c) == 127 for c in face)


def test_names_that_are_not_utf8_pass_through(tmp_path):
    folder = os.fsencode(tmp_path / "photos/happy")
    os.makedirs(folder)
    write(tmp_path / "photos/sad/1.png", FACES[1])
    write(tmp_path / "photos/happy/1.png", FACES[0])
    os.rename(os.path.join(folder, b"1.png"), os.path.join(folder, b"caf\xe9.png"))
    align.run(tmp_path / "photos", tmp_path / "run", CONFIG)
    rows = rows_of(tmp_path / "run")
    assert set(rows) == {"happy/caf%E9.png", "sad/1.png"}
    assert rows["happy/caf%E9.png"]["source"] == "happy/caf%E9.png"
    assert all(row["status"] == "found" for row in rows.values())


# --- cutting ----------------------------------------------------------------------------------------------------


def smooth(height, width, coarse=1):
    """A pattern given by a formula of continuous coordinates, and that formula."""

    def value(x, y):
        return 128 + 60 * np.sin(x / 9 / coarse) + 50 * np.cos(y / 7 / coarse)

    y, x = np.mgrid[:height, :width] + 0.5
    return np.repeat(np.rint(value(x, y))[..., np.newaxis], 3, axis=2).astype(np.uint8), value


def test_a_second_align_into_the_same_folder_waits_for_nobody(source, tmp_path):
    with FileLock(tmp_path / ".align.lock"), pytest.raises(FerError, match="another fer align is writing"):
        align.run(source, tmp_path, CONFIG)


def test_a_damaged_shard_of_an_unfinished_folder_is_made_again(source, aligned, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(align, "finish", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        align.run(source, tmp_path, CONFIG)
    monkeypatch.undo()
    shard = tmp_path / "faces/part-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    align.run(source, tmp_path, CONFIG)
    assert f"{shard} is damaged and is made again" in caplog.text
    assert shard.read_bytes() == (aligned[0] / "faces/part-00001.parquet").read_bytes()


@pytest.mark.parametrize("scale", [5.0, 1.7, 1.0, 0.8, 0.45])
@pytest.mark.parametrize("angle", [0.0, 0.4, -2.0])
def test_cut_shows_what_the_matrix_says(scale, angle):
    """Pixel centres of the crop, taken back by the matrix, hold the pattern's value: no shift of half a pixel."""
    image, value = smooth(400, 500)
    crop = 80
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.column_stack([turn, crop / 2 - turn @ (250.3, 199.8)])
    y, x = np.mgrid[:crop, :crop] + 0.5
    back = transform(cv2.invertAffineTransform(matrix), np.column_stack([x.ravel(), y.ravel()]))
    expected = value(*back.T).reshape(crop, crop)
    assert np.abs(align.cut(image, matrix, crop)[..., 0] - expected).max() < (3 if scale >= 1 else 6)


@pytest.mark.parametrize("factor", [5.9, 6.1, 11.3, 30.7])
def test_a_large_photograph_is_cut_where_its_matrix_says(factor):
    """Its squares of pixels, averaged first, shift nothing, whatever of it they leave out."""
    crop = 80
    height, width = int(1.3 * crop * factor), int(1.2 * crop * factor)
    image, value = smooth(height, width, coarse=factor)
    turn = np.array([[np.cos(0.1), -np.sin(0.1)], [np.sin(0.1), np.cos(0.1)]]) / factor
    matrix = np.column_stack([turn, crop / 2 - turn @ (width / 2 + 0.3, height / 2 - 0.2)])
    y, x = np.mgrid[:crop, :crop] + 0.5
    back = transform(cv2.invertAffineTransform(matrix), np.column_stack([x.ravel(), y.ravel()]))
    expected = value(*back.T).reshape(crop, crop)
    assert np.abs(align.cut(image, matrix, crop)[..., 0] - expected).max() < 2


@pytest.mark.parametrize("scale", [0.4, 0.9, 1.0, 2.3])
def test_a_grey_photograph_is_cut_as_a_coloured_one_channel_by_channel(scale):
    image = np.random.default_rng(5).integers(0, 256, (150, 120, 3), np.uint8)
    matrix = np.array([[scale, -0.2, 7.0], [0.2, scale, -11.0]])
    coloured = align.cut(image, matrix, 80)
    for channel in range(3):
        grey = align.cut(np.repeat(image[..., channel : channel + 1], 3, 2), matrix, 80)
        np.testing.assert_array_equal(grey, np.repeat(coloured[..., channel : channel + 1], 3, 2))


def test_cut_does_not_alias_when_it_shrinks():
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8)
    matrix = np.array([[0.125, 0, 0], [0, 0.125, 0]])
    means = noise.reshape(75, 8, 75, 8, 3).mean((1, 3))
    assert np.abs(align.cut(noise, matrix, 75) - means).max() < 2


def test_cut_goes_on_with_the_edge_outside_the_photograph():
    image = np.full((50, 50, 3), 10, np.uint8)
    image[:, -1] = 200
    matrix = np.array([[1.0, 0, -30], [0, 1, 0]])
    found = align.cut(image, matrix, 50)
    assert (found[:, 25:] == 200).all()
    assert (found[:, :15] == 10).all()
