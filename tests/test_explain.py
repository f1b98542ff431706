"""Maps against their formulas, faces from anywhere, and pictures that read no text as anything else."""

import csv
import io
import json

import cv2
import numpy as np
import pytest
import torch
import torchvision
from conftest import CLASSES, write_faces
from matplotlib.axes import Axes
from PIL import Image
from test_evaluate import write_model
from test_teach_distill import fer, refused
from torch import nn

from efficientface.data.drawn import draw_face
from efficientface.models import build
from efficientface.pipeline import explain, pictures

pytestmark = pytest.mark.filterwarnings("error")


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


@pytest.mark.parametrize("arch", ["efficientface", "baseline", "resnet18"])
def test_a_map_is_the_last_layers_weights_on_the_features(arch):
    """Its mean over places and the bias are the logit."""
    torch.manual_seed(0)
    model = build(arch, 4).eval()
    images = torch.randn(2, 3, 96, 96)
    maps, logits, method = explain.class_maps(model, images, [2, -1])
    assert method == "CAM"
    assert maps.shape == (2, 3, 3)
    with torch.no_grad():
        assert torch.equal(logits, model(images))
        for k, c in enumerate((2, int(logits[1].argmax()))):
            assert float(maps[k].mean() + model.fc.bias[c]) == pytest.approx(float(logits[k, c]), abs=1e-4)


@pytest.mark.parametrize(("name", "size", "method"), [("mobilenet_v2", 64, "CAM"), ("squeezenet1_1", 64, "Grad-CAM")])
def test_networks_of_torchvision(name, size, method):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, num_classes=5).eval()
    maps, _, found = explain.class_maps(model, torch.randn(1, 3, size, size), [-1])
    assert found == method
    assert torch.isfinite(maps).all()


class TwoLayers(nn.Module):
    """No CAM: behind the mean there is more than one linear layer."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True))
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.second(torch.tanh(self.first(self.features(x).mean((2, 3)))))


def test_grad_cam_against_differences():
    torch.manual_seed(1)
    model, image = TwoLayers().double(), torch.randn(1, 3, 8, 8, dtype=torch.float64)
    maps, _, method = explain.class_maps(model, image, [1])
    assert method == "Grad-CAM"
    features = model.features(image).detach()
    weights = []
    for k in range(4):
        scores = []
        for step in (1e-5, -1e-5):
            moved = features.clone()
            moved[0, k] += step  # at all places at once: the sum of the gradients
            scores.append(model.second(torch.tanh(model.first(moved.mean((2, 3)))))[0, 1].item())
        weights.append((scores[0] - scores[1]) / 2e-5 / 64)
    expected = np.maximum(np.einsum("k,khw->hw", weights, features[0].numpy()), 0)
    np.testing.assert_allclose(maps[0].numpy(), expected, rtol=1e-6)


def test_maps_are_scaled_face_by_face():
    given = np.array([[[1.0, 3.0]], [[-4.0, 0.0]], [[2.0, 2.0]]])
    assert explain.scaled(given).tolist() == [[[0, 1]], [[0, 1]], [[0, 0]]]


def test_the_map_lies_where_the_weight_is():
    face = np.full((64, 64, 3), 128, np.uint8)
    drawn = pictures.overlaid(face, np.array([[0.0, 0.0], [0.0, 1.0]])).astype(int)
    red, blue = drawn[..., 0], drawn[..., 2]
    assert red[-8:, -8:].min() > blue[-8:, -8:].max()
    assert blue[:8, :8].min() > red[:8, :8].max()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Faces, a teacher that lists its classes in another order, and two students."""
    run = tmp_path_factory.mktemp("explain") / "run"
    write_faces(run)
    write_model(run, run / "teacher", "teacher", classes=("sadness", "neutral", "happiness"))
    for name in ("efficientface", "costs_$x$"):
        write_model(run, run / "students" / name)
    return run


