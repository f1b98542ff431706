"""Writes docs/cli.md from the commands' own help; with --check, fails if it differs."""

import sys
from pathlib import Path

import click

from efficientface.cli import cli

HEAD = """# The commands

Written by `make docs` from the commands' help; do not edit.
"""


def reference() -> str:
    """Every command's help under a heading."""
    parts = [HEAD]
    for words, command in _commands(cli, ("fer",)):
        # the settings that every command inherits: click keeps a command's help option once it is made
        shared = cli.context_settings
        context = click.Context(command, info_name=" ".join(words), max_content_width=100, terminal_width=100, **shared)
        parts.append(f"## {' '.join(words)}\n\n```\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def _commands(command: click.Command, words: tuple[str, ...]):
    yield words, command
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            yield from _commands(command.commands[name], (*words, name))


def main(*arguments: str) -> None:
    path = Path(arguments[-1])
    if "--check" not in arguments:
        path.write_text(reference())
    elif not path.exists() or path.read_text() != reference():
        sys.exit(f"{path} is stale; run make docs")


if __name__ == "__main__":
    main(*sys.argv[1:])
