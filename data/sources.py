"""Labelled photographs as they are distributed -> one row an image: file, label, votes, split, group.

To read another layout, write a function that recognises it and one that reads it into a `Listing`, and add both
to LAYOUTS. Names of classes, missing labels and the order of classes are then dealt with here, for every layout.
"""

import csv
import os
import posixpath
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from efficientface import FerError
from efficientface.data.labels import EXPRESSIONS, expression, no_expression, plain

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff")
TABLE_SUFFIXES = ("csv", "tsv", "parquet")
PATH_COLUMNS = ("path", "file", "file_name", "image")
LABEL_COLUMNS = ("label", "emotion", "expression")
LABEL_RULES = ("majority", "votes")
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
TEST_SHARE = 0.2  # of the labelled faces, when the source has no splits at all
VAL_SHARE = 0.1

# The release's own order; unknown and NF (not a face) close the ten columns.
FERPLUS_CLASSES = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
FERPLUS_COLUMNS = (*FERPLUS_CLASSES, "unknown", "NF")
FERPLUS_FOLDERS = {"FER2013Train": "train", "FER2013Valid": "val", "FER2013Test": "test"}
FERPLUS_USAGES = {"FER2013Train": "Training", "FER2013Valid": "PublicTest", "FER2013Test": "PrivateTest"}


@dataclass(frozen=True)
class Source:
    """A source of photographs, read.

    rows has one row an image, in the order of the source, and the columns
      file         POSIX path relative to root, as distributed
      label        name of a class, or None
      votes        (C,) float32, people's raw counts in the order of `classes`, or None; may be all zeros
      votes_other  (2,) float32, raw counts for [unknown, not a face], or None
      split        train, val, test or the source's own word for another one, or None where it does not say
      group        the person shown, as text, or None
    """

    root: Path
    layout: str
    classes: tuple[str, ...]  # in the order of EXPRESSIONS, other names behind
    rows: pd.DataFrame
    notes: tuple[str, ...]  # sentences for the user: what was recognised, what was ignored


@dataclass
class Listing:
    """What a layout's reader hands over: N images, with names of labels and classes spelt as in the source."""

    root: Path
    where: Path  # the file or folder that errors about labels are to name
    files: list[str]
    labels: list[str | None]
    splits: list[str | None]
    groups: list[str | None] | None = None
    votes: np.ndarray | None = None  # (N, K) float32
    vote_names: tuple[str, ...] = ()  # K names, those for no expression among them
    notes: list[str] = field(default_factory=list)


def read_source(
    path: Path,
    layout: str | None = None,
    classes: Sequence[str] | None = None,
    label_rule: str = "majority",
) -> Source:
    """Read a folder of photographs or a table that names them; nothing is opened but tables.

    layout: a key of LAYOUTS; recognised when None.
    classes: the class names, for sources with other expressions than ours or with integer labels, whose order
      they then give; those of EXPRESSIONS that occur when None.
    label_rule: how votes become a label where the source has no label of its own. `majority`: the class with more
      than half of the votes, otherwise none. `votes`: the class with the most. FER+ has its own two rules, see
      `ferplus_majority` and `ferplus_distribution`; `votes` then concerns training faces only.
    """
    path = Path(path)
    if layout is not None and layout not in LAYOUTS:
        raise FerError(f"{layout!r} is not a layout; give one of {_listed(LAYOUTS)}")
    if label_rule not in LABEL_RULES:
        raise FerError(f"{label_rule!r} is not a rule for labels; give one of {_listed(LABEL_RULES)}")
    if not path.exists():
        raise FerError(f"{path} does not exist; give a folder of photographs or a table that names them")
    if path.is_dir() and not _entries(path):
        raise FerError(f"{path} is an empty folder; give a folder of photographs or a table that names them")
    if layout == "identities":
        if classes is not None:
            raise FerError("--classes names expressions; layout identities takes people's names as they are")
        return _identities(path)
    wanted = None if classes is None else Wanted.read(classes)
    if layout is None:
        layout = next((name for name, known in LAYOUTS.items() if known.recognises(path)), None)
    if layout is None:
        raise FerError(f"{path} is no table of photographs; give a .csv, .tsv or .parquet file, or a folder")
    return _source(LAYOUTS[layout].reads(path, wanted, label_rule), layout, wanted)


# --- classes and labels, for every layout ---------------------------------------------------------------------


