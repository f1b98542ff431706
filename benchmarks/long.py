"""Whether memory stays flat, and no file, thread or process is left open, in long runs; prints Markdown tables.

    python benchmarks/long.py                                                         (or make bench)
    python benchmarks/long.py --alignments 50000 --views 100000 --epochs 20           (docs/reliability.md)

Three commands run as a user's do and are looked at from outside, twice a second: `fer align` with RetinaFace, `fer
teach` (an epoch, then the labelling) and `fer distill`. A step is a tenth of the alignments, a tenth of the faces that
are labelled, or an epoch. Of each are told the most memory of the command's own (without pages of files, such as
libraries, which the system drops where memory is short), and the fewest open file descriptors, threads, and processes
that it started: others come and go. Memory counts as flat if the straight line through all steps but the first rises by
less than FLAT of it until the end.

Faces are drawn, PICTURES of them, and listed over and over in a Parquet table: photographs of 96 pixels for RetinaFace,
faces of 32 pixels for the networks, both the smallest network that timm has with convolutions, batch norm and
attention. An epoch shows every face once.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from efficientface.data.drawn import EXPRESSIONS_DRAWN, mixture, write_photos

PICTURES = 300
STEPS = 10  # of align and of the labelling
FLAT = 0.03
LOOK = 0.5  # seconds between two looks
LIBRARIES = (".ses", "torchinductor_*")  # onnxruntime and torch keep one each among the temporary files, whatever runs
NETWORK = "timm/test_byobnet"
FACE = ["--size", "32", "--batch-size", "128", "--lr", "0.02", "--min-area", "0.5"]


class Seen(NamedTuple):
    """What a process holds: memory in MB, and how many of each of the others."""

    memory: float
    files: int
    threads: int
    processes: int


class Watched(NamedTuple):
    """A command's steps with the seconds each took, and what was there when it had ended and should not be."""

    name: str
    step: str
    seen: list[Seen]
    seconds: list[float]
    left: list[str]

    def slope(self) -> float:
        """MB a step, of the straight line through all steps but the first."""
        memory = [seen.memory for seen in self.seen[1:]]
        return float(np.polyfit(np.arange(len(memory)), memory, 1)[0])

    def growth(self) -> float:
        """Share of the memory by which that line rises."""
        rest = self.seen[1:]
        return self.slope() * (len(rest) - 1) / rest[0].memory

    def faults(self) -> list[str]:
        """What is not as it should be, in words."""
        found = [f"memory grows by {self.growth():.1%}"] if self.growth() >= FLAT else []
        for name in ("files", "threads", "processes"):
            numbers = [getattr(seen, name) for seen in self.seen[1:]]
            if np.polyfit(np.arange(len(numbers)), numbers, 1)[0] * (len(numbers) - 1) > 1:
                found.append(f"{name} grow from {numbers[0]} to {numbers[-1]}")
        return found + [f"{name} is left" for name in self.left]


# --- what is looked at -----------------------------------------------------------------------------------------


def look(process: psutil.Process) -> Seen:
    """How much of everything the process holds now."""
    memory, children = process.memory_info(), process.children(recursive=True)
    if not memory.rss:  # it has ended, and nobody has asked yet how
        raise psutil.ZombieProcess(process.pid)
    own = (memory.rss - memory.shared) / 1e6
    return Seen(own, process.num_fds(), process.num_threads(), len(children))


def watch(name: str, step: str, words: Sequence[str], done: Callable[[], int], folder: Path) -> Watched:
    """Run a command until it ends and look at it; `done` counts the steps that it has finished.

    Its temporary files go to a folder of their own below `folder`. SystemExit if it fails.
    """
    temporary = folder / "temporary"
    temporary.mkdir(exist_ok=True)
    environment = {**os.environ, "TMPDIR": str(temporary)}
    watched = Watched(name, step, [], [], [])
    command = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    process, began, ended = psutil.Process(command.pid), time.monotonic(), False
    looks: list[Seen] = []
    try:
        while not ended:
            ended = command.poll() is not None
            if looks and done() > len(watched.seen):
                memory, *counts = zip(*looks, strict=True)
                watched.seen.append(Seen(max(memory), *map(min, counts)))
                watched.seconds.append(time.monotonic() - began)
                print(f"    {step} {len(watched.seen)}: {watched.seconds[-1]:.0f} s, {watched.seen[-1]}", flush=True)
                looks, began = [], time.monotonic()
            with suppress(psutil.Error):  # it has just ended
                looks.append(look(process))
            time.sleep(LOOK)
    finally:
        command.kill()
    if command.wait():
        sys.exit(f"{' '.join(words)} ended with status {command.returncode}")
    alive = [pid for pid in psutil.pids() if session_of(pid) == command.pid]
    files = [path for path in temporary.iterdir() if not any(map(path.match, LIBRARIES))]
    files += folder.rglob("*.part")
    watched.left.extend([f"process {pid}" for pid in alive] + [str(path.relative_to(folder)) for path in files])
    return watched


