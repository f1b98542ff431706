"""Runs the by-hand commands of pages, in one folder, and fails if one fails or prints other lines than the page shows.

Blocks marked ```console: a line after `$ ` is a command, the lines below it what it printed. Numbers differ from
machine to machine, so a printed line is compared without its digits, bars and spacing, whichever expression or split it
names, and a table's rule at whichever width; `...` stands for any lines.
"""

import os
import re
import subprocess
import sys
from pathlib import Path


def blocks(text: str) -> list[tuple[str, list[str]]]:
    """(command, printed lines) in the page's order; blocks marked `console` alone."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"^```console\n(.*?)^```", text, re.M | re.S):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif found:
                found[-1][1].append(line)
    return found


def plain(line: str) -> str:
    """A line without what differs between machines."""
    line = re.sub(r"\b(neutral|happiness|sadness|surprise|fear|disgust|anger|train|val|test)\b", "*", line)
    line = re.sub(r"\de[-+]\d", "0", line)  # 2.8e-06
    line = re.sub(r"[─━]+", "─", line)  # 0.6 is narrower than 0.65
    return re.sub(r"[\d.,%▁▂▃▄▅▆▇█▏▎▍▌▋▊▉░·\s-]+", " ", line).strip()


def main(*pages: str, folder: str) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    for page in pages:
        run(page, folder)


def run(readme: str, folder: str) -> None:
    commands = blocks(Path(readme).read_text())
    if not commands:
        sys.exit(f"{readme} shows no commands")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command, shown in commands:
        print(f"$ {command}", flush=True)
        done = subprocess.run(
            command, shell=True, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"exit status {done.returncode}\n{done.stdout}{done.stderr}")
        printed = {plain(line) for line in done.stdout.splitlines()}
        missing = [line for line in shown if line.strip() != "..." and plain(line) not in printed]
        if missing:
            sys.exit(f"{readme} shows lines that were not printed:\n{chr(10).join(missing)}\n--\n{done.stdout}")
    print(f"{len(commands)} commands of {readme} ran and printed what it shows")


if __name__ == "__main__":
    main(*sys.argv[1:-1], folder=sys.argv[-1])