@dataclass(frozen=True)
class Wanted:
    """The class names that the user gave."""

    order: tuple[str, ...]  # as given, spellings folded: what integer labels count through
    classes: tuple[str, ...]  # without the names for no expression, in our order

    @classmethod
    def read(cls, names: Sequence[str]) -> "Wanted":
        order = tuple(expression(name) or name.strip() for name in names)
        real = [name for name in order if not no_expression(name)]
        if len({plain(name) for name in real}) < len(real):
            raise FerError(f"--classes names a class twice: {', '.join(names)}")
        if len(real) < 2:
            raise FerError(f"--classes must name two classes or more, not {len(real)}")
        return cls(order, _ordered(real))

    def find(self, name: str) -> str | None:
        """The wanted class that `name` spells, or None."""
        same = plain(expression(name) or name)
        return next((known for known in self.classes if plain(known) == same), None)


def _source(listing: Listing, layout: str, wanted: Wanted | None) -> Source:
    labels, names, notes = _fold_labels(listing, wanted)
    votes, votes_other = None, None
    found = [_class(name, wanted) for name in listing.vote_names]
    names |= {name for name in found if name}
    classes = wanted.classes if wanted else _ordered(names)
    if not classes:
        raise FerError(
            f"{listing.where} labels none of its {len(listing.files):,} images; "
            "put them into class folders, or give a table with their labels"
        )
    if len(classes) == 1:
        raise FerError(f"{listing.where} has the one class {classes[0]}; two or more are needed to learn from")
    if listing.votes is not None:
        votes = np.zeros((len(listing.files), len(classes)), np.float32)
        for column, name in zip(listing.votes.T, found, strict=True):
            if name:
                votes[:, classes.index(name)] = column
        others = [no_expression(name) for name in listing.vote_names]
        if any(others):
            votes_other = np.zeros((len(listing.files), 2), np.float32)
            for column, other in zip(listing.votes.T, others, strict=True):
                if other:
                    votes_other[:, ("unknown", "not a face").index(other)] += column
        dropped = [n for n, a, b in zip(listing.vote_names, found, others, strict=True) if not (a or b)]
        if dropped:
            notes.append(f"Votes left out as not among --classes: {', '.join(dropped)}.")
    columns = {
        "file": listing.files,
        "label": labels,
        "votes": _each(votes, len(labels)),
        "votes_other": _each(votes_other, len(labels)),
        "split": listing.splits,
        "group": listing.groups or [None] * len(labels),
    }
    # dtype object throughout: pandas' own strings turn None into NaN and refuse names that are not UTF-8
    rows = pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})
    unlabelled = sum(label is None for label in labels)
    if unlabelled:
        notes.append(f"Without a label: {_images(unlabelled)} of {len(labels):,}.")
    notes.insert(0, f"Read {listing.where} as layout {layout}: {_images(len(rows))}, {len(classes)} classes.")
    return Source(listing.root, layout, classes, rows, tuple(notes + listing.notes))


def _fold_labels(listing: Listing, wanted: Wanted | None) -> tuple[list[str | None], set[str], list[str]]:
    """Labels by our names, the set of those that occur, and notes; FerError for a name that means nothing."""
    codes, spelt = pd.factorize(pd.Series(listing.labels, dtype=object))
    # one more entry, so that the code -1 of a missing label finds None
    folded = np.full(len(spelt) + 1, None, dtype=object)
    unknown, numbers, left_out = [], [], []
    for code, name in enumerate(spelt):
        if wanted and (folded_name := wanted.find(name)):
            folded[code] = folded_name
        elif re.fullmatch(r"[+-]?\d+(\.0*)?", name.strip()):
            place = int(float(name))
            if wanted and 0 <= place < len(wanted.order):
                folded[code] = _class(wanted.order[place], wanted)
            else:
                numbers.append(code)
        elif expression(name):
            folded[code] = _class(name, wanted)
            if folded[code] is None:
                left_out.append(code)
        elif not no_expression(name):
            unknown.append(code)

    def offenders(bad: list[int]) -> str:
        hits = codes == bad[0]
        others = "" if len(bad) == 1 else f"; {_s(len(bad) - 1, 'other label')} too"
        first = _shown(listing.files[int(hits.argmax())])
        return f"label {spelt[bad[0]]!r} of {_images(hits.sum())} (first {first}{others})"

    if numbers and wanted is None:
        raise FerError(
            f"{listing.where}: {offenders(numbers)}: the order of integer labels is unknown; "
            "give --classes with the class names in that order, beginning with the name of 0"
        )
    if numbers and wanted:
        raise FerError(
            f"{listing.where}: {offenders(numbers)}: integer labels must lie between 0 and "
            f"{len(wanted.order) - 1}, as --classes has {len(wanted.order)} names"
        )
    if unknown:
        raise FerError(
            f"{listing.where}: {offenders(unknown)} is no known expression; "
            "give --classes with the names of all classes"
        )
    notes = []
    if left_out:
        count = int(np.isin(codes, left_out).sum())
        left_names = ", ".join(sorted({str(expression(spelt[code])) for code in left_out}))
        notes.append(f"Label left out as not among --classes: {_images(count)} of {left_names}.")
    return folded[codes].tolist(), {name for name in folded if name}, notes


