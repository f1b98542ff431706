"""Parquet with pictures inside, as Hugging Face's `datasets` writes it: a column of structs of `bytes` and `path`."""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from efficientface import FerError, untrusted
from efficientface.data.layouts.files import is_inside, plural, suffix
from efficientface.data.layouts.listing import SPLITS, Asked, Listing
from efficientface.data.layouts.tables import (
    Texts,
    columns_of,
    describe,
    named,
    parquet_schema,
    read_columns,
    refuse_twins,
)
from efficientface.data.photos import Unreadable
from efficientface.data.words import Words, changed, filled, gathered, joined, repeated, within

ROW_GROUPS_KEPT = 2  # in memory: photographs are asked for in order, by several threads


class RowGroup(NamedTuple):
    """Rows of a table that are read together."""

    first: int  # of its rows, counted through the table
    rows: int
    table: Path
    column: str
    number: int  # among those of the table

    def read(self) -> pa.ChunkedArray:
        """The pictures' bytes."""
        try:
            with untrusted.parquet_file(self.table) as file:
                rows = file.read_row_group(self.number, columns=[f"{self.column}.bytes"])
                return pc.struct_field(rows[self.column], "bytes")
        except (OSError, ValueError) as error:
            raise Unreadable(f"its table cannot be read ({error})") from error


