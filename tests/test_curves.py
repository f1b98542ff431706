"""--tensorboard and --mlflow: every epoch once, whatever interrupted the training, and nothing of it in an artifact."""

import json
import sqlite3

import pandas as pd
import pytest
from click.testing import CliRunner

from efficientface.cli import cli
from efficientface.pipeline import train

SMALL = ["--loss", "sll", "--size", "32", "--batch-size", "16", "--epochs", "3", "--name", "s"]


def fer(*args):
    return CliRunner().invoke(cli, [str(arg) for arg in args])


@pytest.fixture
def interrupted(run, monkeypatch):
    """Trains students/s and breaks off after two of three epochs; then the same command again ends it."""

    def training(*options):
        real = train.train_epoch

        def stop(*args):
            if args[7] == 2:  # epoch
                raise KeyboardInterrupt
            return real(*args)

        monkeypatch.setattr(train, "train_epoch", stop)
        assert fer("distill", run, *SMALL, *options).exit_code != 0
        monkeypatch.setattr(train, "train_epoch", real)
        result = fer("distill", run, *SMALL, *options)
        assert result.exit_code == 0, result.output
        return pd.read_json(run / "students" / "s" / "metrics.jsonl", lines=True).to_dict("records")

    return training


def scalars(folder, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, pytest.approx(event.value)) for event in events.Scalars(name)]


def test_tensorboard_has_the_metrics_once_and_no_artifact_knows_of_it(run, interrupted):
    lines = interrupted("--tensorboard")
    where = run / "tensorboard" / "students" / "s"
    for name in ("loss", "val_accuracy", "lr"):
        assert scalars(where, name) == [(line["epoch"], line[name]) for line in lines]
    manifest = json.loads((run / "students" / "s" / "manifest.json").read_text())
    assert not {"tensorboard", "mlflow"} & set(manifest["settings"])
    assert fer("verify", run).exit_code == 0
    # asked for afterwards, the finished training's curves are drawn
    for path in where.iterdir():
        path.unlink()
    assert fer("distill", run, *SMALL, "--tensorboard").exit_code == 0
    assert [step for step, _ in scalars(where, "loss")] == [1, 2, 3]


@pytest.mark.slow
def test_mlflow_has_one_run_with_the_metrics_once(run, interrupted, monkeypatch):
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    lines = interrupted("--mlflow")
    assert fer("distill", run, *SMALL, "--mlflow").exit_code == 0
    with sqlite3.connect(run / "mlflow.db") as store:
        assert store.execute("SELECT name, status FROM runs").fetchall() == [("students/s", "FINISHED")]
        for name in ("loss", "val_accuracy"):
            told = store.execute("SELECT step, value FROM metrics WHERE key = ? ORDER BY step", [name]).fetchall()
            assert told == [(line["epoch"], line[name]) for line in lines]
        assert dict(store.execute("SELECT key, value FROM params").fetchall())["size"] == "32"


@pytest.mark.slow
def test_a_store_that_mlflow_cannot_use(run, monkeypatch):
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://x")
    result = fer("distill", run, *SMALL, "--mlflow")
    assert result.exit_code == 1
    assert "Error: MLflow's store nonsense://x refuses (" in result.stderr
    assert not (run / "students" / "s" / "checkpoint.safetensors").exists()


def test_without_mlflow(run, monkeypatch):
    from efficientface.pipeline import curves

    monkeypatch.setattr(curves, "find_spec", lambda name: None)
    assert fer("distill", run, *SMALL, "--mlflow").stderr.splitlines()[-1] == (
        "Error: --mlflow needs MLflow; install it with pip install 'efficientface[mlflow]'"
    )
