"""Flip bits, swap files, permute class lists and make stages stale in a finished run; count what `fer verify` finds.

    python tests/flipped.py                 the tables of docs/reliability.md, "Flipped bytes" (make flips)
    python tests/flipped.py --places 2      fewer places in each file

The run has everything in it: faces with a photograph in two splits, fold teachers, three caches in both formats, two
students, an evaluation. A flip turns one bit of one byte, at random places of every file and at those where files keep
their structure: the ends, where safetensors begins with a length and Parquet has one eight bytes before the last.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from click.testing import CliRunner
from conftest import CLASSES, SMALL_TEACHER, picture, sign_again
from PIL import Image

from efficientface.cli import cli
from efficientface.pipeline import align
from efficientface.pipeline.artifact import MANIFEST, write_json
from efficientface.pipeline.config import AlignConfig
from efficientface.pipeline.verify_run import artifacts_in, verify

COMMON = ["--size", "32", "--schedule", "onecycle", "--min-area", "0.5"]
TEACH = [*COMMON, "--teacher-arch", SMALL_TEACHER, "--epochs", "8", "--batch-size", "6", "--lr", "0.02", "--views", "2"]
DISTILL = [*COMMON, "--arch", SMALL_TEACHER, "--epochs", "1", "--batch-size", "16"]
HOSTILE = "x\n<script>alert(1)\x1b[2J.png"
PHOTOGRAPHS = 6  # that are spoiled, of all
SWAPS = [
    ("teacher/fold-0/model.safetensors", "teacher/fold-1/model.safetensors"),
    ("students/ldl/model.safetensors", "students/sll/model.safetensors"),
    ("faces/manifest.blake2b", "teacher/manifest.blake2b"),
    ("distributions/part-00000.parquet", "distributions-oof/part-00000.parquet"),
    ("evaluation/confusion-ldl-test.png", "evaluation/confusion-sll-test.png"),
    ("teacher/fold-0", "teacher/fold-1"),
    ("students/ldl", "students/sll"),
    ("distributions", "distributions-oof"),
]
ORDERS = (CLASSES[::-1], (CLASSES[1], CLASSES[2], CLASSES[0]))
KINDS = {
    "faces": "faces/",
    "distributions": "distributions*/",
    "evaluation": "evaluation/",
}  # of files of several names


class Flip(NamedTuple):
    kind: str
    file: Path
    place: int
    found: bool


# --- a run to spoil --------------------------------------------------------------------------------------------


def fer(*words):
    return CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)


def made(*words):
    done = fer(*words)
    assert done.exit_code == 0, done.output


def write_run(root: Path) -> Path:
    """ROOT/source and ROOT/run with everything in it; returns `root`."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4), ("test", 4)):
        for label, name in enumerate(CLASSES):
            folder = root / "source" / split / name
            folder.mkdir(parents=True)
            for k in range(count):
                Image.fromarray(picture(label, rng)).save(folder / f"{k}.png")
    train = root / "source" / "train" / "sadness"
    (train / "11.png").rename(train / HOSTILE)
    shutil.copy(train / "3.png", root / "source" / "test" / "sadness" / "twin.png")
    run = root / "run"
    align.run(root / "source", run, AlignConfig(aligned=True, crop=64, encode="png", workers=1, shard_faces=40))
    made("teach", run, *TEACH)
    made("teach", run, *TEACH, "--folds", 2, "--cache", "oof")
    made("teach", run, "--checkpoint", run / "teacher", "--views", 1, "--format", "hdf5", "--cache", "one-file")
    made("distill", run, *DISTILL)
    made("distill", run, *DISTILL, "--loss", "sll")
    made("evaluate", run)
    return root


# --- what is done to it, and undone ----------------------------------------------------------------------------


