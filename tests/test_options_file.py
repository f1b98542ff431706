"""`fer --config FILE`: what it holds is as if typed, and what fer status --config prints repeats a run."""

import json
import logging
import os
import subprocess
import sys
import tomllib

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import SMALL_TEACHER, picture

from efficientface.cli import cli
from efficientface.pipeline import distill, progress, teach


def fer(*args, **more):
    return CliRunner().invoke(cli, [str(arg) for arg in args], **more)


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """Runs fer teach or fer distill with a file of options; gives the settings that the stage is called with."""
    got = []
    for stage in (teach, distill):
        monkeypatch.setattr(stage, "run", lambda run, config, *_: got.append(config) or {})

    def of(text, *args):
        (tmp_path / "run.toml").write_text(text)
        result = fer("--config", tmp_path / "run.toml", *args)
        assert result.exit_code == 0, result.output
        return got.pop()

    return of


def test_typed_wins_over_the_file_and_the_file_over_defaults(settings):
    text = "[distill]\nsize = 64\nepochs = 7\nlr = 1\nunlabelled = true\n[teach]\nsize = 96\n"
    config = settings(text, "distill", "RUN", "--size", "48")
    assert (config.size, config.epochs, config.lr, config.unlabelled, config.momentum) == (48, 7, 1.0, True, 0.9)
    assert settings(text, "teach", "RUN").size == 96


def test_what_the_file_has_is_given_beside_a_preset_and_beside_a_finished_teacher(settings, run):
    config = settings('[distill]\npreset = "ferplus"\nlr = 0.5\n', "distill", "RUN")
    assert (config.preset, config.given, config.lr, config.size) == ("ferplus", ("lr",), 0.5, 80)
    (run / "teacher").mkdir()
    (run / "teacher" / "manifest.json").write_text(json.dumps({"settings": {"size": 64, "lr": 0.3}, "files": {}}))
    config = settings("[teach]\nsize = 48\n", "teach", run)
    assert (config.size, config.lr) == (48, 0.3)


def test_of_several_tables_the_typed_options_tell_which(settings, tmp_path):
    text = '[[distill]]\nlr = 1\n[[distill]]\nloss = "sll"\nlr = 2\n[[distill]]\nname = "x"\nloss = "sll"\nlr = 3\n'
    assert settings(text, "distill", "RUN").lr == 1
    assert settings(text, "distill", "RUN", "--loss", "sll").lr == 2
    config = settings(text, "distill", "RUN", "--name", "x")
    assert (config.lr, config.loss) == (3, "sll")
    assert refused(tmp_path, text, "distill", "RUN", "--name", "y") == (
        "has 3 tables [[distill]]; say by --name or --loss which is meant"
    )


def refused(folder, text, *args) -> str:
    """What is wrong with a file of options, without the file's name, which each such sentence begins with."""
    path = folder / "bad.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    result = fer("--config", path, *args)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith(f"Error: {path}")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix(f"Error: {path}").strip(": \n")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[distill]\nlearning-rate = 1", "[distill] has 'learning-rate', no option of fer distill; fer distill --help"),
        ("[distill]\nlr_step = 1", "[distill] has 'lr_step', no option of fer distill; fer distill --help lists them"),
        ("[distil]\nlr = 1", "'distil' is no command of fer; tables are called ablate, align, "),
        ("lr = 1", "'lr' is no command of fer; "),
        ("distill = 1", "distill is not a table; write [distill] above its options"),
        ("[[status]]", "status is not a table; write [status] above its options"),
        ("[cache.verfy]", "'cache.verfy' is no command of fer; tables are called cache.convert, "),
        ("[cache.verify]\nsample = 1.5", "sample of [cache.verify] is 1.5; give a whole number"),
        ("[distill]\nlr = 'fast'", "lr of [distill] is 'fast'; give a number"),
        ("[distill]\nepochs = true", "epochs of [distill] is True; give a whole number"),
        ("[distill]\nlive = 1", "live of [distill] is 1; give true or false"),
        ("[distill]\nname = 3", "name of [distill] is 3; give a text in quotes"),
        ("[distill]\nloss = 'mse'", "loss of [distill] is 'mse'; give one of ldl, kl, sll"),
        ("[teach]\ncheckpoint = 'a'", "checkpoint of [teach] is 'a'; give a list of texts"),
        ("[teach]\ncheckpoint = [1]", "checkpoint of [teach] is [1]; give in it a text in quotes"),
        ("[teach]\nadd-views = 0", "add-views of [teach] is 0; give a whole number from 1"),
        ("[evaluate]\ncompare = ['a']", "compare of [evaluate] is ['a']; give a list of 2 texts"),
        ("[distill\n", "is not TOML ("),
        (b"\xff", "is not TOML ("),
        ("a=" + "[" * 99_999, "is not TOML ("),
    ],
)
def test_what_no_command_could_obey_is_one_sentence(tmp_path, text, sentence):
    # whatever the command: a mistake is not found hours later, by the stage that it is about
    assert refused(tmp_path, text, "status", tmp_path).startswith(sentence)


def test_a_file_that_is_not_there(tmp_path):
    result = fer("--config", tmp_path / "x.toml", "status", tmp_path)
    assert (result.exit_code, result.stderr) == (
        1,
        f"Error: {tmp_path}/x.toml cannot be read (No such file or directory); give --config a TOML file\n",
    )


def test_options_that_no_stage_keeps_can_stand_in_the_file(tmp_path):
    (tmp_path / "run.toml").write_text("[demo]\ncount = 100\nidentities = 2\n[cache.verify]\nsample = 7\n")
    assert "--identities is about drawing alone" in fer("--config", tmp_path / "run.toml", "demo", "RUN").stderr


