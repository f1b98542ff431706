"""FER+ (microsoft/FERPlus): FER2013's images with the votes of ten people, and its own rules from votes to labels."""

from pathlib import Path

import numpy as np

from efficientface import FerError
from efficientface.data.layouts.fer2013 import PixelRows, read_pixels
from efficientface.data.layouts.files import images_below, located, plural
from efficientface.data.layouts.listing import Asked, Listing
from efficientface.data.layouts.published import FERPLUS, FERPLUS_MAJORITY
from efficientface.data.layouts.tables import Texts, checked_paths, header_of, read_columns, read_csv, vote_counts
from efficientface.data.words import decoded, gathered, joined, repeated

# The release's own order; unknown and NF (not a face) close the ten columns.
FERPLUS_CLASSES = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
FERPLUS_COLUMNS = (*FERPLUS_CLASSES, "unknown", "NF")
FERPLUS_FOLDERS = {"FER2013Train": "train", "FER2013Valid": "val", "FER2013Test": "test"}
FERPLUS_USAGES = {"FER2013Train": "Training", "FER2013Valid": "PublicTest", "FER2013Test": "PrivateTest"}


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


def is_ferplus(path: Path) -> bool:
    return any((path / folder).is_dir() for folder in FERPLUS_FOLDERS) or _has_both_tables(path)


def _has_both_tables(path: Path) -> bool:
    return all((path / table).is_file() for table in ("fer2013.csv", "fer2013new.csv"))


def read_ferplus(path: Path, asked: Asked) -> Listing:
    """FER2013Train, FER2013Valid and FER2013Test, each with label.csv, or fer2013new.csv beside them.

    Where there are no images yet, they are taken out of fer2013.csv under the names that fer2013new.csv gives.
    """
    pixels = _pixels(path) if _has_both_tables(path) and not len(images_below(path, set(FERPLUS_FOLDERS)).files) else {}
    folders = [folder for folder in FERPLUS_FOLDERS if pixels or (path / folder).is_dir()]
    if not folders:
        raise FerError(f"{path} is not the FER+ release: it has none of the folders {', '.join(FERPLUS_FOLDERS)}")
    listing = Listing(path, path, vote_names=FERPLUS_COLUMNS, published=FERPLUS)
    votes, notes = [], listing.notes
    for folder in folders:
        table, rows, table_notes = _ferplus_table(path, folder)
        found = images_below(path, {folder})
        found.files = joined([found.files, sorted(name for name in pixels if name.startswith(folder))])
        paths = gathered(f"{folder}/{name}" for name in checked_paths(table, rows["name"]))
        paths, path_notes = located(table, path, paths, found)
        counts = vote_counts(table, paths, {name: rows[name] for name in FERPLUS_COLUMNS})
        split = FERPLUS_FOLDERS[folder]
        if asked.label_rule == "votes" and split == "train":
            rule = "the vote-distribution rule"
            distribution = ferplus_distribution(counts)
            label = np.where(distribution.any(axis=1), distribution.argmax(axis=1), -1)
        else:
            rule = "the majority rule"
            label = ferplus_majority(counts)
        listing.add(paths, decoded(label, FERPLUS_CLASSES), repeated(split, len(paths)))
        votes.append(counts)
        kept = int((label >= 0).sum())
        told = f"{folder} is {split}, by {table.name}: {rule} keeps {plural(kept, 'label')} of {len(paths):,}"
        if rule == "the majority rule" and table.name == "label.csv":
            stated = FERPLUS_MAJORITY[split]
            told += ", as published" if kept == stated else f", published {stated:,}"
        notes.append(f"{told}.")
        notes += table_notes + path_notes + found.notes(path / folder)
    for folder in FERPLUS_FOLDERS:
        if folder not in folders:
            notes.append(f"{folder} is absent, so there is no {FERPLUS_FOLDERS[folder]} as published.")
    listing.votes = np.concatenate(votes)
    if pixels:
        notes.append("The images are taken out of fer2013.csv.")
        listing.stored = PixelRows(pixels)
    return listing


def _pixels(path: Path) -> dict[str, bytes | None]:
    """Pixels by file, as the release's script would have written it: row i of either table is the same image."""
    rows = read_pixels(path / "fer2013.csv")
    table = path / "fer2013new.csv"
    names = read_columns(table, header_of(table), ["Usage", "Image name"])
    if len(rows) != (named := len(names["Usage"])):
        raise FerError(
            f"{path / 'fer2013.csv'} has {len(rows):,} rows and {table.name} {named:,}; they go together row by "
            "row, so give both complete"
        )
    folders = {usage: folder for folder, usage in FERPLUS_USAGES.items()}
    # a later row of the same name overwrites, as it does on disk
    return {
        f"{folders[usage]}/{name}": pixels
        for usage, name, pixels in zip(names["Usage"], names["Image name"], rows["pixels"], strict=True)
        if name and usage in folders
    }


def _ferplus_table(path: Path, folder: str) -> tuple[Path, Texts, list[str]]:
    """The table that labels `folder`, its rows as text (name and ten votes), and notes."""
    table = path / folder / "label.csv"
    if table.is_file():
        header = ["name", "box", *FERPLUS_COLUMNS]
        return table, read_csv(table, header, ["name", *FERPLUS_COLUMNS], ",", skip_rows=0), []
    table = path / "fer2013new.csv"
    if not table.is_file():
        raise FerError(f"{path / folder} has no label.csv, and no fer2013new.csv lies beside the folder; add one")
    header = header_of(table)
    needed = ["Usage", "Image name", *FERPLUS_COLUMNS]
    if set(needed) - set(header):
        raise FerError(f"{table} is not FER+'s table: found {', '.join(header)}; needed {', '.join(needed)}")
    columns = read_columns(table, header, needed)
    columns["name"] = columns.pop("Image name")
    its_own = columns["Usage"] == FERPLUS_USAGES[folder]
    named = its_own & (columns["name"] != "")
    # The release gives a few names twice, and its script wrote the later picture over the earlier one.
    last = {name: row for row, name in enumerate(columns["name"]) if named[row]}
    once = np.sort(np.fromiter(last.values(), int))
    notes = []
    if len(once) < its_own.sum():
        notes.append(
            f"Left out of fer2013new.csv for {folder}: {plural((its_own & ~named).sum(), 'row')} without a file and "
            f"{plural(named.sum() - len(once), 'row')} whose file a later row replaces."
        )
    return table, {name: column[once] for name, column in columns.items()}, notes
