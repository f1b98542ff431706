"""A teacher's answers: a ResNet-50 as shipped against the ways in which `fer teach` asks it; prints a Markdown table.

    python benchmarks/labelling.py --rounds 5
    python benchmarks/labelling.py --teacher runs/first/teacher --run runs/first

`as shipped` is the network in torch's usual order of memory, with the allocator as it is; `allocator mended` the same
with glibc told to keep freed memory. `fer teach` is what labels; `channels_last` and `folded` are the steps to it;
`onnxruntime` needs the extra `export`. Each is a process of its own, warmed up, and they take turns with the same
pictures of noise. With --teacher and --run its answers about up to 512 faces are compared with those as shipped: give
a trained one, since what an untrained network answers is nearly uniform and tells nothing.
"""

import argparse
import io
import os
import statistics
import sys
from collections import deque
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from turns import ratios, serve, take_turns

from efficientface.data.batches import canonical, view_batches
from efficientface.data.batches import normalise as normalised
from efficientface.models.inference import for_inference
from efficientface.pipeline.checkpoint import load_model
from efficientface.pipeline.device import prepare
from efficientface.pipeline.inputs import read_inputs
from efficientface.pipeline.predict import by_threads, most_at_once

RIVALS = ("as shipped", "allocator mended", "channels_last", "folded", "onnxruntime", "fer teach", "fer teach, bf16")
COMPARED = 512


def rival(name: str, model: nn.Module, size: int) -> Callable[[Tensor], Tensor]:
    """(B, 3, size, size) normalised to (B, C) logits, asked in the way of that name."""
    if name == "as shipped":
        return model
    prepare("cpu")
    if name == "allocator mended":
        return model
    if name == "onnxruntime":
        return by_onnxruntime(model, size)
    if name != "channels_last":
        model = for_inference(model, size, scripted=name == "fer teach")
    if name != "fer teach":
        model = model.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def ask(images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=name == "fer teach, bf16"):
            return model(images).float()

    return ask


def by_onnxruntime(model: nn.Module, size: int) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    file = io.BytesIO()
    faces = {0: torch.export.Dim("N")}
    with redirect_stdout(sys.stderr):  # it tells of its progress
        program = torch.onnx.export(
            model, (torch.zeros(2, 3, size, size),), dynamo=True, input_names=["faces"], dynamic_shapes=(faces,)
        )
    program.save(file)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file.getvalue(), settings, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"faces": images.contiguous().numpy()})[0])


def work(options: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    torch.manual_seed(0)
    if options.teacher:
        model, config = load_model(options.teacher, "teacher")
        size = config["size"]
    else:
        model, size = torchvision.models.resnet50(num_classes=7).eval(), options.size
    ask = rival(options.rival, model, size)
    images = torch.randn(options.batch, 3, size, size)
    answers: list[Any] = []
    if options.teacher and options.run:
        inputs = read_inputs(options.run)
        faces = inputs.faces.select(np.arange(0, len(inputs.faces), -(-len(inputs.faces) // COMPARED)))
        rows = [np.arange(k, min(k + options.batch, len(faces))) for k in range(0, len(faces), options.batch)]
        boxes, flips = canonical(len(faces), inputs.facts["crop"])
        with torch.inference_mode():
            for _, shown in view_batches(faces, rows, boxes, flips, size):
                answers += torch.softmax(ask(normalised(shown, config["mean"], config["std"])), 1).tolist()

    def turn() -> dict[str, Any]:
        with torch.inference_mode():
            if options.rival.startswith("fer teach"):
                deque(by_threads(ask, images.split(most_at_once(size)) * options.batches), maxlen=0)
            else:
                for _ in range(options.batches):
                    ask(images)
        return {"answers": answers}

    return turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--batches", type=int, default=2, help="in a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=224, help="pixels a side, where no --teacher says it")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", nargs="+", choices=RIVALS, default=list(RIVALS), metavar="RIVAL")
    parser.add_argument("--teacher", type=Path, help="a finished teacher's folder")
    parser.add_argument("--run", type=Path, help="the run whose faces it is shown")
    parser.add_argument("--as", dest="rival", choices=RIVALS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.rival:
        serve(work(options))
        return
    found = take_turns(list(dict.fromkeys([RIVALS[0], *options.only])), options.rounds)
    count = options.batch * options.batches
    print(f"batches of {options.batch}, {options.threads} threads, {options.rounds} rounds\n")
    print("| asked | images/s | times as shipped | by CPU time | largest difference | other expression |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    exact = np.array(found[RIVALS[0]][0]["answers"])
    for name, runs in found.items():
        speed = count / statistics.median(run["seconds"] for run in runs)
        against = " | ".join(ratios(found[RIVALS[0]], runs, what) for what in ("seconds", "cpu"))
        agreement = "| "
        if len(exact):
            answers = np.array(runs[0]["answers"])
            others = int((answers.argmax(1) != exact.argmax(1)).sum())
            agreement = f"{np.abs(answers - exact).max():.1e} | {others} of {len(exact)}"
        print(f"| {name} | {speed:.1f} | {against} | {agreement} |")


if __name__ == "__main__":
    main()
