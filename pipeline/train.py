"""The training loop, one for all networks: SGD on distributions or labels, best epoch by validation, exact resume.

Of several processes (ranks.py) each takes its slice of each global batch; they agree on everything else by computing it
from (seed, epoch), and end with the weights that one process ends with.
"""

import json
import logging
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from efficientface import FerError
from efficientface.data.batches import canonical, normalise, view_batches
from efficientface.data.faces import Faces
from efficientface.data.resident import resident
from efficientface.data.views import draw_views
from efficientface.data.words import Words
from efficientface.models.batch_norm import BatchNormOfAllRanks
from efficientface.pipeline.artifact import write_text
from efficientface.pipeline.checkpoint import CHECKPOINT, METRICS, Checkpoint
from efficientface.pipeline.config import MACHINE, TrainConfig
from efficientface.pipeline.curves import Curves
from efficientface.pipeline.device import prepare
from efficientface.pipeline.losses import balanced_weights, label_loss
from efficientface.pipeline.predict import predict
from efficientface.pipeline.progress import progress
from efficientface.pipeline.ranks import rank_and_world

log = logging.getLogger(__name__)

JUDGED = 256  # faces in one forward pass of judging, which one rank does whole


class Lesson(NamedTuple):
    """Views and targets of M showings: (M, 1, 4) uint16, (M, 1) bool, and (M, C) float32 or (M,) int64 labels."""

    boxes: np.ndarray
    flips: np.ndarray
    targets: np.ndarray


# Of M showings the faces' rows and, counted from 0, how often each was shown before; with every face once an epoch that
# is the epoch. Only these decide what is seen, so that a resumed or distributed training sees the same.
Lessons = Callable[[np.ndarray, np.ndarray], Lesson]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # logits (B, C), targets (B, C) or (B,)