def _class(name: str, wanted: Wanted | None) -> str | None:
    return wanted.find(name) if wanted else expression(name)


def _ordered(names: Iterable[str]) -> tuple[str, ...]:
    """The names in the order of EXPRESSIONS, others behind as they come."""
    names = list(names)
    return (*(n for n in EXPRESSIONS if n in names), *(n for n in names if n not in EXPRESSIONS))


def _each(array: np.ndarray | None, count: int) -> list[np.ndarray | None]:
    return [None] * count if array is None else list(array)


# --- layout `folders` -----------------------------------------------------------------------------------------


def _read_folders(path: Path, wanted: Wanted | None, label_rule: str) -> Listing:
    """`happy/1.jpg`, `train/happy/1.jpg`, and any depth below the class folder."""
    if not path.is_dir():
        raise FerError(f"{path} is a file; layout folders reads a folder of class folders")
    found = _images_below(path)
    if not found.files:
        ignored = f" ({found.ignored()})" if found.ignored() else ""
        raise FerError(
            f"{path} holds no images ({', '.join(IMAGE_SUFFIXES)}){ignored}; give the folder that holds them"
        )
    splits: list[str | None] = []
    labels: list[str | None] = []
    for file in found.files:
        folders = file.split("/")[:-1]
        splits.append(SPLITS.get(folders[0].casefold()) if folders else None)
        below = folders[1:] if splits[-1] else folders
        labels.append(below[0] if below else None)
    return Listing(path, path, found.files, labels, splits, notes=found.notes(path))


# --- layout `table` -------------------------------------------------------------------------------------------


def _is_table(path: Path) -> bool:
    if path.is_file():
        return _suffix(path.name) in TABLE_SUFFIXES
    tables = _tables_in(path)
    if any(_fits(table, None) for table in tables):
        return True
    # A table that lacks a column deserves its own error, but not if it is a stray beside class folders.
    names = [entry.name for entry in _entries(path) if entry.is_dir()]
    return bool(tables) and not any(expression(n) or n.casefold() in SPLITS or n.isdigit() for n in names)


def _fits(table: Path, wanted: Wanted | None) -> bool:
    """Whether it has the columns we need; a damaged table beside others is no table of ours."""
    try:
        return _suffices(_columns(_header(table), wanted))
    except FerError:
        return False


def _read_table(path: Path, wanted: Wanted | None, label_rule: str) -> Listing:
    """A CSV or Parquet table, or the one folder that it lies in; its paths count from there or from `images/`."""
    table = path if path.is_file() else _only_table(path, wanted)
    header = _header(table)
    columns = _columns(header, wanted)
    _check_columns(table, header, columns)
    one = {role: names[0] for role, names in columns.items() if names and role != "votes"}
    texts = _read_columns(table, header, [*one.values(), *columns["votes"]])
    if not len(texts):
        raise FerError(f"{table} has no rows; it needs one an image")

    files = _checked_paths(table, texts[one["path"]])
    tops = None if path.is_dir() else {"images", *(file.split("/")[0] for file in files)}
    found = _images_below(table.parent, tops)
    files, notes = _located(table, table.parent, files, found)

    listing = Listing(table.parent, table, files, [], _splits(_texts(texts, one.get("split"))))
    listing.groups = _texts(texts, one["group"]) if "group" in one else None
    listing.notes = notes + found.notes(path)
    if columns["votes"]:
        listing.vote_names = tuple(columns["votes"])
        listing.votes = _numbers(table, files, texts[columns["votes"]])
    if "label" in one:
        listing.labels = _texts(texts, one["label"])
    elif listing.votes is not None:
        listing.labels = _labels_from_votes(listing.votes, listing.vote_names, label_rule)
        rule = {"majority": "has more than half of the votes", "votes": "has the most votes"}[label_rule]
        listing.notes.append(f"The label is the class that {rule}; where there is none, no label.")
    return listing


def _columns(header: Sequence[str], wanted: Wanted | None) -> dict[str, list[str]]:
    """What each column holds, by role: path, label, split, group, votes."""
    roles = {"path": PATH_COLUMNS, "label": LABEL_COLUMNS, "split": ("split",), "group": ("group",)}
    columns = {
        role: [column for column in header if column.strip().casefold() in names] for role, names in roles.items()
    }
    votes = [name for name in header if expression(name) or _class(name, wanted)]
    others = [name for name in header if no_expression(name)]
    # a lone column `fear` is something else than votes on classes
    columns["votes"] = votes + others if len(votes) > 1 else []
    return columns


