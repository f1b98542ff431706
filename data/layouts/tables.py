"""A CSV or Parquet table that names images, one row an image; and reading tables for the other layouts."""

import csv
import posixpath
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from efficientface import FerError, untrusted
from efficientface.data.columns import ROWS, computed
from efficientface.data.labels import Wanted, class_of, expression, no_expression, plain
from efficientface.data.layouts.files import entries, images, images_below, listed, located, plural, suffix
from efficientface.data.layouts.listing import SPLITS, Asked, Listing
from efficientface.data.words import Words, all_differ, changed, decoded, gathered, of_batches, repeated

Texts: TypeAlias = dict[str, Words]  # columns of a table by their names, each (N,)

TABLE_SUFFIXES = ("csv", "tsv", "parquet", "jsonl")
PATH_COLUMNS = ("path", "file", "file_name", "image")
LABEL_COLUMNS = ("label", "emotion", "expression")
A_LINE = 1 << 20  # bytes of a header, or of an object of JSON, at most


def is_table(path: Path) -> bool:
    if path.is_file():
        return suffix(path.name) in TABLE_SUFFIXES
    tables = _tables_in(path)
    if any(_fits(table, None) for table in tables):
        return True
    # A table that lacks a column deserves its own error, but not if it is a stray beside class folders.
    names = [entry.name for entry in entries(path) if entry.is_dir()]
    return bool(tables) and not any(expression(n) or n.casefold() in SPLITS or n.isdigit() for n in names)


def holds_table(path: Path) -> bool:
    """Whether it is a file, or a folder with a table that has the columns we need."""
    return path.is_file() or any(_fits(table, None) for table in _tables_in(path))


def _fits(table: Path, wanted: Wanted | None) -> bool:
    """Whether it has the columns we need; a damaged table beside others is no table of ours."""
    try:
        return _suffices(columns_of(header_of(table), wanted))
    except FerError:
        return False


def read_table(path: Path, asked: Asked) -> Listing:
    """A CSV or Parquet table, or the one folder that it lies in; its paths count from there or from `images/`."""
    table = path if path.is_file() else _only_table(path, asked.wanted)
    header = header_of(table)
    columns = columns_of(header, asked.wanted)
    check_columns(table, header, columns)
    texts = read_columns(table, header, named(columns))
    paths = texts[columns["path"][0]]
    if not len(paths):
        raise FerError(f"{table} has no rows; it needs one an image")

    files = checked_paths(table, paths)
    tops = None if path.is_dir() else {"images", *(file.split("/")[0] for file in files)}
    found = images_below(table.parent, tops)
    files, notes = located(table, table.parent, files, found)

    unknown = repeated(None, len(files))
    listing = Listing(table.parent, table, files, unknown, unknown, notes=notes + found.notes(path))
    describe(listing, texts, columns, asked)
    return listing


def describe(listing: Listing, texts: Texts, columns: dict[str, list[str]], asked: Asked) -> None:
    """Fill in labels, splits, groups and votes from columns of text, one row an image, whose roles `columns` tells."""
    one = {role: names[0] for role, names in columns.items() if names and role != "votes"}
    if "split" in one:
        listing.splits = changed(stripped(texts[one["split"]]), lambda name: SPLITS.get(name.casefold(), name))
    if "group" in one:
        listing.groups = stripped(texts[one["group"]])
    if columns["votes"]:
        listing.vote_names = tuple(columns["votes"])
        listing.votes = vote_counts(listing.where, listing.files, {name: texts[name] for name in columns["votes"]})
    if "label" in one:
        listing.labels = stripped(texts[one["label"]])
    elif listing.votes is not None:
        listing.labels = _labels_from_votes(listing.votes, listing.vote_names, asked.label_rule)
        rule = {"majority": "has more than half of the votes", "votes": "has the most votes"}[asked.label_rule]
        listing.notes.append(f"The label is the class that {rule}; where there is none, no label.")


def columns_of(header: Sequence[str], wanted: Wanted | None) -> dict[str, list[str]]:
    """What each column holds, by role: path, label, split, group, votes."""
    roles = {"path": PATH_COLUMNS, "label": LABEL_COLUMNS, "split": ("split",), "group": ("group",)}
    columns = {
        role: [column for column in header if column.strip().casefold() in names] for role, names in roles.items()
    }
    votes = [name for name in header if expression(name) or class_of(name, wanted)]
    others = [name for name in header if no_expression(name)]
    # a lone column `fear` is something else than votes on classes
    columns["votes"] = votes + others if len(votes) > 1 else []
    return columns


def named(columns: dict[str, list[str]]) -> list[str]:
    """The columns to read: one of each role, and all votes."""
    return [*(names[0] for role, names in columns.items() if names and role != "votes"), *columns["votes"]]


