"""Several processes under torchrun: one artifact, whole, and every face once an epoch."""

import json
import os
import subprocess
import sys

import pytest
from conftest import write_faces
from test_teach_distill import DISTILL, TEACH

from efficientface.cache.parquet import read_shards
from efficientface.pipeline.artifact import MANIFEST


def torchrun(*args):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "efficientface.cli", *map(str, args)],
        capture_output=True, text=True, timeout=280, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_processes_leave_what_one_leaves(tmp_path):
    run = tmp_path / "run"
    write_faces(run)
    # each rank normalises its own half of a batch, so the batch is twice as large
    torchrun("teach", run, *TEACH, "--batch-size", 12, "--views", 2)
    torchrun("distill", run, *DISTILL)
    torchrun("distill", run, *DISTILL, "--loss", "sll", "--sampling", "balanced", "--name", "drawn")
    cached = read_shards(sorted((run / "distributions").glob("*.parquet")))
    assert sorted(cached.face_id) == [f"face-{k:03d}.png" for k in range(60)]
    for folder, epochs in ((run / "teacher", 8), (run / "students" / "ldl", 2), (run / "students" / "drawn", 2)):
        assert (folder / MANIFEST).exists()
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in lines] == list(range(1, epochs + 1))