def _suffices(columns: dict[str, list[str]]) -> bool:
    return bool(columns["path"] and (columns["label"] or columns["votes"]))


def _check_columns(table: Path, header: Sequence[str], columns: dict[str, list[str]]) -> None:
    found = f"found {', '.join(header)}"
    if not columns["path"]:
        raise FerError(f"{table} has no column with the images' paths: {found}; name it one of {_listed(PATH_COLUMNS)}")
    if not _suffices(columns):
        raise FerError(
            f"{table} has neither labels nor votes: {found}; "
            f"name a label column one of {_listed(LABEL_COLUMNS)}, or give one column of votes a class"
        )
    same: dict[str, list[str]] = {role: names for role, names in columns.items() if role != "votes"}
    for name in columns["votes"]:
        if not no_expression(name):
            same.setdefault(f"votes for {expression(name) or plain(name)}", []).append(name)
    for thing, names in same.items():
        if len(names) > 1:
            raise FerError(f"{table} has {len(names)} columns for the {thing}: {', '.join(names)}; keep one of them")


def _tables_in(folder: Path) -> list[Path]:
    files = [entry.name for entry in _entries(folder) if entry.is_file() and not entry.name.startswith(".")]
    return [folder / name for name in files if _suffix(name) in TABLE_SUFFIXES]


def _only_table(folder: Path, wanted: Wanted | None) -> Path:
    """The table of `folder` that has the columns we need, or the only table there is."""
    tables = _tables_in(folder)
    fitting = [table for table in tables if _fits(table, wanted)] or tables
    if not fitting:
        raise FerError(f"{folder} holds no table; layout table needs a .csv, .tsv or .parquet file in it")
    if len(fitting) > 1:
        names = _listed([table.name for table in fitting], "and")
        raise FerError(f"{folder} holds {len(fitting)} tables, {names}; give the path of one of them as the source")
    return fitting[0]


def _header(table: Path) -> list[str]:
    """The names of the columns, as spelt there."""
    if _suffix(table.name) == "parquet":
        return list(_parquet_schema(table).names)
    text = _first_line(table)
    return next(csv.reader([text], delimiter=_separator(text)))


def _first_line(table: Path) -> str:
    with open(table, "rb") as file:
        line = file.readline(1 << 20)
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


def _read_columns(table: Path, header: Sequence[str], names: Sequence[str]) -> pd.DataFrame:
    """The named columns as text; None where a Parquet table has a null."""
    if _suffix(table.name) != "parquet":
        return _read_csv(table, header, names, _separator(_first_line(table)), skip_rows=1)
    schema = _parquet_schema(table)
    for name in names:
        kind = schema.field(name).type
        if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            raise FerError(f"{table}: column {name} holds {kind}; text or numbers are needed, and paths for images")
    content = pq.read_table(table, columns=list(names))
    return pd.DataFrame({name: content.column(name).cast(pa.string()).to_numpy() for name in names}, dtype=object)


def _parquet_schema(table: Path) -> pa.Schema:
    try:
        return pq.read_schema(table)
    except pa.ArrowInvalid:
        raise FerError(f"{table} is no Parquet file, or a damaged one; write it again") from None


def _read_csv(table: Path, header: Sequence[str], names: Sequence[str], separator: str, skip_rows: int) -> pd.DataFrame:
    """The named columns as text. pyarrow reads it, for it refuses the ragged rows that pandas fills up."""
    try:
        content = pyarrow.csv.read_csv(
            table,
            read_options=pyarrow.csv.ReadOptions(column_names=list(header), skip_rows=skip_rows),
            parse_options=pyarrow.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=list(names), column_types=dict.fromkeys(header, pa.string())
            ),
        )
    except pa.ArrowInvalid as error:
        reason = str(error).splitlines()[0].removeprefix("CSV parse error: ")
        raise FerError(f"{table} is not a well-formed table: {reason}") from None
    return pd.DataFrame({name: content.column(name).to_numpy() for name in names}, dtype=object)


def _texts(texts: pd.DataFrame, column: str | None) -> list[str | None]:
    """A column without surrounding space, None for what is empty or NaN; only None without a column."""
    if column is None:
        return [None] * len(texts)
    codes, spelt = pd.factorize(texts[column])
    known = [None if plain(text) in ("", "nan") else text.strip() for text in spelt]
    return np.array([*known, None], dtype=object)[codes].tolist()  # a null's code is -1


def _splits(names: Sequence[str | None]) -> list[str | None]:
    return [None if name is None else SPLITS.get(name.casefold(), name) for name in names]


