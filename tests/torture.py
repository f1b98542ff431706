"""Stop every stage wherever it can be stopped, start it again, and compare with a run that nobody disturbed.

    python tests/torture.py                 each stage, killed at random moments
    python tests/torture.py --renames       killed before and after every rename and every fsync that it makes
    python tests/torture.py --starved       with files that cannot grow beyond a limit, as on a full disk

`make torture` does all three. A stage runs in a forked child, so that torch is imported once, on one thread; what is
killed is the real stage on real files. A kill counts if it came after the stage's first write. Power failures are not
tried: what the system was told it keeps when a process dies.
"""

import argparse
import fcntl
import json
import math
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"

import cv2  # noqa: F401 (here, so that no child has to)
import ncnn  # noqa: F401
import numpy as np
import timm  # noqa: F401
import torch
from conftest import SMALL_TEACHER
from rich.console import Console
from rich.table import Table

from efficientface import FerError
from efficientface.cli import FerGroup
from efficientface.data.drawn import write_photos
from efficientface.pipeline import align, caches, distill, label, teach
from efficientface.pipeline.artifact import MANIFEST, check_files, read_manifest
from efficientface.pipeline.checkpoint import CHECKPOINT, METRICS
from efficientface.pipeline.config import AlignConfig, DistillConfig, TeachConfig

FACES = 240
SMALL: dict[str, Any] = {"size": 32, "schedule": "onecycle", "min_area": 0.5, "workers": 1, "batch_size": 32}
ALIGN = AlignConfig(shard_faces=40, eye_distance=0.42, crop=64, workers=1)
TEACH = TeachConfig(teacher_arch=SMALL_TEACHER, views=2, shard_faces=40, lr=0.1, epochs=4, **SMALL)
DISTILL = DistillConfig(lr=0.5, epochs=6, **SMALL)


class Stage(NamedTuple):
    """What a command does to a run, and the stage whose result it begins with."""

    after: str
    action: Callable[[Path], Any]


def add_views(run: Path) -> None:
    """More views, unless they are there: the same command would add others, so that one looks at `fer status` first."""
    done = read_manifest(run / "distributions", "distributions")["facts"]["views"] > TEACH.views
    if not done or (run / "distributions" / label.ADDING).exists():
        teach.run(run, TEACH, (), 2)


STAGES = {
    "align": Stage("", lambda run: align.run(run / "photos", run, ALIGN)),
    "align --replace": Stage("align", lambda run: align.run(run / "photos", run, replace(ALIGN, seed=1), replace=True)),
    "teach": Stage("align", lambda run: teach.run(run, TEACH)),
    "teach --format hdf5": Stage("teach", lambda run: teach.run(run, replace(TEACH, format="hdf5", cache="one"))),
    "teach --add-views": Stage("teach", add_views),
    "distill": Stage("teach", lambda run: distill.run(run, DISTILL)),
    "cache convert": Stage("teach", lambda run: caches.convert(run / "distributions", run / "whole.h5")),
    "cache convert, back": Stage("cache convert", lambda run: caches.convert(run / "whole.h5", run / "back")),
}
TIMES = {"seconds", "faces_per_second"}
CONVERTED = {"cache convert": "whole.h5", "cache convert, back": "back"}  # what is there is not converted again


class Undisturbed(NamedTuple):
    """A stage's result: the run folder, what is compared of it, and the seconds from its first write to its end."""

    run: Path
    outcome: dict[str, Any]
    seconds: float


class Failure(Exception):
    """Something that must not be."""


# Stops a stage once and starts it again: how many pieces were finished, and how many stayed. None: it was not stopped.
Stop = Callable[[], tuple[int, int] | None]


# --- one stage in one child -----------------------------------------------------------------------------------


def start(stage: Stage, run: Path, log: Path, before: Callable[[], None] = lambda: None) -> int:
    """Fork a child that does the stage as the command line would, errors and all; returns its number."""
    child = os.fork()
    if child:
        return child
    try:
        for stream in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        torch.set_num_threads(1)
        # after 4 epochs on a few dozen faces, which side of guessing a teacher is on is luck, and the processor's
        label.check_teacher = lambda *_: {}
        before()
        cli = FerGroup()
        cli.command("stage")(lambda: stage.action(run))
        cli.main(["stage"])
    except SystemExit as done:
        os._exit(int(done.code or 0))
    except BaseException:
        traceback.print_exc()
    finally:  # never go on as the parent does
        os._exit(70)