SMALL = ["--size", 32, "--batch-size", 6]
ALIGN = ["align", "photos", "a", "--aligned", "--crop", 64, "--encode", "png", "--classes", "neutral,happiness,sadness"]
TEACH = ["teach", "a", *SMALL, "--teacher-arch", SMALL_TEACHER, "--lr", 0.02]
TEACH += ["--schedule", "onecycle", "--min-area", 0.5]
WITHOUT_TEACHER = [
    ["teach", "a", "--source", "smooth:0.2", "--cache", "smooth"],
    ["distill", "a", *SMALL, "--epochs", 1, "--loss", "sll"],
    ["distill", "a", *SMALL, "--epochs", 1, "--cache", "smooth", "--name", "s", "--init", "a/students/sll"],
]
WITH_TEACHERS = [
    [*TEACH, "--epochs", 8, "--views", 2, "--calibrate"],
    [*TEACH, "--epochs", 8, "--folds", 2, "--cache", "oof", "--views", 1],
    ["teach", "a", "--checkpoint", "a/teacher", "--cache", "own", "--views", 0, "--seed", 5],
    ["distill", "a", *SMALL, "--epochs", 1, "--min-area", 0.5],
]


@pytest.mark.parametrize(
    ("commands", "told"),
    [
        (WITHOUT_TEACHER, ["teach a", "distill a --name s", "distill a --loss sll"]),
        pytest.param(
            WITH_TEACHERS,
            ["teach a", "teach a --cache oof", "teach a --cache own", "distill a"],
            marks=[pytest.mark.slow, pytest.mark.timeout(1200)],
        ),
    ],
)
def test_a_run_is_repeated_from_what_status_prints(commands, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for k in range(60):
        split = ("train", "train", "train", "val", "test")[k // 3 % 5]
        path = tmp_path / "photos" / split / ("neutral", "happy", "sad")[k % 3] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture(k % 3, rng))
    for line in (ALIGN, *commands):
        result = fer(*line)
        assert result.exit_code == 0, result.output
    text = fer("status", "a", "--config").stdout
    again = [line.removeprefix("# fer --config FILE ") for line in text.splitlines() if line.startswith("#")]
    assert again == ["align photos a", *told]
    aligned = tomllib.loads(text)["align"]
    assert (aligned["classes"], aligned["aligned"], aligned["crop"]) == ("neutral,happiness,sadness", True, 64)
    (tmp_path / "a.toml").write_text(text)
    for line in again:
        result = fer("--config", "a.toml", *["b" if word == "a" else word for word in line.split()])
        assert result.exit_code == 0, result.output
    made = [path.parent.relative_to("a") for path in (tmp_path / "a").relative_to(tmp_path).rglob("manifest.json")]
    assert len(made) >= 4
    for name in made:
        one, two = (json.loads((tmp_path / run / name / "manifest.json").read_text()) for run in "ab")
        assert {**one["settings"], "init": ""} == {**two["settings"], "init": ""}, name
        assert one["classes"] == two["classes"]
        weights = [tmp_path / run / name / "model.safetensors" for run in "ab"]
        assert not weights[0].exists() or weights[0].read_bytes() == weights[1].read_bytes(), name


def test_what_a_run_does_not_keep_is_printed_from_the_file(run, tmp_path):
    for words in (("--loss", "sll"), ("--loss", "sll", "--name", "x", "--seed", 1)):
        assert fer("distill", run, *SMALL, "--epochs", 1, *words).exit_code == 0
    file, kept = tmp_path / "run.toml", {"evaluate": {"split": "val"}, "demo": {"count": 9}}
    file.write_text(
        '[[distill]]\nname = "x"\nloss = "sll"\nworkers = 2\nepochs = 7\n[[distill]]\nloss = "sll"\nworkers = 1\n'
        '[evaluate]\nsplit = "val"\n[demo]\ncount = 9\n'
    )
    without = tomllib.loads(fer("status", run, "--config").stdout)["distill"]
    printed = tomllib.loads(fer("--config", file, "status", run, "--config").stdout)
    assert {name: printed[name] for name in kept} == kept
    workers = {"x": 2, "": 1}  # epochs are the run's, not the file's
    assert printed["distill"] == [{**one, "workers": workers[one.get("name", "")]} for one in without]


def test_status_of_a_run_without_a_finished_stage(tmp_path):
    result = fer("status", tmp_path, "--config")
    assert (result.exit_code, result.stderr) == (
        1,
        f"Error: {tmp_path} has no finished stage; fer status {tmp_path} says what comes next\n",
    )


def test_quiet_and_verbose(run, tmp_path, caplog):
    (tmp_path / "run.toml").write_text("[evaluate]\nsplit = 'val'\n")
    fer("-v", "--config", tmp_path / "run.toml", "evaluate", tmp_path / "none", "--device", "cpu")
    assert "device cpu, typed" in caplog.messages
    assert f"split val, from {tmp_path}/run.toml" in caplog.messages
    caplog.clear()
    fer("-q", "status", run)
    assert logging.getLogger("efficientface.pipeline.train").getEffectiveLevel() == logging.WARNING
    assert progress._quiet()
    fer("status", run)
    assert not progress._quiet()
    assert (
        fer("-q", "-v", "status", run).stderr
        == "Error: --quiet and --verbose contradict each other; give one of them\n"
    )


def test_no_color(run):
    def shown(**more):
        # rich colours what goes to a file only if it is told to
        plain = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        done = subprocess.run(
            [sys.executable, "-m", "efficientface.cli", "status", run],
            capture_output=True,
            text=True,
            env={**plain, "FORCE_COLOR": "1", "TERM": "xterm", **more},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "\x1b[32mdone" in shown()
    assert "\x1b[3" not in shown(NO_COLOR="1")
