"""Networks by name: torchvision's and timm's build, answer and train; names, sizes and options that do not fit."""

import json
import sys

import pytest
import torch
from click.testing import CliRunner
from conftest import sign_again, write_faces
from safetensors.torch import load_file
from test_evaluate import write_model

from efficientface import FerError
from efficientface.cli import cli
from efficientface.models import build, check_size, zoo
from efficientface.pipeline import distill, train
from efficientface.pipeline.artifact import write_json
from efficientface.pipeline.checkpoint import CONFIG, WEIGHTS, load_model
from efficientface.pipeline.config import DistillConfig

SMALL = {"size": 32, "loss": "sll", "epochs": 2, "batch_size": 16, "lr": 0.02, "schedule": "onecycle", "workers": 1}


@pytest.fixture
def no_network(monkeypatch):
    """Any connection fails the test."""
    import socket

    def refuse(*args, **options):
        raise AssertionError("a network was built from the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize(
    ("arch", "parameters"),
    [
        ("resnet18", 11_180_103),
        ("resnet50", 23_522_375),
        ("mobilenet_v2", 2_232_839),
        ("shufflenet_v2_x1_0", 1_260_779),
        ("googlenet", 5_607_079),
        ("timm/res2net50_26w_4s", 23_664_463),
    ],
)
def test_a_network_is_the_published_one(arch, parameters, no_network):
    model = build(arch, 7)
    assert sum(p.numel() for p in model.parameters()) == parameters
    answer = model.train()(torch.randn(2, 3, 64, 64))
    assert answer.shape == (2, 7)  # in training too, where GoogLeNet would answer with three heads
    answer.sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def unknown(arch):
    with pytest.raises(FerError) as error:
        build(arch, 7)
    return str(error.value)


def test_an_unknown_name_gets_near_ones():
    assert unknown("ResNet50") == (
        "architecture 'ResNet50' is not known; did you mean resnet50 or resnet152 or resnet101?"
    )
    assert "did you mean timm/res2net50_26w_4s or" in unknown("res2net50_26w_4s")
    assert unknown("baseline_local").startswith(
        "architecture 'baseline_local' is not known; did you mean baseline-local or"
    )
    assert unknown("qqqqqq") == "architecture 'qqqqqq' is not known; docs/networks.md lists the networks"


@pytest.mark.parametrize("arch", ["timm/hf-hub:timm/resnet18", "timm/local-dir:/tmp", "timm/../resnet18", "a\x1b[2Jb"])
def test_a_name_cannot_lead_elsewhere(arch, no_network):
    assert unknown(arch).startswith(f"architecture {arch!r} is not known; ")


def test_timm_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    zoo.timm_names.cache_clear()
    try:
        assert unknown("timm/resnet18") == "networks named timm/... need timm; pip install 'efficientface[zoo]'"
        assert (
            unknown("resnet19")
            == "architecture 'resnet19' is not known; did you mean resnet18 or resnet152 or resnet101?"
        )
    finally:
        zoo.timm_names.cache_clear()


@pytest.mark.parametrize(
    ("arch", "size", "sentence"),
    [
        (
            "timm/test_vit3",
            64,
            "timm/test_vit3 cannot take images of 64 x 64 pixels (Input height (64) doesn't match model (160)); "
            "choose another --size, such as 160",
        ),
        (
            "alexnet",
            32,
            "alexnet cannot take images of 32 x 32 pixels (Given input size: (256x1x1). Calculated output size: "
            "(256x0x0). Output size is too small); choose another --size, such as 224",
        ),
        (
            "efficientface",
            100,
            "EfficientFace cannot take images of 100 x 100 pixels: its four local patches need "
            "sides that 16 divides; choose a --size such as 64, 112 or 224",
        ),
    ],
)
def test_a_size_that_does_not_fit(arch, size, sentence):
    with pytest.raises(FerError) as error:
        check_size(build(arch, 3), arch, size)
    assert str(error.value) == sentence


def test_what_is_no_classifier_is_refused():
    with pytest.raises(FerError) as error:
        check_size(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)), "timm/maps", 32)
    assert str(error.value) == "timm/maps does not answer with one number a class; choose a classifier"


def test_a_size_is_refused_before_anything_is_written(run):
    result = CliRunner().invoke(cli, ["teach", str(run), "--teacher-arch", "timm/test_vit3", "--size", "64"])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        "Error: timm/test_vit3 cannot take images of 64 x 64 pixels (Input height (64) doesn't match model (160)); "
        "choose another --size, such as 160"
    )
    assert [path.name for path in run.iterdir() if path.suffix != ".lock"] == ["faces"]


def test_a_network_without_a_modulator_has_no_modulation(run):
    result = CliRunner().invoke(cli, ["distill", str(run), "--arch", "resnet18", "--modulation", "add"])
    assert result.stderr == "Error: --modulation add is about the modulator, which resnet18 has not; leave it out\n"


def test_teacher_and_student_of_other_libraries_go_through_every_stage(run, no_network):
    common = ["--size", "32", "--batch-size", "6", "--lr", "0.02", "--schedule", "onecycle", "--min-area", "0.5"]
    steps = [
        ["teach", run, "--teacher-arch", "timm/test_resnet", "--epochs", "12", "--views", "2", *common],
        ["distill", run, "--arch", "shufflenet_v2_x1_0", "--epochs", "1", "--name", "shuffle", *common],
        ["distill", run, "--arch", "baseline", "--epochs", "1", "--name", "baseline", *common],
    ]
    for step in steps:
        result = CliRunner().invoke(cli, [str(word) for word in step])
        assert result.exit_code == 0, result.output
    result = CliRunner().invoke(cli, ["evaluate", str(run), "--json"])
    models = json.loads(result.stdout)["models"]
    assert {name: model["arch"] for name, model in models.items()} == {
        "teacher": "timm/test_resnet", "baseline": "baseline", "shuffle": "shufflenet_v2_x1_0",
    }  # fmt: skip
    assert models["baseline"]["parameters"] == models["shuffle"]["parameters"]
    shown = CliRunner().invoke(cli, ["inspect", str(run / "teacher")]).stdout
    assert "timm/test_resnet, " in shown


def test_dropout_is_drawn_again_after_an_interruption(tmp_path, monkeypatch):
    write_faces(tmp_path)
    distill.run(tmp_path, DistillConfig(arch="mobilenet_v2", name="whole", **SMALL))
    real = train.train_epoch
    monkeypatch.setattr(train, "train_epoch", lambda *args: real(*args) if args[5] == 0 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        distill.run(tmp_path, DistillConfig(arch="mobilenet_v2", name="halves", **SMALL))
    monkeypatch.undo()
    distill.run(tmp_path, DistillConfig(arch="mobilenet_v2", name="halves", **SMALL))
    whole, halves = (load_file(tmp_path / "students" / name / WEIGHTS) for name in ("whole", "halves"))
    assert all(torch.equal(halves[name], tensor) for name, tensor in whole.items())


def test_a_forged_config_cannot_ask_for_a_download(run, no_network):
    folder = write_model(run, run / "students" / "forged")
    config = json.loads((folder / CONFIG).read_text())
    write_json(folder / CONFIG, {**config, "arch": "resnet18", "options": {"weights": "DEFAULT"}})
    sign_again(folder)
    with pytest.raises(FerError) as error:
        load_model(folder)
    assert str(error.value) == (
        f"{folder / CONFIG} does not describe a model (resnet18 takes no options, not weights); restore it"
    )
