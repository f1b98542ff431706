"""benchmarks/time_to_accuracy.py runs, goes on where it stopped, and finds the epoch that a hand would."""

import importlib.util
import re
from pathlib import Path

import pytest

from efficientface.pipeline import label, teach, train
from efficientface.pipeline.config import TeachConfig


@pytest.fixture(scope="module")
def benchmark():
    path = Path(__file__).parent.parent / "benchmarks" / "time_to_accuracy.py"
    spec = importlib.util.spec_from_file_location("time_to_accuracy", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_benchmark_of_recipes_runs_and_goes_on(benchmark, run, tmp_path, capsys, monkeypatch):
    teach.run(run, TeachConfig(teacher_arch="efficientface", epochs=1, size=32, workers=1), train_only=True)
    monkeypatch.setattr(label, "check_teacher", lambda *asked: {})  # it has not learned enough to be let through
    sizes = ["--size", "32", "--batch-size", "16", "--epochs", "2", "--fast-epochs", "2"]
    words = [str(run), *sizes, "--work", str(tmp_path / "work")]
    benchmark.main(words)
    told = capsys.readouterr().out
    assert len(re.findall(r"^\| [12] \| [\d.]+ \| [\d.]+ \| [\d.]+ \|$", told, re.M)) == 4
    assert re.search(r"^seed 0: paper [\d.]+ % in epoch [12], after .* CPU; fast ", told, re.M)
    monkeypatch.setattr(train, "train_epoch", None)  # what is finished is not trained again
    benchmark.main(words)
    assert capsys.readouterr().out == told
    assert sorted(path.name for path in run.iterdir() if path.is_dir()) == ["faces", "teacher"]


def test_the_paper_is_reached_by_the_first_epoch_as_good_as_its_best(benchmark):
    paper = [benchmark.Point(k, accuracy, 30 * k, 20 * k) for k, accuracy in enumerate([0.5, 0.7, 0.6, 0.7], 1)]
    fast = [benchmark.Point(k, accuracy, 6 * k, 5 * k) for k, accuracy in enumerate([0.6, 0.7, 0.8], 1)]
    told, ratio = benchmark.compare(paper, fast)
    assert ratio == 60 / 12
    assert told == (
        "paper 70.00 % in epoch 2, after 60.0 s, 40.0 s CPU; fast in epoch 2, after 12.0 s, 10.0 s CPU: "
        "5.0 times sooner by the wall, 4.0 by CPU"
    )
    told, ratio = benchmark.compare(paper, fast[:1])
    assert ratio == 0
    assert told.endswith("fast never, at best 60.00 %")
