"""Where to compute: the device that was asked for, made ready."""

import torch

from efficientface import FerError
from efficientface.pipeline.memory import keep_freed_memory


def prepare(name: str) -> torch.device:
    """The device of that name (cpu, cuda, cuda:1 ...); FerError if this machine has none such."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FerError(f"--device {name} cannot be used here ({reason}); give another one, such as cpu") from error
    if device.type == "cpu":
        keep_freed_memory()
    # torch's default for convolutions on a GPU: ten bits of a number's fraction in place of 23, which is not fp32
    torch.backends.cudnn.allow_tf32 = False
    return device