def _checked_paths(table: Path, paths: pd.Series) -> list[str]:
    """Paths relative to the table, without `./`; FerError for missing ones, for those that lead out, and twins."""
    empty = paths.isna() | (paths == "")
    if empty.any():
        raise FerError(
            f"{table}: {_s(empty.sum(), 'row')} without a path (first row {empty.argmax() + 1}); fill or delete"
        )
    leading_out = paths.str.contains(r"^[/\\]|^[A-Za-z]:|(?:^|[/\\])\.\.(?:[/\\]|$)")
    if leading_out.any():
        first = paths[leading_out.argmax()]
        raise FerError(
            f"{table}: {_s(leading_out.sum(), 'path')} may lead out of its folder (first {first}); "
            "give paths below it, without `..`"
        )
    paths = pd.Series([posixpath.normpath(path) for path in paths], dtype=object)
    twins = paths.duplicated()
    if twins.any():
        first = paths[twins.argmax()]
        raise FerError(f"{table} names {_images(twins.sum())} again (first {first}); keep one row an image")
    return list(paths)


def _numbers(table: Path, files: Sequence[str], texts: pd.DataFrame) -> np.ndarray:
    """Votes (N, K) as float32; FerError for anything but finite numbers of 0 or more."""
    votes = np.stack([pd.to_numeric(texts[name], errors="coerce") for name in texts], axis=1).astype(np.float32)
    bad = ~(np.isfinite(votes) & (votes >= 0))
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise FerError(
            f"{table}: {_s(bad.any(axis=1).sum(), 'row')} with votes that are no numbers of 0 or more "
            f"(first {files[row]}: {texts.columns[column]} {texts.iat[row, column]!r}); correct them"
        )
    return votes


def _labels_from_votes(votes: np.ndarray, names: Sequence[str], rule: str) -> list[str | None]:
    """Label by votes (N, K), as `read_source` explains; no label on a draw or where no expression comes first."""
    largest = votes.max(axis=1)
    if rule == "majority":
        clear = largest > 0.5 * votes.sum(axis=1)
    else:
        clear = (largest > 0) & ((votes == largest[:, None]).sum(axis=1) == 1)
    labels = np.array(names, dtype=object)[votes.argmax(axis=1)]
    labels[~clear] = None
    return labels.tolist()


# --- layout `ferplus` -----------------------------------------------------------------------------------------


def ferplus_majority(votes: np.ndarray) -> np.ndarray:
    """The protocol's rule for validation and test (microsoft/FERPlus, src/ferplus.py, mode `majority`).

    votes: (N, 10) in the order of FERPLUS_COLUMNS. Single votes count as none; the column with more than half of
    the rest is the label. Returns (N,) indices into FERPLUS_CLASSES, -1 where the protocol drops the face.
    """
    kept = _without_single_votes(votes)
    label = kept.argmax(axis=1)
    clear = (kept.max(axis=1) > 0.5 * kept.sum(axis=1)) & (label < len(FERPLUS_CLASSES))
    return np.where(clear, label, -1)


def ferplus_distribution(votes: np.ndarray) -> np.ndarray:
    """The protocol's rule for training (mode `crossentropy`, which is also `probability`).

    votes: (N, 10) in the order of FERPLUS_COLUMNS. Without single votes, the largest columns are taken, equal ones
    together, until they hold 75 % of the rest, are three, or `unknown` or `NF` is reached. Returns (N, 8) float64
    in the order of FERPLUS_CLASSES, each row's sum 1; or 0 where the protocol drops the face: half of the votes or
    fewer taken, or more than three columns.
    """
    left = _without_single_votes(votes)
    total = left.sum(axis=1)
    taken = np.zeros_like(left)
    going = total > 0
    for _ in range(3):
        going = going & (taken.sum(axis=1) < 0.75 * total) & ((taken > 0).sum(axis=1) < 3)
        next_ones = (left == left.max(axis=1, keepdims=True)) & going[:, None]
        taken[next_ones] = left[next_ones]
        left[next_ones] = 0
        going &= ~next_ones[:, len(FERPLUS_CLASSES) :].any(axis=1)
    # What goes to `unknown` or `NF` never counts as covered: where one leads, the face is dropped either way.
    taken = taken[:, : len(FERPLUS_CLASSES)]
    kept = (taken.sum(axis=1) > 0.5 * total) & ((taken > 0).sum(axis=1) <= 3)
    return np.divide(taken, taken.sum(axis=1, keepdims=True), out=np.zeros_like(taken), where=kept[:, None])


def _without_single_votes(votes: np.ndarray) -> np.ndarray:
    votes = np.asarray(votes, dtype=np.float64)
    return np.where(votes <= 1, 0, votes)


