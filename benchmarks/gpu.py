"""What a GPU does with the loop of `fer distill` and `fer teach`; prints Markdown tables.

    python benchmarks/gpu.py                        # on a GPU: some minutes
    python benchmarks/gpu.py --device cpu --small   # tiny, anywhere: shows that it runs, its figures mean nothing

Made-up faces: blurred noise as JPEG, random targets, random weights, so nothing here tells an accuracy. Steps are those
of `train_epoch` on faces kept on the device, cutting included. Peaks are what one large matrix product and one large
copy reach here. Bytes and kernels are counted operation by operation, each reading its inputs and writing its outputs:
what a step moves without fusion, so that a compiled step can reach more than 100 %.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from efficientface import FerError
from efficientface.data import resident
from efficientface.data.batches import canonical
from efficientface.data.faces import Faces, no_votes
from efficientface.data.views import cut, draw_views, render
from efficientface.models import build
from efficientface.models.inference import for_inference
from efficientface.pipeline.config import DistillConfig
from efficientface.pipeline.device import prepare
from efficientface.pipeline.losses import distribution_loss
from efficientface.pipeline.predict import predict
from efficientface.pipeline.train import Lesson, fit, free_crops, train_epoch

CLASSES = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger")
FACTS = {"mean": [0.5] * 3, "std": [0.25] * 3}
PICTURES = 64  # different ones


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny faces and few of them")
    parser.add_argument("--faces", type=int, default=12_271, help="training faces; RAF-DB's by default")
    parser.add_argument("--epochs", type=int, default=100, help="of the whole training at the end")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    try:
        device = prepare(given.device)
    except FerError as error:
        sys.exit(f"{error}; --device cpu --small shows that this program runs")
    if given.small:
        resident.GPUS = (device.type,)
        if device.type == "cpu":
            resident.free_memory = lambda _: (1 << 34, 1 << 34)
        given.faces, given.epochs, given.repeats = 24, 1, 1
    bench = Bench(device, small=given.small, faces=given.faces, repeats=given.repeats)
    for part in (bench.peaks, bench.decoding, bench.cutting, bench.steps, bench.labelling):
        part()
    bench.whole(given.epochs)


class Bench:
    """The parts share the faces, the device and its peaks."""

    def __init__(self, device: torch.device, small: bool, faces: int, repeats: int) -> None:
        self.device, self.small, self.repeats = device, small, repeats
        self.cuda = device.type == "cuda"
        self.crop, self.batch = (32, 8) if small else (224, 128)
        self.faces = made_up(faces, self.crop)
        name = torch.cuda.get_device_name(device) if self.cuda else "a CPU, tiny: these figures mean nothing"
        print(f"{name}; torch {torch.__version__}; {faces:,} faces of {self.crop} pixels, batch {self.batch}")

    def seconds(self, work: Callable[[], Any]) -> list[float]:
        """Each repetition's wall time, after one that is not counted."""
        times = []
        for _ in range(self.repeats + 1):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - start)
        return times[1:]

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def rate(self, count: int, work: Callable[[], Any]) -> tuple[float, str]:
        """Median of `count` a second, and it with the spread in words."""
        rates = [count / seconds for seconds in self.seconds(work)]
        middle = statistics.median(rates)
        return middle, f"{middle:,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"

    def peaks(self) -> None:
        """FLOP/s of a matrix product in each precision, and bytes/s of a copy."""
        side, self.peak = (256 if self.small else 8192), {}
        table("Peak", ["precision", "TFLOP/s"])
        for name, dtype in {**DTYPES, "tf32": torch.float32}.items():
            a = torch.randn(side, side, device=self.device, dtype=dtype)
            with tf32(name == "tf32"):
                self.peak[name] = 2 * side**3 / statistics.median(self.seconds(lambda a=a: a @ a))
            row(name, f"{self.peak[name] / 1e12:.3g}")
        a = torch.zeros((1 << 20) if self.small else (1 << 30), dtype=torch.uint8, device=self.device)
        self.bandwidth = 2 * len(a) / statistics.median(self.seconds(a.clone))
        print(f"\nA copy moves {self.bandwidth / 1e9:,.0f} GB/s, read and written.")

    def decoding(self) -> None:
        """JPEG to faces on the device, by its decoder and by threads; how far they differ."""
        count = min(len(self.faces), 4096)
        rows, decoded = range(count), {}
        table("Decoding to the device", ["by", "faces/s"])
        with ThreadPoolExecutor() as pool:
            ways = {
                "its decoder": lambda: resident.decode_by_gpu(self.faces, rows, self.device),
                "threads": lambda: resident.decode_by_threads(self.faces, rows, self.crop, pool).to(self.device),
            }
            for name, way in ways.items():
                try:
                    decoded[name] = way()[:PICTURES].int()
                    row(name, self.rate(count, way)[1])
                except RuntimeError as error:
                    row(name, f"not here: {str(error).strip().partition(chr(10))[0]}")
        if len(decoded) == 2:
            differ = (decoded["its decoder"] - decoded["threads"]).abs()
            print(f"\nThey differ by {differ.max()} grey levels at most, {differ.float().mean():.4f} on average.")

    def cutting(self) -> None:
        """Views of one batch, and how far they are from those of the CPU."""
        kept = resident.keep(self.faces.select(np.arange(self.batch)), self.crop, self.device)
        boxes, flips = draw_views(0, kept.face_id, [0], self.crop)
        there = torch.from_numpy(boxes.astype(np.int32)).to(self.device), torch.from_numpy(flips).to(self.device)
        pictures = kept.pixels.permute(0, 2, 3, 1).cpu().numpy()
        table("Cutting", ["pixels", "views/s", "largest difference to the CPU's, grey levels", "mean"])
        for size in (32, 16) if self.small else (224, 112, 64):
            ours = cut(kept.pixels, *there, size).permute(0, 2, 3, 1).cpu().numpy().astype(int)
            theirs = [render(p, b[0], bool(f[0]), size) for p, b, f in zip(pictures, boxes, flips, strict=True)]
            differ = np.abs(ours - np.stack(theirs))
            turns = 1 if self.small else 20
            work = lambda size=size, turns=turns: [cut(kept.pixels, *there, size) for _ in range(turns)]  # noqa: E731
            row(size, self.rate(turns * self.batch, work)[1], differ.max(), f"{differ.mean():.4f}")

    def steps(self) -> None:
        """The student's training step."""
        count = self.batch * (1 if self.small else 40)
        faces = resident.keep(self.faces.select(np.arange(count) % len(self.faces)), self.crop, self.device)
        rows = np.arange(count)
        config = DistillConfig(size=self.crop, batch_size=self.batch, device=str(self.device))
        lesson = lessons_of(faces, self.crop, config)(rows, rows * 0)
        model = build("efficientface", len(CLASSES)).to(self.device).to(memory_format=torch.channels_last)
        images = torch.randn(self.batch, 3, self.crop, self.crop, device=self.device)
        cost = Cost.of(model, images.contiguous(memory_format=torch.channels_last))
        work, moved = cost.flops / self.batch / 1e9, cost.bytes / self.batch / 1e6
        print(f"\nA student's step, fp32: {work:.3f} GFLOP and {moved:,.0f} MB a face, {cost.kernels:,} kernels.")
        title = ["step", "faces/s", "share of the product's FLOP/s", "share of the copy's bytes/s", "GB at most"]
        table("The student's step", title)
        for name in ("fp32", "tf32", "bf16", "fp16"):
            for kind in ("eager",) if self.small else ("eager", "compiled", "compiled, CUDA graphs"):
                mode = "reduce-overhead" if "graphs" in kind else "default"
                network = model if kind == "eager" else torch.compile(model, mode=mode, dynamic=False)
                precise = replace(config, precision="fp32" if name == "tf32" else name)
                optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, fused=self.cuda or None)
                scaler = torch.amp.GradScaler(self.device.type, enabled=name == "fp16")
                if self.cuda:
                    torch.cuda.reset_peak_memory_stats(self.device)

                def epoch(network=network, optimizer=optimizer, scaler=scaler, precise=precise) -> None:
                    train_epoch(
                        network, optimizer, scaler, faces, rows, lesson, distribution_loss, 0, precise, FACTS, (0, 1)
                    )

                with tf32(name == "tf32"):
                    rate, words = self.rate(count, epoch)
                half = 2 if name in ("bf16", "fp16") else 1
                row(
                    f"{name} {kind}",
                    words,
                    f"{rate * cost.flops / self.batch / self.peak[name]:.1%}",
                    f"{rate * cost.bytes / half / self.batch / self.bandwidth:.1%}",
                    f"{torch.cuda.max_memory_allocated(self.device) / 1e9:.1f}" if self.cuda else "",
                )

    def labelling(self) -> None:
        """The teacher's answers, from stored faces to distributions."""
        arch = "resnet18" if self.small else "resnet50"
        faces = self.faces.select(np.arange(8 if self.small else min(len(self.faces), 4096)))
        table(f"Labelling by {arch}", ["--label-precision", "views/s"])
        for name in ("fp32", "bf16"):
            model = for_inference(build(arch, len(CLASSES)).eval(), self.crop, not self.cuda and name == "fp32")

            def ask(name: str = name, model: torch.nn.Module = model) -> None:
                where = canonical(len(faces), self.crop)
                predict(
                    model, faces, *where, size=self.crop, device=str(self.device), batch=64, precision=name, **FACTS
                )

            row(name, self.rate(len(faces), ask)[1])

    def whole(self, epochs: int) -> None:
        """A whole training as `fer distill` does it: decoding, steps, judging and checkpoints."""
        config = DistillConfig(size=self.crop, batch_size=self.batch, epochs=epochs, device=str(self.device))
        table(f"{len(self.faces):,} faces, {epochs} epochs, whole", ["precision", "seconds"])
        judge = self.faces.select(np.arange(min(len(self.faces), 3068)))  # RAF-DB's test faces
        for name in ("fp32",) if self.small else ("fp32", "bf16"):
            torch.manual_seed(0)
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                fit(
                    build("efficientface", len(CLASSES)), self.faces, lessons_of(self.faces, self.crop, config),
                    distribution_loss, judge, replace(config, precision=name), {**FACTS, "crop": self.crop},
                    Path(folder) / "student",
                )  # fmt: skip
                row(name, f"{time.perf_counter() - start:.1f}")


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class tf32:
    """Matrix products and convolutions of fp32 in TF32, or not."""

    def __init__(self, on: bool) -> None:
        self.on = on

    def __enter__(self) -> None:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = self.on

    def __exit__(self, *_: object) -> None:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


