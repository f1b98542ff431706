"""Labelled photographs as they are distributed -> one row an image: file, label, votes, split, group.

What each data set looks like is in data/layouts/. Names of classes, missing labels, the order of classes and the
published counts are dealt with here, for every layout.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from efficientface import FerError
from efficientface.data.labels import CLASS_SETS, Wanted, class_of, expression, no_expression, ordered
from efficientface.data.layouts import LAYOUTS
from efficientface.data.layouts.files import entries, images, listed, plural, shown
from efficientface.data.layouts.listing import Asked, Listing
from efficientface.data.layouts.published import PUBLISHED, Published
from efficientface.data.photos import Photos

LABEL_RULES = ("majority", "votes")


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
      box          x1, y1, x2, y2 in pixels of the face that the label is about, or None
    """

    root: Path
    layout: str
    classes: tuple[str, ...]  # in the order of EXPRESSIONS, other names behind
    photos: Photos
    rows: pd.DataFrame
    notes: tuple[str, ...]  # sentences for the user: what was recognised, what was ignored
    address: str = ""  # of `root`, where that is not on this machine
    file: str = ""  # in `root`, where that was asked for and not the whole folder


def read_source(
    path: Path,
    layout: str | None = None,
    classes: Sequence[str] | None = None,
    label_rule: str = "majority",
    aligned: bool = False,
) -> Source:
    """Read a folder of photographs or a table that names them; nothing is opened but tables.

    layout: a key of LAYOUTS; recognised when None.
    classes: the class names, for sources with other expressions than ours or with integer labels, whose order
      they then give, or a single key of CLASS_SETS; those of EXPRESSIONS that occur when None.
    label_rule: how votes become a label where the source has no label of its own. `majority`: the class with more
      than half of the votes, otherwise none. `votes`: the class with the most. FER+ has its own two rules, see
      `ferplus_majority` and `ferplus_distribution`; `votes` then concerns training faces only.
    aligned: read the faces that a source's own authors aligned, where it has these beside the photographs.
    """
    path = Path(path)
    if layout is not None and layout not in LAYOUTS:
        raise FerError(f"{layout!r} is not a layout; give one of {listed(LAYOUTS)}")
    if label_rule not in LABEL_RULES:
        raise FerError(f"{label_rule!r} is not a rule for labels; give one of {listed(LABEL_RULES)}")
    if not path.exists():
        raise FerError(f"{path} does not exist; give a folder of photographs or a table that names them")
    if path.is_dir() and not entries(path):
        raise FerError(f"{path} is an empty folder; give a folder of photographs or a table that names them")
    wanted = None if classes is None else Wanted.read(classes)
    if layout is None:
        layout = next((name for name, known in LAYOUTS.items() if known.recognises(path)), None)
    if layout is None:
        raise FerError(f"{path} is no table of photographs; give a .csv, .tsv, .parquet or .jsonl file, or a folder")
    listing = LAYOUTS[layout].reads(path, Asked(wanted, label_rule, aligned))
    source = _of_people(listing) if layout == "identities" else _source(listing, layout, wanted)
    return replace(source, file=os.path.relpath(path, source.root)) if path.is_file() else source


def _of_people(listing: Listing) -> Source:
    people = tuple(sorted({name for name in listing.labels if name}))
    nothing = [None] * len(listing.files)
    rows = _rows(listing, listing.labels, votes=nothing, votes_other=nothing)
    read = f"Read {listing.where} as layout identities: {images(len(rows))} of {len(people):,} people."
    return Source(listing.root, "identities", people, listing.photos, rows, (read, *listing.notes))


def _rows(listing: Listing, labels: list[str | None], votes: list[Any], votes_other: list[Any]) -> pd.DataFrame:
    columns = {
        "file": listing.files,
        "label": labels,
        "votes": votes,
        "votes_other": votes_other,
        "split": listing.splits,
        "group": listing.groups or [None] * len(labels),
        "box": listing.boxes or [None] * len(labels),
    }
    # dtype object throughout: pandas' own strings turn None into NaN and refuse names that are not UTF-8
    return pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})


def _source(listing: Listing, layout: str, wanted: Wanted | None) -> Source:
    labels, names, notes = _fold_labels(listing, wanted)
    votes, votes_other = None, None
    found = [class_of(name, wanted) for name in listing.vote_names]
    names |= {name for name in found if name}
    classes = wanted.classes if wanted else ordered(names)
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
    rows = _rows(listing, labels, _each(votes, len(labels)), _each(votes_other, len(labels)))
    unlabelled = sum(label is None for label in labels)
    if unlabelled:
        notes.append(f"Without a label: {images(unlabelled)} of {len(labels):,}.")
    notes.insert(0, f"Read {listing.where} as layout {layout}: {images(len(rows))}, {len(classes)} classes.")
    notes += listing.notes
    if published := listing.published or _nearly_published(rows, classes):
        notes += _beside_published(published, rows, classes)
    return Source(listing.root, layout, classes, listing.photos, rows, tuple(notes))


