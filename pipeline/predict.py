"""What a network answers about views of faces."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from efficientface.data.ahead import Item, Result, ahead
from efficientface.data.batches import normalise, view_batches
from efficientface.data.faces import Faces

PIXELS = 16 * 224**2  # of one forward pass on a CPU, at most: the maps of more leave its cache (docs/performance.md)


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
    together, about `batch` views at a time and all views of a face, and answered at most `batch` at a time, on a CPU
    also at most PIXELS: cut at the same places whoever asks. On a CPU each of torch's threads renders and answers for
    itself; `workers` render where there is one such thread, or a GPU. `advance` is told the faces just done.
    """
    model = model.to(device).to(memory_format=torch.channels_last).eval()
    where = torch.device(device).type
    views = boxes.shape[1]
    at_once = min(batch, most_at_once(size)) if where == "cpu" else batch
    rows = np.arange(len(boxes))
    order = [call for of_batch in _cut(rows, batch // views) for call in _cut(of_batch, at_once // views)]

    @torch.inference_mode()
    def answer(images: Tensor) -> np.ndarray:
        with torch.autocast(where, torch.bfloat16, enabled=precision == "bf16"):
            logits = torch.cat([model(normalise(part.to(device), mean, std)) for part in images.split(at_once)])
        return torch.softmax(logits.float(), 1).cpu().numpy().reshape(-1, views, logits.shape[1])

    def render_and_answer(rows: np.ndarray) -> np.ndarray:
        ((_, images),) = view_batches(faces, [rows], boxes, flips, size, 1, shown)
        return answer(images)

    if where == "cpu" and torch.get_num_threads() > 1:
        coming = by_threads(render_and_answer, order)
    else:
        batches = view_batches(faces, order, boxes, flips, size, workers, shown, device)
        coming = (answer(images) for _, images in batches)
    answers = []
    for done, of_these in zip(order, coming, strict=True):
        answers.append(of_these)
        advance(len(done))
    return np.concatenate(answers)


def most_at_once(size: int) -> int:
    """Views of size x size that a CPU answers in one forward pass."""
    return max(1, PIXELS // size**2)


def by_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`work` of each item, in their order, by as many threads as torch has, each of which computes alone.

    So none waits for another's share of every layer.
    """
    threads = torch.get_num_threads()
    try:
        yield from ahead(work, items, threads, lambda: torch.set_num_threads(1))
    finally:
        torch.set_num_threads(threads)  # what a thread sets holds for those that begin later, too


def _cut(rows: np.ndarray, length: int) -> list[np.ndarray]:
    """Rows (N,) in pieces of `length`, of 1 at least; the last may be shorter."""
    length = max(1, length)
    return [rows[k : k + length] for k in range(0, len(rows), length)]
