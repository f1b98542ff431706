"""Photographs that are in two splits: byte for byte, or so alike that one was made from the other."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa

from efficientface.data.columns import Growing, kept, taken
from efficientface.data.words import GrowingWords, Words, counted, places

SIDE = 16
NEAR = 16  # of the 256 bits: what that finds and misses was measured, see docs/datasets.md
PAIRS = 1 << 20  # hashes compared at a time


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


@dataclass(frozen=True)
class Photographs:
    """N photographs: face_id, split, source_hash (N,) text; label (N,) int64, -1 for none; dhash (N, 32) uint8."""

    face_id: Words
    split: Words
    label: np.ndarray
    source_hash: Words
    dhash: np.ndarray

    @classmethod
    def of(cls, tables: Iterable[pa.Table]) -> "Photographs":
        """Those of tables with the columns of faces/; ValueError or TypeError where a `source_dhash` is none."""
        text = {name: GrowingWords() for name in ("face_id", "split", "source_hash")}
        label, dhashes = Growing(), Growing()
        for table in tables:
            for name, words in text.items():
                words.append(table[name])
            label.append(table["label"].fill_null(-1).to_numpy())
            digits = bytes.fromhex("".join(table["source_dhash"].to_pylist()))
            dhashes.append(np.frombuffer(digits, np.uint8).reshape(len(table), SIDE * SIDE // 8))
        whole = {name: words.whole() for name, words in text.items()}
        return cls(**whole, label=label.whole(), dhash=dhashes.whole())


def between_splits(photos: Photographs) -> pd.DataFrame:
    """Each photograph that has a twin in another split, with the nearest twin there.

    Returns the columns face_id, split, label; twin, twin_split, twin_label; `bits`, by how many of 256 the two differ,
    -1 where they are equal byte for byte. Twins of other splits are looked for in train first, so a copy in test names
    the one in train.
    """
    splits = sorted(counted(photos.split), key=lambda split: (split != "train", split))
    by_split = {split: kept(np.flatnonzero(photos.split == split)) for split in splits}
    pairs = combinations(splits, 2)
    found = [pair for first, second in pairs for pair in _twins(photos, by_split[second], by_split[first])]
    columns = ["face_id", "split", "label", "twin", "twin_split", "twin_label", "bits"]
    return pd.DataFrame(found, columns=columns)


def _twins(photos: Photographs, rows: np.ndarray, others: np.ndarray) -> Iterator[tuple[Any, ...]]:
    """Of the photographs at `rows` (M,) those with a twin among those at `others` (N,)."""
    twins = places(photos.source_hash[rows], photos.source_hash[others])  # the first of several
    bits = np.full(len(rows), -1)
    rest = np.flatnonzero(twins < 0)
    if len(rest):
        twins[rest], bits[rest] = nearest(taken(photos.dhash, rows[rest]), taken(photos.dhash, others))
    for k in np.flatnonzero(twins >= 0):
        mine, twin = rows[k], others[twins[k]]
        told = ((photos.face_id[row], photos.split[row], int(photos.label[row])) for row in (mine, twin))
        yield (*next(told), *next(told), int(bits[k]))


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
    bits = hashes[:, start].astype(np.uint32) << 16 | hashes[:, start + 1].astype(np.uint32) << 8
    if start + 2 < hashes.shape[1]:
        bits |= hashes[:, start + 2]
    return (bits >> (24 - 15 - shift) & 0x7FFF).astype(np.uint16)  # 16 bits are sorted in linear time