def flipped(path: Path, places, rng: np.random.Generator) -> Iterator[int]:
    """The file with one bit of one byte turned, at each of the places; then whole again."""
    whole = path.read_bytes()
    for place in places:
        spoiled = bytearray(whole)
        spoiled[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(spoiled)
        yield place
    path.write_bytes(whole)


def flips(root: Path, count: int) -> Iterator[Flip]:
    """Each file of the run, and some photographs of its source, spoiled at `count` random places and at the others."""
    rng = np.random.default_rng(count)
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and path.stat().st_size]
    photographs = [path for path in files if path.is_relative_to(root / "source")]
    for file in [path for path in files if path not in photographs] + photographs[:: len(photographs) // PHOTOGRAPHS]:
        size = file.stat().st_size
        structure = {0, max(0, size - 8), size - 1}
        for place in flipped(file, sorted({*rng.integers(0, size, count).tolist(), *structure}), rng):
            yield Flip(kind_of(file.relative_to(root)), file, place, not verify(root / "run")["ok"])


def kind_of(file: Path) -> str:
    """What a file below the root is, as the table calls it."""
    if file.parts[0] == "source":
        return "photograph"
    artifact = file.parts[1].partition("-")[0]
    if artifact not in KINDS or file.name.startswith("manifest."):
        return file.name
    return KINDS[artifact] + ("part-*" if file.name.startswith("part-") else "*") + file.suffix


@contextmanager
def swapped(run: Path, first: str, second: str) -> Iterator[None]:
    """Two files or folders in each other's place."""

    def swap() -> None:
        os.rename(run / first, run / "between")
        os.rename(run / second, run / first)
        os.rename(run / "between", run / second)

    swap()
    yield
    swap()


@contextmanager
def as_it_was(folder: Path) -> Iterator[None]:
    """Afterwards the folder has its files back."""
    with tempfile.TemporaryDirectory() as beside:
        shutil.copytree(folder, Path(beside) / "kept")
        yield
        shutil.rmtree(folder)
        shutil.copytree(Path(beside) / "kept", folder)


def permuted(run: Path) -> Iterator[tuple[str, bool]]:
    """Each artifact with its classes in another order, signed anew as a forger would; whether that was found."""
    for name, _ in artifacts_in(run):
        for order in ORDERS:
            config = run / name / "config.json"
            for told in ("manifest.json", "config.json", "both") if config.exists() else ("manifest.json",):
                with as_it_was(run / name):
                    if told != "manifest.json":
                        write_json(config, {**json.loads(config.read_text()), "classes": order})
                    sign_again(run / name, **({} if told == "config.json" else {"classes": order}))
                    yield f"{name}, {told}, {order}", not verify(run)["ok"]


def stale(run: Path) -> Iterator[tuple[str, bool]]:
    """Each artifact made anew beneath what was made from it, and told of the same; whether that was found there."""
    manifests = {name: json.loads((run / name / MANIFEST).read_text()) for name, _ in artifacts_in(run)}
    for name, manifest in manifests.items():
        needed = {
            other
            for other, made in manifests.items()
            for reference in made["made_from"].values()
            if (run / other / reference["path"]).resolve() == (run / name).resolve()
        }
        if needed:
            with as_it_was(run / name):
                sign_again(run / name, facts={**manifest["facts"], "again": True})
                checks = verify(run)["checks"]
                told = {c["artifact"] for c in checks if c["state"] == "FAILED" and c["check"] == "made from"}
                yield f"{name} beneath {sorted(needed)}", needed <= told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--places", type=int, default=12, help="random ones in each file")
    options = parser.parse_args()
    tried: Counter[str] = Counter()
    found: Counter[str] = Counter()
    files: dict[str, set[str]] = {}
    missed: list[str] = []

    def count(kind: str, file: str, what: str, was_found: bool) -> None:
        tried[kind] += 1
        found[kind] += was_found
        files.setdefault(kind, set()).add(file)
        missed.extend([] if was_found else [f"{kind}: {what}"])

    with tempfile.TemporaryDirectory() as folder:
        root = write_run(Path(folder))
        run = root / "run"
        for flip in flips(root, options.places):
            count(flip.kind, str(flip.file), f"{flip.file}, byte {flip.place}", flip.found)
        for pair in SWAPS:
            with swapped(run, *pair):
                count("*two files or folders swapped*", pair[0], str(pair), not verify(run)["ok"])
        for kind, spoil in (("*classes permuted, signed anew*", permuted), ("*a stage made anew*", stale)):
            for what, was_found in spoil(run):
                count(kind, what.partition(",")[0].partition(" ")[0], what, was_found)
        assert verify(run)["ok"]
    print("| what | files or folders | tried | found |\n| --- | ---: | ---: | ---: |")
    for kind in tried:
        print(f"| {kind} | {len(files[kind])} | {tried[kind]} | {found[kind]} |")
    print(f"| all | {sum(map(len, files.values()))} | {tried.total():,} | {found.total():,} |")
    sys.exit("\n".join(missed) or 0)


if __name__ == "__main__":
    main()
