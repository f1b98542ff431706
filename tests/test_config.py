"""Settings that no stage could obey are refused before any work."""

import errno
import os
import re

import pytest
from click.testing import CliRunner

from efficientface.cli import cli


@pytest.mark.parametrize(
    "command",
    [
        *(f"distill RUN --{option}" for option in ("lr 0", "lr -1", "lr nan", "lr-step 0", "momentum -1", "seed -1")),
        *(f"distill RUN --{option}" for option in ("weight-decay -1", "patience -1", "workers -1", "label-batch 0")),
        *(f"teach RUN --{option}" for option in ("label-batch 0", "views -1", "seed 4294967296", "min-area 0")),
        *(f"align SOURCE RUN --{option}" for option in ("workers -2", "seed -1", "min-face -9", "crop 8")),
    ],
)
def test_numbers_out_of_range(command):
    words = command.split()
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 1, result.output
    assert re.fullmatch(
        rf"Error: {words[-2]} \S+ is out of range; give a number from \S+ to \S+", result.stderr.strip()
    )


@pytest.mark.parametrize("command", ["inspect {}", "status {}", "evaluate {}", "cache verify {}", "align {} RUN"])
def test_what_the_system_refuses_is_one_sentence(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "x" * 300
    result = CliRunner().invoke(cli, command.format(name).split())
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert "File name too long; what was finished is kept" in result.stderr


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    from efficientface.pipeline import issues

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "part.parquet"))

    monkeypatch.setattr(issues, "issues", full)
    result = CliRunner().invoke(cli, ["cache", "issues", str(tmp_path)])
    assert (result.exit_code, result.stderr) == (
        1,
        f"Error: {tmp_path}/part.parquet: No space left on device; make room there (df -h, df -i); "
        "what was finished is kept, the same command goes on from there\n",
    )
