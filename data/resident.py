"""Faces decoded once and kept on the GPU, where they fit; batches.py says what is done where they do not."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from efficientface import FerError
from efficientface.data.faces import Faces

log = logging.getLogger(__name__)

GPUS = ("cuda",)  # kinds of device that keep faces and cut views; a test says "cpu" here
LEFT = 1 / 3  # of the GPU's memory, for the network: what the faces must leave free
CHUNK = 1024  # faces decoded at a time: 150 MB at 224 pixels


@dataclass(frozen=True)
class ResidentFaces(Faces):
    """Faces of which pixels (N, 3, S, S) uint8 RGB lie on a device."""

    pixels: Tensor

    def select(self, rows: np.ndarray) -> "ResidentFaces":
        return ResidentFaces(**{**vars(super().select(rows)), "pixels": self.pixels[torch.from_numpy(np.array(rows))]})


def free_memory(device: torch.device) -> tuple[int, int]:
    """Bytes that are free on the GPU, and all that it has."""
    return torch.cuda.mem_get_info(device)


def resident(sets: Sequence[Faces], device: str, workers: int = 0) -> list[Faces]:
    """The same sets of faces, on a GPU decoded and kept there if all fit; says in a line which it is."""
    where = torch.device(device)
    if where.type not in GPUS:
        return list(sets)
    side, count = len(sets[0].image(0)), sum(map(len, sets))
    need, (free, total) = count * 3 * side * side, free_memory(where)
    told = (
        f"{count:,} faces are {need / 1e9:.1f} GB decoded, {device} has {free / 1e9:.1f} GB free, of which "
        f"{LEFT * total / 1e9:.1f} GB stay for the network"
    )
    if need > free - LEFT * total:
        log.info("%s: they are decoded again in every epoch", told)
        return list(sets)
    log.info("%s: they are kept there", told)
    return [keep(faces, side, where, workers) for faces in sets]


def keep(faces: Faces, side: int, device: torch.device, workers: int = 0) -> ResidentFaces:
    """The faces, all of `side` pixels, decoded to the device: JPEG by the GPU where torchvision can, else by threads.

    A GPU's decoder rounds in its own way; by how much has not been measured (benchmarks/gpu.py does).
    """
    pixels = torch.empty((len(faces), 3, side, side), dtype=torch.uint8, device=device)
    by_gpu = True
    with ThreadPoolExecutor(workers or None, thread_name_prefix="decode") as pool:
        for k in range(0, len(faces), CHUNK):
            rows = range(k, min(k + CHUNK, len(faces)))
            if by_gpu:
                try:
                    pixels[k : rows.stop] = decode_by_gpu(faces, rows, device)
                except RuntimeError as error:
                    by_gpu = False  # no JPEG, no such decoder, or a damaged face, which the threads then name
                    log.info("faces are decoded by threads: %s", str(error).strip().partition("\n")[0])
            if not by_gpu:
                pixels[k : rows.stop] = decode_by_threads(faces, rows, side, pool).to(device)
    return ResidentFaces(**vars(faces), pixels=pixels)


def decode_by_gpu(faces: Faces, rows: Sequence[int], device: torch.device) -> Tensor:
    """(len(rows), 3, S, S) uint8 on the device; RuntimeError if one is no JPEG, or torchvision has no decoder there."""
    encoded = [torch.from_numpy(np.frombuffer(faces.encoded(row), np.uint8).copy()) for row in rows]
    return torch.stack(decode_jpeg(encoded, mode=ImageReadMode.RGB, device=device))


def decode_by_threads(faces: Faces, rows: Sequence[int], side: int, pool: ThreadPoolExecutor) -> Tensor:
    """(len(rows), 3, side, side) uint8 on the CPU."""
    decoded = list(pool.map(faces.image, rows))
    for row, face in zip(rows, decoded, strict=True):
        if face.shape != (side, side, 3):
            height, width = face.shape[:2]
            raise FerError(
                f"the stored face {faces.face_id[row]} is {height} x {width} pixels, others {side} x {side}; "
                "run fer verify, then fer align again"
            )
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2)
