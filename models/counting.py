"""Parameters and multiply-adds of a network, in the paper's way of counting and in torch's.

Zhao, Liu and Zhou (AAAI 2021) print what thop 0.0.31 (2020) counts: multiply-adds of convolutions and linear layers, an
addition for a convolution's bias, two operations an element of a batch norm, one a result of an average pooling, and
k * k + 1 a result of an adaptive one that averages k x k. Nothing else, and only what is a module: neither a function
such as `mean`, nor activations, additions or max-pooling. torch.utils.flop_counter counts matrix products and
convolutions alone, as two operations a multiply-add; half of that is given here.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils.flop_counter import FlopCounterMode

AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
ADAPTIVE_AVERAGES = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


class Counts(NamedTuple):
    """Of one image: parameters, multiply-adds in the paper's counting and in torch's.

    `uncounted` names the kinds of module that have parameters and no place in the paper's counting.
    """

    parameters: int
    paper: int
    torch: int
    uncounted: tuple[str, ...]


def count(model: nn.Module, size: int) -> Counts:
    """Two forward passes of an image of `size` pixels a side, in eval mode; on the meta device nothing is computed."""
    total, uncounted = count_as_paper(model, size)
    image = torch.zeros(1, 3, size, size, device=next(model.parameters()).device)
    # attention step by step: the counter knows neither the fused kernels of a CPU nor the short cut without gradients
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(image)
    return Counts(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        paper=total,
        torch=counter.get_total_flops() // 2,
        uncounted=uncounted,
    )


def count_as_paper(model: nn.Module, size: int) -> tuple[int, tuple[str, ...]]:
    """Multiply-adds of one image in the paper's counting, and the kinds of module that have no place in it."""
    model.eval()
    own = {module for module in model.modules() if next(module.parameters(recurse=False), None) is not None}
    total, counted = 0, set[nn.Module]()

    def add(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal total
        operations = paper_operations(module, inputs, output)
        if operations is not None:
            total += operations
            counted.add(module)

    hooks = [module.register_forward_hook(add) for module in model.modules()]
    image = torch.zeros(1, 3, size, size, device=next(model.parameters()).device)
    try:
        with torch.no_grad():
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return total, tuple(sorted({type(module).__name__ for module in own - counted}))


def paper_operations(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> int | None:
    """What the paper's counting gives a call of this module, None if it does not know the module.

    inputs and output: (B, C, ...), or for a linear layer (B, ..., C).
    """
    if isinstance(module, _ConvNd):
        per_result = module.in_channels // module.groups * math.prod(module.kernel_size) + (module.bias is not None)
        return output.numel() * per_result
    if isinstance(module, nn.Linear):
        return output.numel() * module.in_features
    if isinstance(module, _BatchNorm):
        return 2 * inputs[0].numel()
    if isinstance(module, AVERAGES):
        return output.numel()
    if isinstance(module, ADAPTIVE_AVERAGES):
        averaged = math.prod(
            before // after for before, after in zip(inputs[0].shape[2:], output.shape[2:], strict=True)
        )
        return output.numel() * (averaged + 1)
    return None
