"""Columns of text, (N,) str and perhaps None as numpy has them: compared, found and numbered without a loop in Python.

A million face ids in a table of all words take 0.25 GB; their fingerprints, 8 bytes a word, tell nearly as much.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def text_array(words: np.ndarray | Sequence[str]) -> pa.Array:
    """As Arrow has them: there no Python object is asked about each."""
    return pa.array(words, pa.large_string())


def fingerprints(words: np.ndarray | Sequence[str]) -> np.ndarray:
    """(N,) uint64: the same for equal words, and hardly ever for others."""
    from pandas.util import hash_array  # here, because --help imports this

    return hash_array(np.asarray(words, object), categorize=False)


def all_differ(words: np.ndarray | Sequence[str]) -> bool:
    """Whether no word comes twice."""
    found = np.sort(fingerprints(words))
    return not (found[1:] == found[:-1]).any() or len(text_array(words).unique()) == len(words)


def places(wanted: np.ndarray, known: np.ndarray | Sequence[str]) -> np.ndarray:
    """(M,) int64: where each of M words stands in `known` (N,), the first of several, -1 where it does not."""
    known = np.asarray(known, object)
    if not len(known):
        return np.full(len(wanted), -1)
    theirs, ours = fingerprints(known), fingerprints(wanted)
    order = np.argsort(theirs, kind="stable")
    rows = order[np.searchsorted(theirs, ours, sorter=order).clip(max=len(known) - 1)]
    there = theirs[rows] == ours
    if (known[rows[there]] != wanted[there]).any():  # two words have one fingerprint
        found = pc.index_in(text_array(wanted), value_set=text_array(known))
        return found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    rows[~there] = -1
    return rows


def numbered(words: np.ndarray) -> np.ndarray:
    """(N,) int64: a number for each of N words, the same for equal ones; from 0, none left out."""
    return text_array(words).dictionary_encode(null_encoding="encode").indices.to_numpy().astype(np.int64)


def leads_out(face_id: np.ndarray) -> np.ndarray:
    """(N,) bool: whether an id is no relative path, or climbs."""
    return pc.match_substring_regex(text_array(face_id), r"^/|(^|/)\.\.(/|$)").to_numpy(zero_copy_only=False)
