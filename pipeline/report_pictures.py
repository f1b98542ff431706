"""The faces in a report: what was aligned and rejected, and what models are right, wrong and unsure about."""

import base64
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.compute as pc

from efficientface import FerError
from efficientface.cache.summary import entropy
from efficientface.data.faces import Faces, hash_image
from efficientface.data.layouts.files import is_inside
from efficientface.data.photos import PhotoFiles, Photos, Unreadable, decode_photo
from efficientface.pipeline.align import photo_of
from efficientface.pipeline.explain import explained, of_run
from efficientface.pipeline.inputs import Inputs
from efficientface.pipeline.inspect import face_rows
from efficientface.pipeline.page import jpeg
from efficientface.pipeline.photographs import stored
from efficientface.pipeline.pictures import overlaid
from efficientface.pipeline.sheet import by_chance, label_of, said_by_people, some

log = logging.getLogger(__name__)

SIDE = 128  # pixels of a face
PHOTOGRAPH = 200  # pixels of a photograph's longer side
PHOTOGRAPHS = 6
REJECTED = 12
LABELLED = 4  # faces of each label,
LABELS = 12  # and of how many labels
GALLERY = 8  # faces of each kind
LOOKS = 2  # faces of each kind with maps
GREEN, RED = (60, 220, 120), (255, 70, 70)  # boxes and landmarks on photographs


@dataclass
class Pictures:
    """Makes pictures for the page, and counts them."""

    count: int = 0

    def uri(self, image: np.ndarray, side: int = SIDE) -> str:
        """(H, W, 3) uint8 RGB as an address that holds the picture."""
        self.count += 1
        return f"data:image/jpeg;base64,{base64.b64encode(jpeg(image, side)).decode()}"


@dataclass(frozen=True)
class Answer:
    """What the model in `folder` says about N faces: (N, C) probabilities in the order of their classes."""

    folder: Path
    faces: Faces
    probabilities: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """(N,) bool."""
        return self.probabilities.argmax(1) == self.faces.label


# --- photographs and faces ------------------------------------------------------------------------------------


def of_faces(inputs: Inputs, shots: Pictures, seed: int) -> dict[str, Any]:
    """Photographs beside their faces, photographs without one, and faces of each label."""
    rows = face_rows(
        inputs.folder, inputs.manifest,
        ["face_id", "source_hash", "image_hash", "status", "reason", "box", "landmarks"],
    )  # fmt: skip
    sources = Sources(inputs)
    photographs = []
    if len(inputs.faces) and not inputs.manifest["settings"].get("aligned"):
        for k in some(inputs.faces, PHOTOGRAPHS, seed)["rows"].tolist():
            (row,) = rows.filter(pc.equal(rows["face_id"], inputs.faces.face_id[k])).to_pylist()
            photograph = sources.read(row)
            if photograph is not None and row["landmarks"] is not None:
                marked = shots.uri(with_box(photograph, row), PHOTOGRAPH)
                face = shots.uri(inputs.faces.image(k))
                photographs.append({"name": row["face_id"], "photograph": marked, "face": face})
    without = rows.filter(pc.is_null(rows["image_hash"])).to_pylist()
    without = [without[k] for k in by_chance([row["face_id"] for row in without], seed)[:REJECTED]]
    rejected = []
    for row in without:
        photograph = sources.read(row)
        picture = None if photograph is None else shots.uri(photograph, PHOTOGRAPH)
        why = row["status"] + (f": {row['reason']}" if row["reason"] else "")
        rejected.append({"name": row["face_id"], "why": why, "photograph": picture})
    labels = []
    people = inputs.manifest["settings"].get("layout") == "identities"
    for number, name in enumerate([] if people else inputs.faces.classes[:LABELS]):
        if (inputs.faces.label == number).any():
            chosen = some(inputs.faces, LABELLED, seed, label=name)
            pictures = [shots.uri(inputs.faces.image(int(row)), 96) for row in chosen["rows"]]
            labels.append({"name": name, "count": chosen["of"], "pictures": pictures})
    return {"photographs": photographs, "rejected": rejected, "labels": labels}


class Sources:
    """The photographs that a run's faces were cut from, as far as they are there as they were."""

    def __init__(self, inputs: Inputs) -> None:
        told = {n: s for n, s in inputs.manifest["made_from"].items() if isinstance(s, dict) and "path" in s}
        self.sources: dict[str, tuple[Path, Photos]] = {}  # by what begins the ids of their faces
        for name, source in told.items():
            root = Path(os.path.normpath(inputs.folder / str(source["path"])))
            if root.is_dir():
                prefix = f"{name}/" if len(told) > 1 or name != "source" else ""
                try:
                    self.sources[prefix] = root, stored(root, str(source.get("layout")), inputs.manifest["settings"])
                except FerError as error:
                    log.warning("no photographs of %s in the report: %s", root, error)

    def read(self, row: Mapping[str, Any]) -> np.ndarray | None:
        """The photograph of a row of faces/, None if it is not there any more, is another now, or cannot be read."""
        photo = photo_of(row["face_id"])
        for prefix, (root, photos) in self.sources.items():
            if not photo.startswith(prefix):
                continue
            file = photo.removeprefix(prefix)
            if isinstance(photos, PhotoFiles) and not is_inside(os.path.realpath(root), root / file):
                return None
            try:
                data = photos.read(file)
                return decode_photo(data) if hash_image(data) == row["source_hash"] else None
            except (Unreadable, OSError, ValueError):  # ValueError: a null byte in the name
                return None
        return None