def wait(child: int) -> int:
    """Its exit status; minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def finish(stage: Stage, run: Path, log: Path) -> None:
    """Do the stage to its end, undisturbed."""
    status = wait(start(stage, run, log))
    if status:
        raise Failure(f"started again, it ended with status {status}: {log.read_text()[-2000:]}")


# --- what is on disk ------------------------------------------------------------------------------------------


def files(run: Path) -> dict[str, os.stat_result]:
    """All files of a run but photographs and locks."""
    found = {}
    for path in run.rglob("*"):
        name = path.relative_to(run).as_posix()
        if not name.startswith("photos/") and not name.endswith(".lock"):
            try:
                if path.is_file():
                    found[name] = path.stat()
            except FileNotFoundError:
                continue  # it was there a moment ago
    return found


def state(run: Path) -> dict[str, tuple[int, int, int]]:
    """What tells whether anything was written."""
    return {name: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in files(run).items()}


def outcome(run: Path) -> dict[str, Any]:
    """What must be the same however often a stage was stopped: every file by name, and what is in it.

    Of metrics all but the seconds, and of manifests all but digests of metrics, directly or through another manifest.
    """
    found: dict[str, Any] = {}
    for name in sorted(files(run)):
        path = run / name
        if path.name == METRICS:
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [
                {k: v for k, v in line.items() if k not in ("seconds", "faces_per_second")} for line in lines
            ]
        elif path.name == MANIFEST:
            manifest = json.loads(path.read_text())
            manifest["files"].pop(METRICS, None)
            for key in TIMES:
                manifest["facts"].get("best", {}).pop(key, None)
            for reference in manifest["made_from"].values():
                reference.pop("manifest", None)
            found[name] = manifest
        elif path.name == "whole.h5":
            found[name] = path.stat().st_size  # its manifest has the digests; `back` shows its content
        elif path.name != "manifest.blake2b":
            found[name] = path.read_bytes()
    return found


def differences(run: Path, wanted: dict[str, Any]) -> list[str]:
    """Names of what is not as wanted."""
    found = outcome(run)
    return sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))


def check_finished(run: Path, sound: list[dict[str, Any]]) -> None:
    """Failure if something looks finished and is not what it was before the stage, or is after it."""
    for path in run.rglob(MANIFEST):
        if ".part" in path.parent.name:
            continue
        manifest = json.loads(path.read_text())
        name = path.relative_to(run).as_posix()
        check_files(path.parent, read_manifest(path.parent, manifest["kind"]), digests=True)
        normal = outcome(path.parent)[MANIFEST]
        names = {name, name.replace(".faces.anew", "faces").replace(".faces.former", "faces")}
        if not any(normal == one.get(n) for one in sound for n in names):
            raise Failure(f"{name} looks finished and is neither the old nor the new one")


def finished_pieces(run: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """What is done and need not be done again: shards by their inode, epochs by their line in the checkpoint.

    Of shards only those that `wanted` has: others are not to stay, such as those that one HDF5 file is made from.
    """
    pieces: dict[str, Any] = {}
    for name, stat in files(run).items():
        path = Path(name)
        parents = [folder for folder in path.parent.parts if folder != ".adding-views" and not folder.isdigit()]
        if path.suffix == ".parquet" and "/".join([*parents, path.name]).replace(".faces.anew", "faces") in wanted:
            pieces[f"inode {stat.st_ino}"] = stat.st_ino
        if path.name == CHECKPOINT:
            data = (run / name).read_bytes()
            header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
            for line in json.loads(header["__metadata__"]["progress"])["lines"]:
                pieces[f"{path.parent}/{METRICS} {line['epoch']}"] = line
    return pieces


def kept(run: Path, pieces: dict[str, Any]) -> int:
    """How many of the pieces are there as they were."""
    inodes = {stat.st_ino for stat in files(run).values()}
    count = 0
    for name, piece in pieces.items():
        if isinstance(piece, int):
            count += piece in inodes
        else:
            lines = (run / name.split(" ")[0]).read_text().splitlines()
            count += json.loads(lines[piece["epoch"] - 1]) == piece
    return count


# --- the tortures ---------------------------------------------------------------------------------------------


class Torture:
    """Runs of all stages under one folder, and what was counted."""

    def __init__(self, home: Path, seed: int, faces: int = FACES) -> None:
        self.home, self.random = home, random.Random(seed)
        self.log, self.scratch = home / "log.txt", home / "run"
        write_photos(home / "begin" / "photos", faces, 0)
        self.sentences: Counter[str] = Counter()  # said on full disks
        self.results: dict[str, Undisturbed] = {"": Undisturbed(home / "begin", {}, 0)}

    def undisturbed(self, name: str) -> Undisturbed:
        """The stage's result, made twice and found equal, with those of the stages before."""
        if name not in self.results:
            stage = STAGES[name]
            self.undisturbed(stage.after)
            outcomes = []
            for _ in range(2):
                self.begin(stage)
                before, child = state(self.scratch), start(stage, self.scratch, self.log)
                wrote = self.first_write(child, before)
                status = wait(child) if wrote is not None else -1
                if wrote is None or status:
                    raise Failure(f"{name} ended with status {status} undisturbed: {self.log.read_text()[-2000:]}")
                seconds = time.monotonic() - wrote
                outcomes.append(outcome(self.scratch))
            if differing := differences(self.scratch, outcomes[0]):
                raise Failure(f"{name} is not the same twice: {', '.join(differing)}")
            place = self.home / name.replace(" ", "-")
            shutil.copytree(self.scratch, place)
            self.results[name] = Undisturbed(place, outcomes[0], seconds)
        return self.results[name]

    def begin(self, stage: Stage) -> None:
        """Lay the stage's beginning out afresh."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        source = self.results[stage.after].run
        shutil.copytree(source, self.scratch, ignore=shutil.ignore_patterns("photos"))
        (self.scratch / "photos").symlink_to(self.home / "begin" / "photos")
        self.there = {f"inode {stat.st_ino}" for stat in files(self.scratch).values()}

    def first_write(self, child: int, before: dict[str, Any]) -> float | None:
        """When the child's first write was seen; None if it ended without one, and is waited for."""
        while state(self.scratch) == before:
            if os.waitpid(child, os.WNOHANG)[0]:
                return None
            time.sleep(0.001)
        return time.monotonic()

    def resumed(self, name: str) -> tuple[int, int]:
        """After a stop: nothing half done looks finished; started again it ends as if undisturbed. Pieces, and kept."""
        stage, whole = STAGES[name], self.undisturbed(name)
        check_finished(self.scratch, [self.results[stage.after].outcome, whole.outcome])
        pieces = finished_pieces(self.scratch, whole.outcome)
        pieces = {key: piece for key, piece in pieces.items() if key not in self.there}
        if name not in CONVERTED or not (self.scratch / CONVERTED[name]).exists():
            finish(stage, self.scratch, self.log)
        if differing := differences(self.scratch, whole.outcome):
            raise Failure(f"another result after going on: {', '.join(differing)}")
        return len(pieces), kept(self.scratch, pieces)

    def kill(self, name: str) -> tuple[int, int] | None:
        """Once, at a random moment after the first write; None if the stage ended before."""
        stage, whole = STAGES[name], self.undisturbed(name)
        self.begin(stage)
        before, child = state(self.scratch), start(stage, self.scratch, self.log)
        wrote = self.first_write(child, before)
        if wrote is None:
            raise Failure(f"it ended by itself: {self.log.read_text()[-2000:]}")
        time.sleep(self.random.uniform(0, whole.seconds))
        os.kill(child, signal.SIGKILL)
        return self.resumed(name) if wait(child) == -signal.SIGKILL else None

    def calls(self, name: str) -> int:
        """How many renames and fsyncs the stage makes."""
        self.undisturbed(name)
        self.begin(STAGES[name])
        counted = self.home / "calls"
        counted.write_bytes(b"")
        if wait(start(STAGES[name], self.scratch, self.log, lambda: at_calls(tally=counted))):
            raise Failure(f"it ended by itself: {self.log.read_text()[-2000:]}")
        return counted.stat().st_size

    def kill_at(self, name: str, call: int, after: bool) -> tuple[int, int]:
        """Before or after its call-th rename or fsync."""
        self.begin(STAGES[name])
        child = start(STAGES[name], self.scratch, self.log, lambda: at_calls(call, after))
        if wait(child) != -signal.SIGKILL:
            raise Failure(f"it was not killed: {self.log.read_text()[-2000:]}")
        return self.resumed(name)

    def starve(self, name: str) -> tuple[int, int] | None:
        """Files cannot grow beyond a random size: one sentence and status 1; None if they had not to."""
        stage, whole = STAGES[name], self.undisturbed(name)
        earlier = self.results[stage.after].run
        sizes = [(whole.run / file).stat().st_size for file in whole.outcome if not (earlier / file).exists()]
        limit = int(10 ** self.random.uniform(2, math.log10(max(sizes, default=100_000))))
        self.begin(stage)
        reader, writer = os.pipe()  # a log would be limited too
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 2**20)

        def limited() -> None:
            for stream in (1, 2):
                os.dup2(writer, stream)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        status = wait(start(stage, self.scratch, self.log, limited))
        os.close(writer)
        with open(reader, encoding="utf-8") as pipe:
            told = pipe.read()
        if status == 0:
            return None
        errors = [line for line in told.splitlines() if line.startswith("Error: ")]
        if status != 1 or "Traceback" in told or len(errors) != 1:
            raise Failure(f"with at most {limit} bytes a file it ended with status {status}: {told[-2000:]}")
        self.sentences[errors[0].replace(str(self.scratch), "RUN")] += 1
        return self.resumed(name)


