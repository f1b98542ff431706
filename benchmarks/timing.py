"""What the benchmarks share: seconds of work on the wall and of the processor, pairs of them, and programs measured."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Spent(NamedTuple):
    """Seconds on the wall and of the processor."""

    wall: float
    cpu: float


def spent(work: Callable[[], Any]) -> Spent:
    """What the work takes, in all threads of this process."""
    began, worked = time.perf_counter(), time.process_time()
    work()
    return Spent(time.perf_counter() - began, time.process_time() - worked)


def ratios(slow: Sequence[float], fast: Sequence[float]) -> str:
    """How many times less `fast` takes, pair by pair: the median, and the lowest and highest of all."""
    found = sorted(a / b for a, b in zip(slow, fast, strict=True))
    return f"{statistics.median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})"


def program(command: Sequence[str]) -> tuple[Spent, float]:
    """A fresh process run to its end: what it took, and its peak in MB; only Unix tells that."""
    # a parent of its own, since the peak that is told is that of the largest child so far
    code = (
        "import resource, subprocess, sys, time; t = time.perf_counter(); "
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); t = time.perf_counter() - t; "
        "u = resource.getrusage(resource.RUSAGE_CHILDREN); print(t, u.ru_utime + u.ru_stime, u.ru_maxrss)"
    )
    told = subprocess.run([sys.executable, "-c", code, *command], check=True, capture_output=True, text=True).stdout
    wall, cpu, peak = map(float, told.split())
    return Spent(wall, cpu), peak * (1 if sys.platform == "darwin" else 1024) / 1e6
