"""Figures about cached distributions: entropy, agreement with the labels, the faces that stand out."""

from typing import NamedTuple

import numpy as np

from efficientface.cache.distributions import Distributions

QUANTILES = {"min": 0.0, "p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}


class LabelSummary(NamedTuple):
    """The faces of one label: how many, how many of them are agreed about, and the means over them.

    label: index of the class, -1 for faces without a label. entropy in nats; mean: (C,). NaN where there are no faces.
    """

    label: int
    faces: int
    agree: int
    entropy: float
    mean: np.ndarray


def entropy(distribution: np.ndarray) -> np.ndarray:
    """(..., C) probabilities to (...) nats, float64; 0 log 0 counts as 0."""
    p = np.asarray(distribution, np.float64)
    # scipy's xlogy would do, and takes as long to import as a large cache to read
    nats = -(p * np.log(p, out=np.zeros_like(p), where=p > 0)).sum(-1)
    # float32 softmax may give a 1 that is a little more than one
    return np.where(nats > 0, nats, 0.0)


def quantiles(values: np.ndarray) -> dict[str, float]:
    """(N,) numbers, N > 0, to their quantiles by name, interpolated linearly between neighbours."""
    return dict(zip(QUANTILES, np.quantile(values, list(QUANTILES.values())).tolist(), strict=True))


def agreement(cached: Distributions) -> np.ndarray:
    """(N,) bool: whether the most probable class (of equals the first) is the label; False without a label."""
    return cached.canonical.argmax(1) == cached.label


def by_label(cached: Distributions, agree: np.ndarray, nats: np.ndarray) -> list[LabelSummary]:
    """One summary a class in their order, then one for the faces without a label; (N,) `agreement` and `entropy`."""
    summaries = []
    for label in (*range(len(cached.classes)), -1):
        rows = cached.label == label
        faces = int(rows.sum())
        if faces:
            mean = cached.canonical[rows].mean(0, dtype=np.float64)
            summaries.append(LabelSummary(label, faces, int(agree[rows].sum()), float(nats[rows].mean()), mean))
        else:
            summaries.append(LabelSummary(label, 0, 0, float("nan"), np.full(len(cached.classes), np.nan)))
    return summaries


def most_ambiguous(cached: Distributions, count: int) -> np.ndarray:
    """Rows of the `count` faces with the largest entropy, largest first; of equals the earlier row."""
    return np.argsort(-entropy(cached.canonical), kind="stable")[:count]


def most_disagreeing(cached: Distributions, count: int) -> np.ndarray:
    """Rows of the `count` labelled faces whose label is least probable, least first; of equals the earlier row."""
    rows = np.flatnonzero(cached.label >= 0)
    probability = cached.canonical[rows, cached.label[rows]]
    return rows[np.argsort(probability, kind="stable")[:count]]
