"""The photographs of a run: every source read, its splits carved, all of them in one order, with one set of classes."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from efficientface import FerError
from efficientface.data.faces import hash_image
from efficientface.data.labels import ordered
from efficientface.data.layouts.listing import Box
from efficientface.data.photos import PhotoFiles, Photos
from efficientface.data.remote import is_address, read_remote_source
from efficientface.data.sources import Source, read_source
from efficientface.data.splits import assign_splits
from efficientface.pipeline.config import AlignConfig
from efficientface.pipeline.progress import working

TABLES_INSIDE = ("fer2013", "ferplus", "huggingface")  # layouts whose photographs may lie in tables


@dataclass(frozen=True, slots=True)
class Photo:
    """A photograph still to be looked at: where it is, and what its faces inherit from it."""

    source: str  # the name of its source, empty where there is only one
    file: str
    mark: int | None  # of its content: the file's size, None where there is no file
    inherited: dict[str, Any]  # split, label, votes, votes_other, group
    box: Box | None = None  # of the face that the label is about, where the source tells

    @property
    def name(self) -> str:
        """Its path, below the name of its source if that has one."""
        return f"{self.source}/{self.file}" if self.source else self.file


@dataclass(frozen=True)
class Inputs:
    """All sources of a run, read: their photographs in order, with the classes of all."""

    sources: dict[str, Source]  # by name, without their rows; a single one may have none
    classes: tuple[str, ...]
    photos: list[Photo]
    notes: list[str]


def read_inputs(paths: dict[str, Path | str], config: AlignConfig) -> Inputs:
    """Read every source, and carve each one's missing splits for itself."""
    layouts = layouts_of(config.layout, paths)
    sources = {
        name: _read(path, layouts[name], config.classes, config.label_rule, config.aligned)
        for name, path in paths.items()
    }
    inputs = Inputs(sources, ordered(dict.fromkeys(c for read in sources.values() for c in read.classes)), [], [])
    for name in sources:
        rows, carved = assign_splits(sources[name].rows, config.val_from_train, config.seed)
        # no more than once in memory: `photos` say the same
        read = sources[name] = replace(sources[name], rows=rows[:0].copy())
        inputs.photos.extend(photos_of(name, rows, read, inputs.classes, boxes=not config.aligned))
        inputs.notes.extend(f"{name}: {note}" if name else note for note in (*read.notes, *carved))
    return inputs


def _read(path: Path | str, *args: Any) -> Source:
    """A source on this machine, or at an address."""
    return read_remote_source(str(path), *args) if is_address(path) else read_source(Path(path), *args)


def named_sources(texts: Sequence[str]) -> Path | str | dict[str, Path | str]:
    """SOURCE, or NAME=SOURCE ... as on the command line; a folder that is really called `a=b` is a source by itself."""
    if len(texts) == 1 and is_address(texts[0]):
        return texts[0]
    if len(texts) == 1 and ("=" not in texts[0] or Path(texts[0]).exists()):
        return Path(texts[0])
    named: dict[str, Path | str] = {}
    for text in texts:
        name, given, path = text.partition("=")
        if not given or not re.fullmatch(r"\w[\w.-]*", name):
            raise FerError(
                f"{text} lacks a name; of several sources each needs one, of letters, digits, '-', '_' and '.', "
                f"that begins its faces' ids: NAME={path if given else text}"
            )
        if name in named:
            raise FerError(f"two sources are called {name}; give each a name of its own")
        named[name] = path if is_address(path) else Path(path).expanduser()  # shells leave `NAME=~/...` as it is
    return named


def layouts_of(layout: str | None, names: Iterable[str]) -> dict[str, str | None]:
    """The layout of each source: the same for all, or by name where `layout` is NAME=LAYOUT, with commas."""
    if layout is None or "=" not in layout:
        return dict.fromkeys(names, layout)
    layouts: dict[str, str | None] = dict.fromkeys(names)
    for text in layout.split(","):
        name, _, known = (part.strip() for part in text.partition("="))
        if name not in layouts:
            raise FerError(f"--layout {text.strip()} is about no source; the sources are called {', '.join(layouts)}")
        layouts[name] = known
    return layouts


def photos_of(source: str, rows: pd.DataFrame, read: Source, classes: tuple[str, ...], boxes: bool) -> list[Photo]:
    """A source's rows with labels as numbers, and votes in the order, of the classes of all sources."""
    places = [classes.index(name) for name in read.classes]
    number = dict(zip(read.classes, places, strict=True))
    photos = []
    alike: dict[Any, dict[str, Any]] = {}  # without votes, what is inherited is the same for most
    for row in rows.itertuples():
        votes = None
        if row.votes is not None:
            votes = np.zeros(len(classes), np.float32)
            votes[places] = row.votes
        inherited = {
            "split": row.split,
            "label": None if row.label is None else number[row.label],
            "votes": None if votes is None else votes.tolist(),
            "votes_other": None if row.votes_other is None else row.votes_other.tolist(),
            "group": f"{source}/{row.group}" if source and row.group is not None else row.group,
        }
        if votes is None and row.votes_other is None:
            inherited = alike.setdefault(tuple(inherited[name] for name in ("split", "label", "group")), inherited)
        photos.append(Photo(source, row.file, read.photos.mark(row.file), inherited, row.box if boxes else None))
    return photos


def stored(root: Path, layout: str, settings: dict[str, Any]) -> Photos:
    """Where a source's photographs are: in files, or in tables that have to be read again."""
    if layout not in TABLES_INSIDE:
        return PhotoFiles(root)
    rule, aligned = settings.get("label_rule", "majority"), bool(settings.get("aligned"))
    with working("reading the tables of photographs"):
        return read_source(root, layout, settings.get("classes"), rule, aligned).photos


def digests_of(inputs: Inputs) -> dict[str, str]:
    """Of each source a digest that changes with any photograph's name, mark, label, votes, split, group or box.

    It changes with the layout and the classes too, but not with the source's place.
    """
    digests = {
        name: hashlib.blake2b(json.dumps([read.layout, *inputs.classes]).encode(), digest_size=16)
        for name, read in inputs.sources.items()
    }
    for photo in inputs.photos:
        facts = [photo.name, photo.mark, photo.inherited, *([photo.box] if photo.box else [])]
        digests[photo.source].update(json.dumps(facts).encode() + b"\n")
    return {name or "source": digest.hexdigest() for name, digest in digests.items()}


def digest_of_all(digests: dict[str, str]) -> str:
    """One digest of those of all sources."""
    return next(iter(digests.values())) if len(digests) == 1 else hash_image(json.dumps(digests).encode())