class Cost(TorchDispatchMode):
    """Counts operations that launch a kernel, and the bytes of their inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = self.bytes = self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = any(not made.alias_info or made.alias_info.is_write for made in func._schema.returns)
        if made and not func._schema.name.startswith(("aten::empty", "aten::detach", "aten::_unsafe_view")):
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
            self.kernels += 1
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result

    @classmethod
    def of(cls, model: torch.nn.Module, images: torch.Tensor) -> "Cost":
        """A step in training mode on (B, 3, H, W), without the optimiser's, which is one kernel.

        FLOPs are three times the forward pass's: torch's counter takes a grouped convolution's gradient for a full one.
        """
        target = torch.full((len(images), len(CLASSES)), 1 / len(CLASSES), device=images.device)
        model.train()
        with FlopCounterMode(display=False) as forward, torch.no_grad():
            model(images)
        with cls() as cost:
            distribution_loss(model(images), target).backward()
        model.zero_grad()
        cost.flops = 3 * forward.get_total_flops()
        return cost


def made_up(count: int, crop: int) -> Faces:
    """`count` faces of blurred noise, as JPEG like those of `fer align`."""
    rng = np.random.default_rng(0)
    how = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    noise = (rng.integers(0, 256, (crop, crop, 3), dtype=np.uint8) for _ in range(PICTURES))
    encoded = [cv2.imencode(".jpg", cv2.GaussianBlur(face, (0, 0), 2), how)[1].tobytes() for face in noise]
    words = np.full(count, "", object)
    return Faces(
        classes=CLASSES,
        face_id=np.array([f"{k}.jpg" for k in range(count)], object),
        image_hash=words,
        split=words,
        label=rng.integers(0, len(CLASSES), count),
        votes=no_votes(count, len(CLASSES)),
        group=words,
        status=words,
        usable=np.ones(count, bool),
        place=np.arange(count) % PICTURES,
        images=pa.chunked_array([encoded], pa.binary()),
    )


def lessons_of(faces: Faces, crop: int, config: DistillConfig) -> Callable[[np.ndarray, np.ndarray], Lesson]:
    """A fresh crop every time, with a made-up distribution."""
    crops = free_crops(faces.face_id, crop, config)
    targets = np.random.default_rng(0).dirichlet(np.ones(len(CLASSES)), len(faces)).astype(np.float32)
    return lambda rows, turns: Lesson(*crops(rows, turns), targets[rows])


def table(title: str, columns: list[str]) -> None:
    print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")


def row(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
