"""Several processes, under torchrun or SLURM: what one process leaves, and one sentence where that cannot be."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import several_processes
from conftest import write_faces
from safetensors.torch import load_file
from several_processes import exact, killed_at_second_shard, killed_in_second_epoch, older, srun_variables, together

from efficientface import FerError
from efficientface.cache.parquet import read_shards
from efficientface.pipeline import launch, train

# 98 training faces in batches of 20, four times: 20 steps, with a last batch of 18
COMMON = ["--size", 32, "--batch-size", 20, "--epochs", 4, "--lr", 0.02, "--min-area", 0.5, "--workers", 1]


def teach(run, *more):
    return ["teach", run, *COMMON, "--teacher-arch", "efficientface", "--label-smoothing", 0.1, "--views", 1, *more]


def distill(run, *more):
    return ["distill", run, *COMMON, *more]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run that one process has made; tests change nothing in it."""
    folder = tmp_path_factory.mktemp("alone")
    write_faces(folder / "run", count=158)
    (ended,) = together(folder / "log", [teach(folder / "run"), distill(folder / "run")])
    assert ended.status == 0, ended.stderr
    return folder / "run"


@pytest.fixture
def run(alone, tmp_path):
    """The same without students."""
    return shutil.copytree(alone, tmp_path / "run", ignore=shutil.ignore_patterns("students"))


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "faces_per_second")} for line in lines]


def assert_same_network(one, other):
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert ours.keys() == theirs.keys()
    for name in ours:  # batch norm's running statistics among them
        assert (ours[name] - theirs[name]).abs().max() <= 1e-5, name
    for mine, its in zip(metrics(one), metrics(other), strict=True):
        assert mine == pytest.approx(its, abs=1e-4)
        assert mine["val_accuracy"] == its["val_accuracy"]


def cached(folder):
    return read_shards(sorted(folder.glob("part-*.parquet")))


def files(folder):
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {path: path.read_bytes() for path in paths}