def _suffices(columns: dict[str, list[str]]) -> bool:
    return bool(columns["path"] and (columns["label"] or columns["votes"]))


def check_columns(table: Path, header: Sequence[str], columns: dict[str, list[str]]) -> None:
    """FerError without paths, or without labels or votes."""
    found = f"found {', '.join(header)}"
    if not columns["path"]:
        raise FerError(f"{table} has no column with the images' paths: {found}; name it one of {listed(PATH_COLUMNS)}")
    if not _suffices(columns):
        raise FerError(
            f"{table} has neither labels nor votes: {found}; "
            f"name a label column one of {listed(LABEL_COLUMNS)}, or give one column of votes a class"
        )
    refuse_twins(table, columns)


def refuse_twins(table: Path, columns: dict[str, list[str]]) -> None:
    """FerError if two columns hold the same thing."""
    same: dict[str, list[str]] = {role: names for role, names in columns.items() if role != "votes"}
    for name in columns["votes"]:
        if not no_expression(name):
            same.setdefault(f"votes for {expression(name) or plain(name)}", []).append(name)
    for thing, names in same.items():
        if len(names) > 1:
            raise FerError(f"{table} has {len(names)} columns for the {thing}: {', '.join(names)}; keep one of them")


def _tables_in(folder: Path) -> list[Path]:
    files = [entry.name for entry in entries(folder) if entry.is_file() and not entry.name.startswith(".")]
    return [folder / name for name in files if suffix(name) in TABLE_SUFFIXES]


def _only_table(folder: Path, wanted: Wanted | None) -> Path:
    """The table of `folder` that has the columns we need, or the only table there is."""
    tables = _tables_in(folder)
    fitting = [table for table in tables if _fits(table, wanted)] or tables
    if not fitting:
        raise FerError(f"{folder} holds no table; layout table needs a .csv, .tsv, .parquet or .jsonl file in it")
    if len(fitting) > 1:
        names = listed([table.name for table in fitting], "and")
        raise FerError(f"{folder} holds {len(fitting)} tables, {names}; give the path of one of them as the source")
    return fitting[0]


def header_of(table: Path, separator: str | None = None) -> list[str]:
    """The names of the columns, as spelt there."""
    if suffix(table.name) == "parquet":
        return list(parquet_schema(table).names)
    if suffix(table.name) == "jsonl":
        return list(dict.fromkeys(name for row in _read_lines(table) for name in row))
    text = _first_line(table)
    try:
        return next(csv.reader([text], delimiter=separator or _separator(text)))
    except csv.Error as error:
        raise FerError(f"{table} begins with no line of column names ({error}); save it as CSV in UTF-8") from None


def _first_line(table: Path) -> str:
    try:
        with untrusted.open_file(table) as file:
            line = file.readline(A_LINE)
    except ValueError as error:
        raise FerError(f"{table} is {error}; give a table") from None
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise FerError(f"{table} is not UTF-8 text; save it as CSV in UTF-8") from None
    if not text.strip():
        raise FerError(f"{table} begins with an empty line; its first line must name the columns")
    return text


def _separator(header: str) -> str:
    """The one of comma, semicolon and tab that divides the header into most columns."""
    return max(",;\t", key=header.count)


def read_columns(table: Path, header: Sequence[str], names: Sequence[str]) -> Texts:
    """The named columns as text; None where a Parquet table has a null, or a line of JSON does not say."""
    if suffix(table.name) == "jsonl":
        return of_batches(names, _line_batches(table, names))
    if suffix(table.name) != "parquet":
        return read_csv(table, header, names, _separator(_first_line(table)), skip_rows=1)
    schema = parquet_schema(table)
    for name in names:
        kind = schema.field(name).type
        if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            raise FerError(f"{table}: column {name} holds {kind}; text or numbers are needed, and paths for images")
    try:
        return of_batches(names, untrusted.parquet_batches(table, names))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        reason = str(error).partition("\n")[0]
        raise FerError(f"{table} is a damaged Parquet file ({reason}); write it again") from None


