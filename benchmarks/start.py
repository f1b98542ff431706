"""What a command takes before it shows anything, beside what was aimed at; prints a Markdown table.

    python benchmarks/start.py                                  (or make bench)
    python benchmarks/start.py --faces 300000 --page 30000      (the same: the aims are about these)

`fer --help`; `fer inspect` of a cache of --faces faces, 10 stored views each; `fer inspect --html` of a cache of --page
faces with pictures of 224 pixels, no student asked. Each in a fresh process, --repeats times; of the seconds and of the
peak memory the median is told. Where other work shares the processor, its seconds (CPU) tell more than those on the
wall. The caches are made once, which takes minutes, and kept in --folder for the next time.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import scale
from timing import program

from efficientface.data.drawn import draw_face, mixture

FER = [sys.executable, "-m", "efficientface.cli"]
DRAWN = 100  # faces; every picture is one of them, with bytes behind its end that make it another file


@lru_cache
def drawn(k: int) -> bytes:
    face = draw_face(mixture(0, k), np.random.default_rng(k), 224)
    return cv2.imencode(".jpg", face[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def picture(name: str) -> bytes:
    """A JPEG of 224 pixels that no other name has."""
    return drawn(int(Path(name).stem.partition("-")[2]) % DRAWN) + name.encode()


def cached(folder: Path, count: int, picture_of: Callable[[str], bytes] = str.encode) -> Path:
    """A run with faces/, teacher/ and distributions/, made if it is not there."""
    root = folder / f"{count}-{picture_of.__name__}"
    if not root.is_dir():
        part = folder / f".{root.name}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        print(f"making {root}", file=sys.stderr)
        scale.sourcing(part, count, 10, picture_of)
        scale.planning(part, count, 10, picture_of)
        scale.finishing(part, count, 10)
        scale.labelling(part, count, 10)
        shutil.rmtree(part / "source")
        part.rename(root)
    return root / "run"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, default=300_000)
    parser.add_argument("--page", type=int, default=30_000, help="faces of the page")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "efficientface-start")
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # every start would compile pandas anew
    large = cached(options.folder, options.faces) / "distributions"
    shown = cached(options.folder, options.page, picture)
    page = options.folder / "page.html"
    commands = {
        "fer --help": (["--help"], "0.3 s"),
        f"fer inspect, {options.faces:,} faces": (["inspect", str(large)], "2 s, 500 MB"),
        f"fer inspect --html, {options.page:,} faces": (
            ["inspect", str(shown), "--html", str(page), "--no-students"],
            "20 s",
        ),
    }
    print("| command | s | CPU s | peak MB | aim |\n| --- | ---: | ---: | ---: | ---: |")
    for name, (command, aim) in commands.items():
        found = [program([*FER, *command]) for _ in range(options.repeats)]
        wall = statistics.median(took.wall for took, _ in found)
        cpu = statistics.median(took.cpu for took, _ in found)
        peak = statistics.median(peak for _, peak in found)
        print(f"| {name} | {wall:.2f} | {cpu:.2f} | {peak:.0f} | {aim} |", flush=True)


if __name__ == "__main__":
    main()
