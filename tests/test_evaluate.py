"""`evaluate.run` on small models written as artifacts, one of them right about every face by construction."""

import io
import json
import logging
import shutil
from dataclasses import replace
from unittest.mock import ANY

import numpy as np
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner
from conftest import CLASSES, SMALL_TEACHER, sign_again, write_faces
from rich.console import Console
from torch import nn

from efficientface import FerError
from efficientface.cli import cli
from efficientface.data.faces import face_table
from efficientface.models import build
from efficientface.pipeline import evaluate
from efficientface.pipeline.artifact import MANIFEST, read_sealed, reference_to, write_manifest
from efficientface.pipeline.checkpoint import METRICS, finish_model
from efficientface.pipeline.metrics import share
from efficientface.pipeline.subsets import subset


def write_model(
    run, folder, kind="student", classes=CLASSES, state=None, chosen_on="val", made_from=None, settings=None, metrics=""
):
    """A finished artifact with fresh weights, as teach and distill leave it."""
    folder.mkdir(parents=True)
    torch.manual_seed(len(folder.name))
    arch = SMALL_TEACHER if kind == "teacher" else "efficientface"
    config = {"arch": arch, "options": {}, "classes": list(classes), "size": 32, "mean": [0.4] * 3, "std": [0.25] * 3}
    (folder / METRICS).write_text(metrics)
    finish_model(
        folder, kind, state or build(arch, len(classes)).state_dict(), config,
        made_from={"faces": reference_to(run / "faces", folder)} if made_from is None else made_from,
        settings=settings or {}, facts={"chosen_on": chosen_on},
    )  # fmt: skip
    return folder


@pytest.fixture
def models(run):
    write_model(run, run / "teacher", "teacher")
    write_model(run, run / "students" / "ldl")
    return run


def printed(result):
    console = Console(width=130, file=io.StringIO())
    for table in evaluate.tables(result):
        console.print(table)
    return console.file.getvalue()


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
    assert read_sealed(out / "test.json") == result
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
    faces = replace(faces, votes=np.array(faces.votes))
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


def test_what_is_known_of_other_models_is_kept_while_it_is_true(models, tmp_path):
    """As if all had been judged at once, but for a model that is another now, or is gone."""
    write_model(models, models / "students" / "sll", settings={"seed": 0})
    write_model(models, models / "students" / "sll-1", settings={"seed": 1})
    path = models / "evaluation" / "test.json"
    (tmp_path / "some.txt").write_text("face-012.png\nface-013.png\n")
    some = [str(tmp_path / "some.txt")]
    evaluate.run(models, subsets=some, compare=("teacher", "ldl"))
    whole = read_sealed(path)
    one = evaluate.run(models, names=["sll"], subsets=some)
    assert list(one["models"]) == ["sll"]
    assert read_sealed(path) == whole
    path.unlink()
    for names in (["sll-1", "ldl"], ["sll", "teacher"]):
        evaluate.run(models, names=names, subsets=some)
    assert read_sealed(path) == {key: value for key, value in whole.items() if key != "comparison"}
    evaluate.run(models, names=["sll"])  # those who were not asked about a subset have no line in its table
    now = read_sealed(path)
    assert [name for name, model in now["models"].items() if model["subsets"]] == ["teacher", "ldl", "sll-1"]
    printed(now)
    sign_again(models / "students" / "sll-1", settings={"seed": 2})
    shutil.rmtree(models / "students" / "ldl")
    evaluate.run(models, names=["teacher"], png=False)
    now = read_sealed(path)
    assert list(now["models"]) == ["teacher", "sll"]
    assert list(now["pictures"]) == ["confusion-sll-test.png"]
    assert now["seeds"] == []


def test_nothing_is_kept_of_other_faces_or_of_a_damaged_file(models, caplog):
    path = models / "evaluation" / "test.json"
    evaluate.run(models, png=False)
    path.write_bytes(path.read_bytes().replace(b"ldl", b"lds"))
    evaluate.run(models, names=["teacher"], png=False)
    assert list(read_sealed(path)["models"]) == ["teacher"]
    assert "test.json is not as the digest at its end says" in caplog.text
    sign_again(models / "faces", facts={"mean": [0.4] * 3, "std": [0.25] * 3, "again": True})
    write_model(models, models / "students" / "new")
    evaluate.run(models, names=["new"], png=False)
    assert list(read_sealed(path)["models"]) == ["new"]


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
    text = printed(result)
    low = 100 * result["models"]["ldl"]["accuracy_interval"][0]
    assert f"100.00 [{low:.1f}, 100.0]" in text
    assert "test: 12 labelled faces, 12 with votes" in text
    assert "[95 % interval]" in text
    assert "best epoch chosen on test itself, so too good: peeking" in text
    assert all(name in text for name in ("teacher on test, by class", "peeking on test, confusion matrix", "happiness"))


