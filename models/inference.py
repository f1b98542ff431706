"""Networks made ready to answer and nothing else: fewer passes over memory, the same answers but for rounding."""

import logging
import warnings

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

log = logging.getLogger(__name__)

AGREEMENT = 1e-4  # largest difference of a probability; seen are some 1e-6


@torch.inference_mode()
def for_inference(model: nn.Module, size: int, scripted: bool) -> nn.Module:
    """A network in eval mode made faster: (B, 3, size, size) to logits as before, for any B.

    A batch norm that follows a convolution becomes part of its weights; torch.fx does that for any device. `scripted`,
    for fp32 on a CPU: TorchScript does, and has oneDNN do additions and ReLU while a convolution writes. A network that
    torch cannot follow is given back as it is; so is one that then would answer otherwise.
    """
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last)
    name = type(model).__name__
    try:
        quick = script(model.to(memory_format=torch.channels_last), images[:1]) if scripted else fuse(model)
        difference = float((probabilities(quick, images) - probabilities(model, images)).abs().max())
    except MemoryError:
        raise
    except Exception as error:  # networks of many authors, which may do anything
        if "DefaultCPUAllocator" in str(error):  # torch's word for full memory
            raise
        log.info("%s is asked as it is, torch cannot make it faster (%s)", name, str(error).partition("\n")[0])
        return model
    if not difference <= AGREEMENT:
        log.info("%s is asked as it is, made faster it would answer otherwise (by %.1e)", name, difference)
        return model
    return quick


def script(model: nn.Module, image: Tensor) -> nn.Module:
    """TorchScript, of which oneDNN computes what it can join; traced with one image, it takes any number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, that TorchScript is not developed any more
        traced = torch.jit.trace(model, image, check_trace=False)
        return torch.jit.optimize_for_inference(torch.jit.freeze(traced))


def probabilities(model: nn.Module, images: Tensor) -> Tensor:
    return torch.softmax(model(images), 1)
