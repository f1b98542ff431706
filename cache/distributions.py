"""Label distributions as columns, whatever file they came from.

They are read whole, so that an epoch's look-up is one fancy index and no file handle is shared between threads. Long
columns are mapped, not held (data/columns.py). docs/scaling.md says how far that goes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from efficientface import FerError
from efficientface.data.columns import ROWS, Growing, indices, kept, reordered, taken
from efficientface.data.words import Column, GrowingWords, Words, all_differ, differ, in_order, leads_out, places

# Values of `fold` below zero; k >= 0 is the k-th out-of-fold teacher.
SEEN, UNSEEN, NO_TEACHER = -1, -2, -3
# The fields of Distributions with one entry a face: text, and numbers.
TEXT = ("face_id", "image_hash", "split")
NUMBERS = ("label", "fold", "canonical", "view_box", "view_flip", "view_distribution")
SUM_TOLERANCE = 1e-3  # of a distribution's sum; float32 softmax is within 1e-6


@dataclass(frozen=True)
class Distributions:
    """N faces, C classes, V stored views (V = 0: per-image use only).

    face_id, image_hash, split: (N,) text; label: (N,) int64, -1 where unknown; fold: (N,) int8, see above;
    canonical: (N, C) float32, the distribution of the whole, unmirrored face;
    view_box: (N, V, 4) uint16 as top, left, height, width in pixels of the aligned face; view_flip: (N, V) bool;
    view_distribution: (N, V, C) float32. Rows sum to 1. The canonical view is never among the stored ones.
    """

    classes: tuple[str, ...]
    face_id: Words
    image_hash: Words
    split: Words
    label: np.ndarray
    fold: np.ndarray
    canonical: np.ndarray
    view_box: np.ndarray
    view_flip: np.ndarray
    view_distribution: np.ndarray

    def __len__(self) -> int:
        return len(self.face_id)

    @property
    def views(self) -> int:
        """V, the stored views a face."""
        return self.view_box.shape[1]

    def check_ids(self, name: str) -> None:
        """FerError if a face id is no relative path or comes twice; `name` is the file's, for the message."""
        outside = self.face_id[leads_out(self.face_id)]
        if len(outside):
            raise FerError(
                f"{name} has {len(outside)} face ids that lead out of their source, first {outside[0]}; "
                "take it from somebody you trust, or run fer teach again"
            )
        self.check_unique(name)

    def check_unique(self, name: str) -> None:
        """FerError if a face id comes twice."""
        if not in_order(self.face_id) and not all_differ(self.face_id):
            unique, counts = np.unique(self.face_id, return_counts=True)
            raise FerError(
                f"{name} has {int((counts > 1).sum())} face ids more than once, first {unique[counts > 1][0]}; "
                "restore it, or run fer teach again"
            )

    def check(self, name: str) -> None:
        """FerError if an id is wrong or comes twice, a label is none, or a distribution is not one."""
        self.check_ids(name)
        unknown = (self.label < -1) | (self.label >= len(self.classes))
        if unknown.any():
            raise FerError(
                f"{name} has {int(unknown.sum())} labels that are the number of none of its {len(self.classes)} "
                f"classes, first of face {self.face_id[unknown][0]}; restore it, or run fer teach again"
            )
        for part, values in (("canonical", self.canonical), ("view", self.view_distribution)):
            wrong = np.empty(values.shape[:-1], bool)
            for k in range(0, len(values), ROWS):
                p = values[k : k + ROWS]
                other_sum = np.abs(p.sum(-1) - 1) > SUM_TOLERANCE
                wrong[k : k + ROWS] = ~np.isfinite(p).all(-1) | (p < 0).any(-1) | other_sum
            if wrong.any():
                first = self.face_id[np.argwhere(wrong)[0][0]]
                raise FerError(
                    f"{name} has {int(wrong.sum())} {part} distributions that are not finite, not positive or do not "
                    f"sum to 1, first of face {first}; restore it, or run fer teach again"
                )

    def select(self, rows: np.ndarray) -> "Distributions":
        """The faces at `rows`: (M,) indices or (N,) booleans."""
        rows = indices(rows, len(self))
        columns: dict[str, Any] = {name: getattr(self, name)[rows] for name in TEXT}
        columns |= {name: taken(getattr(self, name), rows) for name in NUMBERS}
        return replace(self, **columns)

    def without_views(self) -> "Distributions":
        """The same faces and distributions, V = 0."""
        none: dict[str, Any] = {name: getattr(self, name)[:, :0] for name in NUMBERS if name.startswith("view_")}
        return replace(self, **none)

    def has(self, face_id: Column) -> np.ndarray:
        """(M,) bool: which of the given faces are among these."""
        return places(face_id, self.face_id) >= 0

    def in_order_of(self, classes: Sequence[str], name: str) -> "Distributions":
        """The same distributions with their classes in another order, matched by name."""
        if set(classes) != set(self.classes):
            raise FerError(
                f"{name} has the classes {', '.join(self.classes)}, the faces have {', '.join(classes)}; "
                "give a cache made from these faces (fer teach)"
            )
        if tuple(classes) == self.classes:
            return self
        order = [self.classes.index(c) for c in classes]
        place = np.array([list(classes).index(c) for c in self.classes] + [-1])
        return replace(
            self,
            classes=tuple(classes),
            label=kept(place[self.label]),
            canonical=reordered(self.canonical, order),
            view_distribution=reordered(self.view_distribution, order),
        )

    def rows_of(self, face_id: Words, image_hash: Words, name: str) -> np.ndarray:
        """(M,) rows of the given faces, matched by id; FerError if one is missing or is about another picture."""
        rows = places(face_id, self.face_id)
        if (rows < 0).any():
            raise FerError(
                f"{name} has no distribution for {int((rows < 0).sum())} of {len(rows)} faces, "
                f"first {face_id[(rows < 0).argmax()]}; run fer teach again"
            )
        other = np.flatnonzero(differ(self.image_hash, rows, image_hash))
        if len(other):
            raise FerError(
                f"{name} is about other pictures than faces/ for {len(other)} of {len(rows)} faces, "
                f"first {face_id[other[0]]} (image_hash differs); run fer teach again"
            )
        return rows


def tempered(distribution: np.ndarray, temperature: float) -> np.ndarray:
    """(..., C) probabilities p to softmax(log p / T), float32; a probability of 0 stays 0."""
    if temperature == 1:
        return distribution
    with np.errstate(divide="ignore"):
        scaled = np.log(distribution.astype(np.float64)) / temperature
    raised = np.exp(scaled - scaled.max(-1, keepdims=True))
    return (raised / raised.sum(-1, keepdims=True)).astype(np.float32)


def join(parts: Iterable[Distributions]) -> Distributions:
    """Shards of the same classes and number of views, one after the other; an iterator's are let go one by one."""
    text, numbers = {name: GrowingWords() for name in TEXT}, {name: Growing() for name in NUMBERS}
    for part in parts:
        for name, words in text.items():
            words.append(getattr(part, name))
        for name, column in numbers.items():
            column.append(getattr(part, name))
    whole: dict[str, Any] = {name: column.whole() for name, column in (text | numbers).items()}
    return replace(part, **whole)
