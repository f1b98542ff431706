"""The network that `fer export` writes beside the authors' graph, both in onnxruntime; prints a Markdown table.

    python benchmarks/inference.py                                          (or make bench)
    python benchmarks/inference.py --model STUDENT --official official.onnx (of the same weights)

The authors' graph is re-enacted in their order of operations, with the weights of ours: the channel shuffle as view and
transpose, the four local patches sliced and convolved one by one, both branches of the modulator spread over the map
before they meet. Or it is a file of theirs. Both sessions have the same options; the answers must be equal to 1e-4. The
network in torch, as `fer predict` and `Recognizer` run it, stands beside them. All take turns; of the time of a
call the median is told, and of ratios the median with the 10th and 90th percentile of the turns.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from timing import Spent, spent
from torch import Tensor, nn

from efficientface.models.efficientface import EfficientFace, efficient_face
from efficientface.pipeline import export
from efficientface.pipeline.artifact import write_text
from efficientface.pipeline.checkpoint import METRICS, finish_model, fresh_model, load_model
from efficientface.pipeline.evaluate import kind_of_model

CLASSES = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger")
LIMIT = 1e-4  # of a probability


class TheirOrder(nn.Module):
    """Our network's weights in the authors' operations: (N, 3, H, W) to (N, C) probabilities."""

    def __init__(self, network: EfficientFace) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        net = self.network
        x = net.maxpool(net.conv1(x))
        features = self.modulated(self.stage(net.stage2, x)) + self.patches(x)
        features = self.stage(net.stage4, self.stage(net.stage3, features))
        return torch.softmax(net.fc(net.conv5(features).mean([2, 3])), 1)

    def stage(self, blocks: nn.Sequential, x: Tensor) -> Tensor:
        for block in blocks:
            if hasattr(block, "branch1"):
                both = torch.cat((block.branch1(x), block.branch2(x)), dim=1)
            else:
                left, right = x.chunk(2, dim=1)
                both = torch.cat((left, block.branch2(right)), dim=1)
            count, channels, height, width = both.size()
            x = both.view(count, 2, channels // 2, height, width)
            x = torch.transpose(x, 1, 2).contiguous().view(count, -1, height, width)
        return x

    def modulated(self, x: Tensor) -> Tensor:
        parts = self.network.modulator
        pooled = F.avg_pool2d(x, x.size(2), stride=x.size(2)).view(x.size(0), -1)
        channel = parts.channel(pooled).unsqueeze(2).unsqueeze(3).expand_as(x)
        return torch.sigmoid(channel * parts.spatial(x).expand_as(x)) * x

    def patches(self, x: Tensor) -> Tensor:
        half = x.size(2) // 2
        first, second = slice(0, half), slice(half, 2 * half)
        cut = [x[:, :, rows, columns] for columns in (first, second) for rows in (first, second)]
        parts = [branch(part) for branch, part in zip(self.network.local.branches, cut, strict=True)]
        return torch.cat([torch.cat(parts[:2], dim=2), torch.cat(parts[2:], dim=2)], dim=3)


def made_up(folder: Path) -> Path:
    """A model's folder of the published network: random weights, and batch norm's statistics of noise."""
    model, config = fresh_model("efficientface", CLASSES, 224, {"modulation": "multiply"}, "")
    torch.manual_seed(0)
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 3, 224, 224))
    folder.mkdir()
    write_text(folder / METRICS, "")
    known = {**config, "mean": [0.5] * 3, "std": [0.25] * 3}
    told: dict[str, Any] = {"made_from": {}, "settings": {}, "facts": {}}
    finish_model(folder, "teacher", model.state_dict(), known, files=[], **told)
    return folder


def write_theirs(model: Path, file: Path) -> None:
    """The authors' graph with the weights of a finished EfficientFace, by the exporter and options of ours."""
    ours, config = load_model(model, kind_of_model(model))
    network = efficient_face(len(config["classes"]), modulation="multiply", fused=False)
    network.load_state_dict(ours.state_dict())
    example = torch.zeros(2, 3, config["size"], config["size"])
    file.write_bytes(export.converted(TheirOrder(network).eval(), config, example, model, False))


def session(file: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    loaded = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = loaded.get_inputs()[0].name
    return lambda faces: loaded.run(None, {name: faces})[0]


def measure(
    model: Path, official: Path | None, batches: dict[int, int], threads: int, folder: Path
) -> dict[int, dict[str, list[Spent]]]:
    """What a call takes, by faces in it and by way; `batches`: how many turns of each."""
    ours, theirs = folder / "ours.onnx", official or folder / "theirs.onnx"
    export.run(model, ours)
    if official is None:
        write_theirs(model, theirs)
    network, config = load_model(model, kind_of_model(model))
    network = network.to(memory_format=torch.channels_last).eval()
    torch.set_num_threads(threads)

    def in_torch(faces: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(faces)).softmax(1).numpy()

    ways = {"ours": session(ours, threads), "authors'": session(theirs, threads), "ours in torch": in_torch}
    found: dict[int, dict[str, list[Spent]]] = {}
    for count, turns in batches.items():
        faces = np.random.default_rng(0).normal(size=(count, 3, config["size"], config["size"])).astype(np.float32)
        answers = {way: ask(faces) for way, ask in ways.items()}  # the first call of each is not counted
        if official is not None and abs(answers["authors'"].sum(1) - 1).max() > LIMIT:  # their graph ends in logits
            answers["authors'"] = torch.from_numpy(answers["authors'"]).softmax(1).numpy()
        for way, said in answers.items():
            differ = float(abs(said - answers["ours"]).max())
            assert differ <= LIMIT, f"{way} answers otherwise, by {differ:.1e}: are these the same weights?"
        found[count] = {way: [] for way in ways}
        for _ in range(turns):
            for way, ask in ways.items():
                time.sleep(0.05)  # onnxruntime's threads spin on for a while after a call
                found[count][way].append(spent(partial(ask, faces)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a finished EfficientFace; random weights without it")
    parser.add_argument("--official", type=Path, help="the authors' graph as ONNX, with the weights of --model")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--single", type=int, default=100, help="turns with one face")
    parser.add_argument("--many", type=int, default=10, help="turns with 64 faces")
    options = parser.parse_args()
    if options.official and not options.model:
        parser.error("--official needs --model: the answers are compared")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = options.model or made_up(folder / "model")
        found = measure(model, options.official, {1: options.single, 64: options.many}, options.threads, folder)
    print(f"\n{options.threads} threads; equal to {LIMIT:g}\n")
    print("| faces a call | way | ms | CPU ms | time / authors' | CPU time / authors' |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    for count, ways in found.items():
        for way, turns in ways.items():
            cells = []
            for what in ("wall", "cpu"):
                own, theirs = (np.array([getattr(turn, what) for turn in of]) for of in (turns, ways["authors'"]))
                low, middle, high = np.percentile(own / theirs, (10, 50, 90))
                cells.append((f"{np.median(own) * 1e3:.1f}", f"{middle:.2f} ({low:.2f} to {high:.2f})"))
            print(f"| {count} | {way} | {cells[0][0]} | {cells[1][0]} | {cells[0][1]} | {cells[1][1]} |")


if __name__ == "__main__":
    main()
