"""A model's ONNX file in int8, and whether that pays: accuracy and speed beside fp32's, on faces of the model's run.

Static quantisation by onnxruntime: activations get their ranges from faces of the training split.
"""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime

from efficientface import FerError
from efficientface.data.batches import normalise, whole
from efficientface.data.faces import read_faces
from efficientface.pipeline.artifact import data_files, read_manifest
from efficientface.pipeline.evaluate import class_order
from efficientface.pipeline.recognise import faces_learned_from

CALIBRATED = 256  # faces of the training split
JUDGED = 1000  # labelled faces of the test split, or of val where there is none
BATCH = 8  # faces at once, where speed is measured and otherwise
RUNS = 25  # of either file, by turns
LOST = 0.01  # share of the judged faces that may be lost
ALIKE = 0.95  # share of them that must get fp32's expression: a bad model could lose nothing by chance

Images = np.ndarray  # (N, 3, size, size) float32, normalised


def quantised(written: bytes, images: Images) -> bytes:
    """An ONNX file's bytes with weights and activations in int8 where onnxruntime computes in it; metadata stays.

    images: what the ranges of the activations are taken from. The softmax stays in float32: 256 steps are too few for
    probabilities.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    # it tells its steps
    for chatty in ("onnxruntime.quantization", "onnxruntime.tools"):
        logging.getLogger(chatty).setLevel(logging.ERROR)

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(batches(images))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"faces": batch}

    with TemporaryDirectory() as folder:
        whole_file, prepared, small = (Path(folder) / f"{name}.onnx" for name in ("whole", "prepared", "small"))
        whole_file.write_bytes(written)
        quant_pre_process(whole_file, prepared)
        quantize_static(
            prepared,
            small,
            Reader(),
            quant_format=QuantFormat.QDQ,
            nodes_to_exclude=[node.name for node in onnx.load(prepared).graph.node if node.op_type == "Softmax"],
            per_channel=True,  # depthwise filters differ too much in size for one scale
            activation_type=QuantType.QUInt8,  # what x86 and ARM multiply fastest
            weight_type=QuantType.QInt8,
        )
        return small.read_bytes()


def run_faces(model: Path, config: dict[str, Any]) -> tuple[Images, Images, np.ndarray, str]:
    """Faces to calibrate by, faces to judge by with their labels as places in the model's classes, and their split.

    The model's run must still be there; shards are read until there are enough of both.
    """
    folder = faces_learned_from(model)
    if folder is None:
        raise FerError(f"--int8 needs faces to calibrate by, and those that {model} learned from are not there")
    shards = data_files(folder, read_manifest(folder, "faces"))
    facts = [read_faces([shard], images=False) for shard in shards]
    labelled = {split for faces in facts for split in faces.split[faces.usable & (faces.label >= 0)]}
    split = "test" if "test" in labelled else "val"
    if not {"train", split} <= labelled:
        raise FerError(f"--int8 needs labelled faces of train and test, and {folder} lacks some; leave it out")
    shown: dict[str, list[np.ndarray]] = {"train": [], split: []}
    wanted = {"train": CALIBRATED, split: JUDGED}
    labels: list[int] = []
    for shard, known in zip(shards, facts, strict=True):
        places = {
            name: np.flatnonzero((known.split == name) & known.usable & (known.label >= 0))[: wanted[name] - len(found)]
            for name, found in shown.items()
        }
        if not any(map(len, places.values())):
            continue
        faces = read_faces([shard])
        for name, rows in places.items():
            shown[name] += [faces.image(row) for row in rows]
        order = class_order(model, config["classes"], faces.classes)
        labels += [order[label] for label in faces.label[places[split]]]
    train, judged = (
        normalise(whole(images, config["size"]), config["mean"], config["std"]).numpy() for images in shown.values()
    )
    return train, judged, np.array(labels), split


def compared(files: dict[str, bytes], images: Images, labels: np.ndarray) -> dict[str, dict[str, float]]:
    """Of the ONNX files fp32 and int8: accuracy, agreement with fp32, faces a second here, bytes."""
    sessions = {
        name: onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]) for name, data in files.items()
    }
    answers = {
        name: np.concatenate([session.run(None, {"faces": batch})[0].argmax(1) for batch in batches(images)])
        for name, session in sessions.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in files}
    some = images[:BATCH]
    for _ in range(RUNS):
        for name, session in sessions.items():  # by turns: what else the machine does hits both
            began = time.perf_counter()
            session.run(None, {"faces": some})
            seconds[name].append(time.perf_counter() - began)
    return {
        name: {
            "accuracy": float((answers[name] == labels).mean()),
            "same_expression": float((answers[name] == answers["fp32"]).mean()),
            "faces_per_second": round(len(some) / float(np.median(seconds[name])), 1),
            "bytes": len(data),
        }
        for name, data in files.items()
    }


def objection(fp32: dict[str, float], int8: dict[str, float]) -> str | None:
    """Why int8 does not pay; None where it does."""
    if fp32["accuracy"] - int8["accuracy"] > LOST:
        return f"its accuracy is {int8['accuracy']:.1%}, fp32's {fp32['accuracy']:.1%}, and it may lose {LOST:.0%}"
    if int8["same_expression"] < ALIKE:
        return f"it gives fp32's expression to {int8['same_expression']:.1%}, and {ALIKE:.0%} are wanted"
    if int8["faces_per_second"] <= fp32["faces_per_second"]:
        return f"it is not faster: {int8['faces_per_second']:g} faces a second here, fp32 {fp32['faces_per_second']:g}"
    return None


def batches(images: Images) -> Sequence[Images]:
    return [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
