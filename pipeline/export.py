"""A finished model as ONNX or TorchScript: softmax included, any number of faces at once, checked before it is kept.

TorchScript, not torch.export's .pt2: to load a .pt2 torch may unpickle what the file holds, and so run anybody's code.
"""

import json
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from efficientface import FerError
from efficientface.data.batches import normalise, whole
from efficientface.data.faces import read_faces
from efficientface.data.geometry import template
from efficientface.pipeline import quantise
from efficientface.pipeline.align import config_as
from efficientface.pipeline.artifact import data_files, digest_of, read_manifest, replacing
from efficientface.pipeline.checkpoint import load_model
from efficientface.pipeline.evaluate import kind_of_model
from efficientface.pipeline.explain import class_maps, observed
from efficientface.pipeline.recognise import align_settings, faces_learned_from

VERSION = 1
OPSET = 18
CHECKED = 64  # faces that both are asked about
LIMIT, HALF_LIMIT = 1e-4, 1e-2  # largest difference of a probability; with weights in half precision
WAYS = {".onnx": "ONNX", ".pt": "TorchScript"}
EXTRA = "efficientface.json"  # the metadata of TorchScript
PROBABILITIES = {"probabilities": "(N, classes)"}
Answers = Callable[[torch.Tensor], np.ndarray]  # faces (N, 3, size, size) to probabilities (N, C)


def run(
    model: Path, out: Path, fp16: bool = False, int8: bool = False, force: bool = False, maps: bool = False
) -> dict[str, Any]:
    """Write the model in the folder `model` to the file `out`: ONNX (.onnx) or TorchScript (.pt) by its name.

    Input `faces`: (N, 3, size, size) float32 RGB, (value / 255 - mean) / std. Output `probabilities`: (N, C).
    The metadata has `size`, `mean`, `std`, `classes` and `alignment` as JSON. FerError, and no file, where torch
    answers otherwise. `fp16` stores weights in half precision; `int8` computes in whole numbers, and writes a file only
    where that pays or with `force`; `maps` gives ONNX a second output, the class activation map of every class,
    (N, C, h, w).
    """
    if out.suffix.lower() not in WAYS:
        raise FerError(f"{out} does not end in .onnx or .pt; give a file's name such as student.onnx")
    is_onnx = out.suffix.lower() == ".onnx"
    if fp16 and int8:
        raise FerError("--fp16 and --int8 each say how numbers are stored; give one of them")
    if (fp16 or int8 or maps) and not is_onnx:
        raise FerError("--fp16, --int8 and --maps are about ONNX; give a name that ends in .onnx, or leave them out")
    if maps and int8:
        raise FerError("--maps are checked against torch, which numbers of 8 bits are not; leave out --maps or --int8")
    if force and not int8:
        raise FerError("--force is about --int8; leave it out")
    if out.exists():
        raise FerError(f"{out} exists; remove it, or give another name")
    if not out.parent.is_dir():
        raise FerError(f"{out.parent} does not exist; make that folder first, or write the model elsewhere")
    network, config = load_model(model, kind_of_model(model))
    mapped = WithMaps(network).eval()
    network = nn.Sequential(network, nn.Softmax(1)).eval()
    judges = quantise.run_faces(model, config) if int8 else None
    images, kind = pictures(model, config)
    if maps and class_maps(mapped.network, images[:1], [-1])[2] != "CAM":
        raise FerError(
            f"{model} has no class activation maps to export: they need a network that ends in the mean of a map of "
            "more than one place and one linear layer; leave --maps out"
        )
    example = images[:1].expand(2, -1, -1, -1)  # two faces, since torch takes a single one for the only number there is
    with replacing(out, new=True) as part:
        if is_onnx:
            part.write_bytes(converted(mapped if maps else network, config, example, model, fp16))
            ask = onnx_answers
        else:
            script(network, config, example, model, part)
            ask = script_answers
        difference, agree = compared(ask(part), network, images)
        limit = HALF_LIMIT if fp16 else LIMIT
        if not difference <= limit:
            raise FerError(
                f"{model} answers otherwise as {WAYS[out.suffix.lower()]}: a probability differs by {difference:.1e}, "
                f"more than {limit:g}; nothing was written"
            )
        if maps and not (share := compared_maps(part, mapped, images)) <= limit:
            raise FerError(
                f"{model} looks elsewhere as ONNX: a map differs by {share:.1e} of its largest value, more than "
                f"{limit:g}; nothing was written"
            )
        beside: dict[str, Any] = {}
        if judges is not None:
            beside = in_int8(part, *judges, force)
            difference, agree = compared(ask(part), network, images)
        size = part.stat().st_size
    return {
        "file": str(out),
        "bytes": size,
        **({"opset": OPSET} if is_onnx else {}),
        "weights": "fp16" if fp16 else "int8" if int8 else "fp32",
        **({"maps": "one a class"} if maps else {}),
        "compared on": f"{len(images)} {kind}",
        "largest difference": difference,
        "same expression": f"{agree} of {len(images)}",
        **beside,
    }


def in_int8(
    file: Path, train: np.ndarray, judged: np.ndarray, labels: np.ndarray, split: str, force: bool
) -> dict[str, Any]:
    """Put int8 in the place of a checked ONNX file; FerError where that does not pay, unless `force`.

    The faces are those of quantise.run_faces. Returns accuracy, speed and size of both.
    """
    written = file.read_bytes()
    small = quantise.quantised(written, train)
    found = quantise.compared({"fp32": written, "int8": small}, judged, labels)
    against = quantise.objection(found["fp32"], found["int8"])
    if against and not force:
        raise FerError(
            f"int8 does not pay: on {len(judged)} {split} faces {against}; nothing was written, --force would write it"
        )
    file.write_bytes(small)
    return {
        "calibrated on": f"{len(train)} train faces",
        "judged on": f"{len(judged)} {split} faces",
        **found,
        **({"does not pay": against} if against else {}),
    }


