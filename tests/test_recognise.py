"""`fer predict` and the Recognizer: a row a face, the same answers as elsewhere, tables that hold them all."""

import csv
import json
import math
import os
import subprocess
import sys

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from conftest import CLASSES, write_faces
from PIL import Image
from test_evaluate import write_model
from test_teach_distill import fer, refused

from efficientface import Face, FerError, Recognizer
from efficientface.cli import cli
from efficientface.data.drawn import draw_face
from efficientface.data.faces import decode_face
from efficientface.data.photos import PhotoFiles
from efficientface.pipeline import recognise
from efficientface.pipeline.align import aligner_as
from efficientface.pipeline.artifact import write_manifest
from efficientface.pipeline.checkpoint import load_model
from efficientface.pipeline.photographs import Photo


def drawn(seed):
    return draw_face(np.eye(7)[seed % 7], np.random.default_rng(seed))


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A student of faces that were aligned in an unusual way."""
    run = tmp_path_factory.mktemp("recognise") / "run"
    write_faces(run)
    write_model(run, run / "students" / "ldl")
    return run


@pytest.fixture(scope="module")
def model(run):
    return run / "students" / "ldl"


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    save(folder / "=1+1.png", drawn(3))
    save(folder / "sub" / "pair.png", np.hstack([drawn(1), drawn(2)]))
    save(folder / "wall.png", np.zeros((80, 80, 3), np.uint8))
    (folder / "torn.jpg").write_bytes(b"no picture")
    return folder


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_photograph_has_rows_and_every_face_its_distribution(photos, model, tmp_path):
    result = fer("predict", photos, "--model", model, "--out", tmp_path / "a.jsonl", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["statuses"] == {"found": 1, "several faces": 2, "no face": 1, "unreadable": 1}
    assert (told["photographs"], told["faces"], sum(told["expressions"].values())) == (4, 3, 3)
    rows = rows_of(tmp_path / "a.jsonl")
    assert [(row["photo"], row["face"], row["status"]) for row in rows] == [
        ("=1+1.png", 0, "found"),
        ("sub/pair.png", 0, "several faces"),
        ("sub/pair.png", 1, "several faces"),
        ("torn.jpg", None, "unreadable"),
        ("wall.png", None, "no face"),
    ]
    for row in rows[:3]:
        p = row["distribution"]
        assert list(p) == list(CLASSES)
        assert sum(p.values()) == pytest.approx(1, abs=1e-6)
        assert row["expression"] == max(p, key=p.get)
        assert row["entropy"] == pytest.approx(-sum(q * math.log(q) for q in p.values()), abs=1e-6)
        assert (len(row["box"]), len(row["landmarks"])) == (4, 10)
    assert all(row["distribution"] is row["expression"] is row["box"] is None for row in rows[3:])
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "photos"]


def test_answers_are_the_models_about_faces_aligned_as_its_own(photos, run, model, tmp_path):
    """By hand: the aligner of fer align with the run's 64 pixels, the network, softmax."""
    row = aligner_as({"crop": 64}, PhotoFiles(photos)).rows(Photo("", "=1+1.png", None, {}))[0]
    face = decode_face(row["image"]["bytes"])
    assert face.shape == (64, 64, 3)
    pixels = torch.from_numpy(face).permute(2, 0, 1)[None].float()
    small = torch.nn.functional.interpolate(pixels, (32, 32), mode="bilinear", antialias=True).round()
    network, _ = load_model(model)
    with torch.no_grad():
        expected = network((small / 255 - 0.4) / 0.25).softmax(1)[0]
    assert fer("predict", photos / "=1+1.png", "--model", model, "--out", tmp_path / "a.jsonl").exit_code == 0
    found = rows_of(tmp_path / "a.jsonl")[0]
    np.testing.assert_allclose(list(found["distribution"].values()), expected, atol=1e-3)
    words = ("--image", photos / "=1+1.png", "--out", tmp_path / "a.png", "--json")
    explained = json.loads(fer("explain", run, "--names", "ldl", *words).stdout)["faces"][0]
    assert explained["distribution"] == pytest.approx(found["distribution"], abs=1e-6)


