"""Networks of other libraries, as published and untrained: torchvision's, and timm's (extra `zoo`).

The label-distribution generator is one of them: Zhao, Liu and Zhou (AAAI 2021) use ResNet-50 (He et al., CVPR 2016),
and torchvision's has the names and shapes of the authors' checkpoints.
"""

from functools import cache
from typing import Any

import torchvision
from torch import nn

from efficientface import FerError

# Without this they answer in training with auxiliary heads too; with it they want to be told how to draw weights.
ONE_HEAD: dict[str, Any] = {"aux_logits": False, "init_weights": True}


@cache
def torchvision_names() -> tuple[str, ...]:
    """Its classifiers of images."""
    return tuple(torchvision.models.list_models(module=torchvision.models))


def torchvision_network(name: str, num_classes: int) -> nn.Module:
    """resnet50 is the LDG: 23,522,375 parameters with 7 classes."""
    options = ONE_HEAD if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)


@cache
def timm_names(required: bool = False) -> tuple[str, ...]:
    """Its networks, without tags of weights; none, or if `required` a FerError, where timm is not installed."""
    try:
        import timm
    except ImportError as error:
        if required:
            raise FerError("networks named timm/... need timm; pip install 'efficientface[zoo]'") from error
        return ()
    return tuple(timm.list_models())


def timm_network(name: str, num_classes: int) -> nn.Module:
    """A name of `timm_names`: `create_model` would look up others, such as hf-hub:..., on the network."""
    import timm

    try:
        return timm.create_model(name, pretrained=False, num_classes=num_classes)
    except Exception as error:  # a thousand networks of many authors, some of which cannot be built
        raise FerError(f"timm {timm.__version__} cannot build {name} with {num_classes} classes ({error})") from error
