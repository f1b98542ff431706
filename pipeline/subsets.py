"""Parts of a split to judge on: the occlusion and pose lists of RAN as distributed, any list of names, or our own pose.

The lists are Wang et al., "Region Attention Networks for Pose and Occlusion Robust Facial Expression Recognition", 2020
(kaiwang960112/Challenge-condition-FER-dataset): a photograph a line, named in a way of each list's own.
"""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa

from efficientface import FerError, untrusted
from efficientface.data.layouts.files import IMAGE_SUFFIXES
from efficientface.pipeline.status import printable

COLUMNS = ("face_id", "split", "label", "image_hash", "yaw", "pitch")  # of faces/, what is asked here and by evaluate
POSES = {"pose": ("yaw", "pitch"), "yaw": ("yaw",)}


def subset(given: str, rows: pa.Table, split: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Which rows of faces/, all of one split, belong to a subset: (N,) bool, and facts about it.

    `given` is the path of a list, or `pose:DEGREES`: yaw or pitch of that much or more; `yaw:DEGREES`: yaw alone. A
    photograph without a pose, on which no face was found, is in no such subset.
    """
    kind, colon, degrees = given.partition(":")
    if colon and kind in POSES:
        angles = [np.abs(rows[name].to_numpy().astype(float)) for name in POSES[kind]]
        return np.fmax.reduce(angles) >= _degrees(given, degrees), {}
    return _listed(Path(given), rows, split)


def _degrees(given: str, text: str) -> float:
    try:
        degrees = float(text)
    except ValueError:
        degrees = -1
    if not 0 < degrees <= 90:
        raise FerError(f"--subset {given} is no pose; give degrees from 1 to 90, such as pose:30")
    return degrees


def _listed(path: Path, rows: pa.Table, split: str) -> tuple[np.ndarray, dict[str, Any]]:
    """The rows that a list names, and how many of its lines found one."""
    try:
        lines = [line for line in untrusted.read_bytes(path).decode("utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        reason = "it is no text" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", None) or error
        raise FerError(
            f"--subset {path} cannot be read ({reason}); give a list of file names, a photograph a line, or pose:30"
        ) from error
    photos: dict[str, dict[tuple[str, ...], list[int]]] = defaultdict(lambda: defaultdict(list))
    for row, face_id in enumerate(rows["face_id"].to_pylist()):
        parts = _parts(unquote(face_id.partition("#")[0]))
        photos[_key(parts)][parts].append(row)
    chosen = np.zeros(len(rows), bool)
    missing: list[str] = []
    unclear: list[str] = []
    named = {_parts(re.sub(r"(\s+\d+)+$", "", line)): line for line in lines}  # numbers behind a name: label, occlusion
    for parts, line in named.items():
        found = photos.get(_key(parts), {})
        # one name in several folders: as many of the list's folders as it takes
        for wanted in (parts, parts[-1:]) if len(found) > 1 else ():
            found = {p: at for p, at in found.items() if p[-len(wanted) :] == wanted} or found
        if len(found) == 1:
            chosen[next(iter(found.values()))] = True
        else:
            (unclear if found else missing).append(line.strip())
    if unclear:
        raise FerError(
            f"{path} names {len(unclear)} photographs that are several in split {split}, first "
            f"{printable(unclear[0])}; write their paths as in the face ids"
        )
    if not chosen.any():
        hint = "it names none" if not named else f"first {printable(missing[0])}"
        raise FerError(
            f"{path}: none of its {len(named):,} photographs is in split {split} ({hint}); give another --split, "
            "or a list of this data set's files (AffectNet's have the names of its first release, not 2021's numbers)"
        )
    facts: dict[str, Any] = {"lines": len(lines), "named": len(named), "missing": len(missing)}
    return chosen, facts | ({"first_missing": missing[0]} if missing else {})


def _parts(path: str) -> tuple[str, ...]:
    """A path's folders and its file's name without the suffix."""
    parts = [part for part in path.strip().replace("\\", "/").split("/") if part not in ("", ".")]
    stem, dot, suffix = parts[-1].rpartition(".") if parts else ("", "", "")
    return (*parts[:-1], stem) if dot and suffix.lower() in IMAGE_SUFFIXES else tuple(parts)


def _key(parts: tuple[str, ...]) -> str:
    """By what lists and data sets know the same photograph.

    AffectNet's 56 hexadecimal digits are a file in one list and a folder in another (`7/HEX/8.jpg`); RAF-DB's files may
    end in `_aligned`; an occlusion list of FER+ puts the label before the name (`1_fer0034656.png`).
    """
    for part in reversed(parts):
        if re.fullmatch("[0-9a-f]{56}", part):
            return part
    return re.sub(r"^\d+_(?=fer\d+$)", "", (parts or ("",))[-1]).removesuffix("_aligned")
