"""Work on photographs by all cores: threads, or processes where there are enough photographs to start them for."""

import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, current_process, resource_tracker
from threading import Thread
from typing import Any, TypeVar

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
    try:
        if current_process().daemon:
            raise OSError("a daemonic process may have none")
        pool = _started(workers)
    except (OSError, RuntimeError) as error:  # RuntimeError: no thread can be started, either
        log.warning("working by threads, as processes cannot be had (%s)", getattr(error, "strerror", None) or error)
        with threads(workers) as instead:
            yield instead
        return
    try:
        yield pool
    except BaseException:
        pool.shutdown(kill_workers=True)
        raise
    pool.shutdown()


def _started(workers: int) -> Any:
    """loky's pool, whose processes have begun; unlike Python's own they do not run the user's script anew."""
    from loky import ProcessPoolExecutor  # here, because it is seldom needed
    from loky.backend.context import LokyContext  # not by its name, which joblib takes for its own copy of loky

    # the current folder may be a stranger's: without the first, its modules would be imported in place of Python's.
    # Workers keep what they have freed, which loky would take for a leak and start them anew
    given = {"PYTHONSAFEPATH": "1", "LOKY_MAX_MEMORY_LEAK_SIZE": str(2**62)}
    others, before = active_children(), dict(os.environ)
    os.environ.update(given)  # loky starts helpers, too
    try:
        pool = ProcessPoolExecutor(
            workers, context=LokyContext(), initializer=_alone, initargs=(os.getpid(),), env=given
        )
        resource_tracker.ensure_running()  # begun later, it would unblock the signal
        with _without_ctrl_c():
            pool.submit(int)
    except BaseException:
        for child in active_children():
            if child not in others:
                child.terminate()
        raise
    finally:
        for name in given:
            os.environ.pop(name)
            if name in before:
                os.environ[name] = before[name]
    return pool


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Processes that are started meanwhile do not hear of Ctrl-C, which reaches all; this one does, afterwards."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _alone(parent: int) -> None:
    """What a worker process does first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for Windows, where it could not be blocked
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