def _is_ferplus(path: Path) -> bool:
    return any((path / folder).is_dir() for folder in FERPLUS_FOLDERS)


def _read_ferplus(path: Path, wanted: Wanted | None, label_rule: str) -> Listing:
    """FER2013Train, FER2013Valid and FER2013Test, each with label.csv, or fer2013new.csv beside them."""
    folders = [folder for folder in FERPLUS_FOLDERS if (path / folder).is_dir()]
    if not folders:
        raise FerError(f"{path} is not the FER+ release: it has none of the folders {', '.join(FERPLUS_FOLDERS)}")
    files: list[str] = []
    labels: list[str | None] = []
    splits: list[str | None] = []
    votes, notes = [], []
    for folder in folders:
        table, rows, table_notes = _ferplus_table(path, folder)
        found = _images_below(path, {folder})
        paths = [f"{folder}/{name}" for name in _checked_paths(table, rows["name"])]
        paths, path_notes = _located(table, path, paths, found)
        counts = _numbers(table, paths, rows[list(FERPLUS_COLUMNS)])
        split = FERPLUS_FOLDERS[folder]
        if label_rule == "votes" and split == "train":
            rule = "the vote-distribution rule"
            distribution = ferplus_distribution(counts)
            label = np.where(distribution.any(axis=1), distribution.argmax(axis=1), -1)
        else:
            rule = "the majority rule"
            label = ferplus_majority(counts)
        files += paths
        labels += np.array([*FERPLUS_CLASSES, None], dtype=object)[label].tolist()
        splits += [split] * len(paths)
        votes.append(counts)
        kept = int((label >= 0).sum())
        notes.append(f"{folder} is {split}, by {table.name}: {rule} keeps {_s(kept, 'label')} of {len(paths):,}.")
        notes += table_notes + path_notes + found.notes(path / folder)
    for folder in FERPLUS_FOLDERS:
        if folder not in folders:
            notes.append(f"{folder} is absent, so there is no {FERPLUS_FOLDERS[folder]} as published.")
    return Listing(path, path, files, labels, splits, None, np.concatenate(votes), FERPLUS_COLUMNS, notes)


def _ferplus_table(path: Path, folder: str) -> tuple[Path, pd.DataFrame, list[str]]:
    """The table that labels `folder`, its rows as text (name and ten votes), and notes."""
    table = path / folder / "label.csv"
    if table.is_file():
        header = ["name", "box", *FERPLUS_COLUMNS]
        return table, _read_csv(table, header, ["name", *FERPLUS_COLUMNS], ",", skip_rows=0), []
    table = path / "fer2013new.csv"
    if not table.is_file():
        raise FerError(f"{path / folder} has no label.csv, and no fer2013new.csv lies beside the folder; add one")
    header = _header(table)
    needed = ["Usage", "Image name", *FERPLUS_COLUMNS]
    if set(needed) - set(header):
        raise FerError(f"{table} is not FER+'s table: found {', '.join(header)}; needed {', '.join(needed)}")
    rows = _read_columns(table, header, needed)
    rows = rows[rows["Usage"] == FERPLUS_USAGES[folder]].rename(columns={"Image name": "name"})
    named = rows[rows["name"] != ""]
    # The release gives a few names twice, and its script wrote the later picture over the earlier one.
    once = named.drop_duplicates("name", keep="last")
    notes = []
    if len(once) < len(rows):
        notes.append(
            f"Left out of fer2013new.csv for {folder}: {_s(len(rows) - len(named), 'row')} without a file and "
            f"{_s(len(named) - len(once), 'row')} whose file a later row replaces."
        )
    return table, once.reset_index(drop=True), notes


# --- layout `identities` --------------------------------------------------------------------------------------


def _identities(path: Path) -> Source:
    """A folder a person, or a table whose `label` is a person; names are taken as they are, whatever they mean.

    Without splits all is train: validation is then carved from every person's pictures, and nobody is held out.
    """
    is_table = path.is_file() or any(_fits(table, None) for table in _tables_in(path))
    listing = (_read_table if is_table else _read_folders)(path, None, "majority")
    # names that are not UTF-8 could not be written down
    names = [n and n.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") for n in listing.labels]
    people = tuple(sorted({name for name in names if name}))
    if len(people) < 2:
        raise FerError(f"{path} shows {_s(len(people), 'person')}; give a folder a person, two or more of them")
    nowhere = all(split is None for split in listing.splits)
    columns = {
        "file": listing.files,
        "label": names,
        "votes": [None] * len(names),
        "votes_other": [None] * len(names),
        "split": ["train"] * len(names) if nowhere else listing.splits,
        # the person is the label; carving validation by person would leave nothing to judge by
        "group": [None] * len(names),
    }
    rows = pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})
    read = f"Read {listing.where} as layout identities: {_images(len(rows))} of {len(people):,} people."
    return Source(listing.root, "identities", people, rows, (read, *listing.notes))


