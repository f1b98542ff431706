"""Results as tables for a terminal."""

import json
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from efficientface.untrusted import printable

MOST_LABELS = 50  # with more, people's names, the table tells only how many


def alignment(result: dict[str, Any]) -> list[Any]:
    """What became of the photographs, and what the faces are."""
    # markup off: a folder may have square brackets in its name
    title = Text(f"{result['images']:,} photographs")
    outcome = Table("photographs", "count", "share", title=title)
    total = sum(result["statuses"].values())
    for status, count in result["statuses"].items():
        outcome.add_row(status, f"{count:,}", f"{count / total:.2%}")
    for reason, count in result["unreadable"].items():
        outcome.add_row(Text(f"  {reason}"), f"{count:,}", "")
    faces = Table("faces", "count", title=f"{result['faces']:,} faces")
    for split, count in result["splits"].items():
        faces.add_row(Text(f"split {split}"), f"{count:,}")
    faces.add_section()
    labels = result["labels"]
    for label, count in labels.items() if len(labels) <= MOST_LABELS else ():
        faces.add_row(Text(label), f"{count:,}")
    if len(labels) > MOST_LABELS:
        fewest, most = (f"{pick(labels.values()):,}" for pick in (min, max))
        faces.add_row(f"{len(labels):,} labels", f"{fewest} to {most} each")
    if result["unlabelled"]:
        faces.add_row("without a label", f"{result['unlabelled']:,}")
    return [outcome, faces, Text(f"written to {result['folder']}")]


def facts(result: dict[str, Any], title: str | None = None) -> list[Table]:
    """Names and values, one a row."""
    table = Table("", "", title=title, show_header=False)
    for name, value in result.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {_text(v)}" for k, v in value.items())
        table.add_row(name, Text(_text(value)))
    return [table]


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class PlainConsole(Console):
    """A terminal on which text from files is text: what would steer the terminal is shown as an escape."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            lines = text if control else "\n".join(map(printable, text.split("\n")))
            yield Segment(lines, style, control)


def json_text(value: Any) -> str:
    """JSON for people too: text as it is, but control characters and halves of surrogate pairs are escaped."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def harmless(cell: Any) -> Any:
    """Text for CSV with a ' before what a spreadsheet would take for a formula; numbers as they are."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def csv_rows(rows: Iterable[dict[str, Any]], on_terminal: bool) -> list[dict[str, Any]]:
    """Rows for CSV, flat and harmless; on a terminal no text in them steers it."""

    def cell(value: Any) -> Any:
        value = harmless(value)
        return printable(value) if on_terminal and isinstance(value, str) else value

    return [{cell(name): cell(value) for name, value in flat(row).items()} for row in rows]


def flat(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A row for CSV: what is nested gets names such as `a.b`, a list becomes JSON."""
    cells: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            cells |= flat(value, f"{prefix}{name}.")
        else:
            cells[prefix + name] = json.dumps(value) if isinstance(value, (list, tuple)) else value
    return cells
