"""The photographs of a run: every source read, its splits carved, all of them in one order, with one set of classes."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

import numpy as np

from efficientface import FerError
from efficientface.data.columns import computed
from efficientface.data.faces import hash_image
from efficientface.data.labels import ordered
from efficientface.data.layouts.listing import Box
from efficientface.data.photos import PhotoFiles, Photos
from efficientface.data.remote import is_address, read_remote_source
from efficientface.data.sources import Rows, Source, read_source
from efficientface.data.splits import assign_splits
from efficientface.pipeline.config import AlignConfig
from efficientface.pipeline.progress import working

AT_ONCE = 4096  # photographs that are put together as Python has them
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
class Listed:
    """What is known of the photographs of one source."""

    source: str  # its name, empty where there is only one
    rows: Rows
    marks: np.ndarray  # (N,) int64, -1 where there is none
    places: list[int]  # of its classes among those of all sources
    classes: tuple[str, ...]  # of all sources
    boxes: bool  # whether photographs are told the box of the labelled face

    @classmethod
    def of(cls, source: str, read: Source, classes: tuple[str, ...], boxes: bool) -> "Listed":
        def marks(part: slice) -> np.ndarray:
            found = map(read.photos.mark, read.rows.file[part])
            return np.array([-1 if mark is None else mark for mark in found], np.int64)

        places = [classes.index(name) for name in read.classes]
        return cls(source, read.rows, computed(len(read.rows), marks), places, classes, boxes)

    def photos(self, part: slice) -> list[Photo]:
        """Some of them, with labels as numbers, and votes in the order, of the classes of all sources."""
        rows = self.rows
        files = rows.file[part].tolist()
        number: dict[str | None, int | None] = {name: place for place, name in enumerate(self.classes)}
        number[None] = None
        nothing: list[Any] = [None] * len(files)
        votes, votes_other, groups, boxes = nothing, nothing, nothing, nothing
        if rows.votes is not None:
            in_order = np.zeros((len(files), len(self.classes)), np.float32)
            in_order[:, self.places] = rows.votes[part]
            votes = in_order.tolist()
        if rows.votes_other is not None:
            votes_other = rows.votes_other[part].tolist()
        if rows.group is not None:
            groups = [
                f"{self.source}/{name}" if self.source and name is not None else name for name in rows.group[part]
            ]
        if rows.box is not None and self.boxes:
            corners = rows.box[part]
            known = np.isfinite(corners).all(axis=1)
            boxes = [tuple(box) if there else None for box, there in zip(corners.tolist(), known, strict=True)]
        told = zip(rows.split[part], rows.label[part], votes, votes_other, groups, strict=True)
        inherited = [
            {"split": split, "label": number[label], "votes": votes, "votes_other": others, "group": group}
            for split, label, votes, others, group in told
        ]
        marks = [None if mark < 0 else mark for mark in self.marks[part].tolist()]
        return [Photo(self.source, *known) for known in zip(files, marks, inherited, boxes, strict=True)]


class Photographs(Sequence[Photo]):
    """The photographs of all sources, in order; each is put together when it is asked for."""

    def __init__(self, sources: Sequence[Listed]) -> None:
        self.sources = sources
        self._ends = list(accumulate(len(source.rows) for source in sources))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, place: int) -> Photo: ...

    @overload
    def __getitem__(self, place: slice) -> list[Photo]: ...

    def __getitem__(self, place: int | slice) -> Photo | list[Photo]:
        if not isinstance(place, slice):
            place = range(len(self))[place]
            return self[place : place + 1][0]
        first, last, step = place.indices(len(self))
        if step != 1:
            raise ValueError("photographs are taken in order")
        found = []
        for source, end in zip(self.sources, self._ends, strict=True):
            begin = end - len(source.rows)
            if begin < last and first < end:
                found += source.photos(slice(max(first - begin, 0), min(last, end) - begin))
        return found

    def __iter__(self) -> Iterator[Photo]:
        return self.at(range(len(self)))

    def at(self, places: range) -> Iterator[Photo]:
        """Those of a range, of which only a few are there at a time."""
        for first in range(places.start, places.stop, AT_ONCE):
            yield from self[first : min(first + AT_ONCE, places.stop)]


@dataclass(frozen=True)
class Inputs:
    """All sources of a run, read: their photographs in order, with the classes of all."""

    sources: dict[str, Source]  # by name; a single one may have none
    classes: tuple[str, ...]
    photos: Photographs
    notes: list[str]


def read_inputs(paths: dict[str, Path | str], config: AlignConfig) -> Inputs:
    """Read every source, and carve each one's missing splits for itself."""
    layouts = layouts_of(config.layout, paths)
    sources = {
        name: _read(path, layouts[name], config.classes, config.label_rule, config.aligned)
        for name, path in paths.items()
    }
    classes = ordered(dict.fromkeys(c for read in sources.values() for c in read.classes))
    notes = []
    for name, read in sources.items():
        rows, carved = assign_splits(read.rows, config.val_from_train, config.seed)
        sources[name] = replace(read, rows=rows)
        notes += [f"{name}: {note}" if name else note for note in (*read.notes, *carved)]
    listed = [Listed.of(name, read, classes, boxes=not config.aligned) for name, read in sources.items()]
    return Inputs(sources, classes, Photographs(listed), notes)


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
