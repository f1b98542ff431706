"""Batch norm over the images of all processes: mean and variance are those of the whole batch, as in one process.

torch's SyncBatchNorm does this on GPUs alone. Here torch's own kernels normalise, with statistics that the processes
put together, and one more step gives the gradient that passes through these (Ioffe and Szegedy, ICML 2015, section 3).
That works wherever torch.distributed does and for every module that calls torch's batch norm, timm's own included;
networks stay as they are.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class BatchNormOfAllRanks(TorchFunctionMode):
    """While it is entered, batch norm in training mode has the statistics of the images of all processes.

    Every process must run the same layers in the same order. counts: whether this process's images are part of the
    batch; one that has none runs along with any image, which then changes neither statistics nor gradients.
    """

    def __init__(self, counts: bool = True) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm and kwargs["training"]:  # torch hands on all but the first three by name
            return batch_norm(self.counts, *args, **kwargs)
        return func(*args, **kwargs)


def batch_norm(
    counts: bool,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """torch's batch norm in training mode of x (B, C, ...), with the statistics of all processes.

    Running statistics become the same to the bit in all of them: each adds up the same numbers in the same order.
    """
    with torch.no_grad():
        mean, var, count = statistics(x, counts)
        if running_mean is not None and running_var is not None:
            running_mean.mul_(1 - momentum).add_(mean, alpha=momentum)
            running_var.mul_(1 - momentum).add_(var * (count / (count - 1)), alpha=momentum)
    x = ThroughStatistics.apply(x, mean, torch.rsqrt(var + eps), count, counts)
    return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)


def statistics(x: Tensor, counts: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Of x (B, C, ...) over all processes: mean and biased variance (C,), at least fp32, and the values a channel."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    over = [0, *range(2, x.ndim)]
    mean = wide.mean(over, keepdim=True)
    # twice as fast on a CPU as torch.var, in channels_last ten times
    var = (wide - mean).square_().mean(over)
    own = torch.cat([mean.flatten(), var, var.new_full((1,), x.numel() // x.shape[1] if counts else 0)]).double()
    all_ranks = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(all_ranks, own)
    means, variances, share = torch.stack(all_ranks).split([len(var), len(var), 1], 1)
    count = share.sum()
    share = share / count
    middle = (share * means).sum(0)
    spread = (share * (variances + (means - middle).square())).sum(0)
    return middle.to(wide.dtype), spread.to(wide.dtype), count.to(wide.dtype)


class ThroughStatistics(torch.autograd.Function):
    """x as it is; backwards, less the parts of the gradient that mean and variance take away.

    With g the gradient for constant statistics, and averages over all values of a channel in all processes, it is
    g - avg(g) - y avg(g y), y being x normalised.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, scale: Tensor, count: Tensor, counts: bool) -> Tensor:
        ctx.save_for_backward(x, mean, scale, count)
        ctx.counts = counts
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = gradients
        x, mean, scale, count = ctx.saved_tensors
        over, shape = [0, *range(2, x.ndim)], (-1, *[1] * (x.ndim - 2))
        wide = gradient.to(mean.dtype)
        sums = torch.stack([wide.sum(over), (wide * (x - mean.view(shape))).sum(over)])
        if not ctx.counts:
            sums.zero_()
        dist.all_reduce(sums)
        if not ctx.counts:
            return gradient, None, None, None, None
        plain, along = sums / count
        slope = along * scale.square()
        rest = wide - (x * slope.view(shape) + (plain - mean * slope).view(shape))
        return rest.to(gradient.dtype), None, None, None, None
