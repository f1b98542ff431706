"""Progress on stderr: a live bar on a terminal, nothing where output goes to a file or `fer -q` asks for quiet."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from efficientface.pipeline.launch import speaks


@contextmanager
def progress(what: str, total: int, unit: str = "faces") -> Iterator[Callable[[int], None]]:
    """Give a function to call with the number of things just done."""
    console = Console(stderr=True)
    if not console.is_terminal or _quiet() or not speaks():
        yield lambda count: None  # a bar that nobody sees takes as long as one that is seen
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total, rate="")

        def advance(count: int) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, advance=count, rate=f"{speed:,.0f} {unit}/s" if speed else "")

        yield advance


@contextmanager
def working(what: str) -> Iterator[None]:
    """A sign of life while something runs whose steps cannot be counted."""
    console = Console(stderr=True)
    if not console.is_terminal or _quiet():
        yield
        return
    with console.status(what):
        yield


def _quiet() -> bool:
    """Whether our messages were turned off; a program that uses the package says nothing about them, level 0."""
    return logging.getLogger("efficientface").level > logging.INFO
