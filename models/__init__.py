"""The networks: EfficientFace, the student, and the label-distribution generator, its teacher."""

from typing import Any

from torch import nn

from efficientface import FerError

TEACHERS = ("resnet18", "resnet34", "resnet50")
ARCHITECTURES = ("efficientface", *TEACHERS)


def build(arch: str, num_classes: int, **options: Any) -> nn.Module:
    """A fresh network by name; `options` are the keyword arguments of its factory."""
    # imported here: torchvision takes as long again to import as torch, and a student does without it
    if arch == "efficientface":
        from efficientface.models.efficientface import efficient_face

        return efficient_face(num_classes, **options)
    if arch in TEACHERS:
        from efficientface.models.teacher import label_distribution_generator

        return label_distribution_generator(arch, num_classes, **options)
    raise FerError(f"architecture {arch} is not known; choose from {', '.join(ARCHITECTURES)}")
