"""Telling people apart, networks that start from others' weights, and presets: on disk, refused, in which words."""

import json
import re
import shlex
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import CLASSES, write_faces
from safetensors.torch import load_file

from efficientface import FerError
from efficientface.cli import cli
from efficientface.data import drawn
from efficientface.data.faces import is_no_votes, read_faces
from efficientface.data.sources import read_source
from efficientface.data.splits import assign_splits
from efficientface.pipeline import distill, pretrain, status, train
from efficientface.pipeline.artifact import MANIFEST, read_metrics
from efficientface.pipeline.config import (
    NORMALISATIONS,
    PRESETS,
    RECIPES,
    DistillConfig,
    PretrainConfig,
    TeachConfig,
    with_preset,
)

PEOPLE = tuple(f"person-{k}" for k in range(5))
SMALL = {"size": 32, "epochs": 1, "batch_size": 16, "workers": 1}
STILL = {**SMALL, "lr": 1e-12}  # a training that leaves weights where they were


def fer(*args):
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def refused(result) -> str:
    assert result.exit_code == 1, result.output
    return result.stderr.strip().splitlines()[-1].removeprefix("Error: ")


def manifest(folder):
    return json.loads((folder / MANIFEST).read_text())


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A run whose labels are people, and a student's network that tells them apart."""
    run = tmp_path_factory.mktemp("people") / "people"
    write_faces(run, classes=PEOPLE, layout="identities")
    pretrain.run(run, PretrainConfig(arch="efficientface", **SMALL))
    return run


@pytest.fixture(scope="module")
def expressions(tmp_path_factory):
    """A run whose labels are expressions; tests may add students."""
    run = tmp_path_factory.mktemp("expressions") / "run"
    write_faces(run)
    return run


# --- who is shown ---------------------------------------------------------------------------------------------


def make_tree(root, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"not opened")


def test_a_folder_a_person_is_read_by_name_and_validated_on_other_pictures_of_everybody(tmp_path):
    make_tree(tmp_path, [f"{name}/{k}.jpg" for name in ("m.0b1", "Happy", "unknown") for k in range(10)])
    read = read_source(tmp_path, "identities")
    assert read.classes == ("Happy", "m.0b1", "unknown"), "names of people mean nothing"
    assert read.layout == "identities"
    rows, _ = assign_splits(read.rows, None, 0)
    counts = Counter(zip(rows.label, rows.split, strict=True))
    assert counts == {(name, split): n for name in read.classes for split, n in (("train", 9), ("val", 1))}


def test_a_table_of_people_keeps_its_splits(tmp_path):
    make_tree(tmp_path, [f"{k}.jpg" for k in range(4)])
    (tmp_path / "list.csv").write_text("path,label,split\n0.jpg,7,train\n1.jpg,12,train\n2.jpg,7,val\n3.jpg,12,val\n")
    read = read_source(tmp_path / "list.csv", "identities")
    assert read.classes == ("12", "7"), "numbers are names too"
    assert read.rows.split.tolist() == ["train", "train", "val", "val"]


def test_a_name_that_is_not_utf8_can_be_written_down(tmp_path):
    make_tree(tmp_path, ["a/1.jpg", "b/1.jpg"])
    (tmp_path / "b").rename(tmp_path / "b\udcff")
    assert read_source(tmp_path, "identities").classes == ("a", "b\\xff")


def test_one_person_and_class_names_are_refused(tmp_path):
    make_tree(tmp_path, ["a/1.jpg"])
    assert refused(fer("align", tmp_path, tmp_path / "run", "--layout", "identities")) == (
        f"{tmp_path} shows 1 person; give a folder a person, two or more of them"
    )
    assert refused(fer("align", tmp_path, tmp_path / "run", "--layout", "identities", "--classes", "a,b")) == (
        "--classes names expressions; layout identities takes people's names as they are"
    )


def test_votes_that_nobody_gave_take_no_memory(people):
    read = read_faces(sorted((people / "faces").glob("*.parquet")))
    read = read.select(read.usable).select(np.arange(5))
    assert is_no_votes(read.votes)
    assert read.votes.shape == (5, 5)
    assert np.isnan(read.vote_distributions()).all()


def test_a_drawn_person_stays_who_they_are(tmp_path, monkeypatch):
    seen = []
    real = drawn._draw_person
    monkeypatch.setattr(drawn, "_draw_person", lambda rng: seen.append(real(rng)) or seen[-1])
    monkeypatch.setattr(drawn, "_in_processes", lambda work, tasks: map(work, tasks))
    drawn.write_photos(tmp_path / "people", 6, seed=3, size=64, identities=2)
    files = sorted(path.relative_to(tmp_path / "people").as_posix() for path in tmp_path.rglob("*.jpg"))
    assert files == [f"person-000{k % 2}/face-00000{k}.jpg" for k in (0, 2, 4, 1, 3, 5)]
    assert [person.chin == seen[0].chin for person in seen] == [True, False] * 3
    assert len({(tmp_path / "people" / file).read_bytes() for file in files}) == 6


