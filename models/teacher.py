"""The label-distribution generator (LDG): an ordinary ResNet trained on single labels, whose answers are the targets.

Zhao, Liu and Zhou (AAAI 2021) use ResNet-50 (He et al., CVPR 2016). This is torchvision's, with its names and
shapes, which are those of the authors' checkpoints; no weights are downloaded.
"""

import torchvision
from torch import nn


def label_distribution_generator(arch: str = "resnet50", num_classes: int = 7) -> nn.Module:
    """(B, 3, H, W) normalised RGB to (B, num_classes) logits; 23,522,375 parameters with 7 classes."""
    return torchvision.models.get_model(arch, weights=None, num_classes=num_classes)
