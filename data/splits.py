"""Splits where a source gives none: carved by seed, stratified by label, never dividing a person's faces."""

import warnings

import numpy as np
import pandas as pd

from efficientface import FerError
from efficientface.data.layouts.files import images, listed, plural

TEST_SHARE = 0.2  # of the labelled faces, when the source has no splits at all
VAL_SHARE = 0.1


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
        notes.append(f"Put into train: {images(absent.sum())} without a split.")
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
            notes.append(f"The given splits share people: {plural(divided, 'group')} in more than one.")
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
            notes.append(f"{split} has no face of {listed(lacking, 'and')}: too few to divide.")
    return notes


def _choose_faces(faces: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """About `count` of the faces, by label; a class of a single face stays behind."""
    from sklearn.model_selection import train_test_split  # here, because it takes a second to import

    divisible = faces[faces.groupby("label")["file"].transform("size") > 1]
    classes = divisible["label"].nunique()
    if not classes:
        return divisible
    # scikit-learn insists on room for every class on both sides
    count = min(max(count, classes), len(divisible) - classes)
    return train_test_split(divisible, test_size=count, random_state=seed, stratify=divisible["label"])[1]


def _choose_groups(faces: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """Whole groups with about `count` faces, by label; a face without a group is a group by itself."""
    from sklearn.model_selection import StratifiedGroupKFold  # here, because it takes a second to import

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
