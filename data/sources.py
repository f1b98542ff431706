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

import numpy as np

from efficientface import FerError
from efficientface.data.columns import computed
from efficientface.data.labels import CLASS_SETS, Wanted, class_of, expression, no_expression, ordered
from efficientface.data.layouts import LAYOUTS
from efficientface.data.layouts.files import entries, images, listed, plural, shown
from efficientface.data.layouts.listing import Asked, Listing
from efficientface.data.layouts.published import PUBLISHED, Published
from efficientface.data.photos import Photos
from efficientface.data.words import Words, changed, counted

LABEL_RULES = ("majority", "votes")


@dataclass(frozen=True)
class Rows:
    """N images, in the order of the source, as columns that may be mapped."""

    file: Words  # POSIX path relative to root, as distributed
    label: Words  # name of a class, or None
    split: Words  # train, val, test or the source's own word for another one, or None where it does not say
    group: Words | None = None  # the person shown, as text, or None
    votes: np.ndarray | None = None  # (N, C) float32, people's raw counts in the order of `classes`; may be all zeros
    votes_other: np.ndarray | None = None  # (N, 2) float32, raw counts for [unknown, not a face]
    box: np.ndarray | None = None  # (N, 4) x1, y1, x2, y2 in pixels of the face that the label is about, or NaN

    def __len__(self) -> int:
        return len(self.file)


@dataclass(frozen=True)
class Source:
    """A source of photographs, read."""

    root: Path
    layout: str
    classes: tuple[str, ...]  # in the order of EXPRESSIONS, other names behind
    photos: Photos
    rows: Rows
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
    people = tuple(sorted(name for name in counted(listing.labels) if name))
    rows = Rows(listing.files, listing.labels, listing.splits)
    read = f"Read {listing.where} as layout identities: {images(len(rows))} of {len(people):,} people."
    return Source(listing.root, "identities", people, listing.photos, rows, (read, *listing.notes))


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
        votes = _summed(listing.votes, found, classes)
        others = [no_expression(name) for name in listing.vote_names]
        if any(others):
            votes_other = _summed(listing.votes, others, ("unknown", "not a face"))
        dropped = [n for n, a, b in zip(listing.vote_names, found, others, strict=True) if not (a or b)]
        if dropped:
            notes.append(f"Votes left out as not among --classes: {', '.join(dropped)}.")
    rows = Rows(listing.files, labels, listing.splits, listing.groups, votes, votes_other, listing.boxes)
    unlabelled = int(labels.missing().sum())
    if unlabelled:
        notes.append(f"Without a label: {images(unlabelled)} of {len(labels):,}.")
    notes.insert(0, f"Read {listing.where} as layout {layout}: {images(len(rows))}, {len(classes)} classes.")
    notes += listing.notes
    if published := listing.published or _nearly_published(rows, classes):
        notes += _beside_published(published, rows, classes)
    return Source(listing.root, layout, classes, listing.photos, rows, tuple(notes))


def _summed(votes: np.ndarray, names: Sequence[str | None], wanted: Sequence[str]) -> np.ndarray:
    """(N, C) float32: of votes (N, K) the columns that have the wanted names, or their sums."""
    places = np.array([[name == one for one in wanted] for name in names], np.float32)
    return computed(len(votes), lambda rows: votes[rows] @ places)


def _fold_labels(listing: Listing, wanted: Wanted | None) -> tuple[Words, set[str], list[str]]:
    """Labels by our names, the set of those that occur, and notes; FerError for a name that means nothing."""
    counts = counted(listing.labels)
    counts.pop(None, None)
    folded: dict[str, str | None] = {}
    unknown: list[str] = []
    out_of_range: list[str] = []
    left_out: dict[str, str] = {}
    order, notes = (wanted.order, []) if wanted else _order_by_counts(listing)
    for spelt in counts:
        if wanted and (folded_name := wanted.find(spelt)):
            folded[spelt] = folded_name
            continue
        name: str | None = spelt
        if (place := _number(spelt)) is not None:
            name = order[place] if 0 <= place < len(order) else None
        if name is None:
            out_of_range.append(spelt)
            continue
        folded[spelt] = class_of(name, wanted)
        if folded[spelt] is None and no_expression(name) is None:
            if known := expression(name):
                left_out[spelt] = known
            else:
                unknown.append(spelt)

    def offenders(bad: list[str]) -> str:
        others = "" if len(bad) == 1 else f"; {plural(len(bad) - 1, 'other label')} too"
        first = shown(listing.files[int((listing.labels == bad[0]).argmax())])
        return f"label {bad[0]!r} of {images(counts[bad[0]])} (first {first}{others})"

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
        count = sum(counts[spelt] for spelt in left_out)
        left_names = ", ".join(sorted(set(left_out.values())))
        notes.append(f"Label left out as not among --classes: {images(count)} of {left_names}.")
    return changed(listing.labels, folded.get), {name for name in folded.values() if name}, notes


def _number(label: str) -> int | None:
    return int(float(label)) if re.fullmatch(r"[+-]?\d+(\.0*)?", label.strip()) else None


def _order_by_counts(listing: Listing) -> tuple[tuple[str | None, ...], list[str]]:
    """The order of integer labels if it shows: one by which train has a data set's published counts to the image."""
    counts: Counter[int | None] = Counter()
    for label, count in counted(listing.labels[listing.splits == "train"]).items():
        if label is not None:
            counts[_number(label)] += count
    for published, (name, known) in product(PUBLISHED, CLASS_SETS.items()):
        expected = published.labels.get("train", {})
        places = {place: expected.get(name) for place, name in enumerate(known.order) if name in known.classes}
        if counts and counts == places:
            listing.published = published
            return known.order, [f"Numbered as {name}: so train has the published counts of {published.name}."]
    return (), []


def _nearly_published(rows: Rows, classes: tuple[str, ...]) -> Published | None:
    """The data set of which these may be a copy: in train every class has its published count, to within a tenth."""
    found = counted(rows.label[rows.split == "train"])
    for published in PUBLISHED:
        stated = published.labels.get("train", {})
        if set(classes) <= stated.keys() and all(
            abs(found[name] - stated[name]) <= stated[name] / 10 for name in classes
        ):
            return published
    return None


def _beside_published(published: Published, rows: Rows, classes: tuple[str, ...]) -> list[str]:
    """A sentence: the counts found, split by split, and the published ones where they differ; none of other classes."""
    parts, differs = [], False
    for split in published.labels or published.images:
        here = counted(rows.label[rows.split == split])
        expected = {name: count for name, count in published.labels.get(split, {}).items() if name in classes}
        found = {name: here[name] for name in expected}
        if published.labels and not expected:
            return []
        total, stated = (
            (sum(found.values()), sum(expected.values())) if found else (here.total(), published.images[split])
        )
        part = f"{split} {total:,}"
        if total != stated or found != expected:
            differs = True
            part += f", published {stated:,}"
        if found != expected:
            name = max(expected, key=lambda name: abs(found[name] - expected[name]))
            part += f" ({name} {found[name]:,}, published {expected[name]:,})"
        parts.append(part)
    return [f"{'Not as' if differs else 'As'} published for {published.name}: {'; '.join(parts)}."]
