"""How many images each data set has by its own account, to be compared with a copy of it; never asserted."""

from typing import NamedTuple

from efficientface.data.labels import EXPRESSIONS, FER2013, RAF_DB


class Published(NamedTuple):
    """Counts by split: of all images, or of the labelled ones by class where those are known."""

    name: str
    images: dict[str, int] = {}
    labels: dict[str, dict[str, int]] = {}


def _by_class(order: tuple[str | None, ...], *counts: int) -> dict[str, int]:
    return dict(zip((name for name in order if name), counts, strict=True))


RAF_DB_BASIC = Published(
    "RAF-DB",
    labels={
        "train": _by_class(RAF_DB, 1290, 281, 717, 4772, 1982, 705, 2524),
        "test": _by_class(RAF_DB, 329, 74, 160, 1185, 478, 162, 680),
    },
)
RAF_DB_COMPOUND = Published("compound RAF-DB", images={"train": 3162, "test": 792})
# The seven classes sum to the 283,901 of the paper; all eight to 287,651, where the paper prints 287,568.
AFFECTNET = Published(
    "AffectNet",
    labels={
        "train": _by_class(EXPRESSIONS, 74874, 134415, 25459, 14090, 6378, 3803, 24882, 3750),
        "val": dict.fromkeys(EXPRESSIONS, 500),
    },
)
# As the authors' README corrects the paper.
CAER_S = Published("CAER-S", images={"train": 48995, "test": 20987})
FER_2013 = Published(
    "FER2013",
    labels={
        "train": _by_class(FER2013, 3995, 436, 4097, 7215, 4830, 3171, 4965),
        "val": _by_class(FER2013, 467, 56, 496, 895, 653, 415, 607),
        "test": _by_class(FER2013, 491, 55, 528, 879, 594, 416, 626),
    },
)
FERPLUS = Published("FER+", images={"train": 28558, "val": 3579, "test": 3573})
FERPLUS_MAJORITY = {"train": 25045, "val": 3191, "test": 3137}  # labelled faces by the majority rule, of label.csv
FED_RO = Published("FED-RO", images={"test": 400})

PUBLISHED = (RAF_DB_BASIC, RAF_DB_COMPOUND, AFFECTNET, CAER_S, FER_2013, FERPLUS, FED_RO)
