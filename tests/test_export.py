"""`fer export`: the same answers as torch, from a file that explains itself to onnxruntime alone."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import CLASSES, write_faces
from PIL import Image
from test_evaluate import write_model
from test_teach_distill import fer, refused
from torch import nn

from efficientface import FerError
from efficientface.data.geometry import template
from efficientface.pipeline import explain, export, quantise
from efficientface.pipeline.artifact import digest_of
from efficientface.pipeline.checkpoint import load_model

EXAMPLE = Path(__file__).parent.parent / "examples" / "onnx_only.py"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A student of a run, its ONNX file, and what the command said."""
    run = tmp_path_factory.mktemp("export") / "run"
    write_faces(run)
    model = write_model(run, run / "students" / "ldl")
    result = fer("export", model, run / "ldl.onnx", "--json")
    assert result.exit_code == 0, result.output
    return model, run / "ldl.onnx", json.loads(result.stdout)


def test_it_was_compared_with_torch_on_the_runs_faces(exported):
    model, file, told = exported
    # those of the first of two shards
    assert told["compared on"] == f"31 aligned faces of {model.parent.parent}/faces"
    assert told["largest difference"] < 1e-5
    assert told["same expression"] == "31 of 31"
    assert told["bytes"] == file.stat().st_size
    assert not list(file.parent.glob(".*"))


@pytest.mark.parametrize("count", [1, 7])
def test_any_number_of_faces_as_torch_answers(exported, count):
    model, file, _ = exported
    images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))
    network, _ = load_model(model)
    with torch.no_grad():
        expected = network(images).softmax(1).numpy()
    session = onnxruntime.InferenceSession(file)
    np.testing.assert_allclose(session.run(["probabilities"], {"faces": images.numpy()})[0], expected, atol=1e-5)


def test_the_file_says_what_it_is(exported):
    model, file, told = exported
    about = onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == list(CLASSES)
    assert (json.loads(about["size"]), json.loads(about["mean"]), json.loads(about["std"])) == (
        32,
        [0.4] * 3,
        [0.25] * 3,
    )
    assert (about["format"], about["version"], about["model"]) == ("efficientface onnx", "1", digest_of(model))
    alignment = json.loads(about["alignment"])
    assert (alignment["crop"], alignment["min_face"]) == (64, 16)
    np.testing.assert_allclose(alignment["landmarks"], template(64), atol=1e-3)
    written = onnx.load(file)
    onnx.checker.check_model(written, full_check=True)
    assert written.opset_import[0].version == told["opset"] == 18