def test_models_side_by_side_on_chosen_faces(run, tmp_path):
    out = tmp_path / "maps.png"
    ids = ("face-001.png", "face-014.png")
    result = fer("explain", run, *(word for name in ids for word in ("--face", name)), "--out", out, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert [(line["face"], line["model"]) for line in told["faces"]] == [
        (face, model) for face in ids for model in ("teacher", "costs_$x$", "efficientface")
    ]
    # at 32 pixels the last features have one place, and the last ones with several are not what the head reads
    assert told["models"]["efficientface"] == {"method": "Grad-CAM", "map": [2, 2]}
    assert told["faces"][0]["label"] == "happiness"
    for line in told["faces"]:
        assert line["about"] == line["says"] == max(line["distribution"], key=line["distribution"].get)
        assert sum(line["distribution"].values()) == pytest.approx(1, abs=1e-5)
    drawn = pixels(out)
    assert min(drawn.shape[:2]) > 300
    assert not list(tmp_path.glob(".*"))


def test_answers_are_those_of_fer_evaluate_whatever_the_order_of_classes(run, tmp_path):
    from efficientface.pipeline import evaluate
    from efficientface.pipeline.inputs import read_inputs

    inputs = read_inputs(run)
    shown = [explain.of_run(inputs.faces, row) for row in range(5)]
    answer = explain.explained(run / "teacher", shown, [-1] * 5, CLASSES, "cpu")
    expected, _ = evaluate.ask(run / "teacher", "teacher", inputs.faces.select(np.arange(5)), 64, "cpu", 5)
    np.testing.assert_allclose(answer.probabilities, expected, atol=1e-5)
    assert answer.classes.tolist() == expected.argmax(1).tolist()


def test_a_map_of_any_class(run, tmp_path):
    def about(of):
        result = fer(
            "explain", run, "--sample", 3, "--of", of, "--out", tmp_path / "a.svg", "--names", "teacher", "--csv"
        )
        assert result.exit_code == 0, result.output
        return [(line["about"], line["label"]) for line in csv.DictReader(io.StringIO(result.stdout))]

    assert [name for name, _ in about("sadness")] == ["sadness"] * 3
    assert all(name == label for name, label in about("label"))


def test_random_faces_are_the_same_for_the_same_seed(run, tmp_path):
    def faces(*options):
        words = ("--sample", 4, "--names", "teacher", "--bars", "--out", tmp_path / "a.svg", "--json")
        return {line["face"] for line in json.loads(fer("explain", run, *words, *options).stdout)["faces"]}

    assert faces() == faces()
    assert faces() != faces("--seed", 1)
    assert faces("--split", "val", "--label", "neutral") <= {f"face-{k:03d}.png" for k in range(9, 60, 3)}


def test_photographs_are_aligned_as_the_runs_were(run, tmp_path):
    photo = tmp_path / "a photo.png"
    cv2.imwrite(str(photo), draw_face(np.eye(7)[1], np.random.default_rng(3))[..., ::-1])
    out = tmp_path / "bars.png"
    result = fer("explain", run, "--image", photo, "--bars", "--names", "teacher", "--out", out, "--json")
    assert result.exit_code == 0, result.output
    assert [(line["face"], line["label"]) for line in json.loads(result.stdout)["faces"]] == [("a photo.png", None)]
    cv2.imwrite(str(photo), np.zeros((80, 80, 3), np.uint8))
    assert refused(fer("explain", run, "--image", photo, "--out", out)) == (
        f"{photo} cannot be shown: no face (none in 80 x 80 pixels); leave it out"
    )


def test_an_svg_is_drawn_the_same_each_time(run, tmp_path):
    for name in ("a.svg", "b.svg"):
        assert fer("explain", run, "--sample", 2, "--names", "teacher", "--out", tmp_path / name).exit_code == 0
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    assert "<svg" in text
    assert "<script" not in text


@pytest.mark.parametrize("name", [r"$\frac{$", r"\textbf{x}", "_hidden", "a\x1b[31mb\n<script>"])
def test_text_is_never_interpreted(name, tmp_path):
    """What mathtext or TeX would refuse, hide or draw as a formula is drawn as it is."""
    face = np.zeros((8, 8, 3), np.uint8)
    pictures.confusion(tmp_path / "confusion.svg", [[1, 0], [0, 1]], [name, "other"], name)
    pictures.sheet(tmp_path / "sheet.svg", [face], [name], name)
    pictures.maps(tmp_path / "maps.svg", [face], [name], {name: [(np.zeros((2, 2)), name)]})
    answers = {name: np.array([[0.5, 0.5]])}
    pictures.distributions(tmp_path / "bars.svg", [face], [name], [name, "other"], answers, [0])
    line = {"epoch": 0, "loss": 1.0, "val_accuracy": 0.5, "val_cross_entropy": 1.0}
    pictures.curves(tmp_path / "curves.svg", {name: [line]})
    for path in tmp_path.glob("*.svg"):
        text = path.read_text()
        assert "<script" not in text
        assert "\x1b" not in text
        # drawn letter by letter, told in a comment
        assert f"<!-- {name} -->" in text or not name.isprintable() or "<" in name, path.name


def test_curves_mark_the_epoch_kept(tmp_path, monkeypatch):
    lines = [
        {"epoch": k, "loss": 1 / k, "val_accuracy": a, "val_cross_entropy": 1.0}
        for k, a in enumerate((0.2, 0.6, 0.5), start=1)
    ]
    drawn = []

    def plot(self, x, *rest, **more):
        drawn.append(x)
        return original(self, x, *rest, **more)

    original = Axes.plot
    monkeypatch.setattr(Axes, "plot", plot)
    pictures.curves(tmp_path / "curves.png", {f"student-{k}": lines for k in range(14)})
    assert drawn[:3] == [[1, 2, 3], [1, 2, 3], 2]
    assert pixels(tmp_path / "curves.png").shape[1] > 1000


def test_what_cannot_be_drawn_is_said(run, tmp_path):
    out = tmp_path / "a.png"
    assert refused(fer("explain", run, "--out", tmp_path / "a.jpg")) == (
        f"--out {tmp_path}/a.jpg does not end in .png or .svg; give a picture's name"
    )
    assert refused(fer("explain", run, "--out", tmp_path / "no" / "a.png")) == (
        f"{tmp_path}/no does not exist; make that folder first, or write the picture elsewhere"
    )
    assert refused(fer("explain", run, "--out", out, "--of", "joy")) == (
        "--of joy is no class; give predicted, label, or one of neutral, happiness, sadness"
    )
    assert refused(fer("explain", run, "--out", out, "--face", "face-1.png")).startswith(
        f"{run}/faces has no face face-1.png among its 60; did you mean face-"
    )
    assert refused(fer("explain", run, "--out", out, "--sample", 0)) == (
        "--sample 0 is out of range; give a number from 1 to 500"
    )
    assert refused(fer("explain", run, "--out", out, "--label", "joy")) == (
        "there is no class joy; there are neutral, happiness, sadness"
    )
    assert refused(fer("explain", run, "--out", out, "--split", "dev", "--label", "neutral")) == (
        "there is no face in split dev labelled neutral (splits: test, train, val); give another --split or --label"
    )
    assert refused(fer("explain", run, "--out", out, "--model", run / "faces")) == (
        f"{run}/faces holds no finished model; give a folder that fer teach, fer distill or fer import wrote"
    )
    assert not out.exists()


# --- contact sheets -------------------------------------------------------------------------------------------


def test_a_contact_sheet_of_a_label(run, tmp_path):
    out = tmp_path / "sheet.png"
    words = ("inspect", run / "faces", "--label", "sadness", "--split", "train", "--sample", 7, "--sheet", out)
    result = fer(*words, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["of"] == 12
    assert len({line["face_id"] for line in told["faces"]}) == 7
    assert all(line["label"] == "sadness" and line["split"] == "train" for line in told["faces"])
    assert all(sum(line["votes"].values()) == 10 for line in told["faces"])
    assert fer(*words).stdout == f"{out}  7 of 12 faces\n"
    assert min(pixels(out).shape[:2]) > 300
    # of a run, and more than there are
    everything = json.loads(fer("inspect", run, "--split", "test", "--sample", 100, "--sheet", out, "--json").stdout)
    assert len(everything["faces"]) == everything["of"] == 12


def test_a_sheet_wants_faces(run, tmp_path):
    out = tmp_path / "sheet.png"
    assert refused(fer("inspect", run / "teacher", "--sheet", out)) == (
        f"{run}/teacher holds teacher, a sheet shows faces; give the run or its folder faces"
    )
    assert refused(fer("inspect", run, "--sheet", out, "--face", "a")) == (
        "--sheet draws random faces; of other options it takes --label, --split, --sample and --seed"
    )
    assert refused(fer("inspect", run, "--label", "neutral")) == (
        "--label, --split and --seed are about the contact sheet; give --sheet FILE as well"
    )
