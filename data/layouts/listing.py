"""What is asked of the reader of a layout, and what it hands over."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from efficientface.data.labels import Wanted
from efficientface.data.layouts.published import Published
from efficientface.data.photos import PhotoFiles, Photos

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass(frozen=True)
class Asked:
    """The options that readers obey."""

    wanted: Wanted | None = None
    label_rule: str = "majority"
    aligned: bool = False  # the source's own aligned faces where it has both these and photographs


@dataclass
class Listing:
    """N images, with names of labels and classes spelt as in the source."""

    root: Path
    where: Path  # the file or folder that errors about labels are to name
    files: list[str]
    labels: list[str | None]
    splits: list[str | None]
    groups: list[str | None] | None = None
    votes: np.ndarray | None = None  # (N, K) float32
    vote_names: tuple[str, ...] = ()  # K names, those for no expression among them
    notes: list[str] = field(default_factory=list)
    published: Published | None = None  # counts to compare with
    stored: Photos | None = None  # where the photographs are, if not in files below root

    @property
    def photos(self) -> Photos:
        return self.stored or PhotoFiles(self.root)