@dataclass
class ParquetPhotos:
    """Pictures inside Parquet tables, whose names tell the table and the row; their mark is the table's size."""

    groups: dict[str, list[RowGroup]]  # by the table's path in the source, in order
    _sizes: dict[Path, int] = field(default_factory=dict)
    _kept: dict[RowGroup, pa.ChunkedArray] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def mark(self, file: str) -> int | None:
        if (place := self._place(file)) is None:
            return None
        table = place[0].table
        if table not in self._sizes:
            self._sizes[table] = table.stat().st_size
        return self._sizes[table]

    def read(self, file: str) -> bytes:
        if (place := self._place(file)) is None:
            raise Unreadable("does not exist")
        group, row = place
        with self._lock:
            if group not in self._kept:
                self._kept[group] = group.read()
                if len(self._kept) > ROW_GROUPS_KEPT:
                    del self._kept[next(iter(self._kept))]
            data = self._kept[group][row].as_py()
        if not data:
            raise Unreadable("no bytes in the table")
        return data

    def _place(self, file: str) -> tuple[RowGroup, int] | None:
        """The row group that a name tells, and the row in it."""
        named = re.fullmatch(r"((?:.*?\.)?parquet)/([0-9]{1,18})(/[^/]+)?", file, re.DOTALL | re.IGNORECASE)
        if named is None or not (groups := self.groups.get(named[1])):
            return None
        row = int(named[2])
        group = groups[bisect_right(groups, row, key=lambda group: group.first) - 1]
        return (group, row - group.first) if group.first <= row < group.first + group.rows else None

    def only(self, files: Sequence[str]) -> "ParquetPhotos":
        needed = {place[0] for file in files if (place := self._place(file)) is not None}
        groups = {table: [group for group in own if group in needed] for table, own in self.groups.items()}
        there = {group.table: group.table.absolute() for group in needed}
        return ParquetPhotos(
            {table: [group._replace(table=there[group.table]) for group in own] for table, own in groups.items() if own}
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return ParquetPhotos, (self.groups,)  # a lock stays where it is


def is_huggingface(path: Path) -> bool:
    return any(_image_column(table) for table in _tables(path))


def _tables(path: Path) -> list[Path]:
    """`path`, or the Parquet files in it and in its folders, as `data/train-00000-of-00001.parquet`."""
    if path.is_file():
        return [path] if suffix(path.name) == "parquet" else []
    depths = ("*.parquet", "*/*.parquet", "*/*/*.parquet")
    found = (file for depth in depths for file in path.glob(depth) if file.is_file())
    return sorted(file for file in found if is_inside(str(path.resolve()), file))


def _image_column(table: Path) -> str | None:
    """The first column of structs with bytes; None also if the file is damaged, as beside class folders."""
    try:
        schema = parquet_schema(table)
    except FerError:
        return None
    structs = (column for column in schema if pa.types.is_struct(column.type))
    return next((column.name for column in structs if column.type.get_field_index("bytes") >= 0), None)


def read_huggingface(path: Path, asked: Asked) -> Listing:
    """Each row an image; label, split, group and votes by the other columns.

    Where no column says the split, the table's name or folder does, as in `train-00000-of-00002.parquet`.
    """
    tables = {table: column for table in _tables(path) if (column := _image_column(table))}
    if not tables:
        raise FerError(f"{path} holds no Parquet file with a column of images (structs of bytes and path)")
    listing = Listing(path.parent if path.is_file() else path, path)
    first, columns = next((table, _columns(table, asked)) for table in tables)
    for table in tables:
        if _columns(table, asked) != columns:
            raise FerError(f"{table} has other columns than {first}; give one data set at a time")
    groups: dict[str, list[RowGroup]] = {}
    texts: list[Texts] = []
    names: list[Words] = []  # joined once: there may be thousands of tables
    splits: list[Words] = []
    for table, image in tables.items():
        below = table.relative_to(listing.root)
        files = gathered(_names(table, image, below.as_posix()))
        groups[below.as_posix()] = list(_row_groups(table, image))
        split = next((name for part in reversed(below.parts) if (name := _split(part))), None)
        names.append(files)
        splits.append(repeated(split, len(files)))
        texts.append(read_columns(table, parquet_schema(table).names, named(columns)))
        counts = {sum(group.rows for group in groups[below.as_posix()]), *map(len, texts[-1].values())}
        if counts != {len(files)}:
            raise FerError(f"{table} is a damaged Parquet file (its columns differ in length); write it again")
        for column in columns["label"]:
            texts[-1][column] = _class_names(table, column, texts[-1][column])
    by_name = joined(splits)
    listing.add(joined(names), repeated(None, len(by_name)), by_name)
    describe(listing, {name: joined(part[name] for part in texts) for name in named(columns)}, columns, asked)
    listing.splits = filled(listing.splits, by_name)
    listing.stored = ParquetPhotos(groups)
    listing.notes.append(f"The images are inside {plural(len(tables), 'Parquet file')}.")
    return listing


def _columns(table: Path, asked: Asked) -> dict[str, list[str]]:
    """Columns by role, but for the images."""
    columns = {**columns_of([name for name in parquet_schema(table).names], asked.wanted), "path": []}
    refuse_twins(table, columns)
    return columns


def _names(table: Path, image: str, below: str) -> Iterator[str]:
    """A name for each row: the table's path, the row, and the image's own file name where it has one."""
    row = count()
    try:
        with untrusted.parquet_file(table) as file:
            if file.schema_arrow.field(image).type.get_field_index("path") < 0:
                yield from (f"{below}/{next(row)}" for _ in range(file.metadata.num_rows))
                return
            for batch in file.iter_batches(columns=[f"{image}.path"]):
                for name in pc.struct_field(batch[image], "path").cast(pa.string()).to_pylist():
                    # the last component only: what else stands there is a path on someone's disk
                    end = (name or "").replace("\\", "/").rpartition("/")[2]
                    yield f"{below}/{next(row)}" + (f"/{end}" if end.strip(".") else "")
    except (OSError, ValueError) as error:
        raise FerError(f"{table} is a damaged Parquet file ({error}); write it again") from None


def _row_groups(table: Path, image: str) -> Iterator[RowGroup]:
    """Those of a table, in order."""
    first = 0
    with untrusted.parquet_file(table) as file:
        for number in range(file.num_row_groups):
            rows = file.metadata.row_group(number).num_rows
            yield RowGroup(first, rows, table, image, number)
            first += rows


def _class_names(table: Path, column: str, labels: Words) -> Words:
    """Numbers by the names of the schema's ClassLabel, if it has one; -1 is its word for none."""
    try:
        features = untrusted.parse_json((parquet_schema(table).metadata or {})[b"huggingface"])["info"]["features"]
        names = list(map(str, features[column]["names"]))
    except (KeyError, TypeError, ValueError):
        return labels
    known: dict[str, str | None] = {str(number): name for number, name in enumerate(names)} | {"-1": None}
    bad = ~within(labels, [*known, None])
    if bad.any():
        raise FerError(
            f"{table}: {plural(bad.sum(), 'label')} outside its {len(names)} class names (first {labels[bad.argmax()]})"
        )
    return changed(labels, known.get)


def _split(part: str) -> str | None:
    """The split in the name of a file or folder: what stands before the first hyphen or dot."""
    return SPLITS.get(part.split("-")[0].split(".")[0].casefold())