def under_torchrun(world, words):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", world, several_processes.__file__]
    done = subprocess.run(
        [sys.executable, *map(str, command), json.dumps([[str(word) for word in words]])],
        capture_output=True, text=True, timeout=280, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_same_distributions(one, other, within):
    ours, theirs = cached(one), cached(other)
    assert theirs.face_id.tolist() == [f"face-{k:03d}.png" for k in range(158)]
    np.testing.assert_array_equal(ours.view_box, theirs.view_box)
    np.testing.assert_allclose(ours.canonical, theirs.canonical, rtol=0, atol=within)
    np.testing.assert_allclose(ours.view_distribution, theirs.view_distribution, rtol=0, atol=within)


@pytest.mark.processes
def test_two_processes_under_torchrun_make_what_one_makes(alone, tmp_path):
    run = tmp_path / "run"
    write_faces(run, count=158)
    printed = under_torchrun(2, teach(run))
    assert printed.count("distributions") == 2  # its row and where: one process speaks for all
    assert_same_network(alone / "teacher", run / "teacher")
    assert_same_distributions(alone / "distributions", run / "distributions", within=1e-4)


@pytest.mark.processes
def test_four_processes_under_srun_make_what_one_makes(alone, run, tmp_path):
    ended = together(tmp_path / "log", *[[distill(run)]] * 4, variables=srun_variables)
    assert [one.status for one in ended] == [0] * 4, ended
    assert ended[0].stdout.count("val_cross_entropy") == 1
    assert [one.stdout + one.stderr for one in ended[1:]] == [""] * 3
    assert_same_network(alone / "students" / "ldl", run / "students" / "ldl")


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_balanced_draws_are_those_of_one_process(run, tmp_path, world):
    balanced = ["--loss", "sll", "--sampling", "balanced", "--label-smoothing", 0.1, "--epochs", 2]
    (ended,) = together(tmp_path / "one", [distill(run, *balanced, "--name", "one")])
    ended = together(tmp_path / "several", *[[distill(run, *balanced, "--name", "several")]] * world)
    assert [one.status for one in ended] == [0] * world, ended
    assert_same_network(run / "students" / "one", run / "students" / "several")


@pytest.mark.processes
def test_batch_norm_is_that_of_one_process_also_where_a_rank_has_no_face(tmp_path):
    """In fp64, so that only a wrong formula makes a difference: four ranks, batches of six and of three faces."""
    for gradients, buffers in exact(tmp_path / "log", world=4):
        assert max(gradients + buffers) < 1e-12


@pytest.mark.processes
def test_a_dead_rank_ends_all_and_one_process_goes_on(alone, run, tmp_path):
    student = [distill(run)]
    ended = together(tmp_path / "two", student, student, spoiled={1: killed_in_second_epoch})
    assert [one.status for one in ended] == [1, -signal.SIGKILL]
    last = ended[0].stderr.splitlines()[-1]
    assert last.startswith("Error: rank 1 of 2 has ended or does not answer (")
    assert last.endswith("); what was finished is kept, the same command goes on from there")
    assert len(metrics(run / "students" / "ldl")) == 1
    (ended,) = together(tmp_path / "one", student)
    assert "going on after epoch 1 of 4" in ended.stderr
    assert_same_network(alone / "students" / "ldl", run / "students" / "ldl")


@pytest.mark.slow
def test_four_processes_go_on_with_what_one_began(alone, run, tmp_path):
    student = [distill(run)]
    (ended,) = together(tmp_path / "one", student, spoiled={0: killed_in_second_epoch})
    assert ended.status == -signal.SIGKILL
    ended = together(tmp_path / "four", *[student] * 4)
    assert [one.status for one in ended] == [0] * 4, ended
    assert "going on after epoch 1 of 4" in ended[0].stderr
    assert_same_network(alone / "students" / "ldl", run / "students" / "ldl")


@pytest.mark.processes
def test_labelling_goes_on_with_another_number_to_the_same_bits(alone, run, tmp_path):
    again = [teach(run, "--checkpoint", alone / "teacher", "--cache", "again")]
    (ended,) = together(tmp_path / "one", again, spoiled={0: killed_at_second_shard})
    assert ended.status == -signal.SIGKILL
    assert [path.name for path in (run / "distributions-again").glob("part-*")] == ["part-00000.parquet"]
    ended = together(tmp_path / "two", again, again)
    assert [one.status for one in ended] == [0, 0], ended
    assert_same_distributions(alone / "distributions", run / "distributions-again", within=0)


@pytest.mark.processes
@pytest.mark.parametrize(
    "what",
    ["faces", "missing", *(pytest.param(one, marks=pytest.mark.slow) for one in ("folder", "seed", "version", "loss"))],
)
def test_ranks_that_cannot_go_on_together_end_with_one_sentence(run, tmp_path, what):
    other, spoiled, options = run, {}, []
    if what in ("faces", "folder"):
        other = tmp_path / "other"
        write_faces(other, count=158, seed=what == "faces")
    elif what == "missing":
        other = tmp_path / "none"
    elif what == "version":
        spoiled = {1: older}
    elif what == "loss":
        options = ["--lr", 1e12]
    before = files(tmp_path)
    theirs = distill(other, "--loss", "sll", *options, "--seed", int(what == "seed"))
    ended = together(tmp_path / "log", [distill(run, "--loss", "sll", *options)], [theirs], spoiled=spoiled)
    assert [one.status for one in ended] == [1, 1], ended
    assert ended[1].stdout + ended[1].stderr == ""
    same = "give all the same data, settings and version"
    sentence = {
        "faces": rf"rank 1 of 2 differs from rank 0 in faces/manifest.json \(\w{{16}}, not \w{{16}}\); {same}",
        "folder": f"{run} is another folder for rank 1 of 2 than for rank 0; give one that they share",
        "seed": rf"rank 1 of 2 differs from rank 0 in seed \(1, not 0\); {same}",
        "version": rf"rank 1 of 2 differs from rank 0 in efficientface \(0.0.9, not [\d.]+\); {same}",
        "missing": f"rank 1 of 2: {other}/faces does not exist; run fer align first",
        "loss": r"the loss is (nan|inf) in epoch 1; start again with a smaller --lr than 1000000000000.0",
    }[what]
    assert re.fullmatch(f"Error: {sentence}", ended[0].stderr.splitlines()[-1]), ended[0].stderr
    shutil.rmtree(tmp_path / "log")
    assert files(tmp_path) == before


def test_a_batch_has_the_same_faces_whatever_the_number_of_ranks():
    batches = train.global_batches(98, 20)
    assert [len(batch) for batch in batches] == [20, 20, 20, 20, 18]


STEP = {
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_ID": "0",
}


@pytest.mark.parametrize(
    ("given", "numbers"),
    [
        ({}, (0, 1, 0)),
        (STEP, (3, 4, 1)),
        # a batch script, and salloc's shell: nobody else comes
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, (0, 1, 0)),
        (STEP | {"SLURM_PROCID": "0", "SLURM_STEP_ID": "4294967290"}, (0, 1, 0)),
        (STEP | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "1"}, (0, 1, 0)),
        # torchrun below srun
        (STEP | {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, (1, 2, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (0, 1, 0)),
    ],
)
def test_who_a_process_is(monkeypatch, given, numbers):
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_"))]:
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert launch.numbers() == numbers


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node[01-04,07],login1", "node01"),
        ("gpu7", "gpu7"),
        ("a-1,b-[2-3]", "a-1"),
        ("rack[2-3]-node[08,11]", "rack2-node08"),
        ("", ""),
        ("[", ""),
    ],
)
def test_the_first_host_of_a_node_list(nodes, host):
    assert launch.first_host(nodes) == host


def test_where_processes_meet(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    for name, value in {"SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_ID": "70123", "SLURM_STEP_ID": "2"}.items():
        monkeypatch.setenv(name, value)
    assert launch.meeting_point() == "tcp://localhost:20125"
    monkeypatch.setenv("SLURM_STEP_NODELIST", "no.such.host.invalid")
    with pytest.raises(
        FerError, match=r"^no\.such\.host\.invalid, where the processes are to meet, cannot be found \("
    ):
        launch.meeting_point()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "here")
    with pytest.raises(FerError, match=r"^MASTER_PORT here is no port; give a number, or leave it out$"):
        launch.meeting_point()