# --- files ----------------------------------------------------------------------------------------------------


@dataclass
class Found:
    """The images below a folder, and what was not taken."""

    files: list[str]  # POSIX paths, sorted
    links_out: set[str]  # links to files or folders outside
    linked_folders: int = 0  # links to folders inside
    not_files: int = 0  # folders, pipes ... named like images

    def ignored(self) -> str:
        counts = {
            "link that leads out of the source": len(self.links_out),
            "link to a folder of the source": self.linked_folders,
            "non-file named like an image": self.not_files,
        }
        return ", ".join(f"{count:,} x {what}" for what, count in counts.items() if count)

    def notes(self, root: Path) -> list[str]:
        return [f"Ignored below {root}: {self.ignored()}."] if self.ignored() else []


def _images_below(root: Path, tops: set[str] | None = None) -> Found:
    """Walk `root`; of its own entries only those in `tops`, if given. Hidden files and folders are passed over."""
    real = os.path.realpath(root)
    found = Found([], set())
    waiting = [""]
    while waiting:
        below = waiting.pop()
        for entry in _entries(root / below):
            file = below + entry.name
            if entry.name.startswith(".") or (not below and tops is not None and entry.name not in tops):
                continue
            is_image = _suffix(entry.name) in IMAGE_SUFFIXES
            if entry.is_symlink():
                if not (is_image or entry.is_dir()):
                    continue
                if not _is_inside(real, entry.path):
                    found.links_out.add(file)
                    continue
                if entry.is_dir():  # not followed: it would give images a second name, or go round in circles
                    found.linked_folders += 1
                    continue
            elif entry.is_dir() and not is_image:
                waiting.append(file + "/")
            elif is_image and not entry.is_file():
                found.not_files += 1
                continue
            if is_image:
                found.files.append(file)
    found.files.sort()
    return found


def _located(table: Path, root: Path, files: list[str], found: Found) -> tuple[list[str], list[str]]:
    """The files that a table names, below `images/` if they lie there, and notes. Missing files stay in."""
    names = pd.Series(files, dtype=object)
    there = names.isin(found.files)
    below_images = ("images/" + names).isin(found.files)
    if below_images.sum() > there.sum():
        names, there = "images/" + names, below_images
    real = os.path.realpath(root)
    missing, outside = [], []
    for name in names[~there]:  # also pictures in formats that the walk does not know
        if not os.path.exists(root / name):
            missing.append(name)
        elif not _is_inside(real, root / name):
            outside.append(name)
    if outside:
        raise FerError(
            f"{table} names {_images(len(outside))} behind links that lead out of {root} "
            f"(first {_shown(outside[0])}); copy them into it"
        )
    if len(missing) == len(files):
        raise FerError(
            f"{table} names {_images(len(files))}, and none is there (first {_shown(missing[0])}); "
            "put them where it says, relative to its folder"
        )
    notes = []
    if missing:
        notes.append(f"Missing: {_images(len(missing))} that {table} names (first {_shown(missing[0])}).")
    more = len(set(found.files).difference(names))
    if more:
        notes.append(f"Left out: {_images(more)} that {table} does not name.")
    return list(names), notes


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder by name; FerError if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise FerError(f"{folder} cannot be read: {error.strerror}; mend that or give another folder") from error


def _is_inside(real_root: str, path: str | Path) -> bool:
    return os.path.realpath(path).startswith(real_root.rstrip("/") + "/")


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].casefold()


