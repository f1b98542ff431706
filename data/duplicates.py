"""Photographs that are in two splits: byte for byte, or so alike that one was made from the other."""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

SIDE = 16
NEAR = 16  # of the 256 bits: what that finds and misses was measured, see docs/datasets.md
PAIRS = 1 << 20  # hashes compared at a time
TOLD = ("face_id", "split", "label")  # of a photograph and of its twin


def dhash(image: np.ndarray) -> str:
    """Difference hash of (H, W, 3) uint8 RGB: 16 x 16 bits, row by row, as 64 hexadecimal digits.

    A bit is set where a pixel of the picture, grey and shrunk to 17 x 16 by area, is darker than its right neighbour.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    # 32 bits are half the memory: sums go round past 2 ** 32, but a sixteenth of the rows that may be decoded has less
    flat = len(grey) < SIDE
    sums = cv2.integral(grey, sdepth=cv2.CV_64F) if flat else cv2.integral(grey).view(np.uint32)
    areas = _between(_between(sums, SIDE).T, SIDE + 1).T
    pixels = np.rint(areas * (SIDE * (SIDE + 1) / grey.size)).astype(np.uint8)
    return np.packbits(pixels[:, 1:] > pixels[:, :-1]).tobytes().hex()


def _between(sums: np.ndarray, count: int) -> np.ndarray:
    """Running sums (N + 1, M) over N rows -> the sums (count, M) of `count` equal parts, fractions of rows included."""
    ends = np.arange(count + 1) * ((len(sums) - 1) / count)
    row = np.minimum(ends.astype(int), len(sums) - 2)
    whole = sums[row]
    begun = (ends - row)[:, np.newaxis] * (sums[row + 1] - whole)
    return whole[1:] - whole[:-1] + (begun[1:] - begun[:-1])


def between_splits(photos: pd.DataFrame) -> pd.DataFrame:
    """Each photograph that has a twin in another split, with the nearest twin there.

    photos: rows with `face_id`, `split`, `label`, `source_hash` and `source_dhash`. Returns these columns: face_id,
    split, label; twin, twin_split, twin_label; `bits`, by how many of 256 the two differ, -1 where they are equal byte
    for byte. Twins of other splits are looked for in train first, so a copy in test names the one in train.
    """
    splits = sorted(photos["split"].unique(), key=lambda split: (split != "train", split))
    by_split = {split: photos[photos["split"] == split].reset_index(drop=True) for split in splits}
    found = [pair for first, second in combinations(splits, 2) for pair in _twins(by_split[second], by_split[first])]
    columns = ["face_id", "split", "label", "twin", "twin_split", "twin_label", "bits"]
    return pd.DataFrame(found, columns=columns)


def _twins(photos: pd.DataFrame, others: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    wanted, there = (pa.array(frame["source_hash"], pa.large_string()) for frame in (photos, others))
    twins = pc.index_in(wanted, value_set=there).fill_null(-1).to_numpy().astype(np.int64)  # the first of several
    bits = np.full(len(photos), -1)
    rest = np.flatnonzero(twins < 0)
    if len(rest) and len(others):
        twins[rest], bits[rest] = nearest(_bytes(photos.iloc[rest]), _bytes(others))
    found = np.flatnonzero(twins >= 0)
    columns = [frame[name] for frame in (photos.iloc[found], others.iloc[twins[found]]) for name in TOLD]
    yield from zip(*columns, bits[found].tolist(), strict=True)


def _bytes(photos: pd.DataFrame) -> np.ndarray:
    """(N, 32) uint8 of N hashes."""
    return np.frombuffer(bytes.fromhex("".join(photos["source_dhash"])), np.uint8).reshape(-1, SIDE * SIDE // 8)


def nearest(hashes: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each of M hashes (M, 32) uint8 the nearest among N others, the first of several; (M,) its place and the bits.

    The place is -1 where none differs by at most NEAR bits. Of NEAR + 1 pieces of a hash such a one shares at least one
    unchanged: only hashes that do are compared, not all with all.
    """
    best = np.full(len(hashes), (NEAR + 1) * len(others))  # bits * N + place
    mine, theirs = hashes.view(np.uint64), others.view(np.uint64)
    for piece in range(NEAR + 1):
        wanted, there = _piece(hashes, piece), _piece(others, piece)
        order = np.argsort(there, kind="stable")
        there, words = there[order], theirs[order, 0]
        first, count = np.searchsorted(there, wanted), np.searchsorted(there, wanted, "right")
        count -= first
        # as many photographs at a time as have about PAIRS candidates together
        portions = np.searchsorted(np.cumsum(count), np.arange(PAIRS, count.sum(), PAIRS))
        for rows in np.split(np.arange(len(hashes)), portions):
            row = np.repeat(rows, count[rows])
            begins = first[rows] - (np.cumsum(count[rows]) - count[rows])
            at = np.arange(len(row)) + np.repeat(begins, count[rows])
            near = np.bitwise_count(mine[row, 0] ^ words[at]) <= NEAR  # most differ by more in the first 64 bits alone
            row, place = row[near], order[at[near]]
            bits = np.bitwise_count(mine[row] ^ theirs[place]).sum(1, dtype=np.int64)
            near = bits <= NEAR
            np.minimum.at(best, row[near], bits[near] * len(others) + place[near])
    bits, place = np.divmod(best, len(others))
    return np.where(bits <= NEAR, place, -1), bits


def _piece(hashes: np.ndarray, number: int) -> np.ndarray:
    """(N,) the number-th of NEAR + 1 pieces, 15 bits each (the last bit of 256 is in none)."""
    start, shift = divmod(15 * number, 8)
    three = np.pad(hashes[:, start : start + 3], ((0, 0), (0, 1))).astype(np.uint32)
    bits = three[:, 0] << 16 | three[:, 1] << 8 | three[:, 2]
    return (bits >> (24 - 15 - shift) & 0x7FFF).astype(np.uint16)  # 16 bits are sorted in linear time