def test_drawn_people_go_all_the_way(tmp_path):
    photos, run = tmp_path / "photos", tmp_path / "run"
    done = fer("demo", "--images", photos, "--identities", 20, "--count", 100)
    assert done.stdout == (
        f"100 drawn faces of 20 people in {photos}, a folder each; next: fer align {photos} RUN --layout identities\n"
    )
    done = fer("align", photos, run, "--layout", "identities", "--crop", 64, "--json")
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)["labels"]) == 20
    assert status.status(run)["next"] == f"fer pretrain {run}"
    done = fer("pretrain", run, "--arch", "resnet18", "--size", 32, "--epochs", 1, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["identities"] == f"{run}/identities/resnet18"
    assert status.status(run)["next"] == f"fer distill RUN --loss sll --init {run}/identities/resnet18"


def test_identities_is_for_drawing_alone():
    assert refused(fer("demo", "--identities", 20)) == (
        "--identities is about drawing alone; give --images FOLDER as well"
    )


# --- pretrain -------------------------------------------------------------------------------------------------


def test_an_identity_classifier_is_an_artifact_like_others(people):
    folder = people / "identities" / "efficientface"
    said = manifest(folder)
    assert said["kind"] == "identities"
    assert said["facts"]["people"] == 5
    assert json.loads((folder / "config.json").read_text())["classes"] == list(PEOPLE)
    assert load_file(folder / "model.safetensors")["fc.weight"].shape == (5, 1024)
    stages = status.status(people)["stages"]
    assert [(stage["stage"], stage["state"]) for stage in stages] == [
        ("faces", "done"), ("identities/efficientface", "done"),
    ]  # fmt: skip
    assert "identities" in fer("inspect", folder).stdout.splitlines()[0]
    before = (folder / MANIFEST).stat().st_mtime_ns
    pretrain.run(people, PretrainConfig(arch="efficientface", **SMALL))
    assert (folder / MANIFEST).stat().st_mtime_ns == before, "trained twice"


def test_its_loss_is_the_plain_cross_entropy(people):
    line = json.loads((people / "identities" / "efficientface" / "metrics.jsonl").read_text())
    assert line["loss"] == pytest.approx(np.log(5), rel=0.3), "divided by the number of people it would be 0.3"


def test_expressions_are_no_people(expressions):
    assert refused(fer("pretrain", expressions)) == (
        f"{expressions}/faces has labels that are no people's names (layout recognised by itself); "
        "run fer align SOURCE RUN --layout identities first"
    )


def test_an_interrupted_identity_classifier_is_told_how_to_go_on(people, tmp_path, monkeypatch):
    run = shutil.copytree(people, tmp_path / "run")
    monkeypatch.setattr(train, "_waited_enough", lambda lines, patience: len(lines) == 1 and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pretrain.run(run, PretrainConfig(arch="efficientface", name="second", **{**SMALL, "epochs": 2}))
    monkeypatch.undo()
    assert status.status(run)["next"] == (
        f"fer pretrain {run} --size 32 --epochs 2 --batch-size 16 --arch efficientface --name second"
    )


# --- init -----------------------------------------------------------------------------------------------------


def test_a_student_starts_from_the_body_of_an_identity_classifier(people, expressions):
    init = people / "identities" / "efficientface"
    distill.run(expressions, DistillConfig(loss="sll", name="begun", init=str(init), **STILL))
    folder = expressions / "students" / "begun"
    start, end = (load_file(path / "model.safetensors") for path in (init, folder))
    assert end["fc.weight"].shape == (3, 1024)
    body = [name for name in start if not name.startswith("fc.") and name.split(".")[-1] in ("weight", "bias")]
    assert all(torch.allclose(start[name], end[name], atol=1e-6) for name in body)
    said = manifest(folder)
    assert said["made_from"]["init"]["path"] == "../../../../" + "/".join(init.parts[-4:])
    [row] = [row for row in status.status(expressions)["stages"] if row["stage"] == "students/begun"]
    assert row["state"] == "done"
    assert f"started from {said['made_from']['init']['path']}" in row["detail"]


@pytest.mark.parametrize("modulation", ["multiply", "add"])
def test_every_network_with_a_modulator_starts_from_its_own_kind(people, expressions, modulation):
    """Their modulation is part of what is written down, in pre-training as in distilling."""
    made = {"arch": "baseline-modulator", "modulation": modulation, "name": f"modulated-{modulation}"}
    pretrain.run(people, PretrainConfig(**made, **SMALL))
    start = people / "identities" / made["name"]
    distill.run(expressions, DistillConfig(**made, loss="sll", init=str(start), **SMALL))
    with pytest.raises(FerError, match="--modulation add is about the modulator, which resnet18 has not; leave it out"):
        pretrain.run(people, PretrainConfig(arch="resnet18", modulation="add", **SMALL))
    with pytest.raises(FerError, match="EfficientFace cannot take images of 40 x 40 pixels"):
        pretrain.run(people, PretrainConfig(arch="efficientface", name="odd", **{**SMALL, "size": 40}))


def test_the_last_layer_comes_along_if_the_classes_are_the_same_by_name(expressions, tmp_path):
    distill.run(expressions, DistillConfig(loss="sll", name="first", **SMALL))
    run = tmp_path / "turned"
    turned = (CLASSES[2], CLASSES[0], CLASSES[1])
    write_faces(run, classes=turned)
    init = expressions / "students" / "first"
    distill.run(run, DistillConfig(loss="sll", init=str(init), **STILL))
    start, end = (load_file(path / "model.safetensors") for path in (init, run / "students" / "sll"))
    for name in ("fc.weight", "fc.bias"):
        assert torch.allclose(end[name], start[name][[2, 0, 1]], atol=1e-6)


def test_another_network_is_not_started_from(people, expressions, tmp_path):
    init = people / "identities" / "efficientface"
    words = ("--init", init, "--size", 32)
    assert refused(fer("teach", expressions, *words, "--teacher-arch", "resnet18")) == (
        f"--init {init} is efficientface (modulation multiply), not resnet18; give a model of the same network"
    )
    assert refused(fer("distill", expressions, *words, "--loss", "sll", "--modulation", "add", "--name", "add")) == (
        f"--init {init} is efficientface (modulation multiply), not efficientface (modulation add); "
        "give a model of the same network"
    )
    assert refused(fer("distill", expressions, "--loss", "sll", "--init", tmp_path / "none")) == (
        f"{tmp_path}/none does not exist; run fer distill first"
    )
    assert refused(fer("distill", expressions, "--loss", "sll", "--init", expressions / "faces")) == (
        f"{expressions}/faces holds faces, not student; give the folder that fer distill wrote"
    )
    assert not (expressions / "students" / "add").exists()


def test_a_training_that_started_elsewhere_goes_on_only_from_there(people, expressions, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(expressions / "faces", run / "faces")
    config = DistillConfig(loss="sll", init=str(people / "identities" / "efficientface"), **{**SMALL, "epochs": 2})
    monkeypatch.setattr(train, "_waited_enough", lambda lines, patience: len(lines) == 1 and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        distill.run(run, config)
    monkeypatch.undo()
    with pytest.raises(FerError, match=r"was begun with other settings \(.*give the same settings to go on"):
        distill.run(run, replace(config, init=""))
    student = Path(distill.run(run, config)["student"])
    assert [line["epoch"] for line in read_metrics(student)] == [1, 2]
    with pytest.raises(FerError, match=r"is finished with other settings \(init .*, now \)"):
        distill.run(run, replace(config, init=""))


def test_status_says_how_to_go_on_from_another_model(people, expressions, tmp_path):
    folder = tmp_path / "students" / "ldl"
    settings = {"init": "../../../people/identities/efficientface", "epochs": 7}
    assert status.options(DistillConfig, status.started_from(settings, folder)) == [
        "--epochs", "7", "--init", str(tmp_path.parent / "people" / "identities" / "efficientface"),
    ]  # fmt: skip


# --- presets --------------------------------------------------------------------------------------------------


@pytest.fixture
def configured(monkeypatch):
    """What a command would have handed to its stage."""
    from efficientface.pipeline import teach

    got = []
    monkeypatch.setattr(distill, "run", lambda run, config: got.append(config) or {})
    monkeypatch.setattr(teach, "run", lambda run, config, *others: got.append(config) or {})

    def command(*words):
        result = fer(words[0], "RUN", *words[1:])
        assert result.exit_code == 0, result.output
        return got.pop()

    return command


@pytest.mark.parametrize("name", ["raf-db", "caer-s", "affectnet-7", "affectnet-8"])
def test_presets_of_the_paper(configured, name):
    for command, arch in (("teach", "teacher_arch"), ("distill", "arch")):
        config = configured(command, "--preset", name)
        sgd = (config.epochs, config.batch_size, config.lr, config.schedule, config.lr_step, config.momentum)
        assert sgd == (100, 128, 0.1, "step", 30, 0.9)
        assert (config.weight_decay, config.size, config.min_area) == (1e-4, 224, 0.08)
        assert getattr(config, arch) == {"teach": "resnet50", "distill": "efficientface"}[command]
        assert config.normalisation == name.partition("-7")[0].partition("-8")[0]
        assert config.sampling == ("balanced" if "affectnet" in name else "every")


def test_the_preset_for_ferplus_is_that_of_the_results(configured):
    teacher, student = (configured(command, "--preset", "ferplus") for command in ("teach", "distill"))
    assert (teacher.teacher_arch, teacher.size, teacher.epochs, teacher.lr) == ("resnet18", 80, 16, 0.8)
    assert (student.size, student.epochs, student.lr) == (80, 30, 1.0)
    assert {(c.schedule, c.min_area, c.normalisation) for c in (teacher, student)} == {("onecycle", 0.5, "faces")}


def test_what_is_typed_wins_also_if_it_is_a_default(configured):
    config = configured("distill", "--preset", "ferplus", "--epochs", 100, "--loss", "sll", "--seed", 3)
    assert (config.epochs, config.loss, config.seed, config.size) == (100, "sll", 3, 80)
    assert config.origin == {"preset": {"name": "ferplus", "given": ["epochs", "loss", "seed"]}}
    assert configured("distill", "--epochs", 7) == DistillConfig(epochs=7)
    assert configured("distill", "--epochs", 7).origin == {}


def test_a_recipe_wins_over_the_preset_and_what_is_typed_over_both(configured):
    config = configured("distill", "--preset", "caer-s", "--recipe", "fast", "--lr", 0.5)
    assert (config.schedule, config.min_area, config.epochs, config.lr) == ("onecycle", 0.8, 4, 0.5)
    assert (config.normalisation, config.size, config.batch_size) == ("caer-s", 224, 64)
    assert config.origin == {
        "preset": {"name": "caer-s", "given": ["lr"]},
        "recipe": {"name": "fast", "given": ["lr"]},
    }


def test_the_recipe_of_the_paper_is_what_the_program_does_by_itself(configured):
    for command in ("teach", "distill"):
        assert replace(configured(command, "--recipe", "paper"), recipe=None) == configured(command)
    assert configured("distill", "--preset", "ferplus", "--recipe", "paper").lr == 0.1
    fast = configured("teach", "--recipe", "fast")
    assert (fast.views, fast.covers) == (0, "train")


def test_the_commands_that_reproduce_the_paper_are_commands():
    page = (Path(__file__).parent.parent / "docs" / "reproducing.md").read_text()
    lines = [line for block in re.findall(r"^```\n(.*?)^```", page, re.M | re.S) for line in block.splitlines()]
    assert len(lines) > 20
    for line in lines:
        fer_, name, *words = shlex.split(line, comments=True)
        assert fer_ == "fer"
        if name in cli.commands:
            cli.commands[name].make_context(name, words)
    assert set(re.findall(r"^\| (`[a-z0-9-]+`(?:, `[a-z0-9-]+`)*) \|", page, re.M)) == {
        "`raf-db`", "`caer-s`", "`affectnet-7`, `affectnet-8`", "`ferplus`",
    }  # fmt: skip


def test_presets_name_settings_that_there_are():
    for stages in [*PRESETS.values(), *RECIPES.values()]:
        for settings in stages.values():
            known = set(TeachConfig.__dataclass_fields__) | set(DistillConfig.__dataclass_fields__)
            assert set(settings) <= known
    with pytest.raises(FerError, match="--recipe quick is not known; choose from paper, fast"):
        with_preset(TeachConfig, None, "quick")
    with pytest.raises(FerError, match="--preset fer2013 is not known; choose from raf-db, caer-s, affectnet-7"):
        with_preset(TeachConfig, "fer2013")


def test_a_run_records_its_preset_and_normalisation(expressions):
    small = {name: value for name, value in SMALL.items() if name != "workers"}
    config = with_preset(DistillConfig, "caer-s", loss="sll", name="preset", **small)
    distill.run(expressions, config)
    folder = expressions / "students" / "preset"
    assert manifest(folder)["facts"]["preset"] == {
        "name": "caer-s", "given": ["batch_size", "epochs", "loss", "name", "size"],
    }  # fmt: skip
    described = json.loads((folder / "config.json").read_text())
    assert (described["mean"], described["std"]) == tuple(map(list, NORMALISATIONS["caer-s"]))
    assert manifest(folder)["settings"]["normalisation"] == "caer-s"
    distill.run(expressions, DistillConfig(loss="sll", name="preset", normalisation="caer-s", **small))