def session_of(pid: int) -> int:
    """The session that a process belongs to, 0 if it has ended."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def shards(folder: Path) -> int:
    return len(list(folder.glob("part-*.parquet")))


def epochs(folder: Path) -> int:
    metrics = folder / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


# --- what is run -----------------------------------------------------------------------------------------------


def write_source(table: Path, folder: Path, size: int, splits: dict[str, int]) -> None:
    """A Parquet table with PICTURES drawn faces over and over, as many of each split as asked."""
    write_photos(folder, PICTURES, seed=0, size=size)
    pictures = [path.read_bytes() for path in sorted((folder / "images").iterdir())]
    labels = [EXPRESSIONS_DRAWN[mixture(0, k).argmax()] for k in range(PICTURES)]
    numbers = np.arange(sum(splits.values())) % PICTURES
    image = pa.StructArray.from_arrays(
        [pa.array(pictures).take(pa.array(numbers)), pa.array([f"{k}.jpg" for k in range(len(numbers))])],
        ["bytes", "path"],
    )
    of_split = np.repeat(list(splits), list(splits.values()))
    columns = {"image": image, "label": pa.array(labels).take(pa.array(numbers)), "split": pa.array(of_split)}
    pq.write_table(pa.table(columns), table, row_group_size=4096)


def long_runs(root: Path, options: argparse.Namespace) -> list[Watched]:
    """All three commands, one after another, below `root`."""
    photos, faces, run = root / "photos.parquet", root / "faces.parquet", root / "run"
    write_source(photos, root / "photos", 96, {"train": options.alignments})
    write_source(faces, root / "small", 32, {"train": options.views, "val": max(100, options.views // 100)})

    def fer(*words: Any) -> list[str]:
        return [sys.executable, "-m", "efficientface.cli", "-q", *map(str, words)]

    step = -(-options.alignments // STEPS)
    words = fer("align", photos, root / "found", "--val-from-train", "0.1", "--shard-faces", step)
    found = [watch("fer align", f"{step:,} photographs", words, lambda: shards(root / "found" / "faces"), root)]
    subprocess.run(fer("align", faces, run, "--aligned", "--crop", 32), check=True, stdout=subprocess.DEVNULL)
    step = -(-options.views // STEPS)
    words = fer("teach", run, *FACE, "--teacher-arch", NETWORK, "--epochs", 1, "--views", 2, "--shard-faces", step)
    found.append(watch("fer teach", f"{step:,} faces", words, lambda: shards(run / "distributions"), root))
    words = fer("distill", run, *FACE, "--arch", NETWORK, "--epochs", options.epochs)
    found.append(watch("fer distill", "epoch", words, lambda: epochs(run / "students" / "ldl"), root))
    return found


def show(all_watched: Sequence[Watched]) -> None:
    """A table of the steps, and one of what they come to."""
    print("\n| command | step | seconds | memory MB | open files | threads | processes |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for watched in all_watched:
        for number, (seen, seconds) in enumerate(zip(watched.seen, watched.seconds, strict=True), start=1):
            cells = f"{seconds:.0f} | {seen.memory:,.0f} | {seen.files} | {seen.threads} | {seen.processes}"
            print(f"| {watched.name} | {number} | {cells} |")
    print("\n| command | a step | steps | MB a step after the first | growth | found |")
    print("| --- | --- | ---: | ---: | ---: | --- |")
    for watched in all_watched:
        told = "; ".join(watched.faults()) or "flat, nothing left"
        cells = f"{len(watched.seen)} | {watched.slope():+.2f} | {watched.growth():+.2%} | {told}"
        print(f"| {watched.name} | {watched.step} | {cells} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alignments", type=int, default=1000, help="photographs shown to RetinaFace")
    parser.add_argument("--views", type=int, default=4000, help="faces, each shown once an epoch")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--folder", help="where to write; the system's temporary folder if not given")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        found = long_runs(root, options)
    finally:
        shutil.rmtree(root)
    show(found)
    sys.exit(any(watched.faults() for watched in found))


if __name__ == "__main__":
    main()