class WithMaps(nn.Module):
    """Probabilities (N, C), and the maps (N, C, h, w) that explain.class_maps draws of each class.

    Only for networks whose maps it calls CAM.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, faces: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, features, read = observed(self.network, faces)
        assert features is not None
        assert read is not None
        return logits.softmax(1), torch.einsum("ck,nkhw->nchw", read[0].weight, features)


def pictures(model: Path, config: dict[str, Any]) -> tuple[torch.Tensor, str]:
    """Normalised input (CHECKED at most, 3, size, size) and what it is: faces the model learned from, or noise."""
    size = config["size"]
    folder = faces_learned_from(model)
    if folder is None:
        rng = np.random.default_rng(0)
        shown, kind = list(rng.integers(0, 256, (CHECKED, size, size, 3), np.uint8)), "random pictures"
    else:
        # one shard is enough: all of a large run would not fit into memory
        shards = (read_faces([path]) for path in data_files(folder, read_manifest(folder, "faces")))
        faces = next(shard for shard in shards if shard.usable.any())
        usable = np.flatnonzero(faces.usable)
        rows = usable[:: max(1, len(usable) // CHECKED)][:CHECKED]
        shown, kind = [faces.image(row) for row in rows], f"aligned faces of {folder}"
    return normalise(whole(shown, size), config["mean"], config["std"]), kind


def about(model: Path, config: dict[str, Any], kind: str, outputs: dict[str, str]) -> dict[str, str]:
    """What a file says of itself; `outputs` by name, with their shapes."""
    return {
        "format": f"efficientface {kind}",
        "version": str(VERSION),
        "model": digest_of(model),
        **{name: json.dumps(config[name], ensure_ascii=False) for name in ("arch", "classes", "size", "mean", "std")},
        "input": "faces aligned by fer align, (N, 3, size, size) float32 RGB, (value / 255 - mean) / std",
        "alignment": json.dumps(alignment(model)),
        "output": ", ".join(f"{name} {shape}" for name, shape in outputs.items()),
    }


def alignment(model: Path) -> dict[str, Any]:
    """How faces are cut for the model: pixels a side, where the five landmarks go, the fewest pixels of a box's side.

    The landmarks are None for a model of images that were aligned already.
    """
    config = config_as(align_settings(model))
    target = None if config.aligned else template(config.crop, config.eye_distance).round(4).tolist()
    return {"crop": config.crop, "landmarks": target, "min_face": config.min_face}


def script(network: nn.Module, config: dict[str, Any], example: torch.Tensor, model: Path, file: Path) -> None:
    """Write TorchScript, with the metadata as JSON in its extra file `efficientface.json`."""
    told = json.dumps(about(model, config, "torchscript", PROBABILITIES), ensure_ascii=False)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch, that it is not developed any more
        try:
            traced = torch.jit.trace(network, example)
            torch.jit.save(traced, str(file), _extra_files={EXTRA: told})
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise FerError(
                f"torch cannot write {config['arch']} as TorchScript ({reason}); export it as ONNX"
            ) from error


def converted(network: nn.Module, config: dict[str, Any], example: torch.Tensor, model: Path, fp16: bool) -> bytes:
    """The ONNX file's bytes."""
    try:
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise FerError("fer export needs onnxscript; pip install 'efficientface[export]'") from error
    outputs = PROBABILITIES | ({"maps": "(N, classes, h, w)"} if isinstance(network, WithMaps) else {})
    for chatty in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own parts
        try:
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                external_data=False,
                opset_version=OPSET,
                input_names=["faces"],
                output_names=list(outputs),
                dynamic_shapes=({0: torch.export.Dim("N")},),
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = str(error).strip().splitlines()[0]
            raise FerError(f"torch cannot write {config['arch']} as ONNX ({reason}); export another network") from error
    assert program is not None
    proto = program.model_proto
    if fp16:
        halve(proto.graph)
    for key, value in about(model, config, "onnx", outputs).items():
        proto.metadata_props.add(key=key, value=value)
    return proto.SerializeToString()


def halve(graph: Any) -> None:
    """Store float32 weights of an onnx graph as float16, each behind a cast back, in place."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for weights in graph.initializer:
        if weights.data_type == TensorProto.FLOAT:
            name = weights.name
            weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights).astype(np.float16), f"{name}.half"))
            casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def onnx_answers(file: Path) -> Answers:
    """What onnxruntime says, from a file."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda faces: session.run(None, {"faces": faces.numpy()})[0]


def script_answers(file: Path) -> Answers:
    """What TorchScript says, from a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = torch.jit.load(str(file))
    return lambda faces: loaded(faces).numpy()


@torch.no_grad()
def compared(ask: Answers, network: nn.Module, images: torch.Tensor) -> tuple[float, int]:
    """The largest difference of a probability between a file and torch, and how many expressions are the same.

    The first face goes alone: another number of faces than the export saw.
    """
    parts: Sequence[torch.Tensor] = images.split([1, len(images) - 1]) if len(images) > 1 else [images]
    found = np.concatenate([ask(part) for part in parts])
    expected = network(images).numpy()
    return float(abs(found - expected).max()), int((found.argmax(1) == expected.argmax(1)).sum())


@torch.no_grad()
def compared_maps(file: Path, network: WithMaps, images: torch.Tensor) -> float:
    """The largest difference of a map's place between onnxruntime and torch, as a share of the largest value."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run(["maps"], {"faces": images.numpy()})
    expected = network(images)[1].numpy()
    return float(abs(found - expected).max() / abs(expected).max())
