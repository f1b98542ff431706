"""A contact sheet of a run's faces: figure 4's question, whether faces show what their label says, on any data."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from rich.text import Text

from efficientface import FerError
from efficientface.data.faces import Faces
from efficientface.pipeline import pictures
from efficientface.pipeline.inputs import inputs_in
from efficientface.pipeline.inspect import kind_of
from efficientface.pipeline.status import printable

SAMPLE = 20  # as figure 4
MOST = 500  # faces on one sheet


def run(
    path: Path,
    out: Path,
    label: str | None = None,
    split: str | None = None,
    sample: int = SAMPLE,
    seed: int = 0,
) -> dict[str, Any]:
    """Draw `sample` random faces of a run, or of its faces/, to `out`; those of a label or a split alone if given.

    Below each face its id and, where people voted, the classes with most votes.
    """
    pictures.check_target(out, "--sheet")
    kind = kind_of(path)
    if kind not in ("run", "faces"):
        raise FerError(f"{printable(path)} holds {kind}, a sheet shows faces; give the run or its folder faces")
    faces = inputs_in(path / "faces" if kind == "run" else path).faces
    chosen = some(faces, sample, seed, split, label)
    shown = faces.select(chosen["rows"])
    what = f"labelled {label}" if label is not None else "of any label"
    title = f"{len(shown):,} of {chosen['of']:,} faces {what}" + (f", split {split}" if split is not None else "")
    captions = [caption(shown, row, with_label=label is None) for row in range(len(shown))]
    pictures.sheet(out, [shown.image(row) for row in range(len(shown))], captions, title)
    return {
        "kind": "sheet",
        "path": str(path),
        "sheet": str(out),
        "label": label,
        "split": split,
        "of": chosen["of"],
        "faces": described(shown),
    }


def some(faces: Faces, count: int, seed: int, split: str | None = None, label: str | None = None) -> dict[str, Any]:
    """`rows` of at most `count` random faces of a split and label, and of how many (`of`); a seed gives the same."""
    if not 1 <= count <= MOST:
        raise FerError(f"--sample {count} is out of range; give a number from 1 to {MOST}")
    if label is not None and label not in faces.classes:
        raise FerError(f"there is no class {printable(label)}; there are {', '.join(map(printable, faces.classes))}")
    fits = np.ones(len(faces), bool)
    if split is not None:
        fits &= faces.split == split
    if label is not None:
        fits &= faces.label == faces.classes.index(label)
    rows = np.flatnonzero(fits)
    if not len(rows):
        wanted = [f"in split {split}"] * (split is not None) + [f"labelled {label}"] * (label is not None)
        splits = ", ".join(sorted({str(name) for name in faces.split}))
        raise FerError(f"there is no face {' '.join(wanted)} (splits: {splits}); give another --split or --label")
    return {"rows": rows[by_chance(faces.face_id[rows], seed)[:count]], "of": len(rows)}


def by_chance(ids: Iterable[str], seed: int) -> list[int]:
    """Places of N ids in an order that is as good as random, the same for the same seed.

    By a hash, not by a generator, whose draws may change between versions.
    """
    keys = [hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest() for name in ids]
    return sorted(range(len(keys)), key=keys.__getitem__)


def caption(faces: Faces, row: int, with_label: bool = True) -> str:
    """A face's id, its label, and the two classes with most of the votes."""
    lines = [printable(faces.face_id[row])]
    if with_label:
        lines.append(label_of(faces, row) or "no label")
    if len(said := said_by_people(faces, row)):
        total = sum(count for _, count in said)
        lines.append(", ".join(f"{name} {count / total:.0%}" for name, count in said[:2]))
    return "\n".join(lines)


def label_of(faces: Faces, row: int) -> str | None:
    """The label's name."""
    return printable(faces.classes[faces.label[row]]) if faces.label[row] >= 0 else None


def said_by_people(faces: Faces, row: int) -> list[tuple[str, float]]:
    """Classes that have votes, most first; none where nobody was asked."""
    votes = np.nan_to_num(faces.votes[row])
    order = [k for k in np.argsort(-votes, kind="stable") if votes[k] > 0]
    return [(printable(faces.classes[k]), float(votes[k])) for k in order]


def described(faces: Faces) -> list[dict[str, Any]]:
    """A row a face, for JSON and CSV."""
    return [
        {
            "face_id": faces.face_id[row],
            "split": faces.split[row],
            "label": label_of(faces, row),
            "votes": dict(said_by_people(faces, row)) or None,
        }
        for row in range(len(faces))
    ]


def tables(result: dict[str, Any]) -> list[Any]:
    """What was written."""
    return [Text(f"{printable(result['sheet'])}  {len(result['faces'])} of {result['of']:,} faces")]
