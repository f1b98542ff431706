"""Make the same small runs under other circumstances; print what is the same to the byte, and how far off the rest is.

    python tests/determinism.py                    the table of docs/reliability.md (make determinism)
    python tests/determinism.py --only again       a row of it

Runs are made by the commands in a process of their own: `found` by `fer align` with RetinaFace from drawn faces; `run`
by `fer align --aligned`, `fer teach` (training, labelling into Parquet and HDF5) and `fer distill` from pictures that a
network learns in seconds. Compared is every file, but for what tells the time: seconds in metrics and manifests, the
digests of such files in the manifests of what is made from them, and the source's place in a note of faces/.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from conftest import write_photos
from PIL import Image
from safetensors.numpy import load_file
from torture import outcome

from efficientface.cache.distributions import Distributions
from efficientface.data import drawn
from efficientface.data.faces import read_faces
from efficientface.pipeline.caches import ONE_FILE, open_cache

COMMON = ["--size", 32, "--batch-size", 6, "--min-area", 0.5]
TEACH = [*COMMON, "--teacher-arch", "shufflenet_v2_x0_5", "--epochs", 14, "--lr", 0.05, "--schedule", "onecycle"]
TEACH += ["--views", 2, "--shard-faces", 20]
CACHES = {"distributions": [], "distributions-one": ["--format", "hdf5", "--cache", "one"]}
PARTS = ("found/faces", *(f"run/{part}" for part in ("faces", "teacher", *CACHES, "students/ldl")))
WAITS = 0.02  # seconds


class Circumstance(NamedTuple):
    """What is other than in the first run: options of every command, variables, a function below, the folder."""

    options: tuple[str, ...] = ()
    variables: dict[str, str] = {}
    spoiled: str = ""
    relative: bool = False


SAME = {
    "again": Circumstance(),
    "--workers 1": Circumstance(("--workers", "1")),
    "--workers 3": Circumstance(("--workers", "3")),
    "--workers 3, threads that wait at random": Circumstance(("--workers", "3"), spoiled="waiting"),
    "folders listed backwards": Circumstance(spoiled="backwards"),
    "relative paths, from another folder": Circumstance(relative=True),
    "PYTHONHASHSEED=1": Circumstance(variables={"PYTHONHASHSEED": "1"}),
    "LC_ALL=POSIX, TZ=Asia/Kathmandu": Circumstance(variables={"LC_ALL": "POSIX", "TZ": "Asia/Kathmandu"}),
}
# another machine kind is a processor without AVX2, as torch and its oneDNN then compute
OTHER = {
    "OMP_NUM_THREADS=2": Circumstance(variables={"OMP_NUM_THREADS": "2"}),
    "torch without AVX2": Circumstance(variables={"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}),
}
CIRCUMSTANCES = {**SAME, **OTHER}


# --- what is made ----------------------------------------------------------------------------------------------


def make(root: Path, circumstance: Circumstance) -> Path:
    """Make both runs below `root`, photographs and all; returns `root`."""
    write_photos(root / "photos", 60)
    for k in range(40):
        picture = drawn.draw_face(drawn.mixture(0, k), np.random.default_rng(k), 96)
        folder = root / "drawn" / drawn.EXPRESSIONS_DRAWN[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{k}.png")
    variables = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", **circumstance.variables}
    tests = Path(__file__).parent
    paths = os.pathsep.join([str(tests.parent / ".typing"), str(tests)])
    code = f"import determinism; determinism.commands({circumstance!r}, {str(root)!r})"
    code = code.replace("Circumstance(", "determinism.Circumstance(")
    environment = {**os.environ, "PYTHONPATH": paths, **variables}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{circumstance} ended with status {done.returncode}: {done.stderr[-2000:]}")
    return root


def commands(circumstance: Circumstance, root: str) -> None:
    """The stages, in this process, in which nothing else has happened yet."""
    from efficientface.cli import cli

    place = Path(root)
    if circumstance.relative:
        os.chdir(place / "photos")
        place = Path("..")
    run, options = place / "run", circumstance.options
    stages = [["align", place / "drawn", place / "found", "--shard-faces", 20, *options]]
    stages += [["align", place / "photos", run, "--aligned", "--crop", 64, "--shard-faces", 20, *options]]
    stages += [["teach", run, *TEACH, *options, *into] for into in CACHES.values()]
    stages += [["distill", run, *COMMON, "--epochs", 3, "--lr", 0.05, *options]]
    with SPOILED[circumstance.spoiled]():
        for words in stages:
            cli(["-q", *map(str, words)], standalone_mode=False)


@contextmanager
def waiting() -> Iterator[None]:
    """Photographs and views take longer, now this and now that one."""
    from efficientface.data import batches
    from efficientface.pipeline import align

    def slow(real: Callable[..., Any]) -> Callable[..., Any]:
        def function(*args: Any) -> Any:
            time.sleep(random.random() * WAITS)
            return real(*args)

        return function

    with (
        mock.patch.object(align.Aligner, "rows", slow(align.Aligner.rows)),
        mock.patch.object(batches, "_fill", slow(batches._fill)),
    ):
        yield


@contextmanager
def backwards() -> Iterator[None]:
    """Folders give their entries in the reverse of alphabetical order; the first run takes them as they come."""
    scandir, listdir = os.scandir, os.listdir

    @contextmanager
    def scanned(*args: Any) -> Iterator[Any]:
        with scandir(*args) as entries:
            yield iter(sorted(entries, key=lambda entry: entry.name, reverse=True))

    with mock.patch("os.scandir", scanned), mock.patch("os.listdir", lambda *a: sorted(listdir(*a), reverse=True)):
        yield


@contextmanager
def plainly() -> Iterator[None]:
    yield


SPOILED = {"": plainly, "waiting": waiting, "backwards": backwards}


# --- what is compared ------------------------------------------------------------------------------------------


def compare(root: Path, other: Path) -> dict[str, str]:
    """Of each part `same`, or how far off the other's is."""
    found = {}
    for part in PARTS:
        one, another = root / part, other / part
        equal = comparable(one) == comparable(another) and (one.name not in CACHES or all(same_columns(one, another)))
        found[part] = "same" if equal else how_far(one, another)
    return found