def test_the_three_tables_say_the_same(photos, model, tmp_path):
    for kind in ("jsonl", "csv", "parquet"):
        assert fer("predict", photos, "--model", model, "--out", tmp_path / f"a.{kind}").exit_code == 0
    rows = rows_of(tmp_path / "a.jsonl")
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.schema.names == [*recognise.COLUMNS, *CLASSES]
    about = json.loads(table.schema.metadata[b"efficientface"])
    assert (about["format"], about["version"], about["classes"]) == ("efficientface predictions", 1, list(CLASSES))
    with open(tmp_path / "a.csv", newline="") as file:
        cells = list(csv.DictReader(file))
    for row, stored, cell in zip(rows, table.to_pylist(), cells, strict=True):
        p = row.pop("distribution") or dict.fromkeys(CLASSES)
        assert cell["photo"] == ("'=1+1.png" if row["photo"] == "=1+1.png" else row["photo"])
        for name, value in {**row, **p}.items():
            assert stored[name] == (pytest.approx(value, rel=1e-6) if isinstance(value, float | list) else value), name
            text = "" if value is None else json.dumps(value) if isinstance(value, list) else str(value)
            assert cell[name] == text or name == "photo", name
    printed = fer("predict", photos, "--model", model, "--csv")
    assert printed.stdout == (tmp_path / "a.csv").read_text()


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@a", "\t=1", "\r=1"])
def test_no_text_in_a_csv_is_a_formula(text):
    row = dict.fromkeys(recognise.COLUMNS) | {"photo": text, "score": -1.5, "distribution": {text: 0.5}}
    cells = next(recognise.csv_rows([row]))
    assert cells["photo"] == f"'{text}"
    assert cells["score"] == -1.5
    assert f"'{text}" in cells


def test_a_list_counts_from_its_folder_and_standard_input_from_here(photos, model, tmp_path, monkeypatch):
    listing = photos / "list.txt"
    listing.write_bytes(b"\xef\xbb\xbfsub/pair.png\r\n\nmissing-\xff.png\n")

    def read(source, text=None):
        words = ["predict", str(source), "--model", str(model), "--keep", "largest", "--json"]
        result = CliRunner().invoke(cli, words, input=text)
        assert result.exit_code == 0, result.output
        return [(row["photo"], row["status"], row["reason"]) for row in json.loads(result.stdout)["rows"]]

    expected = [
        ("sub/pair.png", "several faces", "largest of 2"),
        ("missing-%FF.png", "unreadable", "does not exist"),
    ]
    assert read(listing) == expected
    monkeypatch.chdir(photos)
    assert read("-", listing.read_bytes()) == expected


def test_interrupted_it_goes_on_and_ends_the_same(photos, model, tmp_path, monkeypatch):
    words = ("predict", photos, "--model", model, "--out")
    assert fer(*words, tmp_path / "whole.jsonl").exit_code == 0
    out = tmp_path / "a.jsonl"
    monkeypatch.setattr(recognise, "BATCH", 1)
    asked = []
    lines = Recognizer.lines

    def killed(self, photographs):
        asked.append(photographs)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return lines(self, photographs)

    with monkeypatch.context() as patch:
        patch.setattr(Recognizer, "lines", killed)
        assert fer(*words, out).exit_code != 0
    assert not out.exists()
    journal = tmp_path / ".a.jsonl.begun"
    with journal.open("a") as file:
        file.write("\n[2, [{")  # cut off in the middle of a line
    asked.clear()
    monkeypatch.setattr(Recognizer, "lines", lambda self, found: asked.append(found) or lines(self, found))
    assert fer(*words, out).exit_code == 0
    assert [found[0][0]["source"] for found in asked] == ["torn.jpg", "wall.png"]
    whole = rows_of(tmp_path / "whole.jsonl")
    for row, expected in zip(rows_of(out), whole, strict=True):
        p, q = row.pop("distribution"), expected.pop("distribution")
        assert (p is None) == (q is None)
        assert p is None or p == pytest.approx(q, abs=1e-6)
        assert {**row, "entropy": None} == {**expected, "entropy": None}
    assert not journal.exists()