def fit(
    model: nn.Module,
    train: Faces,
    lessons: Lessons,
    loss: Loss,
    judge: Faces,
    config: TrainConfig,
    facts: dict[str, Any],
    folder: Path,
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Train on `train` and return the weights and metrics of the epoch that does best on `judge`.

    `lessons` gives an epoch's views and targets; `facts` holds mean and std (0-1, RGB), the crop's pixels,
    and whatever must be the same when an interrupted training goes on. Writes metrics.jsonl and, an epoch at a time,
    a checkpoint to `folder`; the checkpoint is the caller's to remove when the artifact is finished.
    """
    rank, world = rank_and_world()
    device = prepare(config.device)
    model = model.to(device).to(memory_format=torch.channels_last)
    # batch norm's running statistics are the same on all ranks already
    parallel = DistributedDataParallel(model, forward_sync_buffers=False) if world > 1 else model
    if config.compile:
        if world > 1:
            raise FerError("--compile is for one process, it cannot see batch norm over several; leave it out")
        # CUDA graphs, as the student's kernels take less time than launching them; a last, smaller batch has its own
        parallel = cast(nn.Module, torch.compile(model, mode="reduce-overhead", dynamic=False))
    optimizer = torch.optim.SGD(
        model.parameters(), config.lr, momentum=config.momentum, weight_decay=config.weight_decay,
        fused=device.type == "cuda" or None,
    )  # fmt: skip
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
    checkpoint = Checkpoint(folder / CHECKPOINT)
    settings = {k: v for k, v in asdict(config).items() if k not in MACHINE}
    settings = json.loads(json.dumps({**settings, "facts": facts}))
    best: dict[str, torch.Tensor] = {}
    lines: list[dict[str, Any]] = []
    if checkpoint.path.exists():
        stored = checkpoint.progress()
        if {**settings, **stored["settings"]} != settings:  # of what earlier code did not have, all are as they were
            raise _other_settings(checkpoint.path, stored["settings"], settings)
        best, lines = checkpoint.load(model, optimizer), stored["lines"]
        if scaler.is_enabled():
            scaler.load_state_dict(stored["scaler"])
        log.info("going on after epoch %d of %d", len(lines), config.epochs)
    elif rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
    curves = Curves(folder, config)
    curves.tell(lines)
    train, judge = resident([train, judge], config.device, config.workers)
    shown = np.zeros(len(train), np.int64)  # how often the network has seen each face
    for epoch in range(len(lines)):
        shown += np.bincount(epoch_order(train.label, config, epoch), minlength=len(train))

    while len(lines) < config.epochs and not _waited_enough(lines, config.patience):
        epoch, started = len(lines), time.perf_counter()
        rows = epoch_order(train.label, config, epoch)
        lesson = lessons(rows, showings(rows, shown))
        try:
            mean_loss = train_epoch(
                parallel, optimizer, scaler, train, rows, lesson, loss, epoch, config, facts, (rank, world)
            )
        except RuntimeError as error:
            if not config.compile or not isinstance(error, torch._dynamo.exc.BackendCompilerFailed):
                raise
            reason = str(error.inner_exception).strip().partition("\n")[0]
            raise FerError(f"--compile does not work here ({reason}); leave it out") from error
        shown += np.bincount(rows, minlength=len(train))
        trained = time.perf_counter() - started
        accuracy, entropy = judge_epoch(model, judge, config, facts)
        lines.append(
            {
                "epoch": epoch + 1,
                "loss": mean_loss,
                "val_accuracy": accuracy,
                "val_cross_entropy": entropy,
                "lr": learning_rate(config, epoch + 1),
                "seconds": round(time.perf_counter() - started, 2),
                "faces_per_second": round(len(train) / trained, 1),
            }
        )
        if best_line(lines) is lines[-1]:
            best = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        if rank == 0:
            done = {"settings": settings, "lines": lines, "scaler": scaler.state_dict()}
            checkpoint.save(model, optimizer, best, done)
            write_text(folder / METRICS, "".join(json.dumps(line) + "\n" for line in lines))
            curves.tell(lines)
            log.info(
                "epoch %3d/%d  loss %.4f  val accuracy %.2f %%  %.0f faces/s",
                epoch + 1, config.epochs, mean_loss, 100 * accuracy, lines[-1]["faces_per_second"],
            )  # fmt: skip
    if rank == 0:  # an interruption between checkpoint and metrics leaves a line too few
        write_text(folder / METRICS, "".join(json.dumps(line) + "\n" for line in lines))
    curves.tell(lines, finished=True)
    return best, best_line(lines)


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    faces: Faces,
    rows: np.ndarray,
    lesson: Lesson,
    loss: Loss,
    epoch: int,
    config: TrainConfig,
    facts: dict[str, Any],
    place: tuple[int, int],
) -> float:
    """One pass over the faces at `rows`, in that order; the mean loss a face, over all ranks."""
    rank, world = place
    # dropout and the like draw from torch's generator: keyed by the epoch, a resumed training draws the same
    torch.manual_seed(int(np.random.SeedSequence([config.seed, epoch, rank]).generate_state(1, np.uint64)[0]))
    model.train()
    batches = global_batches(len(rows), config.batch_size)
    # where a batch has fewer faces than there are ranks, those left over run along with its first face
    mine = [places[rank::world] if rank < len(places) else places[:1] for places in batches]
    # to the device once an epoch: a copy at every step would wait for it
    targets = torch.from_numpy(lesson.targets[np.concatenate(mine)]).to(config.device).split([len(m) for m in mine])
    views = view_batches(faces, mine, lesson.boxes, lesson.flips, config.size, config.workers, rows, config.device)
    total = torch.zeros((), device=config.device)
    fastest = torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=torch.backends.cudnn.allow_tf32)
    with fastest, progress(f"epoch {epoch + 1}/{config.epochs}", len(rows) // world) as advance:
        for step, (places, images) in enumerate(views):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, epoch + step / len(batches))
            counts = rank < len(batches[step])
            optimizer.zero_grad()
            joint = BatchNormOfAllRanks(counts) if world > 1 else nullcontext()
            with joint, autocast(config.device, config.precision):
                logits = model(normalise(images.to(config.device, non_blocking=True), facts["mean"], facts["std"]))
            # DistributedDataParallel averages over ranks; slices may differ by one face
            weight = counts * len(places) * world / len(batches[step])
            batch_loss = loss(logits.float(), targets[step]) * weight
            scaler.scale(batch_loss).backward()
            scaler.step(optimizer)
            scaler.update()
            total += batch_loss.detach() * len(batches[step]) / world
            advance(len(places))
    if world > 1:
        dist.all_reduce(total)
    mean = total.item() / len(rows)
    if not math.isfinite(mean):
        raise FerError(f"the loss is {mean} in epoch {epoch + 1}; start again with a smaller --lr than {config.lr}")
    return mean


def judge_epoch(model: nn.Module, faces: Faces, config: TrainConfig, facts: dict[str, Any]) -> tuple[float, float]:
    """Accuracy (0-1) and cross-entropy (nats) of the canonical views against the labels; each rank asks about its part.

    In the first epochs batch norm's running statistics can be so far off that an answer overflows: it counts as wrong.
    """
    rank, world = rank_and_world()
    rows = np.arange(len(faces))
    mine = rows[rows // JUDGED % world == rank]
    answers = np.zeros((len(faces), len(faces.classes)), np.float32)
    if len(mine):
        answers[mine] = predict(
            model, faces, *canonical(len(mine), facts["crop"]), shown=mine,
            size=config.size, mean=facts["mean"], std=facts["std"],
            device=config.device, batch=JUDGED, workers=config.workers,
        )[:, 0]  # fmt: skip
    if world > 1:
        dist.all_reduce(torch.from_numpy(answers))
    sound = np.isfinite(answers).all(1)
    chosen = np.where(sound, answers[np.arange(len(faces)), faces.label], 0)
    accuracy = float((sound & (answers.argmax(1) == faces.label)).mean())
    return accuracy, float(-np.log(np.maximum(chosen, np.finfo(np.float32).tiny)).mean())


def best_line(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The epoch with the best accuracy; of equals the one with the smaller cross-entropy, then the earlier."""
    return min(lines, key=lambda line: (-line["val_accuracy"], line["val_cross_entropy"], line["epoch"]))


def _waited_enough(lines: list[dict[str, Any]], patience: int) -> bool:
    return bool(patience and lines) and len(lines) - best_line(lines)["epoch"] >= patience


def epoch_order(label: np.ndarray, config: TrainConfig, epoch: int) -> np.ndarray:
    """(N,) rows of the N faces to be shown, in order, keyed by (seed, epoch) and so the same on every rank.

    Every face once; or, balanced, N draws with replacement that give each class the same chance, and each face of a
    class (the sampler that the paper names, ufoym/imbalanced-dataset-sampler, weighs a face by 1 / faces of its class).
    """
    random = np.random.Generator(np.random.PCG64([config.seed, epoch]))
    if config.sampling == "every":
        return random.permutation(len(label))
    share = np.cumsum(1 / np.bincount(label)[label])
    return np.searchsorted(share, random.random(len(label)) * share[-1], side="right")


def showings(rows: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """(M,) how often the face at each of `rows` (M,) was shown before: `shown` (N,), and earlier in `rows`."""
    by_face = np.argsort(rows, kind="stable")
    ordered = rows[by_face]
    turns = np.empty_like(rows)
    turns[by_face] = np.arange(len(rows)) - np.searchsorted(ordered, ordered)
    return turns + shown[rows]


def free_crops(
    face_id: Words, crop: int, config: TrainConfig
) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Boxes (M, 1, 4) and flips (M, 1) of M showings, a fresh crop each: view k of a face is its k-th showing."""

    def crops(rows: np.ndarray, turns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        boxes, flips = np.empty((len(rows), 1, 4), np.uint16), np.empty((len(rows), 1), bool)
        for turn in np.unique(turns).tolist():
            now = turns == turn
            boxes[now], flips[now] = draw_views(config.seed, face_id[rows[now]], [turn], crop, config.min_area)
        return boxes, flips

    return crops


def label_lessons(train: Faces, crop: int, config: TrainConfig) -> Lessons:
    """Single-label learning: a fresh crop every time, and the label."""
    crops = free_crops(train.face_id, crop, config)
    return lambda rows, turns: Lesson(*crops(rows, turns), train.label[rows])


def label_objective(train: Faces, config: TrainConfig, scale: float) -> Loss:
    """Cross-entropy to the label, smoothed and weighted as the settings say, times `scale`."""
    weights = None
    if config.class_weights == "balanced":
        weights = balanced_weights(train.label, len(train.classes)).to(config.device)
    return lambda logits, label: label_loss(logits, label, config.label_smoothing, weights) * scale


def global_batches(count: int, batch_size: int) -> list[np.ndarray]:
    """The places 0 to count - 1 in batches, whatever the number of ranks.

    A last face alone joins the batch before: batch norm cannot train on a single face.
    """
    order = np.arange(count)
    batches = [order[k : k + batch_size] for k in range(0, count, batch_size)]
    if len(batches) > 1 and len(batches[-1]) < 2:
        batches[-2:] = [np.concatenate(batches[-2:])]
    return batches


def learning_rate(config: TrainConfig, epochs_done: float) -> float:
    """The rate after so many epochs (a fraction inside one): a function of time alone, so a resume needs no state."""
    if config.schedule == "step":
        return config.lr * config.lr_factor ** (int(epochs_done) // config.lr_step)
    # Smith and Topin's one cycle with cosine legs: lr / 25 to lr in the first quarter, then to lr / 250,000
    share = min(epochs_done / config.epochs, 1.0)
    low, high, leg = (
        (config.lr / 25, config.lr, share / 0.25)
        if share < 0.25
        else (config.lr, config.lr / 25e4, (share - 0.25) / 0.75)
    )
    return high + (low - high) * (1 + math.cos(math.pi * leg)) / 2


def autocast(device: str, precision: str) -> torch.autocast:
    """Mixed precision for the forward pass; weights and their updates stay fp32."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(torch.device(device).type, dtype, enabled=precision != "fp32")


def _other_settings(path: Path, stored: dict[str, Any], given: dict[str, Any]) -> FerError:
    names = sorted(name for name in given.keys() | stored.keys() if stored.get(name) != given.get(name))
    first = names[0]
    return FerError(
        f"{path} was begun with other settings ({first} {stored.get(first)}, now {given.get(first)}); "
        f"give the same settings to go on, or remove {path.parent} to start again"
    )
