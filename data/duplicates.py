"""Photographs that are in two splits: byte for byte, or so alike that one was made from the other."""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import cv2
import numpy as np
import pandas as pd

SIDE = 16
NEAR = 16  # of the 256 bits: what that finds and misses was measured, see docs/datasets.md


def dhash(image: np.ndarray) -> str:
    """Difference hash of (H, W, 3) uint8 RGB: 16 x 16 bits, row by row, as 64 hexadecimal digits.

    A bit is set where a pixel of the picture, grey and shrunk to 17 x 16 by area, is darker than its right neighbour.
    """
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (SIDE + 1, SIDE), interpolation=cv2.INTER_AREA)
    return np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes().hex()


def between_splits(photos: pd.DataFrame) -> pd.DataFrame:
    """Each photograph that has a twin in another split, with the nearest twin there.

    photos: rows with `face_id`, `split`, `label`, `source_hash` and `source_dhash`. Returns these columns: face_id,
    split, label; twin, twin_split, twin_label; `bits`, by how many of 256 the two differ, -1 where they are equal byte
    for byte. Twins of other splits are looked for in train first, so a copy in test names the one in train.
    """
    splits = sorted(set(photos["split"]), key=lambda split: (split != "train", split))
    by_split = {split: photos[photos["split"] == split].reset_index(drop=True) for split in splits}
    found = [pair for first, second in combinations(splits, 2) for pair in _twins(by_split[second], by_split[first])]
    columns = ["face_id", "split", "label", "twin", "twin_split", "twin_label", "bits"]
    return pd.DataFrame(found, columns=columns)


def _twins(photos: pd.DataFrame, others: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    equal = dict(zip(others["source_hash"][::-1], others.index[::-1], strict=True))  # the first of several
    hashes, other_hashes = _words(photos), _words(others)
    beginnings = np.ascontiguousarray(other_hashes[:, 0])
    for place, photo in enumerate(photos.itertuples()):
        twin, bits = equal.get(photo.source_hash), -1
        if twin is None:
            # most differ by more in the first 64 bits alone
            near = np.flatnonzero(np.bitwise_count(beginnings ^ hashes[place, 0]) <= NEAR)
            distances = np.bitwise_count(other_hashes[near] ^ hashes[place]).sum(1)
            if not len(near) or distances.min() > NEAR:
                continue
            twin, bits = near[distances.argmin()], int(distances.min())
        other = others.loc[twin]
        yield photo.face_id, photo.split, photo.label, other["face_id"], other["split"], other["label"], bits


def _words(photos: pd.DataFrame) -> np.ndarray:
    """(N, 4) uint64 of N hashes."""
    return np.frombuffer(bytes.fromhex("".join(photos["source_dhash"])), np.uint64).reshape(-1, 4)