def test_what_was_begun_otherwise_is_not_gone_on_with(tmp_path):
    first = recognise.Journal(tmp_path / "a.csv", "one")
    assert first.read() == {}
    first.add([4], [[{"photo": "x"}]])
    assert recognise.Journal(tmp_path / "a.csv", "one").read() == {4: [{"photo": "x"}]}
    assert recognise.Journal(tmp_path / "a.csv", "two").read() == {}
    assert first.read() == {}


def test_boxes_and_bars_are_drawn_on_copies(photos, model, tmp_path):
    seen = tmp_path / "seen"
    assert fer("predict", photos, "--model", model, "--annotate", seen).exit_code == 0
    assert sorted(os.listdir(seen)) == ["000001-_1_1.jpg", "000002-pair.jpg", "000004-wall.jpg"]
    with Image.open(seen / "000002-pair.jpg") as picture:
        assert picture.width == 800
        top = np.asarray(picture)[:400].astype(int)
    blue = (abs(top - (0x4C, 0x9B, 0xE8)).sum(2) < 60).sum()
    assert blue > 500  # the first box; drawn faces have no such colour all along a line
    with Image.open(seen / "000004-wall.jpg") as picture:
        assert picture.size == (800, 800)  # nothing below: nobody was asked about


def test_one_photograph_may_become_one_picture(photos, model, tmp_path):
    result = fer("predict", photos / "wall.png", "--model", model, "--annotate", tmp_path / "seen.png")
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "seen.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (800, 800))


def test_names_of_copies_cannot_lead_elsewhere():
    assert recognise.safe("../../etc/passwd.png") == "passwd"
    assert recognise.safe("a/" + "x" * 300 + ".png") == "x" * 40
    assert recognise.safe("..\\x\0y.png") == ".._x_00y"


def test_from_python(photos, model):
    recognizer = Recognizer.load(str(model))
    assert recognizer.classes == CLASSES
    image = np.hstack([drawn(1), drawn(2)])
    faces = recognizer(image)
    assert len(faces) == 2
    assert all(isinstance(face, Face) for face in faces)
    rows = json.loads(fer("predict", photos / "sub" / "pair.png", "--model", model, "--json").stdout)["rows"]
    for face, row in zip(faces, rows, strict=True):
        assert face.distribution == pytest.approx(row["distribution"], abs=1e-6)
        assert np.asarray(face.landmarks).shape == (5, 2)
        assert np.ravel(face.landmarks).tolist() == row["landmarks"]
        assert (list(face.box), face.score, face.expression) == (row["box"], row["score"], row["expression"])
    with pytest.raises(AttributeError):
        faces[0].score = 1.0
    assert len(Recognizer.load(model, keep="largest")(image)) == 1
    assert recognizer(np.zeros((80, 80, 3), np.uint8)) == ()
    with pytest.raises(ValueError, match=r"an image is \(H, W, 3\) uint8 RGB, not \(4, 4\) float64"):
        recognizer(np.zeros((4, 4)))


def test_a_model_of_aligned_images_takes_images_as_they_are(tmp_path):
    write_faces(tmp_path / "run")
    manifest = tmp_path / "run" / "faces" / "manifest.json"
    told = json.loads(manifest.read_text())
    about = {name: told[name] for name in ("classes", "made_from", "facts")}
    write_manifest(
        tmp_path / "run" / "faces",
        "faces",
        files=list(told["files"]),
        settings={"crop": 64, "aligned": True, "encode": "png"},
        **about,
    )
    model = write_model(tmp_path / "run", tmp_path / "run" / "students" / "ldl")
    (face,) = Recognizer.load(model)(np.zeros((80, 80, 3), np.uint8))
    assert face.box is face.landmarks is face.score is None
    assert sum(face.distribution.values()) == pytest.approx(1)


