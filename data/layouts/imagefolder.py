"""Hugging Face's ImageFolder: metadata.csv, .jsonl or .parquet beside the images of each split."""

from pathlib import Path

from efficientface import FerError
from efficientface.data.layouts.files import entries, images_below, listed, located
from efficientface.data.layouts.listing import SPLITS, Asked, Listing
from efficientface.data.layouts.tables import (
    TABLE_SUFFIXES,
    Texts,
    check_columns,
    checked_paths,
    columns_of,
    describe,
    header_of,
    named,
    read_columns,
)
from efficientface.data.words import filled, gathered, joined, repeated


def is_imagefolder(path: Path) -> bool:
    return bool(path.is_dir() and _metadata(path))


def _metadata(path: Path) -> dict[str, Path]:
    """By the name of a split's folder its metadata; FerError where it has several."""
    found = {}
    for folder in entries(path):
        if folder.is_dir() and folder.name.casefold() in SPLITS:
            there = [path / folder.name / f"metadata.{suffix}" for suffix in TABLE_SUFFIXES]
            tables = [table for table in there if table.is_file()]
            if len(tables) > 1:
                names = listed([table.name for table in tables], "and")
                raise FerError(f"{path / folder.name} holds {len(tables)} tables, {names}; keep one of them")
            if tables:
                found[folder.name] = tables[0]
    return found


def read_imagefolder(path: Path, asked: Asked) -> Listing:
    """A folder a split, each with its images and metadata; a column `split` may say otherwise."""
    metadata = _metadata(path)
    if not metadata:
        tables = listed([f"metadata.{suffix}" for suffix in TABLE_SUFFIXES])
        raise FerError(f"{path} has no {tables} in a folder train, validation or test; see docs/datasets.md")
    listing = Listing(path, path)
    parts: list[Texts] = []
    for folder, table in metadata.items():
        header = header_of(table)
        columns = columns_of(header, asked.wanted)
        check_columns(table, header, columns)
        texts = read_columns(table, header, named(columns))
        if parts and set(texts) != set(parts[0]):
            names = listed(list(texts), "and")
            raise FerError(f"{table} has the columns {names}, and the table of another split others; name them alike")
        files = checked_paths(table, texts[columns["path"][0]])
        found = images_below(path / folder, None)
        files, notes = located(table, path / folder, files, found)
        split = SPLITS[folder.casefold()]
        own = gathered(f"{folder}/{file}" for file in files)
        listing.add(own, repeated(None, len(own)), repeated(split, len(own)))
        listing.notes += notes + found.notes(path / folder)
        parts.append(texts)
    if not len(listing.files):
        raise FerError(f"{path}: its tables have no rows; they need one an image")
    by_folder = listing.splits
    describe(listing, {name: joined(part[name] for part in parts) for name in parts[0]}, columns, asked)
    listing.splits = filled(listing.splits, by_folder)
    return listing
