"""An epoch of training from the cache against the authors' online loop; prints a Markdown table.

    python benchmarks/training.py --faces 1024 --pairs 5
    python benchmarks/training.py --faces 1024 --pairs 5 --run RUN --teacher RUN/teacher --size 64

Whole epochs with decoding and augmentation on drawn faces, JPEG as `fer align` writes them. `cache` is what `fer
distill` does: train_epoch on stored views, and of its seconds those that its steps wait for pictures. `cache, pictures
ready` is the same on batches that were cut before: the difference has whatever else decoding and cutting take from an
epoch, and the noise of two. `online` does what zengqunzhao/EfficientFace does, written anew: images from a folder,
torchvision's RandomResizedCrop, flip and normalisation in workers, a ResNet-50's answer about every batch, then the
student's step; maps in torch's usual order of memory, the four local branches one after another, channels shuffled by
a view and a transposition. `online, allocator mended` is the same with glibc told to keep freed memory, as `fer` tells
it. With --teacher that one answers instead of the ResNet-50, and `live` is `fer distill --live`, this program's own way
of asking it about every crop. Each is a process of its own, warmed up by an epoch, and they take turns. Seconds are the
clock's; where others use the machine, CPU seconds say more.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import torch
import torchvision
from torch import Tensor
from turns import ratios, serve, take_turns

from efficientface.data.drawn import draw_face
from efficientface.data.faces import face_table, hash_image, read_faces
from efficientface.data.views import draw_views
from efficientface.models import efficientface
from efficientface.pipeline import train
from efficientface.pipeline.checkpoint import load_model
from efficientface.pipeline.config import DistillConfig
from efficientface.pipeline.device import prepare
from efficientface.pipeline.distill import ask_live
from efficientface.pipeline.inputs import read_inputs
from efficientface.pipeline.losses import distribution_loss
from efficientface.pipeline.memory import keep_freed_memory

CLASSES = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger")
CROP = 224
MEAN, STD = (0.575, 0.449, 0.401), (0.207, 0.190, 0.181)
RIVALS = ("cache", "online", "online, allocator mended")
READY, LIVE = "cache, pictures ready", "live"


def write_pictures(folder: Path, count: int, run: Path | None) -> None:
    """FOLDER/images/CLASS/K.jpg, and the same bytes in FOLDER/faces.parquet: drawn, or training faces of a run."""
    classes, pictures = CLASSES, drawn_pictures(count)
    if run:
        faces = read_inputs(run).labelled("train")
        chosen = np.linspace(0, len(faces) - 1, min(count, len(faces))).astype(int)
        classes, pictures = faces.classes, ((int(faces.label[k]), faces.encoded(k).to_pybytes()) for k in chosen)
    rows = []
    for k, (label, data) in enumerate(pictures):
        path = folder / "images" / f"{label}-{classes[label]}" / f"{k}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        about = {"face_id": path.name, "image_hash": hash_image(data), "label": label, "status": "found"}
        rows.append({**about, "image": {"bytes": data, "path": path.name}, "split": "train", "source": path.name})
    pq.write_table(face_table(rows, classes), folder / "faces.parquet")


def drawn_pictures(count: int) -> Iterator[tuple[int, bytes]]:
    """Labels and JPEG files of drawn faces."""
    rng = np.random.default_rng(0)
    quality = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    for k in range(count):
        label = k % len(CLASSES)
        face = draw_face(np.eye(len(CLASSES))[label], rng, CROP)
        yield label, cv2.imencode(".jpg", face[..., ::-1], quality)[1].tobytes()


def ours(
    folder: Path, batch: int, workers: int, size: int, ready: bool = False, teacher: Path | None = None
) -> Callable[[], dict[str, Any]]:
    """An epoch of `fer distill`; where `ready`, on batches that were decoded and cut before; with `teacher`, --live."""
    prepare("cpu")
    config = DistillConfig(epochs=1, batch_size=batch, workers=workers, size=size)
    faces = read_faces([folder / "faces.parquet"])
    crop = len(faces.image(0))
    boxes, flips = draw_views(0, faces.face_id, [0], crop)
    targets = np.random.default_rng(0).dirichlet(np.ones(len(faces.classes)), len(faces)).astype(np.float32)
    model = efficientface.efficient_face(len(faces.classes)).to(memory_format=torch.channels_last)
    live = ask_live(faces, teacher, crop, config) if teacher else None
    optimizer = torch.optim.SGD(model.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    facts = {"mean": MEAN, "std": STD, "crop": crop}
    views, kept, waits = train.view_batches, list[tuple[np.ndarray, Tensor]](), list[float]()

    def once(*asked: Any) -> Iterable[tuple[np.ndarray, Tensor]]:
        if not kept:
            kept.extend((places, images.clone()) for places, images in views(*asked))
        return kept

    def timed(*asked: Any) -> Iterator[tuple[np.ndarray, Tensor]]:
        coming = views(*asked)
        while True:
            began = time.perf_counter()
            batch = next(coming, None)
            waits.append(time.perf_counter() - began)
            if batch is None:
                return
            yield batch

    train.view_batches = once if ready else timed

    def epoch() -> dict[str, Any]:
        waits.clear()
        rows = train.epoch_order(faces.label, config, 0)
        stored = train.Lesson(boxes[rows], flips[rows], targets[rows])
        lesson = live(rows, np.zeros_like(rows)) if live else stored
        train.train_epoch(
            model, optimizer, scaler, faces, rows, lesson, distribution_loss, 0, config, facts, (0, 1)
        )  # fmt: skip
        return {"waited": sum(waits)}

    return epoch


def online(folder: Path, batch: int, workers: int, size: int, teacher: Path | None) -> Callable[[], dict[str, Any]]:
    """An epoch of the authors' loop."""

    def shuffled(left: Tensor, right: Tensor) -> Tensor:
        x = torch.cat((left, right), 1)
        faces, channels, height, width = x.shape
        return x.view(faces, 2, channels // 2, height, width).transpose(1, 2).reshape(x.shape)

    efficientface.interleave = shuffled
    efficientface.Depthwise.forward = torch.nn.Conv2d.forward
    to_tensor = [torchvision.transforms.ToTensor(), torchvision.transforms.Normalize(MEAN, STD)]
    augmented = [torchvision.transforms.RandomResizedCrop(size), torchvision.transforms.RandomHorizontalFlip()]
    images = torchvision.datasets.ImageFolder(
        str(folder / "images"), torchvision.transforms.Compose([*augmented, *to_tensor])
    )
    loader = torch.utils.data.DataLoader(images, batch, shuffle=True, num_workers=workers)
    classes = len(read_faces([folder / "faces.parquet"], images=False).classes)
    network = load_model(teacher, "teacher")[0] if teacher else torchvision.models.resnet50(num_classes=classes).eval()
    student = efficientface.efficient_face(classes, fused=False).train()
    config = DistillConfig()
    optimizer = torch.optim.SGD(student.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay)

    def epoch() -> dict[str, Any]:
        for pictures, _ in loader:
            with torch.no_grad():
                target = torch.softmax(network(pictures), 1)
            loss = distribution_loss(student(pictures), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
        return {}

    return epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch's, and the online loop's workers")
    parser.add_argument("--loader", action="store_true", help="only what decoding and cutting take")
    parser.add_argument("--size", type=int, default=224, help="pixels a side")
    parser.add_argument("--run", type=Path, help="a run whose faces to train on, in place of drawn ones")
    parser.add_argument("--teacher", type=Path, help="a finished teacher's folder, of that size")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # these are the rivals'
    parser.add_argument("--as", dest="rival", choices=(*RIVALS, READY, LIVE), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.rival:
        if options.rival == RIVALS[2]:
            keep_freed_memory()
        common = (options.folder, options.batch_size, options.threads, options.size)
        if options.rival in (RIVALS[0], READY):
            serve(ours(*common, ready=options.rival == READY))
        elif options.rival == LIVE:
            serve(ours(*common, teacher=options.teacher))
        else:
            serve(online(*common, options.teacher))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder), options.faces, options.run)
        rivals = (*RIVALS, LIVE) if options.teacher else RIVALS
        found = {} if options.loader else take_turns(rivals, options.pairs, "--folder", folder)
        # by themselves: each process takes gigabytes
        alone = take_turns((RIVALS[0], READY), options.pairs, "--folder", folder)
    print(
        f"{options.faces} faces, batches of {options.batch_size}, {options.threads} threads, {options.pairs} rounds\n"
    )
    if found:
        print("| epoch | seconds | faces/s | against `cache`, time | against `cache`, CPU time |")
        print("| --- | ---: | ---: | ---: | ---: |")
    for name, runs in found.items():
        middle = statistics.median(run["seconds"] for run in runs)
        against = " | ".join(ratios(runs, found[RIVALS[0]], what) for what in ("seconds", "cpu"))
        print(f"| {name} | {middle:.1f} | {options.faces / middle:.1f} | {against} |")
    shares = {"waiting for pictures": [run["waited"] / run["seconds"] for run in alone[RIVALS[0]]]}
    for what in ("seconds", "cpu"):
        pairs = zip(alone[RIVALS[0]], alone[READY], strict=True)
        shares[f"{what} beyond an epoch with pictures ready"] = [1 - ready[what] / run[what] for run, ready in pairs]
    for name, parts in shares.items():
        print(f"\n{name}: {statistics.median(parts):.1%} of an epoch ({min(parts):.1%} to {max(parts):.1%})")


if __name__ == "__main__":
    main()