def at_calls(call: int = 0, after: bool = False, tally: Path | None = None) -> None:
    """From now on, SIGKILL this process at its call-th rename or fsync; or only tally them, a byte each."""
    seen = 0

    def watched(real: Callable[..., Any]) -> Callable[..., Any]:
        def stand_in(*args: Any, **named: Any) -> Any:
            nonlocal seen
            seen += 1
            if tally is not None:
                with open(tally, "ab") as file:
                    file.write(b".")
            if seen == call and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*args, **named)
            if seen == call and after:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return stand_in

    for name in ("replace", "rename", "fsync"):
        setattr(os, name, watched(getattr(os, name)))


def stops(torture: Torture, name: str, given: argparse.Namespace, wanted: int) -> Iterator[tuple[str, Stop]]:
    """What to try with a stage, each with its name; without end but for --renames."""
    if given.renames:
        for call in range(1, torture.calls(name) + 1):
            yield f"before call {call}", partial(torture.kill_at, name, call, False)
            yield f"after call {call}", partial(torture.kill_at, name, call, True)
    else:
        for number in range(10 * wanted):  # some stages end before they are stopped
            yield f"try {number + 1}", partial(torture.starve if given.starved else torture.kill, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="how often, over all stages; not with --renames")
    parser.add_argument("--renames", action="store_true", help="at every rename and fsync instead")
    parser.add_argument("--starved", action="store_true", help="of disk space instead")
    parser.add_argument("--stages", help="only these, with commas")
    parser.add_argument("--faces", type=int, default=FACES)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    chosen = [name.strip() for name in given.stages.split(",")] if given.stages else list(STAGES)
    where = "all renames and fsyncs" if given.renames else "full disks" if given.starved else "random moments"
    table = Table("stage", title=f"Stopped at {where}; {given.faces} faces, seed {given.seed}")
    for column in ("stops", "same result", "pieces finished", "kept", "seconds undisturbed"):
        table.add_column(column, justify="right")
    total = np.zeros(4, int)
    with tempfile.TemporaryDirectory() as home:
        torture = Torture(Path(home), given.seed, given.faces)
        for k, name in enumerate(chosen):
            counts = np.zeros(4, int)
            wanted = given.kills // len(chosen) + (k < given.kills % len(chosen))
            if not wanted and not given.renames:
                continue
            seconds = torture.undisturbed(name).seconds
            for what, stop in stops(torture, name, given, wanted):
                if not given.renames and counts[0] >= wanted:
                    break
                try:
                    found = stop()
                except (Failure, FerError, OSError) as error:
                    counts[0] += 1
                    print(f"FAILED  {name}, {what}: {error}", flush=True)
                else:
                    counts += (1, 1, *found) if found else 0
            total += counts
            table.add_row(name, *map(str, counts), f"{seconds:.1f}")
    table.add_section()
    table.add_row("all", *map(str, total))
    Console(width=110).print(table)
    for sentence, times in torture.sentences.most_common(5):
        print(f"{times} x {sentence}")
    sys.exit(int(total[0] != total[1]))


if __name__ == "__main__":
    main()
