"""Where to compute: the device that was asked for, made ready."""

import ctypes
import sys

import torch

from efficientface import FerError

# mallopt's parameter numbers, malloc.h
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4


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


def keep_freed_memory() -> bool:
    """Tell glibc's allocator never to map or trim single blocks; whether it took the settings (only glibc does).

    By default it hands every large tensor back to the kernel, which clears it page by page when it is asked for
    again: 700,000 page faults a ResNet-50 forward pass of 64 faces, 1.25 to 1.6 times its time.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    return all(mallopt(key, value) for key, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, 2**28)))
