"""Two processes on one run folder: the second says so and stops, and what a killed one held is free."""

import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner
from conftest import write_faces
from filelock import FileLock

from efficientface.cli import cli

LONG = ["--size", "32", "--epochs", "10000", "--batch-size", "16"]
COMMANDS = {
    "teach": (["--teacher-arch", "shufflenet_v2_x0_5"], "teacher", "give --checkpoint with a finished one"),
    "distill": (["--loss", "sll"], "students/sll", "give --name to train beside it"),
    "pretrain": (["--arch", "efficientface"], "identities/efficientface", "give --name to train beside it"),
}


def fer(*words):
    return CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)


@pytest.mark.parametrize("command", ["teach", "distill"])
def test_the_second_stops_and_a_killed_process_blocks_nobody(run, command):
    words, artifact, otherwise = COMMANDS[command]
    second_words = [*words, "--cache", "beside"] if command == "teach" else words
    code = "from efficientface.cli import main; main()"
    first = subprocess.Popen(
        [sys.executable, "-c", code, command, str(run), *words, *LONG],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        checkpoint, deadline = run / artifact / "checkpoint.safetensors", time.monotonic() + 120
        while not checkpoint.exists():
            assert first.poll() is None, first.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        second = fer(command, run, *second_words, *LONG)
        assert second.exit_code == 1
        assert second.stderr.endswith(
            f"Error: another fer {command} is writing {run / artifact}; wait for it, or {otherwise}\n"
        )
        assert first.poll() is None
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    # past the lock it finds a checkpoint of other settings
    third = fer(command, run, *words, *LONG, "--seed", 1)
    assert "checkpoint.safetensors was begun with other settings (seed 0, now 1)" in third.stderr


def test_caches_and_networks_of_people_have_locks_too(run, tmp_path):
    with FileLock(run / ".distributions-oof.lock"):
        second = fer("teach", run, *LONG, "--cache", "oof")
    otherwise = "give --cache NAME to write beside it"
    assert second.stderr.endswith(
        f"Error: another fer teach is writing {run}/distributions-oof; wait for it, or {otherwise}\n"
    )
    people = tmp_path / "people"
    write_faces(people, layout="identities")
    words, artifact, otherwise = COMMANDS["pretrain"]
    with FileLock(people / ".identities-efficientface.lock"):
        second = fer("pretrain", people, *words, *LONG)
    assert second.stderr.endswith(
        f"Error: another fer pretrain is writing {people / artifact}; wait for it, or {otherwise}\n"
    )


def test_no_folder_is_made_where_there_is_no_run(tmp_path):
    for command in COMMANDS:
        assert fer(command, tmp_path / "none").exit_code == 1
    assert not (tmp_path / "none").exists()
