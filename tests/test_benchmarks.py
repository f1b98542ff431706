"""The programs in benchmarks/ run, at the smallest sizes; what they print is for people."""

import sys

import alignment
import growth
import inference
import numpy as np
import pytest
import start
import timing
import training

from efficientface.pipeline import teach
from efficientface.pipeline.config import TeachConfig

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a step's peak")


def test_ratios_are_of_pairs():
    assert timing.ratios([2.0, 9.0, 4.0], [1.0, 3.0, 1.0]) == "3.00 (2.00 to 4.00)"


@LINUX
def test_the_peak_of_a_program_is_its_own():
    small, large = (timing.program([sys.executable, "-c", f"b'x' * {size}"])[1] for size in (1, 300_000_000))
    assert 250 < large - small < 350


def test_the_two_networks_of_alignment_answer_equally(capsys):
    alignment.networks(rounds=1)
    rows = [line.strip("|").split("|") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0].split()[0] for row in rows] == [str(side) for side in alignment.SIDES]
    assert all(float(row[-1]) < 3e-4 for row in rows)


@pytest.mark.slow
def test_alignment_takes_turns(monkeypatch, capsys):
    options = ["--count", "4", "--pairs", "2", "--workers", "2", "--side", "128"]
    monkeypatch.setattr(sys, "argv", [alignment.__file__, *options])
    alignment.main()
    told = capsys.readouterr().out
    assert "4 photographs" in told
    assert told.count(" times the throughput, ") == told.count(" times by CPU time") == 3
    rows = [line.strip("| ").split(" | ") for line in told.splitlines() if line.startswith(("| tiny", "| fer"))]
    assert [row[0] for row in rows] == [*alignment.RIVALS, "fer align, 1 worker", "fer align, 2 workers"]
    assert all(float(figure) > 0 for row in rows for figure in row[1:])


@pytest.mark.slow
def test_the_loops_of_training_take_turns(run, monkeypatch, capsys):
    teach.run(run, TeachConfig(teacher_arch="resnet18", epochs=1, size=32, workers=1), train_only=True)
    options = ["--faces", "16", "--pairs", "2", "--batch-size", "8", "--threads", "1", "--size", "32"]
    options += ["--run", str(run), "--teacher", str(run / "teacher")]
    monkeypatch.setattr(sys, "argv", [training.__file__, *options])
    training.main()
    told = capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in told.splitlines() if line.startswith("| ")][2:]
    assert [row[0] for row in rows] == [*training.RIVALS, training.LIVE]
    assert told.count("% of an epoch (") == 3


@pytest.mark.slow
def test_inference_answers_equally(tmp_path):
    found = inference.measure(inference.made_up(tmp_path / "model"), None, {1: 2, 3: 1}, 1, tmp_path)
    assert {count: len(ways["ours"]) for count, ways in found.items()} == {1: 2, 3: 1}


@LINUX
@pytest.mark.slow
def test_growth_goes_through_every_stage(tmp_path):
    steps = growth.measure(100, str(tmp_path))
    assert [step.name for step in steps] == ["fer align", "fer teach, labelling", "fer distill, one epoch"]
    assert all(np.isfinite(step.cpu) for step in steps)
    assert not list(tmp_path.iterdir())


@LINUX
@pytest.mark.slow
def test_start_makes_its_caches_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["start.py", "--faces", "200", "--page", "150", "--repeats", "1", "--folder", str(tmp_path)]
    )
    start.main()
    start.main()
    told = capsys.readouterr()
    assert told.err.count("making ") == 2
    assert told.out.count("fer inspect --html, 150 faces") == 2
