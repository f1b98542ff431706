"""Two processes on one run folder: the second says so and stops, and what a killed one held is free."""

import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner
from conftest import CLASSES, write_faces, write_photos
from filelock import FileLock
from test_evaluate import write_model

from efficientface import FerError
from efficientface.cli import cli
from efficientface.pipeline import evaluate
from efficientface.pipeline.artifact import read_sealed, replacing

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


def test_models_judged_at_the_same_time_are_all_kept(run, monkeypatch):
    for name in ("a", "b"):
        write_model(run, run / "students" / name)
    judged = evaluate.judge

    def meanwhile(*given):
        found = judged(*given)
        monkeypatch.setattr(evaluate, "judge", judged)
        evaluate.run(run, names=["b"], png=False)
        return found

    monkeypatch.setattr(evaluate, "judge", meanwhile)
    evaluate.run(run, names=["a"], png=False)
    assert list(read_sealed(run / "evaluation" / "test.json")["models"]) == ["a", "b"]


def test_predictions_have_one_writer_and_what_a_killed_one_held_is_free(run, tmp_path):
    photo = write_photos(tmp_path / "photos", 3) / CLASSES[0] / "000.png"
    model = write_model(run, run / "students" / "a")
    out, journal = tmp_path / "faces.csv", tmp_path / ".faces.csv.begun"
    code = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, 2); print(flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", code, str(journal)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    holder.stdout.readline()
    words = ("predict", photo, "--model", model, "--out", out)
    second = fer(*words)
    holder.kill()
    holder.wait()
    assert second.exit_code == 1
    assert second.stderr.endswith(f"Error: another fer predict is writing {out}; wait for it, or give another --out\n")
    assert fer(*words).exit_code == 0
    assert sorted(path.name for path in tmp_path.glob("*faces*")) == ["faces.csv"]


def write_file(path):
    path.write_bytes(b"whole")


def write_folder(path):
    path.mkdir()
    write_file(path / "weights")


def write_meanwhile(path, make):
    with replacing(path, new=True) as part:
        make(part)
        make(path)


@pytest.mark.parametrize("make", [write_file, write_folder])
def test_what_another_process_made_meanwhile_is_not_covered(tmp_path, make):
    """Converted caches, exported and imported models: a name that was free when the command began."""
    path = tmp_path / "made"
    with pytest.raises(FerError) as error:
        write_meanwhile(path, make)
    assert str(error.value) == f"{path} exists now, another process has made it; give another name, or remove it"
    with replacing(tmp_path / "free", new=True) as part:
        make(part)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["free", "made"]
