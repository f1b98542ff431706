"""Work on photographs by all cores: threads, or processes where there are enough photographs to start them for."""

import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Thread
from typing import TypeVar

import cv2

from efficientface.pipeline.memory import keep_freed_memory

log = logging.getLogger(__name__)
Item = TypeVar("Item")  # such as a photograph still to be read, or a frame of a video
Result = TypeVar("Result")


def cores() -> int:
    """Of the processor, as many as this process may use: fewer in a container or a batch job."""
    from loky import cpu_count  # here, because --help imports this

    return int(cpu_count())


@contextmanager
def threads(workers: int) -> Iterator[Executor]:
    """A pool of threads; OpenCV's own would only get into their way."""
    keep_freed_memory()
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with ThreadPoolExecutor(workers) as pool:
            yield pool
    finally:
        cv2.setNumThreads(before)


@contextmanager
def processes(workers: int) -> Iterator[Executor]:
    """A pool of processes, which do not wait for each other to run Python; they end with this one, however it ends.

    Where the system does not give what they need, it is one of threads, aloud.
    """
    from loky import ProcessPoolExecutor  # unlike Python's own it does not run the user's script anew in each

    try:
        pool = ProcessPoolExecutor(workers, initializer=_alone, initargs=(os.getpid(),))
    except OSError as error:  # they share locks in /dev/shm
        log.warning("working by threads, as processes cannot be had (%s)", error.strerror or error)
        with threads(workers) as instead:
            yield instead
        return
    try:
        yield pool
    except BaseException:
        pool.shutdown(kill_workers=True)
        raise
    pool.shutdown()


def _alone(parent: int) -> None:
    """What a worker process does first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends them
    Thread(target=_end_with, args=(parent,), daemon=True).start()
    cv2.setNumThreads(1)
    keep_freed_memory()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def in_order(
    pool: Executor, work: Callable[[Item], Result], items: Iterable[Item], window: int
) -> Iterator[tuple[Item, Result]]:
    """The items with what `work` makes of them, in their order, at most `window` of them under way."""
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    for item in items:
        waiting.append((item, pool.submit(work, item)))
        if len(waiting) >= window:
            first, result = waiting.popleft()
            yield first, result.result()
    for first, result in waiting:
        yield first, result.result()
