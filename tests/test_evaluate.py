"""`evaluate.run` on small models written as artifacts, one of them right about every face by construction."""

import io
import json
import logging

import numpy as np
import pytest
import torch
from conftest import CLASSES, write_faces
from rich.console import Console
from torch import nn

from efficientface import FerError
from efficientface.models import build
from efficientface.pipeline import evaluate
from efficientface.pipeline.artifact import reference_to
from efficientface.pipeline.checkpoint import METRICS, finish_model


def write_model(run, folder, kind="student", classes=CLASSES, state=None, chosen_on="val", made_from=None):
    """A finished artifact with fresh weights, as teach and distill leave it."""
    folder.mkdir(parents=True)
    torch.manual_seed(len(folder.name))
    arch = "resnet18" if kind == "teacher" else "efficientface"
    config = {"arch": arch, "options": {}, "classes": list(classes), "size": 32, "mean": [0.4] * 3, "std": [0.25] * 3}
    (folder / METRICS).write_text("")
    finish_model(
        folder, kind, state or build(arch, len(classes)).state_dict(), config,
        made_from={"faces": reference_to(run / "faces", folder)} if made_from is None else made_from,
        settings={}, facts={"chosen_on": chosen_on},
    )  # fmt: skip
    return folder


@pytest.fixture
def models(run):
    write_model(run, run / "teacher", "teacher")
    write_model(run, run / "students" / "ldl")
    return run


class Reader(nn.Module):
    """Reads the class off the height of the bright bar that conftest draws, and is sure of it."""

    def forward(self, x):
        rows = x.mean((1, 3))  # (B, 32)
        bands = torch.stack([rows[:, (2 * k + 1) * 4 : (2 * k + 2) * 4].mean(1) for k in range(3)], 1)
        return 50 * bands


@pytest.fixture
def reader(monkeypatch):
    """Every model is a Reader whose config names the classes in another order than the faces do."""

    def load(folder, kind):
        config = {"arch": "reader", "classes": ["sadness", "neutral", "happiness"]}
        model = Reader()
        order = [CLASSES.index(name) for name in config["classes"]]
        model.register_forward_hook(lambda module, inputs, output: output[:, order])
        return model, {**config, "size": 32, "mean": [0.4] * 3, "std": [0.25] * 3}

    monkeypatch.setattr(evaluate, "load_model", load)


def test_judges_teacher_and_students_and_leaves_files(models):
    result = evaluate.run(models, "test")
    assert list(result["models"]) == ["teacher", "ldl"]
    assert result["count"] == result["count_with_votes"] == 12
    for model in result["models"].values():
        assert np.sum(model["confusion"]) == 12
        assert 0 <= model["accuracy"] <= 1
        assert model["distribution"]["count"] == 12
    assert result["models"]["ldl"]["parameters"] == 1_275_293 - 4 * 1025
    out = models / "evaluation"
    assert json.loads((out / "test.json").read_text()) == result
    assert sorted(path.name for path in out.iterdir()) == [
        "confusion-ldl-test.png",
        "confusion-teacher-test.png",
        "test.json",
    ]


def test_matches_classes_by_name(models, reader):
    result = evaluate.run(models, "val", names=["ldl"], png=False)
    assert result["classes"] == list(CLASSES)
    assert result["models"]["ldl"]["accuracy"] == 1
    assert np.diag(result["models"]["ldl"]["confusion"]).tolist() == [4, 4, 4]


def test_votes_become_the_target_and_missing_ones_are_left_out(models):
    faces = evaluate.read_inputs(models).labelled("test")
    faces.votes[0] = np.nan
    faces.votes[1] = 0
    targets = faces.vote_distributions()
    assert np.isnan(targets[:2]).all()
    np.testing.assert_allclose(targets[2:], faces.votes[2:] / 10)  # conftest gives ten votes a face


def test_picks_models_by_name(models):
    assert list(evaluate.run(models, names=["ldl"], png=False)["models"]) == ["ldl"]
    with pytest.raises(FerError) as error:
        evaluate.run(models, names=["ldl", "sll"])
    assert str(error.value) == f"{models} has no model sll; it has teacher, ldl"


def test_leaves_out_an_unfinished_student_and_says_so(models, caplog):
    (models / "students" / "sll").mkdir()
    with caplog.at_level(logging.WARNING):
        result = evaluate.run(models, png=False)
    assert list(result["models"]) == ["teacher", "ldl"]
    assert caplog.messages == [f"sll left out: {models}/students/sll is unfinished"]


def test_refuses_a_run_without_models(run):
    with pytest.raises(FerError) as error:
        evaluate.run(run)
    assert str(error.value) == f"{run} has no finished teacher or student; run fer teach or fer distill first"


def test_refuses_a_model_of_other_classes(run):
    folder = write_model(run, run / "students" / "other", classes=("neutral", "fear"))
    with pytest.raises(FerError) as error:
        evaluate.run(run)
    assert str(error.value) == (
        f"{folder} answers for the classes neutral, fear, the faces have neutral, happiness, sadness; "
        "evaluate it in a run of its own classes"
    )


def test_refuses_a_model_that_other_faces_trained(run, tmp_path):
    write_faces(tmp_path / "other", seed=1)
    folder = write_model(tmp_path / "other", run / "students" / "strange")
    with pytest.raises(FerError) as error:
        evaluate.run(run)
    assert str(error.value) == (
        f"{folder} was made from other faces than {run}/faces holds now; remove it and train again"
    )


def test_takes_an_imported_model(run):
    write_model(run, run / "students" / "official", made_from={})
    assert list(evaluate.run(run, png=False)["models"]) == ["official"]


def test_refuses_a_model_that_answers_nan(run):
    state = build("efficientface", 3).state_dict()
    state["fc.bias"][:] = np.nan
    folder = write_model(run, run / "students" / "burnt", state=state)
    with pytest.raises(FerError) as error:
        evaluate.run(run)
    assert str(error.value) == f"{folder} answers NaN for 12 of 12 faces; train it again with a smaller --lr"


def test_refuses_a_split_without_faces(models):
    with pytest.raises(FerError, match="has no labelled faces in split dev"):
        evaluate.run(models, "dev")


def test_tables_show_the_figures(models, reader):
    write_model(models, models / "students" / "peeking", chosen_on="test")
    result = evaluate.run(models, png=False)
    console = Console(width=130, file=io.StringIO())
    for table in evaluate.tables(result):
        console.print(table)
    text = console.file.getvalue()
    low = 100 * result["models"]["ldl"]["accuracy_interval"][0]
    assert f"100.00 [{low:.1f}, 100.0]" in text
    assert "test: 12 labelled faces, 12 with votes" in text
    assert "[95 % interval]" in text
    assert "best epoch chosen on test itself, so too good: peeking" in text
    assert all(name in text for name in ("teacher on test, by class", "peeking on test, confusion matrix", "happiness"))
