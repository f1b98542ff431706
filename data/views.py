"""Views of a face: which crop, whether mirrored, and what it looks like at the network's size.

Boxes are drawn as torchvision's RandomResizedCrop draws them (area, then log aspect, then position, ten
tries, then the largest central crop), but from the words of a hash: no library promises that a seed
gives the same crop in its next version, and a face's views must not depend on the order of faces.
"""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from efficientface.data.words import Column

MIN_AREA = 0.08  # of the face; torchvision's default, which the authors use
ASPECT = (3 / 4, 4 / 3)  # width / height
TRIES = 10
BLOCK = 1 << 16  # views drawn at a time: their keys and words take more memory than their boxes


def draw_views(
    seed: int, face_ids: Column, views: Iterable[int], crop: int, min_area: float = MIN_AREA
) -> tuple[np.ndarray, np.ndarray]:
    """Crop boxes and flips of the given view numbers for each face.

    Returns boxes (N, V, 4) uint16 as top, left, height, width in whole pixels of the (crop, crop) face, and
    flips (N, V) bool. Entry [n, v] depends on (seed, face_ids[n], views[v]) alone.
    """
    views = list(views)
    boxes = np.zeros((len(face_ids), len(views), 4), np.uint16)
    flips = np.zeros((len(face_ids), len(views)), bool)
    step = max(1, BLOCK // max(1, len(views)))
    for k in range(0, len(face_ids), step):
        keys = [f"{seed}\0{view}\0{face_id}".encode() for face_id in face_ids[k : k + step] for view in views]
        drawn, mirrored = _draw(keys, crop, min_area)
        part = slice(k, k + step)
        boxes[part], flips[part] = drawn.reshape(boxes[part].shape), mirrored.reshape(flips[part].shape)
    return boxes, flips


def _draw(keys: list[bytes], crop: int, min_area: float) -> tuple[np.ndarray, np.ndarray]:
    """A box (len(keys), 4) and a flip (len(keys),) by each key."""
    boxes = np.zeros((len(keys), 4), np.uint16)
    flips = np.zeros(len(keys), bool)
    pending = np.arange(len(keys))
    for attempt in range(TRIES):
        if not len(pending):
            break
        words = _uniform([keys[k] for k in pending], attempt)
        if attempt == 0:
            flips[:] = words[:, 4] < 0.5
        area = crop * crop * (min_area + words[:, 0] * (1 - min_area))
        low, high = np.log(ASPECT[0]), np.log(ASPECT[1])
        aspect = np.exp(low + words[:, 1] * (high - low))
        width = np.rint(np.sqrt(area * aspect)).astype(np.int64)
        height = np.rint(np.sqrt(area / aspect)).astype(np.int64)
        fits = (width >= 1) & (height >= 1) & (width <= crop) & (height <= crop)
        top = np.floor(words[:, 2] * (crop - height + 1)).astype(np.int64)
        left = np.floor(words[:, 3] * (crop - width + 1)).astype(np.int64)
        boxes[pending[fits]] = np.stack([top, left, height, width], 1)[fits]
        pending = pending[~fits]
    boxes[pending] = (0, 0, crop, crop)  # the central crop of a square picture is the picture
    return boxes, flips


def _uniform(keys: Sequence[bytes], attempt: int) -> np.ndarray:
    """(len(keys), 8) float64 in [0, 1): the words of blake2b(key, attempt), 53 bits of each."""
    salt = attempt.to_bytes(16, "little")
    digests = b"".join(hashlib.blake2b(key, digest_size=64, salt=salt).digest() for key in keys)
    words = np.frombuffer(digests, "<u8").reshape(len(keys), 8)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def render(face: np.ndarray, box: Sequence[int], flip: bool, size: int) -> np.ndarray:
    """The view of `face` (H, W, 3) uint8 as (size, size, 3) uint8: cut, resized with antialiasing, mirrored.

    `box` is top, left, height, width. Within 2 grey levels of torchvision's antialiased
    resized_crop, whose filter this is. Plain bilinear sampling is up to 34 levels off when it shrinks.
    """
    top, left, height, width = (int(edge) for edge in box)
    face = face[top : top + height, left : left + width]
    if face.shape[:2] != (size, size):
        # On uint8 this is Pillow's own two-pass filter, vectorised: three times Pillow's speed, within 1 grey level.
        pixels = torch.from_numpy(face).permute(2, 0, 1)[None]
        resized = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
        face = resized[0].permute(1, 2, 0).numpy()
    return face[:, ::-1] if flip else face


def cut(faces: Tensor, boxes: Tensor, flips: Tensor, size: int) -> Tensor:
    """`render` as one operation on all K views of B faces, for a GPU: nothing in it waits for the device.

    faces: (B, 3, S, S) uint8; boxes: (B, K, 4) and flips: (B, K), all on one device. Returns (B * K, 3, size, size)
    uint8 in channels_last memory. A view is its face between two matrices, which add up columns and then rows, rounded
    after each as `render` does; within 2 grey levels of it, and 0.01 on average.
    """
    side, views = faces.shape[-1], boxes.shape[1]
    top, left, height, width = boxes.flatten(0, 1).float().unbind(1)
    across = _shares(left, width, size, side)
    across = torch.where(flips.flatten()[:, None, None], across.flip(1), across)
    # fp32: fp16, for which GPUs have tensor cores, changes a pixel in eleven by a grey level, and saves little
    shown = faces.repeat_interleave(views, 0).to(torch.float32, memory_format=torch.contiguous_format)
    narrowed = (shown.flatten(1, 2) @ across.mT).add_(0.5).floor_()  # (B * K, 3 * S, size)
    pixels = _shares(top, height, size, side)[:, None] @ narrowed.unflatten(1, (3, side))
    return pixels.add_(0.5).to(torch.uint8, memory_format=torch.channels_last)


def _shares(start: Tensor, length: Tensor, size: int, side: int) -> Tensor:
    """(M, size, side): how much of each of `side` pixels goes into each of `size`, for cuts of a line at (M,) `start`.

    Pillow's filter: a triangle that reaches one pixel to both sides, of whichever line's pixels are larger.
    """
    scale = (length / size)[:, None, None]
    centre = (torch.arange(size, device=start.device)[:, None] + 0.5) * scale  # (M, size, 1), from the cut's start
    pixel = torch.arange(side, device=start.device) + 0.5 - start[:, None, None]  # (M, 1, side)
    shares = (1 - (pixel - centre).abs_() / scale.clamp(min=1)).clamp_(min=0)
    shares *= (pixel > 0) & (pixel < length[:, None, None])
    return shares / shares.sum(2, keepdim=True)