def test_without_the_faces_it_learned_from_the_defaults_are_taken_aloud(run, tmp_path, caplog):
    model = write_model(run, tmp_path / "alone", made_from={})
    with caplog.at_level("INFO"):
        assert Recognizer.load(model).aligner.config.crop == 224
    assert caplog.messages == [
        f"{model}: the faces that it learned from are not there; aligning by fer align's defaults"
    ]
    # others in the same place are not taken for them
    other = write_model(run, tmp_path / "other", made_from={"faces": {"path": "../run/faces", "manifest": "0"}})
    assert recognise.faces_learned_from(other) is None


def test_python_runs_the_package_as_the_command():
    done = subprocess.run([sys.executable, "-m", "efficientface", "--version"], capture_output=True, text=True)
    assert done.stdout.startswith("fer, version "), done.stderr


def test_importing_the_package_imports_no_torch():
    code = (
        "import sys, efficientface\n"
        "assert not {'torch', 'cv2', 'numpy'} & set(sys.modules)\n"
        "from efficientface import Recognizer\n"
        "assert 'torch' in sys.modules and Recognizer.__name__ == 'Recognizer'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_cannot_be_done_is_said(photos, run, model, tmp_path):
    words = ("--model", model)
    assert refused(fer("predict", tmp_path / "no", *words)) == (
        f"{tmp_path}/no does not exist; "
        "give a photograph, a folder of them, a list (.txt), - for paths, a video, or camera:0"
    )
    (tmp_path / "odd.txt").write_bytes(bytes(20))
    assert refused(fer("predict", tmp_path / "odd.txt", *words)) == (
        f"{tmp_path}/odd.txt is no list: it holds bytes that no path has; write the path of a photograph on each line"
    )
    (tmp_path / "empty.txt").write_text("\n \n")
    assert refused(fer("predict", tmp_path / "empty.txt", *words)) == (
        f"{tmp_path}/empty.txt names no photographs; write the path of one on each line"
    )
    assert refused(fer("predict", photos, *words, "--out", tmp_path / "a.xlsx")) == (
        f"--out {tmp_path}/a.xlsx does not end in .jsonl, .csv or .parquet; give a table's name"
    )
    assert refused(fer("predict", photos, *words, "--out", tmp_path / "no" / "a.csv")) == (
        f"{tmp_path}/no does not exist; make that folder first, or write the table elsewhere"
    )
    assert refused(fer("predict", photos, *words, "--annotate", photos / "seen")) == (
        f"--annotate {photos}/seen lies in {photos}, whose photographs are read; give another folder"
    )
    assert not (photos / "seen").exists()
    assert refused(fer("predict", photos, *words, "--annotate", tmp_path / "seen.png")) == (
        f"--annotate {tmp_path}/seen.png is one picture; give a folder for those of {photos}"
    )
    assert refused(fer("predict", photos, *words, "--smooth", 0.5)) == (
        f"--track and --smooth are about videos and cameras, and {photos} is none; leave them out"
    )
    assert refused(fer("predict", photos, *words, "--workers", -1)) == (
        "--workers -1 is out of range; give a number from 0 to 1024"
    )
    assert refused(fer("predict", photos, "--model", run)) == (
        f"{run} holds no finished model; give a folder that fer teach, fer distill or fer import wrote"
    )
    assert refused(fer("predict", photos, "--model", photos / "wall.png")) == (
        f"{photos}/wall.png is a file; give the model's folder (exported files are asked by examples/onnx_only.py)"
    )
    odd = write_model(run, tmp_path / "odd", classes=("neutral", "score", "sadness"), made_from={})
    assert refused(fer("predict", photos, "--model", odd)) == (
        f"{odd} has a class called score, as a column of the table is; rename it and train again"
    )
    with pytest.raises(FerError, match="holds no images"):
        recognise.photographs(str(run / "students"))