def _shown(name: str) -> str:
    """A file's name fit to print, also if it is not UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _s(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _images(count: int) -> str:
    return _s(count, "image")


def _listed(names: Iterable[str], last: str = "or") -> str:
    *most, final = names
    return f"{', '.join(most)} {last} {final}" if most else final


class Layout(NamedTuple):
    recognises: Callable[[Path], bool]
    reads: Callable[[Path, Wanted | None, str], Listing]


# Asked in this order: any folder of images can pass for class folders.
LAYOUTS = {
    "ferplus": Layout(_is_ferplus, _read_ferplus),
    "table": Layout(_is_table, _read_table),
    "folders": Layout(Path.is_dir, _read_folders),
    # never recognised: names of people look like any others. Read by `_identities`, without a vocabulary
    "identities": Layout(lambda path: False, _read_folders),
}


# --- splits ---------------------------------------------------------------------------------------------------


def assign_splits(
    rows: pd.DataFrame, val_from_train: float | None = None, seed: int = 0
) -> tuple[pd.DataFrame, list[str]]:
    """Rows of a Source with a split each, as given or carved by `seed`, and sentences about what was done.

    Without any split, 20 % of the labelled faces become test and 10 % val; where only val is missing, it is 10 % of
    the labelled training faces. `val_from_train`, a share, carves val in any case; the source's own val then is
    named test, or val-given if there is a test. Carving is stratified by label and never divides a group; the
    result does not depend on the order of the rows. Faces without a label stay in train unless their group leaves.
    """
    if val_from_train is not None and not 0 < val_from_train < 1:
        raise FerError(f"--val-from-train {val_from_train} is no share; give a number between 0 and 1")
    rows = rows.copy()
    notes = []
    absent = rows["split"].isna()
    given = set(rows["split"][~absent])
    rows["split"] = rows["split"].where(~absent, "train").astype(object)
    labelled = int(rows["label"].notna().sum())
    if absent.all():
        notes.append("The source gives no splits.")
        notes += _carve(rows, "test", round(TEST_SHARE * labelled), seed)
    elif absent.any():
        notes.append(f"Put into train: {_images(absent.sum())} without a split.")
    if "val" in given and val_from_train is not None:
        kept_as = "val-given" if "test" in given else "test"
        rows.loc[rows["split"] == "val", "split"] = kept_as
        notes.append(f"The source's own val is named {kept_as}, as val is carved from train.")
    if "val" not in given or val_from_train is not None:
        in_train = int(((rows["split"] == "train") & rows["label"].notna()).sum())
        whole = labelled if absent.all() and val_from_train is None else in_train
        notes += _carve(rows, "val", round((val_from_train or VAL_SHARE) * whole), seed)
    if "test" not in set(rows["split"]):
        notes.append("There is no test split.")
    if rows["group"].notna().any():
        divided = int((rows.groupby("group")["split"].nunique() > 1).sum())
        if divided:
            notes.append(f"The given splits share people: {_s(divided, 'group')} in more than one.")
    return rows, notes


def _carve(rows: pd.DataFrame, name: str, count: int, seed: int) -> list[str]:
    """Move about `count` labelled faces of train to the split `name`, in place; says what was done."""
    faces = rows[(rows["split"] == "train") & rows["label"].notna()].sort_values("file")
    by_group = bool(faces["group"].notna().any())
    chosen = (_choose_groups if by_group else _choose_faces)(faces, count, seed)
    if not len(chosen):
        reason = "one group holds all of" if by_group else "no class has two of"
        return [f"No {name} was carved: {reason} the {len(faces):,} labelled training faces."]
    rows.loc[chosen.index, "split"] = name
    if by_group:
        groups = chosen["group"].dropna().unique()
        rows.loc[(rows["split"] == "train") & rows["group"].isin(groups), "split"] = name
    how = "stratified by label" + (" without dividing a group" if by_group else "")
    notes = [f"Carved {name}: {len(chosen):,} of {len(faces):,} labelled training faces, {how}, seed {seed}."]
    left = faces.drop(chosen.index)
    for split, part in ((name, chosen), ("train", left)):
        lacking = sorted(set(faces["label"]) - set(part["label"]))
        if lacking:
            if len(lacking) > 10:
                lacking = [*lacking[:9], f"{len(lacking) - 9:,} others"]
            notes.append(f"{split} has no face of {_listed(lacking, 'and')}: too few to divide.")
    return notes


def _choose_faces(faces: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """About `count` of the faces, by label; a class of a single face stays behind."""
    divisible = faces[faces.groupby("label")["file"].transform("size") > 1]
    classes = divisible["label"].nunique()
    if not classes:
        return divisible
    # scikit-learn insists on room for every class on both sides
    count = min(max(count, classes), len(divisible) - classes)
    return train_test_split(divisible, test_size=count, random_state=seed, stratify=divisible["label"])[1]


def _choose_groups(faces: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """Whole groups with about `count` faces, by label; a face without a group is a group by itself."""
    groups = pd.factorize(faces["group"])[0]
    alone = groups < 0
    groups[alone] = groups.max() + 1 + np.arange(alone.sum())
    # scikit-learn refuses more folds than the largest class has faces; more than groups would be empty
    most = min(len(set(groups)), faces["label"].value_counts().max())
    if most < 2:
        return faces.iloc[:0]
    folds = min(max(round(len(faces) / max(count, 1)), 2), most)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # it warns of classes with fewer faces than folds; `_carve` says which split lacks them
        warnings.simplefilter("ignore", UserWarning)
        parts = [part for _, part in splitter.split(faces, faces["label"], groups) if len(part)]
    # groups differ in size, and a fold may even be empty
    return faces.iloc[min(parts, key=lambda part: abs(len(part) - count))]
