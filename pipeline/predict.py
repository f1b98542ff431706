"""What a network answers about views of faces."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from efficientface.data.batches import normalise, view_batches
from efficientface.data.faces import Faces


@torch.inference_mode()
def predict(
    model: nn.Module,
    faces: Faces,
    boxes: np.ndarray,
    flips: np.ndarray,
    *,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: str = "cpu",
    batch: int = 64,
    workers: int = 0,
    shown: np.ndarray | None = None,
    precision: str = "fp32",
    advance: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """(N, K, C) float32 probabilities for K views of each of N faces; fp32, so that answers can be compared, or bf16.

    boxes: (N, K, 4) and flips: (N, K), the views of each face, or of the faces at `shown` (N,). Faces are rendered
    together, about `batch` views at a time and all views of a face, and answered at most `batch` at a time: cut at the
    same places whoever asks. `advance` is told the faces just done.
    """
    model = model.to(device).to(memory_format=torch.channels_last).eval()
    views = boxes.shape[1]
    faces_a_batch = max(1, batch // views)
    rows = np.arange(len(boxes))
    order = [rows[k : k + faces_a_batch] for k in range(0, len(rows), faces_a_batch)]
    answers = []
    mixed = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")
    for done, images in view_batches(faces, order, boxes, flips, size, workers, shown, device):
        with mixed:
            logits = torch.cat([model(normalise(part.to(device), mean, std)) for part in images.split(batch)])
        answers.append(torch.softmax(logits.float(), 1).cpu().numpy().reshape(len(done), views, -1))
        advance(len(done))
    return np.concatenate(answers)
