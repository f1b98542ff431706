"""Rivals that take turns, each in a process of its own, since an allocator's settings are a process's."""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import timing


def serve(work: Callable[[], dict[str, Any]]) -> None:
    """A rival: call `work` whenever a line comes in, and answer with what it returns, seconds and CPU seconds."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    for _ in sys.stdin:
        began, used = time.perf_counter(), cpu_seconds()
        told = work()
        told |= {"seconds": time.perf_counter() - began, "cpu": cpu_seconds() - used}
        print(json.dumps(told), file=answers, flush=True)


def cpu_seconds() -> float:
    """Of this process and of the workers that it has ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def take_turns(names: Sequence[str], rounds: int, *given: str) -> dict[str, list[dict[str, Any]]]:
    """Start this program again as each rival (`--as NAME`), warm each up once, then ask them in turn, `rounds` times.

    `given` are further options for them.
    """
    rivals = {
        name: subprocess.Popen(
            [sys.executable, *sys.argv, *given, "--as", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in names
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    try:
        for turn in range(rounds + 1):
            for name, rival in rivals.items():
                assert rival.stdin
                assert rival.stdout
                with suppress(BrokenPipeError):
                    print("go", file=rival.stdin, flush=True)
                line = rival.stdout.readline()
                if not line:  # it is gone; by signal 9 most likely because memory was full
                    raise SystemExit(f"{name} ended with status {rival.wait()}")
                if turn:
                    found[name].append(json.loads(line))
    finally:
        for rival in rivals.values():
            rival.kill()
            rival.wait()
    return found


def ratios(slow: list[dict[str, Any]], fast: list[dict[str, Any]], what: str) -> str:
    """How many times less of `what` the fast one took: the median of the pairs and, in brackets, their range."""
    return timing.ratios(*([told[what] for told in rival] for rival in (slow, fast)))