def _fold_labels(listing: Listing, wanted: Wanted | None) -> tuple[list[str | None], set[str], list[str]]:
    """Labels by our names, the set of those that occur, and notes; FerError for a name that means nothing."""
    codes, spelt = pd.factorize(pd.Series(listing.labels, dtype=object))
    # one more entry, so that the code -1 of a missing label finds None
    folded = np.full(len(spelt) + 1, None, dtype=object)
    unknown, out_of_range = [], []
    left_out: dict[int, str] = {}
    order, notes = (wanted.order, []) if wanted else _order_by_counts(listing)
    for code, name in enumerate(spelt):
        if wanted and (folded_name := wanted.find(name)):
            folded[code] = folded_name
            continue
        if (place := _number(name)) is not None:
            name = order[place] if 0 <= place < len(order) else None
            if name is None:
                out_of_range.append(code)
                continue
        folded[code] = class_of(name, wanted)
        if folded[code] is None and no_expression(name) is None:
            if known := expression(name):
                left_out[code] = known
            else:
                unknown.append(code)

    def offenders(bad: list[int]) -> str:
        hits = codes == bad[0]
        others = "" if len(bad) == 1 else f"; {plural(len(bad) - 1, 'other label')} too"
        first = shown(listing.files[int(hits.argmax())])
        return f"label {spelt[bad[0]]!r} of {images(hits.sum())} (first {first}{others})"

    if out_of_range and wanted is None:
        raise FerError(
            f"{listing.where}: {offenders(out_of_range)}: the order of integer labels is unknown; give --classes with "
            f"the class names in that order, beginning with the name of 0, or one of {listed(CLASS_SETS)}"
        )
    if out_of_range:
        named = [place for place, name in enumerate(order) if name is not None]
        raise FerError(
            f"{listing.where}: {offenders(out_of_range)}: integer labels must lie between {named[0]} and {named[-1]}, "
            f"as --classes has {len(named)} names"
        )
    if unknown:
        raise FerError(
            f"{listing.where}: {offenders(unknown)} is no known expression; "
            "give --classes with the names of all classes"
        )
    if left_out:
        count = int(np.isin(codes, list(left_out)).sum())
        left_names = ", ".join(sorted(set(left_out.values())))
        notes.append(f"Label left out as not among --classes: {images(count)} of {left_names}.")
    return folded[codes].tolist(), {name for name in folded if name}, notes


def _number(label: str) -> int | None:
    return int(float(label)) if re.fullmatch(r"[+-]?\d+(\.0*)?", label.strip()) else None


def _order_by_counts(listing: Listing) -> tuple[tuple[str | None, ...], list[str]]:
    """The order of integer labels if it shows: one by which train has a data set's published counts to the image."""
    train = [label for label, split in zip(listing.labels, listing.splits, strict=True) if split == "train" and label]
    counts = Counter(map(_number, train))
    for published, (name, known) in product(PUBLISHED, CLASS_SETS.items()):
        expected = published.labels.get("train", {})
        places = {place: expected.get(name) for place, name in enumerate(known.order) if name in known.classes}
        if counts and counts == places:
            listing.published = published
            return known.order, [f"Numbered as {name}: so train has the published counts of {published.name}."]
    return (), []


def _nearly_published(rows: pd.DataFrame, classes: tuple[str, ...]) -> Published | None:
    """The data set of which these may be a copy: in train every class has its published count, to within a tenth."""
    found = rows[rows["split"] == "train"]["label"].value_counts()
    for published in PUBLISHED:
        stated = published.labels.get("train", {})
        if set(classes) <= stated.keys() and all(
            abs(found.get(name, 0) - stated[name]) <= stated[name] / 10 for name in classes
        ):
            return published
    return None


def _beside_published(published: Published, rows: pd.DataFrame, classes: tuple[str, ...]) -> list[str]:
    """A sentence: the counts found, split by split, and the published ones where they differ; none of other classes."""
    parts, differs = [], False
    for split in published.labels or published.images:
        here = rows[rows["split"] == split]
        expected = {name: count for name, count in published.labels.get(split, {}).items() if name in classes}
        found = {name: int((here["label"] == name).sum()) for name in expected}
        if published.labels and not expected:
            return []
        total, stated = (sum(found.values()), sum(expected.values())) if found else (len(here), published.images[split])
        part = f"{split} {total:,}"
        if total != stated or found != expected:
            differs = True
            part += f", published {stated:,}"
        if found != expected:
            name = max(expected, key=lambda name: abs(found[name] - expected[name]))
            part += f" ({name} {found[name]:,}, published {expected[name]:,})"
        parts.append(part)
    return [f"{'Not as' if differs else 'As'} published for {published.name}: {'; '.join(parts)}."]


def _each(array: np.ndarray | None, count: int) -> list[np.ndarray | None]:
    return [None] * count if array is None else list(array)
