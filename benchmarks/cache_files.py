"""How large and how fast a cache is as Parquet, as HDF5, and as one pickle a face; prints a Markdown table.

    python benchmarks/cache_files.py --faces 30000 --repeats 5

Made-up faces with distributions that hardly compress (softmax of noise) and boxes drawn as `fer teach` draws them. The
three forms take turns within a repetition, all on the same machine and folder; files are read warm, just after
they were written. One epoch's look-ups: for Parquet and HDF5, which are read whole into memory first, matching all
faces by id and picking one stored view of each; for pickles, opening each face's file once, in random order.
"""

import argparse
import pickle
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from efficientface.cache.distributions import Distributions
from efficientface.cache.hdf5 import check_digest, read_hdf5, write_hdf5
from efficientface.cache.parquet import read_shards, write_shard
from efficientface.data.faces import hash_image
from efficientface.data.views import draw_views
from efficientface.pipeline.artifact import replacing
from efficientface.pipeline.config import DistillConfig, TeachConfig
from efficientface.pipeline.distill import replay

CLASSES = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger")
CROP = 224
SHARD = TeachConfig.shard_faces


def made_up(faces: int, views: int) -> Distributions:
    """`faces` rows with `views` stored views."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, len(CLASSES), faces)
    face_id = np.array([f"train/{CLASSES[k]}/{n:06d}.jpg" for n, k in enumerate(label)], object)

    def softmax(*shape: int) -> np.ndarray:
        e = np.exp(rng.normal(0, 3, (*shape, len(CLASSES))))
        return (e / e.sum(-1, keepdims=True)).astype(np.float32)

    boxes, flips = draw_views(0, face_id, range(views), CROP)
    return Distributions(
        classes=CLASSES,
        face_id=face_id,
        image_hash=np.array([hash_image(key.encode()) for key in face_id], object),
        split=np.array(["train"] * faces, object),
        label=label,
        fold=np.full(faces, -1, np.int8),
        canonical=softmax(faces),
        view_box=boxes,
        view_flip=flips,
        view_distribution=softmax(faces, views),
    )


class Parquet:
    """Shards as `fer teach` writes them; every distribution is checked when they are read."""

    name = "Parquet"

    def write(self, cached: Distributions, folder: Path) -> None:
        for k in range(0, len(cached), SHARD):
            with replacing(folder / f"part-{k // SHARD:05d}.parquet") as part:
                write_shard(cached.select(np.arange(k, min(k + SHARD, len(cached)))), part)

    def read(self, folder: Path) -> Distributions:
        return read_shards(sorted(folder.glob("*.parquet")))


class Hdf5:
    """One file, assembled from shards in memory; its digest and every distribution are checked when it is read."""

    name = "HDF5"

    def write(self, cached: Distributions, folder: Path) -> None:
        parts = {
            f"part-{k // SHARD:05d}.parquet": cached.select(np.arange(k, min(k + SHARD, len(cached))))
            for k in range(0, len(cached), SHARD)
        }
        with replacing(folder / "distributions.h5") as part:
            write_hdf5(part, {}, list(parts), lambda name, views: parts[name])

    def read(self, folder: Path) -> Distributions:
        check_digest(folder / "distributions.h5")
        cached = read_hdf5(folder / "distributions.h5")
        cached.check("distributions.h5")
        return cached


class Pickles:
    """A file a face, as scripts for soft labels do it: no class names, no check, nothing synced."""

    name = "pickle a face"

    def write(self, cached: Distributions, folder: Path) -> None:
        for row in range(len(cached)):
            face = {
                "id": cached.face_id[row],
                "probabilities": cached.canonical[row],
                "boxes": cached.view_box[row],
                "flips": cached.view_flip[row],
                "views": cached.view_distribution[row],
            }
            with open(folder / f"{row:06d}.pkl", "wb") as file:
                pickle.dump(face, file, protocol=pickle.HIGHEST_PROTOCOL)

    def load(self, folder: Path, row: int) -> dict[str, Any]:
        with open(folder / f"{row:06d}.pkl", "rb") as file:
            return pickle.load(file)

    def read(self, folder: Path) -> list[dict[str, Any]]:
        return [self.load(folder, row) for row in range(len(list(folder.iterdir())))]


def epoch_in_memory(cached: Distributions) -> Callable[[int], Any]:
    """One epoch's look-ups as `fer distill` makes them: rows by id, then of each face the view of this epoch."""
    rng = np.random.default_rng(1)
    order = rng.permutation(len(cached))
    ids, hashes = cached.face_id[order], cached.image_hash[order]
    lessons = replay(cached.select(order), CROP, DistillConfig()) if cached.views else None
    every = np.arange(len(cached))

    def epoch(number: int) -> Any:
        rows = cached.rows_of(ids, hashes, "cache")
        return lessons(every, np.full_like(every, number)) if lessons else cached.canonical[rows]

    return epoch


def epoch_of_pickles(pickles: Pickles, folder: Path, faces: int, views: int) -> Callable[[int], Any]:
    order = np.random.default_rng(1).permutation(faces)

    def epoch(number: int) -> Any:
        answers = np.empty((faces, len(CLASSES)), np.float32)
        for place, row in enumerate(order):
            face = pickles.load(folder, row)
            answers[place] = face["views"][number % views] if views else face["probabilities"]
        return answers

    return epoch


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def told(times: list[float], unit: str = "s") -> str:
    """Median and, in brackets, the fastest and the slowest."""
    scale = {"s": 1, "ms": 1000}[unit]
    low, middle, high = (scale * f(times) for f in (min, statistics.median, max))
    digits = 0 if middle >= 100 else 2 if middle < 10 else 1
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def measure(form: Any, cached: Distributions, root: str | None) -> dict[str, Any]:
    """Write, read whole, look up one epoch: seconds of each, and bytes a face (as files, and as blocks on disk)."""
    folder = Path(tempfile.mkdtemp(dir=root))
    try:
        written, _ = seconds(lambda: form.write(cached, folder))
        read, back = seconds(lambda: form.read(folder))
        if isinstance(form, Pickles):
            epoch = epoch_of_pickles(form, folder, len(cached), cached.views)
        else:
            assert back.view_distribution.tobytes() == cached.view_distribution.tobytes()
            epoch = epoch_in_memory(back)
        looked, _ = seconds(lambda: epoch(3))
        stats = [path.stat() for path in folder.iterdir()]
    finally:
        shutil.rmtree(folder)
    size, blocks = sum(s.st_size for s in stats), sum(s.st_blocks * 512 for s in stats)
    return {"write": written, "read": read, "epoch": looked, "sizes": (size / len(cached), blocks / len(cached))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, default=30_000)
    parser.add_argument("--views", type=int, nargs="+", default=[0, 1, 10, 100])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", help="where to write; the system's temporary folder if not given")
    options = parser.parse_args()
    print("| views | form | bytes a face | taken on disk | write, s | read whole, s | one epoch's look-ups, ms |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    forms: tuple[Any, ...] = (Parquet(), Hdf5(), Pickles())
    for views in options.views:
        cached = made_up(options.faces, views)
        found: dict[str, list[dict[str, Any]]] = {form.name: [] for form in forms}
        for _ in range(options.repeats):
            for form in forms:
                found[form.name].append(measure(form, cached, options.folder))
        for name, runs in found.items():
            size = " | ".join(f"{number:,.0f}" for number in runs[0]["sizes"])
            units = {"write": "s", "read": "s", "epoch": "ms"}
            columns = [told([run[what] for run in runs], unit) for what, unit in units.items()]
            print(f"| {views} | {name} | {size} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()
