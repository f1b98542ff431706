"""How much sooner a recipe reaches the validation accuracy that the authors' way of training does.

    python benchmarks/time_to_accuracy.py runs/demo --size 32 --epochs 3     (after `fer demo`: shows that it runs)
    python benchmarks/time_to_accuracy.py RUN --teacher FOLDER --work FOLDER --seeds 0 1 2         (FER+: hours)

Both sides have the same faces, the same trained teacher, the same student and size, and are judged after each epoch
on the same validation faces.

- paper: the authors' recipe with its step schedule scaled to --epochs. The teacher is asked about every crop of every
  epoch (`fer distill --live`), through this program's loaders and loops, which are faster than theirs: what is
  compared is the recipe alone. --live cuts each crop twice, for the teacher and for the student, as theirs does not:
  what a second cutting takes is measured and taken off.
- fast: `fer teach --checkpoint TEACHER --recipe fast`, then `fer distill --recipe fast`. The clock counts both.

The target is the best validation accuracy of the first. Training the teacher, which both need, is printed apart. The
clock is the sum of the epochs' own seconds, on the wall and of the processor (CPU); where other work shares the
machine, only the latter tells anything. What is in --work stays: the same command goes on after an interruption.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from efficientface.data.batches import view_batches
from efficientface.data.views import draw_views
from efficientface.pipeline import distill, teach
from efficientface.pipeline.artifact import read_metrics, write_json
from efficientface.pipeline.checkpoint import Checkpoint
from efficientface.pipeline.config import DistillConfig, TeachConfig, with_preset
from efficientface.pipeline.inputs import read_inputs


class Point(NamedTuple):
    """Accuracy on validation (0-1) after an epoch, and the seconds until then."""

    epoch: int
    accuracy: float
    seconds: float
    cpu: float


@contextmanager
def clocked() -> Iterator[None]:
    """Every epoch's line, in the checkpoint and in metrics.jsonl, has its seconds of the processor too."""
    save, began = Checkpoint.save, time.process_time()

    def timed(self: Checkpoint, model: Any, optimizer: Any, best: Any, progress: dict[str, Any]) -> None:
        nonlocal began
        progress["lines"][-1]["cpu_seconds"] = round(time.process_time() - began, 2)
        save(self, model, optimizer, best, progress)
        began = time.process_time()

    with mock.patch.object(Checkpoint, "save", timed):
        yield


def once(told: Path, work: Callable[[], object]) -> tuple[float, float]:
    """Seconds, on the wall and of the processor, that `work` takes, or took when it was done before."""
    if not told.exists():
        began, worked = time.perf_counter(), time.process_time()
        work()
        write_json(told, [time.perf_counter() - began, time.process_time() - worked])
    seconds, cpu = json.loads(told.read_text())
    return seconds, cpu


