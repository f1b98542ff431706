"""Work on the next items while one is used."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST = 4  # results that may wait, each perhaps a shard


def ahead(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`work` of each item, in their order, by threads; what one raises is raised in its place."""
    from concurrent.futures import ThreadPoolExecutor  # here, because --help imports this

    threads = min(os.cpu_count() or 1, MOST)
    left = iter(items)
    with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
        waiting = deque(pool.submit(work, item) for item in islice(left, threads))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(work, item) for item in islice(left, 1))
            yield result