def with_box(photograph: np.ndarray, row: Mapping[str, Any]) -> np.ndarray:
    """A copy, shrunk, with the detector's box and the five landmarks of a row of faces/."""
    height, width = photograph.shape[:2]
    scale = PHOTOGRAPH / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = cv2.resize(photograph, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    x1, y1, x2, y2 = (round(scale * v) for v in row["box"])
    cv2.rectangle(image, (x1, y1), (x2, y2), GREEN, 1, cv2.LINE_AA)
    for x, y in np.reshape(row["landmarks"], (5, 2)):
        cv2.circle(image, (round(scale * x), round(scale * y)), 2, RED, -1, cv2.LINE_AA)
    return image


# --- answers --------------------------------------------------------------------------------------------------


def of_answers(inputs: Inputs, judged: Mapping[str, Answer], shots: Pictures, seed: int, device: str) -> dict[str, Any]:
    """Faces that the best student is right, wrong and unsure about, and where the models look on some of each."""
    name = next((name for name in judged if name != "teacher"), "teacher")
    answer = judged[name]
    p, right = answer.probabilities, answer.right
    surest = np.argsort(-np.where(right, -1, p.max(1)), kind="stable")[: (~right).sum()]
    kinds = [
        ("Right", "by chance", [row for row in by_chance(answer.faces.face_id, seed) if right[row]]),
        ("Wrong", "the surest first", surest.tolist()),
        ("Ambiguous", "the largest entropy first", np.argsort(-entropy(p), kind="stable").tolist()),
    ]
    groups = []
    chosen: list[int] = []
    for title, order, rows in kinds:
        chosen += rows[:LOOKS]
        cards = [card(row, judged, name, shots) for row in rows[:GALLERY]]
        groups.append({"title": title, "order": order, "cards": cards})
    chosen = list(dict.fromkeys(chosen))
    return {
        "gallery": {"model": name, "groups": groups},
        "looks": maps(judged, chosen, inputs.faces.classes, shots, device),
    }


def card(row: int, judged: Mapping[str, Answer], name: str, shots: Pictures) -> dict[str, Any]:
    """A face with its label, its votes, and what the model `name` and the teacher say."""
    answer = judged[name]
    faces, classes = answer.faces, answer.faces.classes
    p = answer.probabilities[row]
    top = np.argsort(-p, kind="stable")[:3]
    said = said_by_people(faces, row)
    total = sum(count for _, count in said)
    teacher = judged["teacher"].probabilities[row] if "teacher" in judged and name != "teacher" else None
    return {
        "picture": shots.uri(faces.image(row)),
        "name": faces.face_id[row],
        "label": label_of(faces, row),
        "bars": [{"name": classes[k], "share": float(p[k]), "own": int(k) == int(faces.label[row])} for k in top],
        "votes": ", ".join(f"{who} {count / total:.0%}" for who, count in said[:2]),
        "teacher": None if teacher is None else f"{classes[teacher.argmax()]} {teacher.max():.0%}",
    }


def maps(
    judged: Mapping[str, Answer], rows: Sequence[int], classes: Sequence[str], shots: Pictures, device: str
) -> dict[str, Any]:
    """Class activation maps of each model's most probable class over the faces at `rows`."""
    faces = next(iter(judged.values())).faces
    shown = [of_run(faces, row) for row in rows]
    lines: list[dict[str, Any]] = []
    for name, answer in judged.items():
        try:
            found = explained(answer.folder, shown, [-1] * len(shown), classes, device)
        except FerError as error:  # a network without a map; the others have theirs
            lines.append({"name": name, "method": str(error), "cells": []})
            continue
        lines.append(
            {
                "name": name,
                "method": f"{found.method}, {found.weights.shape[1]} x {found.weights.shape[2]} places",
                "cells": [
                    {
                        "picture": shots.uri(overlaid(one.picture, found.weights[k])),
                        "says": f"{classes[found.classes[k]]} {found.probabilities[k, found.classes[k]]:.0%}",
                        "right": int(found.classes[k]) == one.label,
                    }
                    for k, one in enumerate(shown)
                ],
            }
        )
    heads = [{"picture": shots.uri(one.picture), "label": classes[one.label]} for one in shown]
    return {"heads": heads, "lines": lines}
