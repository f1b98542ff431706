"""Small caches of distributions for the tests, through the program's own writers."""

from dataclasses import replace

import h5py
import numpy as np

from efficientface.cache.distributions import NUMBERS, Distributions
from efficientface.cache.hdf5 import user_block
from efficientface.cache.parquet import write_shard
from efficientface.pipeline.artifact import write_manifest

CLASSES = ("neutral", "happiness", "surprise")


def make(ids, views=2, seed=0, classes=CLASSES, **given) -> Distributions:
    rng, n, c = np.random.default_rng(seed), len(ids), len(classes)
    made = Distributions(
        classes=tuple(classes),
        face_id=np.array(ids, object),
        image_hash=np.array([f"{k:032x}" for k in range(n)], object),
        split=np.array(["train"] * n, object),
        label=rng.integers(-1, c, n),
        fold=rng.integers(-3, 4, n).astype(np.int8),
        canonical=rng.dirichlet(np.ones(c), n).astype(np.float32),
        view_box=rng.integers(0, 65536, (n, views, 4)).astype(np.uint16),
        view_flip=rng.random((n, views)) < 0.5,
        view_distribution=rng.dirichlet(np.ones(c), (n, views)).astype(np.float32),
    )
    return replace(made, **given)


def writable(cached: Distributions) -> Distributions:
    """The same with copies of its columns of numbers, to be spoiled."""
    return replace(cached, **{name: np.array(getattr(cached, name)) for name in NUMBERS})


def write_cache(folder, cached, parts=2, made_from=None):
    """An artifact folder of Parquet shards."""
    folder.mkdir(parents=True)
    names = []
    for k, rows in enumerate(np.array_split(np.arange(len(cached)), parts)):
        names.append(f"part-{k:05d}.parquet")
        write_shard(cached.select(rows), folder / names[-1])
    about = {"classes": cached.classes, "made_from": made_from or {}, "settings": {}}
    facts = {"faces": len(cached), "views": cached.views, "source": "teacher"}
    write_manifest(folder, "distributions", files=names, facts=facts, **about)
    return folder


def change(path, alter):
    """Let h5py alter an HDF5 file, and give it the digest that belongs to its new bytes."""
    with h5py.File(path, "r+") as opened:
        alter(opened)
    with open(path, "r+b") as raw:
        block = user_block(raw)
        raw.seek(0)
        raw.write(block)
