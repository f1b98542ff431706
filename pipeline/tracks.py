"""Faces followed from frame to frame by the overlap of their boxes, and what a model says of them smoothed in time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from efficientface.pipeline.recognise import answer

OVERLAP = 0.3  # intersection over union from which on two boxes of following frames are one face
LOST = 0.5  # seconds after which a face that was not seen is another one when it comes back


@dataclass
class Track:
    number: int
    box: np.ndarray  # (4,) as last seen
    seen: float  # seconds
    distribution: np.ndarray | None = None  # (C,) smoothed, as last asked


class Tracks:
    """Gives the rows of each frame, in the frames' order, the number of the face's track."""

    def __init__(self, smooth: float = 0.0) -> None:
        """smooth: seconds, the time constant of an exponential average of each track's distributions; 0: none."""
        self._smooth = smooth
        self._known: list[Track] = []
        self._count = 0

    def follow(self, faces: Sequence[dict[str, Any]], seconds: float) -> None:
        """Set `track`, and with smoothing `distribution`, in the rows of the frame at that time."""
        self._known = [track for track in self._known if seconds - track.seen <= LOST]
        faces = [face for face in faces if face["box"] or face["distribution"]]
        # images that are taken as they are have no box: the whole image is the face
        boxes = np.array([face["box"] or (0, 0, 1, 1) for face in faces], float).reshape(-1, 4)
        overlap = overlaps(boxes, np.array([track.box for track in self._known]).reshape(-1, 4))
        pairs = zip(*linear_sum_assignment(overlap, maximize=True), strict=True)
        same = {row: self._known[column] for row, column in pairs if overlap[row, column] >= OVERLAP}
        for row, face in enumerate(faces):
            track = same.get(row)
            if track is None:
                track = Track(self._count, boxes[row], seconds)
                self._known.append(track)
                self._count += 1
            face["track"] = track.number
            if self._smooth and face["distribution"]:
                p = np.array(list(face["distribution"].values()))
                if track.distribution is not None:
                    kept = math.exp((track.seen - seconds) / self._smooth)
                    p = kept * track.distribution + (1 - kept) * p
                track.distribution = p
                face |= answer(list(face["distribution"]), p)
            track.box, track.seen = boxes[row], seconds


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(A, B) intersections over unions of boxes (A, 4) and (B, 4): x1, y1, x2, y2."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (high - low).clip(0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (a, b)]
    return shared / np.maximum(areas[0][:, None] + areas[1] - shared, 1e-9)
