"""Stopped by Ctrl-C, by the system or by a full disk: one sentence, nothing half-written, the same command goes on."""

import os
import resource
import signal
from contextlib import contextmanager

import pytest
from click.testing import CliRunner
from test_teach_distill import DISTILL

from efficientface.cache.parquet import read_shards
from efficientface.cli import cli
from efficientface.pipeline import checkpoint, label
from efficientface.pipeline.artifact import HOST, MANIFEST

SMOOTHED = ["--source", "smooth:0.1", "--views", 0]
GOES_ON = "what was finished is kept, the same command goes on from there"


def fer(*words):
    return CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)


@contextmanager
def files_up_to(size):
    """No file may grow beyond so many bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def leftovers(run):
    return [path for path in run.rglob("*") if path.name.endswith(".part")]


def test_a_stopped_labelling_says_how_to_go_on(run, monkeypatch):
    written = label.write_shard

    def stopped(part, file):
        written(part, file)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(label, "write_shard", stopped)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        first = fer("teach", run, *SMOOTHED)
    finally:
        signal.signal(signal.SIGINT, before)
    assert first.exit_code == 130
    assert first.stderr.endswith(f"Error: interrupted (SIGINT); {GOES_ON}\n")
    assert not (run / "distributions" / MANIFEST).exists()
    assert not leftovers(run)
    monkeypatch.undo()
    assert fer("teach", run, *SMOOTHED).exit_code == 0
    assert fer("cache", "verify", run / "distributions").exit_code == 0


def test_a_stopped_training_goes_on_after_its_last_epoch(run, monkeypatch):
    saved, epochs = checkpoint.Checkpoint.save, []

    def stopped(self, *state):
        saved(self, *state)
        epochs.append(len(state[-1]["lines"]))
        if epochs == [1]:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(checkpoint.Checkpoint, "save", stopped)
    first = fer("distill", run, *DISTILL, "--loss", "sll")
    assert first.exit_code == 143
    assert first.stderr.endswith(f"Error: interrupted (SIGTERM); {GOES_ON}\n")
    assert fer("distill", run, *DISTILL, "--loss", "sll").exit_code == 0
    assert epochs == [1, 2]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("form", ["parquet", "hdf5"])
def test_on_a_full_disk_a_cache_is_not_half_written(run, form):
    words = ("teach", run, *SMOOTHED, "--format", form)
    with files_up_to(12_000 if form == "hdf5" else 4_000):  # the shard fits, the HDF5 file made of it does not
        first = fer(*words)
    assert first.exit_code == 1
    assert "File too large" in first.stderr
    assert (
        f"Error: {run}/distributions/{'distributions.h5' if form == 'hdf5' else 'part-00000.parquet'}: " in first.stderr
    )
    assert first.stderr.endswith(f"; {GOES_ON}\n")
    assert not leftovers(run)
    assert not (run / "distributions" / MANIFEST).exists()
    assert fer(*words).exit_code == 0
    assert fer("cache", "verify", run / "distributions").exit_code == 0


def test_on_a_full_disk_a_training_says_which_file(run):
    words = ("distill", run, *DISTILL, "--loss", "sll")
    with files_up_to(1_000_000):
        first = fer(*words)
    assert first.exit_code == 1
    assert first.stderr.endswith(f"Error: {run}/students/sll/checkpoint.safetensors: File too large; {GOES_ON}\n")
    assert not leftovers(run)
    assert fer(*words).exit_code == 0


def test_what_a_killed_conversion_left_is_removed_by_the_next(run):
    fer("teach", run, *SMOOTHED)
    fer("cache", "convert", run / "distributions", run / "whole.h5")
    left = run / f".back.0.{HOST}.999999999.part"
    left.mkdir()
    (left / "part-00000.parquet").write_bytes(b"half")
    assert fer("cache", "convert", run / "whole.h5", run / "back").exit_code == 0
    assert not left.exists()
    same = [read_shards(sorted((run / name).glob("*.parquet"))) for name in ("back", "distributions")]
    assert same[0].face_id.tolist() == same[1].face_id.tolist()
