"""Results as tables for a terminal."""

import json
from typing import Any

from rich.table import Table
from rich.text import Text

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


def harmless(cell: Any) -> Any:
    """Text for CSV with a ' before what a spreadsheet would take for a formula; numbers as they are."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def flat(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A row for CSV: what is nested gets names such as `a.b`, a list becomes JSON."""
    cells: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            cells |= flat(value, f"{prefix}{name}.")
        else:
            cells[prefix + name] = json.dumps(value) if isinstance(value, (list, tuple)) else value
    return cells
