"""How time and memory grow with the number of faces; prints Markdown tables.

    python benchmarks/growth.py                                                       (or make bench)
    python benchmarks/growth.py --faces 1000 10000 50000 --cached 1000 10000 100000 1000000

First everything with its networks: `fer align` of --faces drawn photographs, the labelling of `fer teach` (one stored
view) and one epoch of `fer distill`, at 64 pixels and with an untrained EfficientFace for a teacher. Each of the three
is a process of its own. Then all but the networks at --cached faces, as benchmarks/scale.py measures it: writing,
verifying, reading, joining and sampling a cache. The exponent k, of CPU seconds = faces ** k, is of whole steps with
what they take once: at the smaller sizes that is much of it, so the two largest sizes stand alone as well.
"""

import argparse
import multiprocessing
import shutil
import tempfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import scale
from scale import Steps

from efficientface.data.drawn import draw_face, mixture
from efficientface.pipeline import align, distill, label
from efficientface.pipeline.config import AlignConfig, DistillConfig, TeachConfig
from efficientface.pipeline.inputs import read_inputs

DRAWN, SIDE, SIZE, VIEWS = 100, 96, 64, 1


@lru_cache
def drawn(k: int) -> np.ndarray:
    return draw_face(mixture(0, k), np.random.default_rng(k), SIDE)


def photograph(name: str) -> bytes:
    """A drawn face turned, moved and lit by chance: the same for a name, and no near copy of another's."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    turn = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), rng.uniform(-12, 12), rng.uniform(0.85, 1.1))
    turn[:, 2] += rng.uniform(-5, 5, 2)
    light = cv2.resize(rng.uniform(-60, 60, (6, 6)).astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    face = cv2.warpAffine(drawn(int(rng.integers(DRAWN))), turn, (SIDE, SIDE), borderMode=cv2.BORDER_REPLICATE)
    lit = np.clip(face + light[..., np.newaxis], 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", lit[..., ::-1])[1].tobytes()


def sourcing(root: Path, count: int) -> Steps:
    scale.write_source(root / "source", count, photograph)
    return Steps()


def aligning(root: Path, count: int) -> Steps:
    steps = Steps()
    with steps.step("fer align"):
        align.run(root / "source", root / "run", AlignConfig(crop=SIZE, workers=1))
    return steps


def labelling(root: Path, count: int) -> Steps:
    steps, run = Steps(), root / "run"
    scale.write_teacher(read_inputs(run), run / "teacher")
    unasked = mock.patch.object(label, "check_teacher", return_value={})  # it is no better than guessing
    with steps.step("fer teach, labelling"), unasked:
        config = TeachConfig(views=VIEWS)
        label.cache_distributions(read_inputs(run), [run / "teacher"], None, run / "distributions", config)
    return steps


def distilling(root: Path, count: int) -> Steps:
    steps = Steps()
    with steps.step("fer distill, one epoch"):
        distill.run(root / "run", DistillConfig(epochs=1, size=SIZE))
    return steps


STAGES = (sourcing, aligning, labelling, distilling)


def measure(count: int, root: str | None = None) -> Steps:
    """All stages with `count` photographs; nothing is left behind."""
    folder, steps = Path(tempfile.mkdtemp(dir=root)), Steps()
    try:
        for stage in STAGES:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                steps += pool.submit(stage, folder, count).result()
    finally:
        shutil.rmtree(folder)
    return steps


def print_growth(counts: Sequence[int], found: Sequence[Steps]) -> None:
    """The table of scale.py, and what the two largest sizes say alone."""
    scale.print_table(counts, found)
    if len(counts) > 1:
        print(f"\nFrom {counts[-2]:,} to {counts[-1]:,} faces:\n\n| step | exponent | bytes a further face | of own |")
        print("| --- | ---: | ---: | ---: |")
        for fewer, more in zip(found[-2], found[-1], strict=True):
            grows = scale.exponent(counts[-2:], [fewer.cpu, more.cpu])
            peak, own = (
                (after - before) * 1e9 / (counts[-1] - counts[-2])
                for after, before in ((more.peak, fewer.peak), (more.own, fewer.own))
            )
            print(f"| {more.name} | {grows:.2f} | {peak:,.0f} | {own:,.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, nargs="*", default=[300, 1000], help="with their networks; may be none")
    parser.add_argument("--cached", type=int, nargs="*", default=[1000, 3000], help="without; may be none")
    parser.add_argument("--folder", help="where to write; the system's temporary folder if not given")
    options = parser.parse_args()
    for counts, way in (
        (options.faces, measure),
        (options.cached, lambda count, root: scale.measure(count, TeachConfig.views, root)),
    ):
        found = []
        for count in sorted(counts):
            print(f"{count:,} faces", flush=True)
            found.append(way(count, options.folder))
        if found:
            print_growth(sorted(counts), found)


if __name__ == "__main__":
    main()
