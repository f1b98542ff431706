"""Without disk, shared memory or memory: one sentence, exit status 1, nothing half-written, the next start goes on."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import write_photos
from test_evaluate import write_model
from test_stopped import GOES_ON, SMOOTHED, fer, leftovers
from test_teach_distill import DISTILL

from efficientface import untrusted
from efficientface.cache.parquet import read_shards
from efficientface.cli import FerGroup, starved
from efficientface.data import drawn, photos
from efficientface.pipeline import artifact, checkpoint, label, train
from efficientface.pipeline.artifact import MANIFEST

READ_ONLY = f"Read-only file system; give a folder on a disk that can be written; {GOES_ON}"
FULL = f"No space left on device; make room there (df -h, df -i); {GOES_ON}"
ON_GPU = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB of which 5 MiB is free."
)
GPU_FULL = (
    "Error: the GPU's memory is full (CUDA out of memory. Tried to allocate 20.00 MiB); free some or give another "
    f"--device; a smaller --batch-size or --label-batch or --size takes less, where nothing is begun yet; {GOES_ON}\n"
)


@pytest.mark.slow
def test_read_only_and_full_disks_and_little_memory(run, tmp_path):
    alone = ["unshare", "-rm", "--"]
    tried = subprocess.run([*alone, "mount", "-t", "tmpfs", "none", str(tmp_path)], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"nothing can be mounted here: {tried.stderr.strip()}")
    write_photos(tmp_path / "photos")
    assert fer("teach", run, *SMOOTHED).exit_code == 0
    script = Path(__file__).with_name("starved.py")
    done = subprocess.run([*alone, sys.executable, script, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    refused = {case: said for case, (status, said) in found.items() if status}
    assert refused == {
        "read-only: align --replace": f"Error: HOME/aligned/.faces.anew: {READ_ONLY}",
        "read-only: teach": f"Error: HOME/run/distributions-new: {READ_ONLY}",
        "read-only: distill": f"Error: HOME/run/students/new: {READ_ONLY}",
        "read-only: evaluate": f"Error: HOME/run/evaluation: {READ_ONLY}",
        "read-only: cache convert": f"Error: HOME/run/whole.h5: {READ_ONLY}",
        "read-only: card": f"Error: HOME/run/card.md: {READ_ONLY}",
        "full, size": f"Error: HOME/beside/distributions/plan.json: {FULL}",
        "full, nr_inodes": f"Error: HOME/beside/.distributions.lock: {FULL}",
        "memory: distill": refused["memory: distill"],
    }
    assert refused["memory: distill"].startswith("Error: memory is full (")
    assert refused["memory: distill"].endswith(
        "; a smaller --workers takes less; a smaller --batch-size or --label-batch or --size does, too, where nothing "
        f"is begun yet; {GOES_ON}"
    )
    assert not leftovers(tmp_path)


def test_beyond_a_quota_the_next_start_goes_on(run, monkeypatch):
    synced, calls = artifact._sync, []

    def refused(path):
        calls.append(path)
        if len(calls) > 4:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        synced(path)

    monkeypatch.setattr(artifact, "_sync", refused)  # where a network's disk tells of it
    words = ("teach", run, *SMOOTHED, "--shard-faces", 20)
    first = fer(*words)
    assert first.exit_code == 1
    path = run / "distributions" / "part-00001.parquet"
    assert first.stderr.endswith(f"Error: {path}: Disk quota exceeded; make room in your quota; {GOES_ON}\n")
    assert not leftovers(run)
    assert not (run / "distributions" / MANIFEST).exists()
    monkeypatch.undo()
    kept = (run / "distributions" / "part-00000.parquet").stat().st_ino
    assert fer(*words).exit_code == 0
    assert (run / "distributions" / "part-00000.parquet").stat().st_ino == kept
    assert fer("cache", "verify", run / "distributions").exit_code == 0


def test_a_gpu_out_of_memory_in_training_keeps_the_checkpoint(run, monkeypatch):
    words = ("distill", run, *DISTILL, "--loss", "sll")
    loss_of, saved, epochs = train.label_loss, checkpoint.Checkpoint.save, []

    def full(*given):
        if epochs == [1]:
            raise torch.OutOfMemoryError(ON_GPU)
        return loss_of(*given)

    def noting(self, *state):
        saved(self, *state)
        epochs.append(len(state[-1]["lines"]))

    monkeypatch.setattr(train, "label_loss", full)
    monkeypatch.setattr(checkpoint.Checkpoint, "save", noting)
    first = fer(*words)
    assert first.exit_code == 1
    assert first.stderr.endswith(GPU_FULL)
    monkeypatch.setattr(train, "label_loss", loss_of)
    assert fer(*words).exit_code == 0
    assert epochs == [1, 2]


def test_a_gpu_out_of_memory_in_labelling_keeps_the_shards(run, monkeypatch):
    write_model(run, run / "ldg", "teacher")
    asked, calls = label.predict, []

    def full(*given, **named):
        calls.append(given)
        if len(calls) > 1:
            raise torch.OutOfMemoryError(ON_GPU)
        return asked(*given, **named)

    monkeypatch.setattr(label, "check_teacher", lambda *given: {})  # that it says no more than guesses is no matter
    monkeypatch.setattr(label, "predict", full)
    words = ("teach", run, "--checkpoint", run / "ldg", "--views", 1, "--shard-faces", 20)
    first = fer(*words)
    assert first.exit_code == 1
    assert first.stderr.endswith(GPU_FULL)
    assert not leftovers(run)
    shard = run / "distributions" / "part-00000.parquet"
    kept = shard.stat().st_ino
    monkeypatch.setattr(label, "predict", asked)
    assert fer(*words).exit_code == 0
    assert shard.stat().st_ino == kept
    assert len(read_shards(sorted((run / "distributions").glob("*.parquet")))) == 60


def test_a_process_that_the_memory_killer_takes_is_told_of():
    """Those that draw faces are the only ones that a command starts by itself."""
    cli = FerGroup()
    killed = [signal.SIGKILL] * 2
    cli.command("draw")(lambda: list(drawn._in_processes(signal.raise_signal, killed)))
    done = CliRunner().invoke(cli, ["draw"])
    assert done.exit_code == 1
    assert done.stderr == (
        f"Error: a process of this command was killed, most likely because memory was full; free some; {GOES_ON}\n"
    )


def test_without_shared_memory_dask_says_what_it_lacks(run, monkeypatch):
    """As its nannies fail where /dev/shm is read-only."""
    distributed = pytest.importorskip("distributed")

    def refused(*given, **named):
        try:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        except OSError as error:
            raise RuntimeError("Nanny failed to start.") from error

    monkeypatch.setattr(distributed, "LocalCluster", refused)
    first = fer("teach", run, *SMOOTHED, "--cluster", "local", "--workers", 1)
    assert first.exit_code == 1
    assert first.stderr == (
        "Error: --cluster local cannot start its processes ([Errno 30] Read-only file system); they need shared memory "
        "(/dev/shm) and room for temporary files: leave --cluster out where there is none\n"
    )
    assert fer("teach", run, *SMOOTHED).exit_code == 0


def test_a_photograph_is_not_called_damaged_where_memory_is_short(monkeypatch):
    """A row that says so would stay in faces/; the photograph's own absurd wishes are another matter."""

    def short(*given):
        raise MemoryError

    picture = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    monkeypatch.setattr(photos, "_pixels", short)
    with pytest.raises(photos.Unreadable, match="damaged"):
        photos.decode_photo(picture)
    monkeypatch.setattr(untrusted, "LARGEST_PHOTO", 2**60)  # more than there is
    with pytest.raises(MemoryError):
        photos.decode_photo(picture)


def test_a_reader_that_closes_the_pipe_is_no_shortage():
    """`fer status | head` ends as programs do there, which click sees to."""
    assert starved(BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)), None) is None
