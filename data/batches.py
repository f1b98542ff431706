"""Batches of rendered views, decoded and cut by threads a few batches ahead of the training step.

Threads, not processes: JPEG decoding and resizing release the interpreter lock, the encoded faces are shared as
they are, and no worker has to be fed through a pipe.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from efficientface.data.faces import Faces
from efficientface.data.views import render

AHEAD = 3  # batches in the making: enough to hide a slow one, little memory
CHUNK = 16  # faces a task: the smallest that keeps the pool's overhead under a percent


def view_batches(
    faces: Faces,
    order: Sequence[np.ndarray],
    boxes: np.ndarray,
    flips: np.ndarray,
    size: int,
    workers: int = 0,
    shown: np.ndarray | None = None,
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Yield (rows, images) for each array of rows in `order`; a face is decoded once for all its views.

    boxes: (N, K, 4) uint16 and flips: (N, K) bool, K views of each of the N faces. With `shown` (M,), rows are places
    in it: boxes and flips have M entries, and entry m is about the face `shown[m]`, which may come again.
    images: (B * K, 3, size, size) uint8 RGB in channels_last memory, the K views of a face one after another.
    """
    views = boxes.shape[1]
    with ThreadPoolExecutor(workers or os.cpu_count() or 1, thread_name_prefix="views") as pool:
        started: deque[tuple[np.ndarray, np.ndarray, list[Future[None]]]] = deque()
        try:
            for rows in order:
                pixels = np.empty((len(rows), views, size, size, 3), np.uint8)
                tasks = [
                    pool.submit(_fill, faces, rows[k : k + CHUNK], boxes, flips, pixels[k : k + CHUNK], shown)
                    for k in range(0, len(rows), CHUNK)
                ]
                started.append((rows, pixels, tasks))
                if len(started) > AHEAD:
                    yield _finish(*started.popleft())
            while started:
                yield _finish(*started.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


def _fill(
    faces: Faces, rows: np.ndarray, boxes: np.ndarray, flips: np.ndarray, out: np.ndarray, shown: np.ndarray | None
) -> None:
    for place, row in enumerate(rows):
        face = faces.image(row if shown is None else shown[row])
        for view in range(boxes.shape[1]):
            out[place, view] = render(face, boxes[row, view], bool(flips[row, view]), out.shape[2])


def _finish(rows: np.ndarray, pixels: np.ndarray, tasks: list[Future[None]]) -> tuple[np.ndarray, Tensor]:
    for task in tasks:
        task.result()
    return rows, torch.from_numpy(pixels).flatten(0, 1).permute(0, 3, 1, 2)


def canonical(count: int, crop: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (count, 1, 4) and flips (count, 1) of view 0: the whole face, unmirrored."""
    box = np.array([0, 0, crop, crop], np.uint16)
    return np.broadcast_to(box, (count, 1, 4)), np.zeros((count, 1), bool)


def whole(pictures: Sequence[np.ndarray], size: int) -> Tensor:
    """View 0 of faces (S, S, 3) uint8 RGB, as view_batches gives it: (N, 3, size, size) uint8."""
    box = canonical(1, len(pictures[0]))[0][0, 0]
    pixels = np.stack([render(picture, box, False, size) for picture in pictures])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, 3, H, W) uint8 to float32, (x / 255 - mean) / std a channel, in one pass over the batch."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=images.device).view(1, -1, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=images.device).view(1, -1, 1, 1)
    return torch.addcmul(shift, images.float(), scale)