def test_the_example_needs_no_torch(exported, tmp_path):
    """In a process in which importing torch fails, and this package too."""
    model, file, _ = exported
    face = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(face).save(tmp_path / "face.png")
    code = (
        "import runpy, sys\n"
        "sys.modules['torch'] = sys.modules['efficientface'] = None\n"
        "runpy.run_path(sys.argv.pop(1), run_name='__main__')\n"
    )
    command = [sys.executable, "-c", code, EXAMPLE, file, tmp_path / "face.png"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    network, _ = load_model(model)
    images = (torch.from_numpy(face).permute(2, 0, 1)[None] / 255 - 0.4) / 0.25
    with torch.no_grad():
        expected = network(images).softmax(1)[0].tolist()
    said = json.loads(line)
    assert [said[name] for name in CLASSES] == pytest.approx(expected, abs=1e-5)


def test_the_example_refuses_the_file_of_another_version(exported, tmp_path):
    _, file, _ = exported
    other = onnx.load(file)
    next(entry for entry in other.metadata_props if entry.key == "version").value = "2"
    onnx.save(other, tmp_path / "other.onnx")
    done = subprocess.run([sys.executable, EXAMPLE, tmp_path / "other.onnx"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"{tmp_path}/other.onnx is efficientface onnx 2, not efficientface onnx 1\n"


def test_torchscript_answers_as_torch_and_says_what_it_is(exported, tmp_path):
    model, _, _ = exported
    result = fer("export", model, tmp_path / "a.pt", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["same expression"], told["weights"]) == ("31 of 31", "fp32")
    assert told["largest difference"] < 1e-6
    extra = {export.EXTRA: ""}
    loaded = torch.jit.load(str(tmp_path / "a.pt"), _extra_files=extra)
    about = json.loads(extra[export.EXTRA])
    assert (about["format"], about["version"], json.loads(about["classes"])) == (
        "efficientface torchscript",
        "1",
        list(CLASSES),
    )
    network, _ = load_model(model)
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        np.testing.assert_allclose(loaded(images), network(images).softmax(1), atol=1e-6)


# --- int8 -----------------------------------------------------------------------------------------------------


def judgement(fp32=0.8, int8=0.8, alike=0.99, faster=1.5):
    """As quantise.compared measures it."""
    return {
        "fp32": {"accuracy": fp32, "same_expression": 1.0, "faces_per_second": 100.0, "bytes": 4},
        "int8": {"accuracy": int8, "same_expression": alike, "faces_per_second": 100.0 * faster, "bytes": 1},
    }


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (judgement(int8=0.795), None),
        (judgement(int8=0.785), "its accuracy is 78.5%, fp32's 80.0%, and it may lose 1%"),
        (judgement(alike=0.9), "it gives fp32's expression to 90.0%, and 95% are wanted"),
        (judgement(faster=0.9), "it is not faster: 90 faces a second here, fp32 100"),
    ],
)
def test_int8_pays_where_it_is_as_good_and_faster(found, reason):
    assert quantise.objection(**found) == reason


def test_int8_is_judged_by_labelled_faces_of_the_run(exported):
    model, file, _ = exported
    _, config = load_model(model)
    train, judged, labels, split = quantise.run_faces(model, {**config, "classes": ["sadness", "neutral", "happiness"]})
    assert (train.shape, judged.shape, split) == ((36, 3, 32, 32), (12, 3, 32, 32), "test")
    assert (
        labels.tolist() == [1, 2, 0] * 4
    )  # neutral, happiness, sadness in turn, by their places in the model's classes
    found = quantise.compared({"fp32": file.read_bytes()}, judged, labels)["fp32"]
    network, _ = load_model(model)
    with torch.no_grad():
        expected = (network(torch.from_numpy(judged)).argmax(1).numpy() == labels).mean()
    assert found["accuracy"] == pytest.approx(expected)
    assert found["faces_per_second"] > 0


def test_int8_is_written_where_it_pays_and_not_otherwise_unless_forced(exported, tmp_path, monkeypatch):
    model, file, _ = exported
    out = tmp_path / "small.onnx"
    monkeypatch.setattr(export, "converted", lambda *_: file.read_bytes())  # a test's seconds
    monkeypatch.setattr(quantise, "compared", lambda *_: judgement(int8=0.5))
    assert refused(fer("export", model, out, "--int8")) == (
        "int8 does not pay: on 12 test faces its accuracy is 50.0%, fp32's 80.0%, and it may lose 1%; nothing was "
        "written, --force would write it"
    )
    assert not list(tmp_path.iterdir())
    result = fer("export", model, out, "--int8", "--force", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["weights"], told["calibrated on"], told["judged on"]) == ("int8", "36 train faces", "12 test faces")
    assert told["does not pay"].startswith("its accuracy is 50.0%")
    assert (told["fp32"], told["int8"]) == tuple(judgement(int8=0.5).values())
    assert told["bytes"] == out.stat().st_size < file.stat().st_size / 2
    small = onnx.load(out)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in small.graph.node}
    before, after = (onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map for path in (file, out))
    assert before.items() <= after.items()
    answers = onnxruntime.InferenceSession(out).run(None, {"faces": np.zeros((5, 3, 32, 32), np.float32)})[0]
    np.testing.assert_allclose(answers.sum(1), 1, atol=1e-5)


def test_int8_needs_the_faces_of_the_run(tmp_path):
    model = write_model(None, tmp_path / "alone", made_from={})
    assert refused(fer("export", model, tmp_path / "a.onnx", "--int8")) == (
        f"--int8 needs faces to calibrate by, and those that {model} learned from are not there"
    )


# --- maps ------------------------------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 5, stride=5), nn.ReLU())
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))


def test_maps_are_those_of_fer_explain_for_every_class(exported, tmp_path):
    model, _, _ = exported
    torch.manual_seed(0)
    network, other = Small().eval(), Small().eval()
    images = torch.randn(4, 3, 15, 20)
    config = {"arch": "small", "classes": list(CLASSES), "size": 20, "mean": [0.4] * 3, "std": [0.25] * 3}
    file = tmp_path / "small.onnx"
    file.write_bytes(export.converted(export.WithMaps(network), config, images[:2], model, False))
    probabilities, maps = onnxruntime.InferenceSession(file).run(["probabilities", "maps"], {"faces": images.numpy()})
    assert maps.shape == (4, 3, 3, 4)
    for label in range(3):
        expected, logits, method = explain.class_maps(network, images, [label] * 4)
        assert method == "CAM"
        np.testing.assert_allclose(maps[:, label], expected.numpy(), atol=1e-5)
        np.testing.assert_allclose(probabilities, logits.softmax(1).numpy(), atol=1e-6)
    assert export.compared_maps(file, export.WithMaps(network), images) < 1e-5
    assert export.compared_maps(file, export.WithMaps(other), images) > export.LIMIT


