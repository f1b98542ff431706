"""Splits where a source gives none: carved by seed, stratified by label, never dividing a person's faces."""

import warnings
from dataclasses import dataclass, replace

import numpy as np

from efficientface import FerError
from efficientface.data.layouts.files import images, listed, plural
from efficientface.data.sources import Rows
from efficientface.data.words import ascending, coded, decoded

TEST_SHARE = 0.2  # of the labelled faces, when the source has no splits at all
VAL_SHARE = 0.1


def assign_splits(rows: Rows, val_from_train: float | None = None, seed: int = 0) -> tuple[Rows, list[str]]:
    """Rows of a Source with a split each, as given or carved by `seed`, and sentences about what was done.

    Without any split, 20 % of the labelled faces become test and 10 % val; where only val is missing, it is 10 % of
    the labelled training faces. `val_from_train`, a share, carves val in any case; the source's own val then is
    named test, or val-given if there is a test. Carving is stratified by label and never divides a group; the
    result does not depend on the order of the rows. Faces without a label stay in train unless their group leaves.
    """
    if val_from_train is not None and not 0 < val_from_train < 1:
        raise FerError(f"--val-from-train {val_from_train} is no share; give a number between 0 and 1")
    notes = []
    carver = Carver.of(rows, seed)
    absent = carver.split < 0
    given = set(carver.splits)
    carver.split[absent] = carver.named("train")
    labelled = int((carver.label >= 0).sum())
    if absent.all():
        notes.append("The source gives no splits.")
        notes += carver.carve("test", round(TEST_SHARE * labelled))
    elif absent.any():
        notes.append(f"Put into train: {images(absent.sum())} without a split.")
    if "val" in given and val_from_train is not None:
        kept_as = "val-given" if "test" in given else "test"
        carver.split[carver.split == carver.named("val")] = carver.named(kept_as)
        notes.append(f"The source's own val is named {kept_as}, as val is carved from train.")
    if "val" not in given or val_from_train is not None:
        whole = labelled if absent.all() and val_from_train is None else len(carver.faces())
        notes += carver.carve("val", round((val_from_train or VAL_SHARE) * whole))
    if not (carver.split == carver.named("test")).any():
        notes.append("There is no test split.")
    divided = carver.divided_groups()
    if divided:
        notes.append(f"The given splits share people: {plural(divided, 'group')} in more than one.")
    return replace(rows, split=decoded(carver.split, carver.splits)), notes


@dataclass(frozen=True)
class Carver:
    """Splits, labels and groups (N,) as numbers, -1 for none; `carve` changes the splits."""

    rows: Rows
    seed: int
    split: np.ndarray
    splits: list[str]  # their names, which grow
    label: np.ndarray
    labels: list[str]  # their names, sorted
    group: np.ndarray | None

    @classmethod
    def of(cls, rows: Rows, seed: int) -> "Carver":
        split, splits = coded(rows.split)
        label, labels = coded(rows.label)
        order = sorted(range(len(labels)), key=labels.__getitem__)
        place = np.empty(len(labels) + 1, np.int32)
        place[order], place[-1] = np.arange(len(labels)), -1
        group = None if rows.group is None else coded(rows.group)[0]
        return cls(rows, seed, split.copy(), splits, place[label], sorted(labels), group)

    def named(self, split: str) -> int:
        """The number of a split."""
        if split not in self.splits:
            self.splits.append(split)
        return self.splits.index(split)

    def faces(self) -> np.ndarray:
        """(M,) rows of the labelled training faces."""
        return np.flatnonzero((self.split == self.named("train")) & (self.label >= 0))

    def carve(self, name: str, count: int) -> list[str]:
        """Move about `count` labelled faces of train to the split `name`; says what was done."""
        faces = self.faces()
        faces = faces[ascending(self.rows.file[faces])]
        group = None if self.group is None or (self.group[faces] < 0).all() else self.group[faces]
        taken = self._choose_faces(faces, count) if group is None else self._choose_groups(faces, group, count)
        chosen = np.zeros(len(faces), bool)
        chosen[taken] = True
        if not chosen.any():
            reason = "no class has two of" if group is None else "one group holds all of"
            return [f"No {name} was carved: {reason} the {len(faces):,} labelled training faces."]
        self.split[faces[chosen]] = self.named(name)
        if group is not None and self.group is not None:
            theirs = np.isin(self.group, np.unique(group[chosen & (group >= 0)]))
            self.split[theirs & (self.split == self.named("train"))] = self.named(name)
        how = "stratified by label" + ("" if group is None else " without dividing a group")
        notes = [f"Carved {name}: {chosen.sum():,} of {len(faces):,} labelled training faces, {how}, seed {self.seed}."]
        there = set(np.unique(self.label[faces]))
        for split, part in ((name, chosen), ("train", ~chosen)):
            lacking = [self.labels[label] for label in sorted(there.difference(np.unique(self.label[faces[part]])))]
            if lacking:
                if len(lacking) > 10:
                    lacking = [*lacking[:9], f"{len(lacking) - 9:,} others"]
                notes.append(f"{split} has no face of {listed(lacking, 'and')}: too few to divide.")
        return notes

    def _choose_faces(self, faces: np.ndarray, count: int) -> np.ndarray:
        """About `count` places of faces, by label; a class of a single face stays behind."""
        from sklearn.model_selection import train_test_split  # here, because it takes a second to import

        label = self.label[faces]
        sizes = np.bincount(label)
        divisible = np.flatnonzero(sizes[label] > 1)
        classes = int((sizes > 1).sum())
        if not classes:
            return divisible
        # scikit-learn insists on room for every class on both sides
        count = min(max(count, classes), len(divisible) - classes)
        return train_test_split(divisible, test_size=count, random_state=self.seed, stratify=label[divisible])[1]

    def _choose_groups(self, faces: np.ndarray, group: np.ndarray, count: int) -> np.ndarray:
        """Places of whole groups with about `count` faces, by label; a face without a group is one by itself."""
        from sklearn.model_selection import StratifiedGroupKFold  # here, because it takes a second to import

        label = self.label[faces]
        # by their first face, as the result depends on the order of groups
        _, first, groups = np.unique(group, return_index=True, return_inverse=True)
        groups = np.argsort(np.argsort(first))[groups]
        alone = group < 0
        groups[alone] = groups.max() + 1 + np.arange(alone.sum())
        # scikit-learn refuses more folds than the largest class has faces; more than groups would be empty
        most = min(len(np.unique(groups)), np.bincount(label).max())
        if most < 2:
            return np.empty(0, int)
        folds = min(max(round(len(faces) / max(count, 1)), 2), most)
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=self.seed)
        with warnings.catch_warnings():
            # it warns of classes with fewer faces than folds; `carve` says which split lacks them
            warnings.simplefilter("ignore", UserWarning)
            parts = [part for _, part in splitter.split(faces, label, groups) if len(part)]
        # groups differ in size, and a fold may even be empty
        return min(parts, key=lambda part: abs(len(part) - count))

    def divided_groups(self) -> int:
        """How many groups are in more than one split."""
        if self.group is None:
            return 0
        known = self.group >= 0
        pairs = np.unique(np.stack([self.group[known], self.split[known]]), axis=1)
        return int((np.bincount(pairs[0]) > 1).sum())
