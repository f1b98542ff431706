"""The paper's loss, equation (5)."""

import torch.nn.functional as F
from torch import Tensor


def distribution_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean of -target * log softmax(logits) over faces and classes, in nats.

    logits: (B, C); target: (B, C) probabilities, each row sums to 1.
    Also dividing by C is the paper's and the authors' choice (zengqunzhao/EfficientFace, main.py); without it
    gradients are C times larger and their lr of 0.1 means something else. A one-hot target makes it the
    cross-entropy of single-label learning on the same scale, so that LDL and SLL are compared at equal steps.
    """
    return F.cross_entropy(logits, target) / logits.shape[1]
