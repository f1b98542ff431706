"""FER2013 (Goodfellow and others, 2013): pixels in a table, in any of the copies that went round, or class folders."""

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv

from efficientface import FerError
from efficientface.data.labels import FER2013
from efficientface.data.layouts.files import images, plural, suffix
from efficientface.data.layouts.folders import folders_in, holds, read_folders
from efficientface.data.layouts.listing import Asked, Listing
from efficientface.data.layouts.published import FER_2013
from efficientface.data.layouts.tables import header_of, stripped
from efficientface.data.photos import Unreadable
from efficientface.data.words import Words, changed, gathered, repeated, within

TABLES = (("fer2013.csv",), ("icml_face_data.csv",), ("train.csv", "test.csv"))  # the first group that is there
USAGES = {"Training": "train", "PublicTest": "val", "PrivateTest": "test"}
NAMED = r"(Training|PublicTest|PrivateTest)_\d+\.\w+"  # the files of the copy in class folders


@dataclass(frozen=True)
class PixelRows:
    """Photographs given as numbers in text, served as PGM files, which hold the pixels as they are."""

    pixels: dict[str, bytes | None]  # None where the text is no square picture

    def mark(self, file: str) -> int | None:
        return zlib.crc32(self.pixels.get(file) or b"")

    def read(self, file: str) -> bytes:
        if file not in self.pixels:
            raise Unreadable("does not exist")
        pixels = self.pixels[file]
        if pixels is None:
            raise Unreadable("damaged (not the numbers 0 to 255 of a square picture)")
        side = isqrt(len(pixels))
        return b"P5 %d %d 255\n" % (side, side) + pixels

    def only(self, files: Sequence[str]) -> "PixelRows":
        return PixelRows({file: self.pixels[file] for file in files})


def is_fer2013(path: Path) -> bool:
    return bool(_tables(path)) or _is_class_folders(path)


def _is_class_folders(path: Path) -> bool:
    return any(holds(path / split / name, NAMED) for split in ("train", "test") for name in folders_in(path / split))


def _tables(path: Path) -> list[Path]:
    """The table or tables of pixels: `path` itself, or those in it that go together."""
    if path.is_file():
        return [path] if _columns(path) else []
    for names in TABLES:
        if tables := [path / name for name in names if (path / name).is_file() and _columns(path / name)]:
            return tables
    return []


def _columns(table: Path) -> dict[str, str] | None:
    """The columns of a table of pixels by their plain name: copies differ in spaces and capitals."""
    if suffix(table.name) != "csv":
        return None
    try:
        columns = {name.strip().casefold(): name for name in header_of(table)}
    except FerError:
        return None
    return columns if "pixels" in columns else None


def read_fer2013(path: Path, asked: Asked) -> Listing:
    """`emotion,pixels,Usage`, one row an image; or train/ and test/ with class folders."""
    tables = _tables(path)
    if not tables:
        if not _is_class_folders(path):
            raise FerError(f"{path} is not FER2013: no CSV with a column pixels is in it, and no class folders of it")
        return _read_class_folders(path, asked)
    listing = Listing(path.parent if path.is_file() else path, path, published=FER_2013)
    pixels: dict[str, bytes | None] = {}
    for table in tables:
        rows = read_pixels(table)
        files = [f"{table.name}/{row}" for row in range(len(rows))]
        pixels |= zip(files, rows["pixels"], strict=True)
        listing.add(Words(files), _labels(table, rows), _splits(table, rows))
    listing.stored = PixelRows(pixels)
    damaged = sum(row is None for row in pixels.values())
    if damaged:
        listing.notes.append(f"Damaged pixels: {images(damaged)}.")
    if not len(listing.files):
        raise FerError(f"{tables[0]} has no rows; copy it again")
    return listing


def _labels(table: Path, rows: pd.DataFrame) -> Words:
    if "emotion" not in rows:
        return repeated(None, len(rows))
    numbers = stripped(Words(rows["emotion"]))
    known = {str(place): name for place, name in enumerate(FER2013)}
    bad = ~within(numbers, [*known, None])
    if bad.any():
        raise FerError(
            f"{table}: {plural(bad.sum(), 'row')} with an emotion that FER2013 does not have (first row "
            f"{bad.argmax()}: {numbers[bad.argmax()]!r}); they are 0 to {len(FER2013) - 1}"
        )
    return changed(numbers, known.get)


def _splits(table: Path, rows: pd.DataFrame) -> Words:
    """By Usage; without that column train.csv is train and test.csv is test."""
    if "usage" in rows:
        return changed(stripped(Words(rows["usage"])), lambda usage: USAGES.get(usage, usage))
    return repeated({"train.csv": "train", "test.csv": "test"}.get(table.name), len(rows))


def read_pixels(table: Path) -> pd.DataFrame:
    """A row an image: `pixels` (bytes, or None where damaged), and as text `emotion` and `usage` where they are."""
    names = _columns(table)
    if names is None:
        raise FerError(f"{table} has no column pixels; give FER2013's table")
    parts = []
    try:
        for batch in _batches(table, {name: names[name] for name in ("emotion", "pixels", "usage") if name in names}):
            texts = batch.pop("pixels")
            parts.append(pd.DataFrame({**batch, "pixels": pd.Series(list(map(_pixels, texts)), dtype=object)}))
    except (pa.ArrowException, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise FerError(f"{table} is not a well-formed table: {reason}") from None
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame({"pixels": []})


def _batches(table: Path, names: dict[str, str]) -> Iterator[dict[str, list[str]]]:
    """The named columns as text, some thousand rows at a time: the text is four times as large as the pixels."""
    reader = pyarrow.csv.open_csv(
        table,
        read_options=pyarrow.csv.ReadOptions(block_size=1 << 24),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=list(names.values()), column_types=dict.fromkeys(names.values(), pa.string())
        ),
    )
    for batch in reader:
        yield dict(zip(names, (column.to_pylist() for column in batch.columns), strict=True))


def _pixels(text: str) -> bytes | None:
    try:
        pixels = bytes(map(int, text.split()))
    except ValueError:
        return None
    return pixels if pixels and isqrt(len(pixels)) ** 2 == len(pixels) else None


def _read_class_folders(path: Path, asked: Asked) -> Listing:
    """The release's own split is in the names of the files; `test` holds both of its test sets."""
    listing = read_folders(path, asked, "fer2013")
    usages = (re.match(NAMED, file.rpartition("/")[2]) for file in listing.files)
    told = zip(usages, listing.splits, strict=True)
    listing.splits = gathered(USAGES[usage[1]] if usage else split for usage, split in told)
    listing.published = FER_2013
    if (listing.splits == "val").any():
        listing.notes.append("Images called PublicTest are val, those called PrivateTest are test, as in the release.")
    return listing