def comparable(folder: Path) -> dict[str, Any]:
    """Its files, without what names the source's place, and the HDF5 file, inside which a manifest lies."""
    found = outcome(folder)
    found.pop(ONE_FILE, None)
    found["manifest.json"]["files"].pop(ONE_FILE, None)
    facts = found["manifest.json"]["facts"]
    facts["notes"] = [note for note in facts.get("notes", []) if not note.startswith("Read ")]
    return found


def same_columns(one: Path, other: Path) -> Iterator[bool]:
    """Whether each column of two caches is the same to the bit."""
    mine, others = open_cache(one).read(), open_cache(other).read()
    for name in Distributions.__dataclass_fields__:
        a, b = getattr(mine, name), getattr(others, name)
        yield a == b if isinstance(a, tuple) else a.dtype == b.dtype and np.array_equal(a, b)


def how_far(one: Path, other: Path) -> str:
    """The largest difference of weights or probabilities; of faces, how many are other pictures."""
    if one.name == "faces":
        mine, others = (read_faces(sorted(folder.glob("*.parquet"))) for folder in (one, other))
        return f"{(mine.image_hash != others.image_hash).sum()} of {len(mine)} pictures"
    if one.name in CACHES:
        mine, others = open_cache(one).read(), open_cache(other).read()
        if not (np.array_equal(mine.view_box, others.view_box) and np.array_equal(mine.face_id, others.face_id)):
            return "other faces or boxes"
        return f"within {np.abs(mine.view_distribution - others.view_distribution).max():.0e}"
    mine, others = (load_file(folder / "model.safetensors") for folder in (one, other))
    return f"within {max(np.abs(mine[name] - others[name]).max() for name in mine):.0e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CIRCUMSTANCES, default=[*CIRCUMSTANCES])
    options = parser.parse_args()
    print(f"| | {' | '.join(f'`{part}/`' for part in PARTS)} |\n| --- |{' --- |' * len(PARTS)}")
    with tempfile.TemporaryDirectory() as folder:
        first = make(Path(folder) / "first", Circumstance())
        for number, name in enumerate(options.only):
            found = compare(make(Path(folder) / str(number), CIRCUMSTANCES[name]), first)
            print(f"| {name} | {' | '.join(found.values())} |", flush=True)


if __name__ == "__main__":
    main()
