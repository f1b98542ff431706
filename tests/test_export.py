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
from efficientface.pipeline import explain, export
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
    difference, _ = export.compared(file, torch.nn.Sequential(network, torch.nn.Softmax(1)), torch.randn(3, 3, 32, 32))
    assert difference > export.LIMIT


def test_what_cannot_be_done_is_said(exported, tmp_path, monkeypatch):
    model, file, _ = exported
    assert refused(fer("export", model, file)) == f"{file} exists; remove it, or give another name"
    assert refused(fer("export", model, tmp_path / "a.pt")) == (
        f"{tmp_path}/a.pt does not end in .onnx; give a file's name such as student.onnx"
    )
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
        "fer export needs onnx and onnxscript; pip install 'efficientface[export]'"
    )
    assert not list(tmp_path.iterdir())
