"""Two sets of distributions about the same faces, side by side. Arrays in, plain arrays out."""

import numpy as np
from scipy.special import xlogy

# float32 softmax can round a probability to 0, which would make a divergence infinite: it counts as the smallest one.
SMALLEST = float(np.finfo(np.float32).tiny)


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(p || q) of (N, C) probabilities, (N,) nats in float64."""
    p, q = p.astype(np.float64), q.astype(np.float64)
    return np.maximum((xlogy(p, p) - xlogy(p, np.maximum(q, SMALLEST))).sum(-1), 0.0)


def js(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence of (N, C) probabilities, (N,) nats, at most log 2; zeros are harmless in it."""
    middle = (p.astype(np.float64) + q.astype(np.float64)) / 2
    return (kl(p, middle) + kl(q, middle)) / 2
