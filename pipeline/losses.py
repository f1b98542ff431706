"""The paper's loss, equation (5), and those it is compared with. All are in nats."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def distribution_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean of -target * log softmax(logits) over faces and classes.

    logits: (B, C); target: (B, C) probabilities, each row sums to 1.
    Also dividing by C is the paper's and the authors' choice (zengqunzhao/EfficientFace, main.py); without it
    gradients are C times larger and their lr of 0.1 means something else.
    """
    return F.cross_entropy(logits, target) / logits.shape[1]


def tempered_divergence(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """T^2 KL(target || softmax(logits / T)), mean over faces and classes: equation (5)'s scale.

    logits: (B, C); target: (B, C) probabilities, tempered already. T^2 keeps the size of the gradients (Hinton, Vinyals
    and Dean 2015, section 2). At T = 1 it is equation (5) less the target's entropy, with the same gradient.
    """
    answer = F.log_softmax(logits / temperature, 1)
    return temperature**2 * F.kl_div(answer, target, reduction="sum") / logits.numel()


def label_loss(logits: Tensor, label: Tensor, smoothing: float = 0.0, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy to single labels, mean over faces; not divided by C.

    logits: (B, C); label: (B,) class numbers. The target is (1 - smoothing) of the label plus smoothing / C of every
    class. weights: (C,), each face's loss is multiplied by its label's. The mean is over the number of faces, not over
    the sum of their weights, so that a step does not depend on how a batch is divided among processes.
    """
    losses = F.cross_entropy(logits, label, label_smoothing=smoothing, reduction="none")
    return (losses if weights is None else losses * weights.to(losses.device)[label]).mean()


def balanced_weights(label: np.ndarray, classes: int) -> Tensor:
    """(C,) float32: N / (classes that occur x faces of the class), 1 on average over the N faces; 0 where none."""
    counts = np.bincount(label, minlength=classes)
    weights = np.divide(len(label), np.count_nonzero(counts) * counts, out=np.zeros(classes), where=counts > 0)
    return torch.from_numpy(weights.astype(np.float32))
