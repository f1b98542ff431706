"""The networks by name: EfficientFace with its ablations, and those of torchvision and timm. Nothing is downloaded."""

import difflib
from typing import Any

import torch
from torch import nn

from efficientface import FerError
from efficientface.models.efficientface import ABLATIONS, efficient_face

MODULATED = tuple(name for name, left_out in ABLATIONS.items() if left_out.get("modulator", True))


def build(arch: str, num_classes: int, **options: Any) -> nn.Module:
    """A fresh network by name: (B, 3, H, W) normalised RGB to (B, num_classes) logits.

    `options` are those of `efficient_face`; networks of other libraries are as published and take none.
    """
    if arch in ABLATIONS:
        return efficient_face(num_classes, **{**ABLATIONS[arch], **options})
    if options:
        raise TypeError(f"{arch} takes no options, not {', '.join(options)}")
    # imported here: torchvision takes as long again to import as torch, and a student does without it
    from efficientface.models import zoo

    library, slash, name = str(arch).rpartition("/")
    if library == "timm" and name in zoo.timm_names(required=True):
        return zoo.timm_network(name, num_classes)
    if not slash and name in zoo.torchvision_names():
        return zoo.torchvision_network(name, num_classes)
    known = [*ABLATIONS, *zoo.torchvision_names(), *(f"timm/{name}" for name in zoo.timm_names())]
    near = difflib.get_close_matches(str(arch).lower(), known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "docs/networks.md lists the networks"
    raise FerError(f"architecture {arch!r} is not known; {hint}")


@torch.inference_mode()
def check_size(model: nn.Module, arch: str, size: int) -> None:
    """FerError unless the network, put in eval mode by this, answers an image of `size` pixels a side as a classifier.

    One forward pass finds out: what a network of another library takes is written down nowhere.
    """
    place = next(model.parameters())
    usual = getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224))[-1]  # timm's models know theirs
    try:
        answer = model.eval()(torch.zeros(1, 3, size, size, device=place.device))
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        other = f"such as {usual}" if usual != size else "such as a larger one"
        raise FerError(
            f"{arch} cannot take images of {size} x {size} pixels ({reason}); choose another --size, {other}"
        ) from error
    if not isinstance(answer, torch.Tensor) or answer.ndim != 2:
        raise FerError(f"{arch} does not answer with one number a class; choose a classifier")