def _line_batches(table: Path, names: Sequence[str]) -> Iterator[dict[str, list[str | None]]]:
    rows = ([row.get(name) for name in names] for row in _read_lines(table))  # not all that a line may hold
    while part := list(islice(rows, ROWS // 8)):
        yield {name: [row[k] for row in part] for k, name in enumerate(names)}


def _read_lines(table: Path) -> Iterator[dict[str, str | None]]:
    """The objects of a file of JSON lines, their values as text."""
    try:
        file = untrusted.open_file(table)
    except ValueError as error:
        raise FerError(f"{table} is {error}; give a table") from None
    with file:
        for number, line in enumerate(iter(lambda: file.readline(A_LINE), b""), start=1):
            try:
                if len(line) == A_LINE:
                    raise ValueError(f"longer than {A_LINE:,} bytes")
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if not text.strip():
                    continue
                row = untrusted.parse_json(text)
                if not isinstance(row, dict):
                    raise ValueError("no object")
                nested = next((name for name, value in row.items() if isinstance(value, dict | list)), None)
                if nested is not None:
                    raise ValueError(f"column {nested} holds more than a text or a number")
            except UnicodeDecodeError:
                raise FerError(f"{table} is not UTF-8 text; write it again in UTF-8") from None
            except ValueError as error:
                raise FerError(
                    f"{table} has no row in line {number} ({error}); write an object of JSON an image"
                ) from None
            yield {name: None if value is None else str(value) for name, value in row.items()}


def parquet_schema(table: Path) -> pa.Schema:
    try:
        with untrusted.parquet_file(table) as file:
            return file.schema_arrow
    except ValueError:
        raise FerError(f"{table} is no Parquet file, or a damaged one; write it again") from None


def read_csv(table: Path, header: Sequence[str], names: Sequence[str], separator: str, skip_rows: int) -> Texts:
    """The named columns as text. pyarrow reads it, for it refuses the ragged rows that pandas fills up."""
    try:
        with pyarrow.csv.open_csv(
            table,
            # several threads lose count of the rows, which errors are to tell
            read_options=pyarrow.csv.ReadOptions(column_names=list(header), skip_rows=skip_rows, use_threads=False),
            parse_options=pyarrow.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=list(names), column_types=dict.fromkeys(header, pa.string())
            ),
        ) as batches:
            return of_batches(names, batches)
    except (pa.ArrowException, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0].removeprefix("CSV parse error: ")
        raise FerError(f"{table} is not a well-formed table: {reason}") from None


def stripped(words: Words) -> Words:
    """Without surrounding space, None for what is empty or NaN."""
    return changed(words, lambda text: None if plain(text) in ("", "nan") else text.strip())


def checked_paths(table: Path, paths: Words) -> Words:
    """Paths relative to the table, without `./`; FerError for missing ones, for those that lead out, and twins."""
    empty = paths.missing() | (paths == "")
    if empty.any():
        raise FerError(
            f"{table}: {plural(empty.sum(), 'row')} without a path (first row {empty.argmax() + 1}); fill or delete"
        )
    climbs = r"^[/\\]|^[A-Za-z]:|(?:^|[/\\])\.\.(?:[/\\]|$)"
    leading_out = pc.match_substring_regex(paths.arrow, climbs).to_numpy(zero_copy_only=False)
    if leading_out.any():
        first = paths[leading_out.argmax()]
        raise FerError(
            f"{table}: {plural(leading_out.sum(), 'path')} may lead out of its folder (first {first}); "
            "give paths below it, without `..`"
        )
    paths = gathered(map(posixpath.normpath, paths))
    if not all_differ(paths):
        twins = pd.Series(paths.tolist(), dtype=object).duplicated()
        first = paths[twins.argmax()]
        raise FerError(f"{table} names {images(twins.sum())} again (first {first}); keep one row an image")
    return paths


def numbers(texts: Texts, rows: slice = slice(None)) -> np.ndarray:
    """(N, K) float64 in the rows of K columns, NaN for what is no number."""
    columns = [pd.to_numeric(np.asarray(column[rows]), errors="coerce") for column in texts.values()]
    return np.stack(columns, axis=1).astype(float)


def vote_counts(table: Path, files: Words, texts: Texts) -> np.ndarray:
    """Votes (N, K) as float32; FerError for anything but finite numbers of 0 or more."""
    votes = computed(len(files), lambda rows: numbers(texts, rows).astype(np.float32))
    sound = computed(len(files), lambda rows: (np.isfinite(votes[rows]) & (votes[rows] >= 0)).all(axis=1))
    if not sound.all():
        row = int(sound.argmin())
        name = list(texts)[int((np.isfinite(votes[row]) & (votes[row] >= 0)).argmin())]
        raise FerError(
            f"{table}: {plural((~sound).sum(), 'row')} with votes that are no numbers of 0 or more "
            f"(first {files[row]}: {name} {texts[name][row]!r}); correct them"
        )
    return votes


def _labels_from_votes(votes: np.ndarray, names: Sequence[str], rule: str) -> Words:
    """Label by votes (N, K), as `read_source` explains; no label on a draw or where no expression comes first."""
    return decoded(computed(len(votes), lambda rows: _first_by_votes(votes[rows], rule)), names)


def _first_by_votes(votes: np.ndarray, rule: str) -> np.ndarray:
    """(N,) int64: which of K columns gives the label, -1 for none."""
    largest = votes.max(axis=1)
    if rule == "majority":
        clear = largest > 0.5 * votes.sum(axis=1)
    else:
        clear = (largest > 0) & ((votes == largest[:, None]).sum(axis=1) == 1)
    return np.where(clear, votes.argmax(axis=1), -1)
