"""What is asked of the reader of a layout, and what it hands over."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from efficientface.data.columns import kept
from efficientface.data.labels import Wanted
from efficientface.data.layouts.published import Published
from efficientface.data.photos import PhotoFiles, Photos
from efficientface.data.words import Words, joined

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels of the photograph


@dataclass(frozen=True)
class Asked:
    """The options that readers obey."""

    wanted: Wanted | None = None
    label_rule: str = "majority"
    aligned: bool = False  # the source's own aligned faces where it has both these and photographs


@dataclass
class Listing:
    """N images, with names of labels and classes spelt as in the source; all columns may be mapped."""

    root: Path
    where: Path  # the file or folder that errors about labels are to name
    files: Words = field(default_factory=lambda: Words([]))
    labels: Words = field(default_factory=lambda: Words([]))
    splits: Words = field(default_factory=lambda: Words([]))
    groups: Words | None = None
    votes: np.ndarray | None = None  # (N, K) float32
    vote_names: tuple[str, ...] = ()  # K names, those for no expression among them
    notes: list[str] = field(default_factory=list)
    published: Published | None = None  # counts to compare with
    stored: Photos | None = None  # where the photographs are, if not in files below root
    boxes: np.ndarray | None = None  # (N, 4) of the face that the label is about, see `Box`; NaN where it has none

    def add(self, files: Words, labels: Words, splits: Words) -> None:
        """More images."""
        self.files = joined([self.files, files])
        self.labels, self.splits = joined([self.labels, labels]), joined([self.splits, splits])

    def give_boxes(self, where: Path, corners: np.ndarray) -> None:
        """Take (N, 4) x1, y1, x2, y2 of the labelled faces; rows that are no box are counted in a note."""
        sound = np.isfinite(corners).all(1) & (corners[:, 2:] > corners[:, :2]).all(1)
        boxes = np.where(sound[:, None], corners, np.nan)
        self.boxes = kept(boxes if self.boxes is None else np.concatenate([self.boxes, boxes]))
        if not sound.all():
            self.notes.append(f"Without a box of the labelled face in {where}: {(~sound).sum():,} of {len(sound):,}.")

    @property
    def photos(self) -> Photos:
        return self.stored or PhotoFiles(self.root)
