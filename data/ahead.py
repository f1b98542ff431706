"""Work on the next items while one is used."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST = 4  # results that may wait, each perhaps a shard


def ahead(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int = 0,
    begin: Callable[[], None] | None = None,
) -> Iterator[Result]:
    """`work` of each item, in their order, by threads; what one raises is raised in its place.

    threads: 0 for one a core, up to MOST; `begin` is called in each before its first item.
    """
    from concurrent.futures import ThreadPoolExecutor  # here, because --help imports this

    threads = threads or min(os.cpu_count() or 1, MOST)
    left = iter(items)
    with ThreadPoolExecutor(threads, "ahead", begin) as pool:
        waiting = deque(pool.submit(work, item) for item in islice(left, threads))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(work, item) for item in islice(left, 1))
            yield result