def reject(run, ids):
    """Make these faces of a run ones that the detector did not find, or none of a label that is given by id."""
    import pyarrow.parquet as pq

    folder = run / "faces"
    manifest = json.loads((folder / MANIFEST).read_text())
    rows = [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    for row in rows:
        if row["face_id"] in ids:
            row |= {"image": None, "image_hash": None, "status": "no face"}
        row["yaw"] = 60.0 if row["label"] == 0 else -5.0  # neutral faces are turned away
        row["pitch"] = 2.0
    for path in folder.glob("*.parquet"):
        path.unlink()
    pq.write_table(face_table(rows, manifest["classes"]), folder / "part-00000.parquet")
    about = {name: manifest[name] for name in ("classes", "made_from", "settings", "facts")}
    write_manifest(folder, "faces", files=["part-00000.parquet"], **about)


# conftest's test faces: 12 to 14, 27 to 29, 42 to 44 and 57 to 59, in turn neutral, happiness, sadness
REJECTED = ("face-012.png", "face-013.png")


@pytest.fixture
def rejecting(run):
    reject(run, REJECTED)
    write_model(run, run / "students" / "ldl")
    return run


def test_an_image_without_a_face_counts_as_wrong(rejecting, reader):
    result = evaluate.run(rejecting)
    model = result["models"]["ldl"]
    assert (result["count"], result["images"]) == (10, 12)
    assert model["accuracy"] == 1
    assert model["all_images"]["accuracy"] == 10 / 12
    assert model["all_images"] == share(10, 12)
    text = printed(result)
    assert "test: 10 labelled faces, 10 with votes; 2 more labelled images gave no face" in text
    assert "all images: one that gave no face counts as wrong" in text


def test_subsets_on_faces_and_on_all_images(rejecting, reader, tmp_path):
    path = tmp_path / "occluded.txt"
    path.write_text("face-012.png 0 1\nface-014.png 2 1\nface-001.png 1 1\n")
    result = evaluate.run(rejecting, subsets=[str(path), "pose:30"])
    assert result["subsets"] == {
        # face 1 is a training face
        "occluded.txt": {
            "images": 2, "faces": 1, "lines": 3, "named": 3, "missing": 1, "first_missing": "face-001.png 1 1",
            "rows": ANY,
        },
        "pose:30": {"images": 4, "faces": 3, "rows": ANY},
    }  # fmt: skip
    found = result["models"]["ldl"]["subsets"]
    assert (found["occluded.txt"]["accuracy"], found["occluded.txt"]["all_images"]["accuracy"]) == (1, 0.5)
    assert (found["pose:30"]["count"], found["pose:30"]["all_images"]["count"]) == (3, 4)
    assert found["pose:30"]["classes"]["neutral"]["support"] == 3
    rows = evaluate.rows(result)
    assert [(row["subset"], row["model"], row["count"]) for row in rows] == [
        ("", "ldl", 10), ("occluded.txt", "ldl", 1), ("pose:30", "ldl", 3)
    ]  # fmt: skip
    assert "subsets of test" in printed(result)


def test_a_pose_is_yaw_or_pitch_or_yaw_alone():
    rows = pa.table({"yaw": [31.0, -31.0, 5.0, 5.0, np.nan], "pitch": [0.0, 0.0, -31.0, 29.0, np.nan]})
    assert subset("pose:30", rows, "test")[0].tolist() == [True, True, True, False, False]
    assert subset("yaw:30", rows, "test")[0].tolist() == [True, True, False, False, False]


def test_subsets_of_nothing_are_refused(rejecting, tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("face-012.png\nface-013.png\n")
    with pytest.raises(FerError) as error:
        evaluate.run(rejecting, subsets=[str(path)])
    assert str(error.value) == (
        f"--subset {path} has no labelled face in split test, of 2 labelled images; give another subset or --split"
    )
    with pytest.raises(FerError) as error:
        evaluate.run(rejecting, subsets=["pose:30", "pose:30"])
    assert str(error.value) == "--subset pose:30 is given twice; leave one of them out"


def test_models_of_other_runs_in_one_table(models, tmp_path, reader):
    write_faces(tmp_path / "other", seed=1)
    student = write_model(tmp_path / "other", tmp_path / "other" / "students" / "ldl")
    teacher = write_model(tmp_path / "other", tmp_path / "other" / "teacher", "teacher")
    imported = write_model(models, tmp_path / "official", made_from={})
    result = evaluate.run(models, models=[student, teacher, imported], names=["ldl"])
    assert list(result["models"]) == ["ldl", "other/ldl", "other/teacher", "official"]
    assert [model["trained_on_other_faces"] for model in result["models"].values()] == [False, True, True, False]
    assert "trained on another run's faces, which may be among these: other/ldl, other/teacher" in printed(result)
    assert (models / "evaluation" / "confusion-other-ldl-test.png").is_file()


def test_a_folder_that_is_no_model_is_refused(models, tmp_path):
    for folder in (tmp_path / "absent", models / "faces"):
        with pytest.raises(FerError) as error:
            evaluate.run(models, models=[folder])
        assert str(error.value) == (
            f"{folder} holds no finished model; give a folder that fer teach, fer distill or fer import wrote"
        )


def test_two_models_are_compared_face_by_face(models, monkeypatch):
    labels = evaluate.read_inputs(models).labelled("test").label
    # right about all but so many faces, the first or the last ones
    wrong = {"teacher": [0], "ldl": [0, 9, 10, 11]}

    def ask(folder, kind, faces, *_):
        says = np.where(np.isin(np.arange(12), wrong[folder.name]), (labels + 1) % 3, labels)
        return np.eye(3)[says], {"arch": "x", "size": 32, "parameters": 1}

    monkeypatch.setattr(evaluate, "ask", ask)
    result = evaluate.run(models, compare=("teacher", "ldl"), subsets=[])
    test = result["comparison"]
    assert (test["first"], test["second"], test["subsets"]) == ("teacher", "ldl", {})
    assert [test[k] for k in ("both_right", "only_first_right", "only_second_right", "both_wrong")] == [8, 3, 0, 1]
    assert test["p"] == 0.25  # three throws of a coin, all alike: 2 / 2**3
    assert "teacher against ldl: McNemar's test, exact" in printed(result)
    with pytest.raises(FerError) as error:
        evaluate.run(models, compare=("teacher", "sll"))
    assert str(error.value) == "--compare sll: no such model is judged; there are teacher, ldl"


def test_students_that_differ_in_their_seed_alone_are_averaged(models):
    settings = {"loss": "sll", "epochs": 3}
    for name, seed, more in (("a-0", 0, {}), ("a-1", 1, {}), ("copy", 1, {}), ("a-2", 2, {"epochs": 4}), ("b", 3, {})):
        given = {**settings, "name": name, "seed": seed, **more}
        strange = {} if name == "b" else None  # made from nothing that is known
        write_model(models, models / "students" / name, settings=given, made_from=strange)
    result = evaluate.run(models, png=False)
    (group,) = result["seeds"]
    assert (group["name"], group["models"], group["seeds"]) == ("a", ["a-0", "a-1"], [0, 1])
    values = [result["models"][name]["accuracy"] for name in group["models"]]
    assert group["accuracy"] == {
        "mean": np.mean(values),
        "deviation": pytest.approx(abs(values[0] - values[1]) / 2**0.5),
    }
    assert "over seeds: mean and standard deviation" in printed(result)


def test_plots_are_curves_and_confusion_matrices(run, reader, tmp_path):
    line = {"loss": 1.0, "val_accuracy": 0.5, "val_cross_entropy": 1.0}
    metrics = "".join(json.dumps({"epoch": k, **line}) + "\n" for k in range(3))
    write_model(run, run / "students" / "ldl", metrics=metrics)
    write_model(run, run / "students" / "official", made_from={})
    out = tmp_path / "new" / "plots"
    evaluate.run(run, plots=out, png=False)
    assert sorted(path.name for path in out.iterdir()) == [
        "confusion-ldl-test.png", "confusion-ldl-test.svg",
        "confusion-official-test.png", "confusion-official-test.svg",
        "curves.png", "curves.svg",
    ]  # fmt: skip
    (run / "students" / "ldl" / METRICS).write_text('{"epoch": 0}\n')
    with pytest.raises(FerError) as error:
        evaluate.run(run, plots=out, png=False)
    assert str(error.value) == (
        f"{run}/students/ldl/metrics.jsonl does not hold the metrics of a training, a line an epoch; restore it"
    )
    (tmp_path / "file").write_text("")
    with pytest.raises(FerError) as error:
        evaluate.run(run, plots=tmp_path / "file")
    assert str(error.value) == f"{tmp_path}/file cannot be made: a file is in the way; choose another folder"


def test_the_options_reach_the_stage(rejecting, tmp_path):
    write_model(rejecting, rejecting / "students" / "sll")
    words = ["--subset", "pose:30", "--subset", "pose:45", "--compare", "ldl", "sll", "--plots", str(tmp_path / "p")]
    result = CliRunner().invoke(cli, ["evaluate", str(rejecting), *words, "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert list(told["subsets"]) == list(told["comparison"]["subsets"]) == ["pose:30", "pose:45"]
    assert (tmp_path / "p" / "confusion-sll-test.svg").is_file()
    lines = CliRunner().invoke(cli, ["evaluate", str(rejecting), "--subset", "pose:30", "--csv"]).stdout.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("split,subset,model,")
