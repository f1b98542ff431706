"""The networks: EfficientFace, the student, and the label-distribution generator, its teacher."""

from typing import Any

from torch import nn

from efficientface import FerError

TEACHERS = ("resnet18", "resnet34", "resnet50")
# The paper's table 1 by what each network lacks; its baseline has a stem of its own width.
WITHOUT: dict[str, dict[str, Any]] = {
    "efficientface": {},
    "baseline": {"local": False, "modulator": False, "widths": (24, 116, 232, 464, 1024)},
    "baseline-local": {"modulator": False},
    "baseline-modulator": {"local": False},
}
MODULATED = ("efficientface", "baseline-modulator")  # those that take the option `modulation`
ARCHITECTURES = (*WITHOUT, *TEACHERS)


def build(arch: str, num_classes: int, **options: Any) -> nn.Module:
    """A fresh network by name; `options` are the keyword arguments of its factory."""
    # imported here: torchvision takes as long again to import as torch, and a student does without it
    if arch in WITHOUT:
        from efficientface.models.efficientface import efficient_face

        return efficient_face(num_classes, **{**WITHOUT[arch], **options})
    if arch in TEACHERS:
        from efficientface.models.teacher import label_distribution_generator

        return label_distribution_generator(arch, num_classes, **options)
    raise FerError(f"architecture {arch} is not known; choose from {', '.join(ARCHITECTURES)}")
