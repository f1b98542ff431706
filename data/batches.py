"""Batches of rendered views, decoded and cut by threads a few batches ahead of the training step.

Threads, not processes: JPEG decoding and resizing release the interpreter lock, the encoded faces are shared as
they are, and no worker has to be fed through a pipe. A GPU cuts by itself: it is given whole faces, copied while it
computes the batch before, or has them already (resident.py).
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from efficientface.data import resident
from efficientface.data.faces import Faces
from efficientface.data.views import cut, render

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
    device: str = "cpu",
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Yield (rows, images) for each array of rows in `order`; a face is decoded once for all its views.

    boxes: (N, K, 4) uint16 and flips: (N, K) bool, K views of each of the N faces. With `shown` (M,), rows are places
    in it: boxes and flips have M entries, and entry m is about the face `shown[m]`, which may come again.
    images: (B * K, 3, size, size) uint8 RGB in channels_last memory, the K views of a face one after another; if
    `device` is a GPU, there, else on the CPU.
    """
    where = torch.device(device)
    if where.type not in resident.GPUS or not len(order):
        yield from _rendered(faces, order, boxes, flips, size, workers, shown)
        return
    # All that says what to cut goes to the GPU at once. A batch's own part of it would be waited for.
    counts = [len(rows) for rows in order]
    places = torch.from_numpy(np.concatenate(order)).to(where)
    boxes_there = torch.from_numpy(boxes.astype(np.int32)).to(where)
    flips_there = torch.from_numpy(np.array(flips)).to(where)
    if isinstance(faces, resident.ResidentFaces):
        kept = places if shown is None else torch.from_numpy(np.array(shown)).to(where)[places]
        pictures: Iterator[Tensor] = (faces.pixels[rows] for rows in kept.split(counts))
    else:
        first = order[0][0]
        side = len(faces.image(first if shown is None else shown[first]))
        whole = _rendered(faces, order, *canonical(len(boxes), side), side, workers, shown, pinned=where.type == "cuda")
        pictures = _copied_ahead((images for _, images in whole), where)
    for rows, there, faces_there in zip(order, places.split(counts), pictures, strict=True):
        yield rows, cut(faces_there, boxes_there[there], flips_there[there], size)


def _copied_ahead(batches: Iterator[Tensor], device: torch.device) -> Iterator[Tensor]:
    """The batches on the device; a GPU copies each from pinned memory while it computes with the one before."""
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    copying, computing = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    coming: deque[tuple[Tensor, torch.cuda.Event]] = deque()

    def arrived() -> Tensor:
        copied, event = coming.popleft()
        computing.wait_event(event)
        copied.record_stream(computing)  # its memory is not for the next copy before it is used
        return copied

    for batch in batches:
        with torch.cuda.stream(copying):
            coming.append((batch.to(device, non_blocking=True), copying.record_event()))
        if len(coming) > 1:
            yield arrived()
    while coming:
        yield arrived()


def _rendered(
    faces: Faces,
    order: Sequence[np.ndarray],
    boxes: np.ndarray,
    flips: np.ndarray,
    size: int,
    workers: int,
    shown: np.ndarray | None,
    pinned: bool = False,
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """view_batches on the CPU; `pinned`: into memory from which a GPU copies by itself."""
    views = boxes.shape[1]
    # where the network computes on every core, a thread that cuts meanwhile keeps all the others waiting for its core
    ahead = AHEAD if pinned or torch.get_num_threads() < (os.cpu_count() or 1) else 0
    with ThreadPoolExecutor(workers or os.cpu_count() or 1, thread_name_prefix="views") as pool:
        started: deque[tuple[np.ndarray, Tensor, list[Future[None]]]] = deque()
        try:
            for rows in order:
                pixels = torch.empty((len(rows), views, size, size, 3), dtype=torch.uint8, pin_memory=pinned)
                tasks = [
                    pool.submit(_fill, faces, rows[k : k + CHUNK], boxes, flips, pixels[k : k + CHUNK].numpy(), shown)
                    for k in range(0, len(rows), CHUNK)
                ]
                started.append((rows, pixels, tasks))
                if len(started) > ahead:
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


def _finish(rows: np.ndarray, pixels: Tensor, tasks: list[Future[None]]) -> tuple[np.ndarray, Tensor]:
    for task in tasks:
        task.result()
    return rows, pixels.flatten(0, 1).permute(0, 3, 1, 2)


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
    scale, shift = _scale_and_shift(tuple(mean), tuple(std), images.device)
    return torch.addcmul(shift, images.float(), scale)


@lru_cache(maxsize=8)  # made anew at every step they would be copied to a GPU at every step, which waits for it
@torch.inference_mode(False)
def _scale_and_shift(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    scale = torch.tensor([1 / (255 * s) for s in std], device=device).view(1, -1, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device).view(1, -1, 1, 1)
    return scale, shift
