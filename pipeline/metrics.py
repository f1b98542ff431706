"""How well probabilities agree with labels, and with distributions of human votes. Arrays in, plain numbers out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import xlogy
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support

BINS = 15  # of the calibration error; Guo et al., ICML 2017
RESAMPLES = 2000  # of the bootstrap: its 95 % limits then move by about 0.1 points from seed to seed
# Softmax in float32 can round a probability to 0, which a vote for that class would make an infinite
# divergence; such a probability counts as the smallest normal float32.
SMALLEST = float(np.finfo(np.float32).tiny)


def score(
    probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str], targets: np.ndarray | None = None
) -> dict[str, Any]:
    """Everything that `fer evaluate` says about one model, ready for JSON.

    probabilities: (N, C), rows sum to 1; labels: (N,) indices into `classes`; targets: (N, C) distributions such as
    normalised votes, NaN in rows that have none. Shares and probabilities are 0-1, divergences are in nats.
    A class without labelled faces has no recall (None) and does not count in macro_f1; one that is
    never predicted has no precision, and an F1 of 0 if it has faces.
    """
    probabilities = np.asarray(probabilities, np.float64)
    predicted = probabilities.argmax(1)
    every = np.arange(len(classes))
    confusion = confusion_matrix(labels, predicted, labels=every)
    columns = precision_recall_fscore_support(labels, predicted, labels=every, zero_division=np.nan)
    per_class = {
        name: {
            "precision": _number(precision),
            "recall": _number(recall),
            "f1": _number(f1),
            "support": int(support),
        }
        for name, precision, recall, f1, support in zip(classes, *columns, strict=True)
    }
    return {
        **share(int(np.trace(confusion)), len(labels)),
        "macro_f1": float(f1_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0)),
        "macro_f1_interval": macro_f1_interval(confusion),
        "calibration_error": calibration_error(probabilities, predicted == labels),
        "classes": per_class,
        "confusion": confusion.tolist(),
        "distribution": None if targets is None else distances(probabilities, targets),
    }


def share(hits: float, count: int) -> dict[str, Any]:
    """`count`, the `accuracy` hits / count, and its 95 % limits (Wilson), for which hits are rounded to a whole one."""
    limits = binomtest(round(hits), count).proportion_ci(0.95, method="wilson")
    return {"count": count, "accuracy": hits / count, "accuracy_interval": [float(limits.low), float(limits.high)]}


def mcnemar(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """Whether two models that judged the same faces differ: McNemar's test, exact for any number of faces.

    a, b: (N,) bool, right or wrong about each face. The faces that only one of them is right about are a fair coin's
    throws if neither is better: `p` is the two-sided binomial test of that, 1 where there are none.
    """
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    apart = only_a + only_b
    return {
        "count": len(a),
        "both_right": int((a & b).sum()),
        "only_first_right": only_a,
        "only_second_right": only_b,
        "both_wrong": int((~a & ~b).sum()),
        "difference": (only_a - only_b) / len(a),
        "p": float(binomtest(only_a, apart).pvalue) if apart else 1.0,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and standard deviation (of a sample, n - 1) of two or more numbers."""
    return {"mean": float(np.mean(values)), "deviation": float(np.std(values, ddof=1))}


def macro_f1_interval(confusion: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> list[float]:
    """95 % limits of macro-F1 by the percentile bootstrap over faces.

    confusion: (C, C) counts, rows true. Faces drawn with replacement are a multinomial draw of its cells. Each draw
    averages over the classes that occur in it, the rule of the score itself.
    """
    draws = np.random.default_rng(seed).multinomial(
        confusion.sum(), confusion.ravel() / confusion.sum(), size=resamples
    )
    draws = draws.reshape(resamples, *confusion.shape)
    true, predicted = draws.sum(2), draws.sum(1)
    hits = draws.diagonal(axis1=1, axis2=2)
    f1 = 2 * hits / np.maximum(true + predicted, 1)
    macro = (f1 * (true > 0)).sum(1) / (true > 0).sum(1)
    return [float(limit) for limit in np.quantile(macro, (0.025, 0.975))]


def calibration_error(probabilities: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: |accuracy - confidence| in equal bins of confidence, weighted by faces.

    probabilities: (N, C); correct: (N,) bool. The bins are (k / bins, (k + 1) / bins].
    """
    gap = np.subtract(*reliability(probabilities, correct, bins)[1:])  # faces in the bin times (accuracy - confidence)
    return float(np.abs(gap).sum() / len(correct))


def reliability(
    probabilities: np.ndarray, correct: np.ndarray, bins: int = BINS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(bins,) faces in each bin of confidence, how many of them are right, and the sum of their confidences."""
    confidence = probabilities.max(1)
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return np.bincount(place, minlength=bins), np.bincount(place, correct, bins), np.bincount(place, confidence, bins)


def distances(probabilities: np.ndarray, targets: np.ndarray) -> dict[str, Any] | None:
    """Means over the faces that have a target distribution; None if no face has one.

    probabilities p and targets t: (N, C), NaN in rows of t without one. Zeros are legal in both. `kl` is KL(t || p),
    `js` the Jensen-Shannon divergence (at most log 2; not its root), `entropy` that of t: the floor below
    which no cross-entropy gets, so that cross_entropy = kl + entropy.
    """
    given = ~np.isnan(targets).any(1)
    if not given.any():
        return None
    t, p = targets[given].astype(np.float64), probabilities[given].astype(np.float64)
    middle = (t + p) / 2
    entropy = -xlogy(t, t).sum(1)
    crossed = -xlogy(t, np.maximum(p, SMALLEST)).sum(1)
    js = (xlogy(t, t) + xlogy(p, p)).sum(1) / 2 - xlogy(middle, middle).sum(1)
    cosine = (t * p).sum(1) / (np.linalg.norm(t, axis=1) * np.linalg.norm(p, axis=1))
    return {
        "count": int(given.sum()),
        "kl": float((crossed - entropy).mean()),
        "js": float(js.mean()),
        "cosine": float(cosine.mean()),
        "total_variation": float(np.abs(t - p).sum(1).mean() / 2),
        "cross_entropy": float(crossed.mean()),
        "entropy": float(entropy.mean()),
    }


def _number(value: float) -> float | None:
    """A float for JSON, where what is undefined is null."""
    return None if np.isnan(value) else float(value)
