"""Which fold a training face belongs to: its own teacher never sees it, nor another picture of the same person."""

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold

from efficientface import FerError
from efficientface.cache.distributions import UNSEEN
from efficientface.data.faces import Faces
from efficientface.data.words import numbered, text_array


def assign_folds(faces: Faces, folds: int, seed: int) -> np.ndarray:
    """(N,) int8: of each labelled training face its fold, 0 to folds - 1; UNSEEN of all others.

    Folds are stratified by label. Faces of one group, and equal pictures, stay together; a face that is not trained
    on but equals a picture or is of a group that is, in another split say, has the fold of that.
    """
    fold = np.full(len(faces), UNSEEN, np.int8)
    rows = np.flatnonzero((faces.split == "train") & (faces.label >= 0))
    linked = kept_together(faces)
    together = linked[rows]
    if len(np.unique(together)) < folds:
        raise FerError(
            f"the {len(rows)} labelled training faces are of {len(np.unique(together))} groups, too few for "
            f"--folds {folds}; give fewer folds"
        )
    largest = int(np.bincount(faces.label[rows]).max())
    if largest < folds:
        raise FerError(
            f"no class has as many training faces as --folds {folds}, the largest has {largest}; give fewer folds"
        )
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(rows, faces.label[rows], together)
    for number, (_, held_out) in enumerate(split):
        fold[np.isin(linked, together[held_out])] = number
    return fold


def kept_together(faces: Faces) -> np.ndarray:
    """(N,) numbers, equal for faces that share a group or a picture, directly or through other faces."""
    given = text_array(faces.group).is_valid().to_numpy(zero_copy_only=False)
    picture, person = numbered(faces.image_hash), numbered(faces.group[given])
    nodes = len(faces) + picture.max(initial=-1) + 1 + person.max(initial=-1) + 1
    face = np.arange(len(faces))
    ends = np.concatenate([len(faces) + picture, len(faces) + picture.max(initial=-1) + 1 + person])
    starts = np.concatenate([face, face[given]])
    links = coo_array((np.ones(len(starts), np.int8), (starts, ends)), shape=(nodes, nodes))
    return connected_components(links, directed=False)[1][: len(faces)]
