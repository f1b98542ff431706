"""Parquet with pictures inside, as Hugging Face's `datasets` writes it: a column of structs of `bytes` and `path`."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from efficientface import FerError, untrusted
from efficientface.data.layouts.files import is_inside, plural, suffix
from efficientface.data.layouts.listing import SPLITS, Asked, Listing
from efficientface.data.layouts.tables import columns_of, describe, named, parquet_schema, read_columns, refuse_twins
from efficientface.data.photos import Unreadable

ROW_GROUPS_KEPT = 2  # in memory: photographs are asked for in order, by several threads


class RowGroup(NamedTuple):
    """Rows of a table that are read together."""

    first: int  # of its rows, counted through all tables
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
    """Pictures inside Parquet tables; their mark is the table's size."""

    rows: dict[str, int]  # of each photograph, counted through all row groups
    groups: Sequence[RowGroup]
    _sizes: dict[Path, int] = field(default_factory=dict)
    _kept: dict[RowGroup, pa.ChunkedArray] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def mark(self, file: str) -> int | None:
        table = self._group(self.rows[file]).table
        if table not in self._sizes:
            self._sizes[table] = table.stat().st_size
        return self._sizes[table]

    def read(self, file: str) -> bytes:
        if file not in self.rows:
            raise Unreadable("does not exist")
        row = self.rows[file]
        group = self._group(row)
        with self._lock:
            if group not in self._kept:
                self._kept[group] = group.read()
                if len(self._kept) > ROW_GROUPS_KEPT:
                    del self._kept[next(iter(self._kept))]
            data = self._kept[group][row - group.first].as_py()
        if not data:
            raise Unreadable("no bytes in the table")
        return data

    def _group(self, row: int) -> RowGroup:
        return self.groups[bisect_right(self.groups, row, key=lambda group: group.first) - 1]

    def only(self, files: Sequence[str]) -> "ParquetPhotos":
        rows = {file: self.rows[file] for file in files}
        groups = sorted({self._group(row) for row in rows.values()})
        tables = {group.table: group.table.absolute() for group in groups}
        return ParquetPhotos(rows, [group._replace(table=tables[group.table]) for group in groups])

    def __reduce__(self) -> tuple[Any, ...]:
        return ParquetPhotos, (self.rows, self.groups)  # a lock stays where it is


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
    listing = Listing(path.parent if path.is_file() else path, path, [], [], [])
    first, columns = next((table, _columns(table, asked)) for table in tables)
    for table in tables:
        if _columns(table, asked) != columns:
            raise FerError(f"{table} has other columns than {first}; give one data set at a time")
    groups: list[RowGroup] = []
    texts, by_name = [], []
    for table, image in tables.items():
        rows = read_columns(table, parquet_schema(table).names, named(columns))
        below = table.relative_to(listing.root)
        files = _names(table, image, below.as_posix())
        groups += _row_groups(table, image, len(listing.files))
        listing.files += files
        by_name += [next((name for part in reversed(below.parts) if (name := _split(part))), None)] * len(files)
        for column in columns["label"]:
            rows[column] = _class_names(table, column, rows[column])
        texts.append(rows.reindex(range(len(files))))  # without columns it has no rows either
    describe(listing, pd.concat(texts, ignore_index=True), columns, asked)
    listing.labels = listing.labels or [None] * len(listing.files)
    listing.splits = [own or split for own, split in zip(listing.splits, by_name, strict=True)]
    listing.stored = ParquetPhotos(dict(zip(listing.files, count(), strict=False)), groups)
    listing.notes.append(f"The images are inside {plural(len(tables), 'Parquet file')}.")
    return listing


def _columns(table: Path, asked: Asked) -> dict[str, list[str]]:
    """Columns by role, but for the images."""
    columns = {**columns_of([name for name in parquet_schema(table).names], asked.wanted), "path": []}
    refuse_twins(table, columns)
    return columns


def _names(table: Path, image: str, below: str) -> list[str]:
    """A name for each row: the table's path, the row, and the image's own file name where it has one."""
    try:
        with untrusted.parquet_file(table) as file:
            own = [None] * file.metadata.num_rows
            if file.schema_arrow.field(image).type.get_field_index("path") >= 0:
                own = pc.struct_field(file.read(columns=[f"{image}.path"])[image], "path").cast(pa.string()).to_pylist()
    except (OSError, ValueError) as error:
        raise FerError(f"{table} is a damaged Parquet file ({error}); write it again") from None
    # the last component only: what else stands there is a path on someone's disk
    ends = [(name or "").replace("\\", "/").rpartition("/")[2] for name in own]
    return [f"{below}/{row}" + (f"/{end}" if end.strip(".") else "") for row, end in enumerate(ends)]


def _row_groups(table: Path, image: str, first: int) -> Iterator[RowGroup]:
    """Those of a table whose first row is the `first`."""
    with untrusted.parquet_file(table) as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    for number, size in enumerate(sizes):
        yield RowGroup(first, table, image, number)
        first += size


def _class_names(table: Path, column: str, labels: pd.Series) -> pd.Series:
    """Numbers by the names of the schema's ClassLabel, if it has one; -1 is its word for none."""
    try:
        features = untrusted.parse_json((parquet_schema(table).metadata or {})[b"huggingface"])["info"]["features"]
        names = list(map(str, features[column]["names"]))
    except (KeyError, TypeError, ValueError):
        return labels
    known: dict[str, str | None] = {str(number): name for number, name in enumerate(names)} | {"-1": None}
    bad = labels.notna() & ~labels.isin(list(known))
    if bad.any():
        raise FerError(
            f"{table}: {plural(bad.sum(), 'label')} outside its {len(names)} class names (first {labels[bad.argmax()]})"
        )
    return labels.map(known)


def _split(part: str) -> str | None:
    """The split in the name of a file or folder: what stands before the first hyphen or dot."""
    return SPLITS.get(part.split("-")[0].split(".")[0].casefold())