def test_half_precision_halves_the_weights(exported):
    model, file, _ = exported
    graph = onnx.load(file).graph
    before = {weights.name: onnx.numpy_helper.to_array(weights) for weights in graph.initializer}
    export.halve(graph)
    for weights in graph.initializer:
        stored = onnx.numpy_helper.to_array(weights)
        assert stored.dtype != np.float32
        if stored.dtype == np.float16:
            np.testing.assert_array_equal(stored, before[weights.name.removesuffix(".half")].astype(np.float16))
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    half = onnxruntime.InferenceSession(proto.SerializeToString())
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    found, whole = (one.run(None, {"faces": images})[0] for one in (half, onnxruntime.InferenceSession(file)))
    assert 0 < abs(found - whole).max() < export.HALF_LIMIT


def test_without_the_run_random_pictures_are_compared(exported, tmp_path):
    model = write_model(None, tmp_path / "alone", made_from={})
    _, config = load_model(model)
    images, kind = export.pictures(model, config)
    assert kind == "random pictures"
    assert images.shape == (64, 3, 32, 32)


def test_what_answers_otherwise_is_not_kept(exported, tmp_path, monkeypatch):
    model, file, _ = exported
    monkeypatch.setattr(export, "converted", lambda *_: file.read_bytes())
    monkeypatch.setattr(export, "compared", lambda *_: (float("nan"), 0))
    with pytest.raises(FerError) as error:
        export.run(model, tmp_path / "a.onnx")
    assert str(error.value) == (
        f"{model} answers otherwise as ONNX: a probability differs by nan, more than 0.0001; nothing was written"
    )
    assert not list(tmp_path.iterdir())


def test_the_comparison_sees_another_model(exported, tmp_path):
    _, file, _ = exported
    network, _ = load_model(write_model(None, tmp_path / "of another name", made_from={}))
    asked = export.onnx_answers(file)
    difference, _ = export.compared(asked, torch.nn.Sequential(network, torch.nn.Softmax(1)), torch.randn(3, 3, 32, 32))
    assert difference > export.LIMIT


def test_what_cannot_be_done_is_said(exported, tmp_path, monkeypatch):
    model, file, _ = exported
    assert refused(fer("export", model, file)) == f"{file} exists; remove it, or give another name"
    (tmp_path / "folder.onnx").mkdir()
    assert refused(fer("export", model, tmp_path / "folder.onnx")) == (
        f"{tmp_path}/folder.onnx exists; remove it, or give another name"
    )
    (tmp_path / "folder.onnx").rmdir()
    assert refused(fer("export", model, tmp_path / "a.pt2")) == (
        f"{tmp_path}/a.pt2 does not end in .onnx or .pt; give a file's name such as student.onnx"
    )
    assert refused(fer("export", model, tmp_path / "a.pt", "--fp16")) == (
        "--fp16, --int8 and --maps are about ONNX; give a name that ends in .onnx, or leave them out"
    )
    assert refused(fer("export", model, tmp_path / "a.onnx", "--fp16", "--int8")) == (
        "--fp16 and --int8 each say how numbers are stored; give one of them"
    )
    assert refused(fer("export", model, tmp_path / "a.onnx", "--force")) == "--force is about --int8; leave it out"
    assert refused(fer("export", model, tmp_path / "no" / "a.onnx")) == (
        f"{tmp_path}/no does not exist; make that folder first, or write the model elsewhere"
    )
    assert refused(fer("export", model.parent, tmp_path / "a.onnx")) == (
        f"{model.parent} holds no finished model; give a folder that fer teach, fer distill or fer import wrote"
    )
    # at 32 pixels the network's last features have one place
    assert refused(fer("export", model, tmp_path / "a.onnx", "--maps")) == (
        f"{model} has no class activation maps to export: they need a network that ends in the mean of a map of more "
        "than one place and one linear layer; leave --maps out"
    )
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert refused(fer("export", model, tmp_path / "a.onnx")) == (
        "fer export needs onnxscript; pip install 'efficientface[export]'"
    )
    assert not list(tmp_path.iterdir())
