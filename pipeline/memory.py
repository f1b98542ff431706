"""What a process does with memory that it has freed."""

import ctypes
import sys

# mallopt's parameter numbers, malloc.h
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tell glibc's allocator never to map or trim single blocks; whether it took the settings (only glibc does).

    By default it hands every large tensor or picture back to the kernel, which clears it page by page when it is
    asked for again: 700,000 page faults a ResNet-50 forward pass of 64 faces, 1.25 to 1.6 times its time; 340 a
    photograph that is aligned, 1.1 times.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    return all(mallopt(key, value) for key, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, 2**28)))