def cut(run: Path, config: DistillConfig) -> None:
    """Decode and cut the crops of one epoch."""
    inputs = read_inputs(run)
    faces = inputs.labelled("train")
    boxes, flips = draw_views(config.seed, faces.face_id, [0], inputs.facts["crop"], config.min_area)
    batches = np.array_split(np.arange(len(faces)), -(-len(faces) // config.batch_size))
    for _ in view_batches(faces, batches, boxes, flips, config.size, config.workers):
        pass


def train(
    run: Path, config: DistillConfig, before: tuple[float, float] = (0, 0), less: tuple[float, float] = (0, 0)
) -> list[Point]:
    """The curve of a student, trained now or before.

    Its clock begins at `before` and counts `less` of each epoch: seconds, and of the processor.
    """
    with clocked():
        student = distill.run(run, config)["student"]
    points, (seconds, cpu) = [], before
    for line in read_metrics(Path(student)):
        seconds, cpu = seconds + line["seconds"] - less[0], cpu + line["cpu_seconds"] - less[1]
        points.append(Point(line["epoch"], line["val_accuracy"], seconds, cpu))
    return points


def label(run: Path) -> None:
    """Have the teacher answer; it begins anew where it was interrupted, for the clock."""
    shutil.rmtree(run / "distributions-fast", ignore_errors=True)
    config = with_preset(TeachConfig, None, "fast", cache="fast")
    teach.run(run, config, checkpoints=[run / "teacher"])


def reached(points: Sequence[Point], accuracy: float) -> Point | None:
    """The first epoch's end with at least this accuracy."""
    return next((point for point in points if point.accuracy >= accuracy), None)


def compare(paper: Sequence[Point], fast: Sequence[Point]) -> tuple[str, float]:
    """What came out, in words, and how many times sooner by the wall's clock; 0 where never."""
    best = max(point.accuracy for point in paper)
    slow, soon = reached(paper, best), reached(fast, best)
    assert slow is not None
    told = f"paper {100 * best:.2f} % in epoch {slow.epoch}, after {slow.seconds:,.1f} s, {slow.cpu:,.1f} s CPU; "
    if soon is None:
        return told + f"fast never, at best {100 * max(point.accuracy for point in fast):.2f} %", 0.0
    told += f"fast in epoch {soon.epoch}, after {soon.seconds:,.1f} s, {soon.cpu:,.1f} s CPU: "
    ratio = slow.seconds / soon.seconds
    return told + f"{ratio:.1f} times sooner by the wall, {slow.cpu / soon.cpu:.1f} by CPU", ratio


def table(name: str, points: Sequence[Point]) -> str:
    head = f"\n{name}\n\n| epoch | val accuracy % | s | CPU s |\n| ---: | ---: | ---: | ---: |\n"
    rows = (f"| {p.epoch} | {100 * p.accuracy:.2f} | {p.seconds:,.1f} | {p.cpu:,.1f} |\n" for p in points)
    return head + "".join(rows)


def measure(run: Path, work: Path, options: argparse.Namespace) -> list[float]:
    """Print the curves of both sides for every seed; return how many times sooner the recipe was, by the wall."""
    trained = sum(line["seconds"] for line in read_metrics(run / "teacher"))
    print(f"the teacher, trained before: {trained:,.1f} s, in no figure below", flush=True)
    seconds, cpu = once(work / "labelling.json", lambda: label(run))
    print(f"labelling, counted with fast: {seconds:,.1f} s, {cpu:,.1f} s CPU", flush=True)
    online: dict[str, Any] = {"live": True, "epochs": options.epochs, "lr_step": max(1, round(0.3 * options.epochs))}
    cached: dict[str, Any] = {"cache": "fast"} | ({"epochs": options.fast_epochs} if options.fast_epochs else {})
    ratios = []
    for seed in options.seeds:
        common: dict[str, Any] = {"seed": seed, "size": options.size}
        common |= {"batch_size": options.batch_size} if options.batch_size else {}
        soon = train(
            run, with_preset(DistillConfig, None, "fast", name=f"fast-{seed}", **cached, **common), (seconds, cpu)
        )
        print(table(f"seed {seed}, fast", soon), flush=True)
        paper = with_preset(DistillConfig, None, "paper", name=f"paper-{seed}", **online, **common)
        twice = once(work / f"cutting-{seed}.json", partial(cut, run, paper))
        print(f"cutting the crops of an epoch: {twice[0]:,.1f} s, {twice[1]:,.1f} s CPU, taken off paper's", flush=True)
        slow = train(run, paper, less=twice)
        told, ratio = compare(slow, soon)
        print(table(f"seed {seed}, paper", slow) + f"\nseed {seed}: {told}", flush=True)
        ratios.append(ratio)
    return ratios


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="aligned faces, RUN/faces; nothing is written here")
    parser.add_argument("--teacher", type=Path, help="a finished teacher's folder; RUN/teacher if not given")
    parser.add_argument("--work", type=Path, help="where to write and to go on; a temporary folder if not given")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    parser.add_argument("--epochs", type=int, default=30, help="of the paper's side")
    parser.add_argument("--batch-size", type=int, help="in place of the recipes' own")
    parser.add_argument("--fast-epochs", type=int, help="in place of the recipe's own")
    options = parser.parse_args(words)
    with nullcontext(options.work) if options.work else tempfile.TemporaryDirectory() as work:
        run = Path(work) / "run"
        if not run.exists():
            run.mkdir(parents=True)
            (run / "faces").symlink_to((options.run / "faces").resolve())
            (run / "teacher").symlink_to((options.teacher or options.run / "teacher").resolve())
        ratios = measure(run, Path(work), options)
    told = f"{min(ratios):.1f} to {max(ratios):.1f}; 0 is never"
    print(f"\n{statistics.median(ratios):.1f} times sooner by the wall, the median of {len(ratios)} seeds ({told})")


if __name__ == "__main__":
    main()
