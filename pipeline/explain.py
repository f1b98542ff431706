"""Pictures of what models look at and what they say: class activation maps (figure 1), distributions (figure 2).

CAM: Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016, where a network ends in global
average pooling and one linear layer; otherwise Grad-CAM, Selvaraju et al., ICCV 2017, which is the same there but for
its cut at zero.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from efficientface import FerError
from efficientface.data.batches import normalise, whole
from efficientface.data.faces import Faces, decode_face
from efficientface.data.photos import PhotoFiles
from efficientface.pipeline import pictures
from efficientface.pipeline.align import Photo, aligner_as
from efficientface.pipeline.checkpoint import load_model
from efficientface.pipeline.device import prepare
from efficientface.pipeline.evaluate import class_order, gather, kind_of_model
from efficientface.pipeline.inputs import Inputs, read_inputs
from efficientface.pipeline.inspect import unknown_face
from efficientface.pipeline.sheet import some
from efficientface.pipeline.status import printable

SAMPLE = 6
BATCH = 16  # faces whose features and gradients are held at a time


class Shown(NamedTuple):
    """A face to explain: a name, its picture (S, S, 3) uint8, its label (-1 unknown), shares of votes (C,) or NaN."""

    name: str
    picture: np.ndarray
    label: int
    votes: np.ndarray


class Map(NamedTuple):
    """What a model says of N faces, (N, C) probabilities, and where it saw it: (N, h, w), 0-1, by `method`."""

    probabilities: np.ndarray
    classes: np.ndarray  # (N,) which class each map is about
    weights: np.ndarray
    method: str


def run(
    run: Path,
    out: Path,
    *,
    names: Sequence[str] | None = None,
    models: Sequence[Path] = (),
    faces: Sequence[str] = (),
    images: Sequence[Path] = (),
    split: str = "test",
    label: str | None = None,
    sample: int = SAMPLE,
    seed: int = 0,
    of: str = "predicted",
    bars: bool = False,
    device: str = "cpu",
) -> dict[str, Any]:
    """Draw maps of models side by side, or with `bars` their distributions, to `out`.

    The faces are those of `run` with the ids `faces`, and those in the files `images`, detected and aligned as the
    run's were; without either, `sample` random ones of a split and label. Maps are about the class each model finds
    most probable (`of` is `predicted`), the `label`, or a class by name.
    """
    pictures.check_target(out, "--out")
    prepare(device)
    inputs = read_inputs(run)
    chosen = gather(run, names, models)
    shown = [*by_id(inputs, faces), *found_in(inputs, images)]
    if not shown:
        rows = some(inputs.faces, sample, seed, split, label)["rows"]
        shown = [of_run(inputs.faces, int(row)) for row in rows]
    classes = inputs.faces.classes
    about = [one.label if of == "label" else -1 for one in shown]
    if of not in ("predicted", "label"):
        if of not in classes:
            known = ", ".join(map(printable, classes))
            raise FerError(f"--of {printable(of)} is no class; give predicted, label, or one of {known}")
        about = [classes.index(of)] * len(shown)
    if of == "label" and -1 in about:
        raise FerError(f"--of label: {printable(shown[about.index(-1)].name)} has no label; give predicted or a class")
    answers = {name: explained(folder, shown, about, classes, device) for name, folder in chosen.items()}
    heads = [f"{one.name}\n{classes[one.label] if one.label >= 0 else ''}".strip() for one in shown]
    if bars:
        drawn = {name: answer.probabilities for name, answer in answers.items()}
        votes = np.stack([one.votes for one in shown])
        asked = votes if np.isfinite(votes).any() else None
        labels = [one.label for one in shown]
        pictures.distributions(out, [one.picture for one in shown], heads, classes, drawn, labels, asked)
    else:
        layers = {
            f"{name}\n{answer.method}, {answer.weights.shape[1]} x {answer.weights.shape[2]}": [
                (answer.weights[k], said(answer, k, classes)) for k in range(len(shown))
            ]
            for name, answer in answers.items()
        }
        pictures.maps(out, [one.picture for one in shown], heads, layers)
    return {
        "run": str(run),
        "picture": str(out),
        "classes": list(classes),
        "models": {
            name: {"method": answer.method, "map": list(answer.weights.shape[1:])} for name, answer in answers.items()
        },
        "faces": [
            {
                "face": one.name,
                "label": classes[one.label] if one.label >= 0 else None,
                "model": name,
                "about": classes[answer.classes[k]],
                "says": classes[answer.probabilities[k].argmax()],
                "distribution": dict(zip(classes, answer.probabilities[k].tolist(), strict=True)),
            }
            for k, one in enumerate(shown)
            for name, answer in answers.items()
        ],
    }


def said(answer: Map, k: int, classes: Sequence[str]) -> str:
    """The class that a map is about, and how probable the model finds it."""
    about = answer.classes[k]
    return f"{printable(classes[about])} {answer.probabilities[k, about]:.0%}"


# --- faces ----------------------------------------------------------------------------------------------------


def of_run(faces: Faces, row: int) -> Shown:
    """A usable face of faces/."""
    votes = faces.select(np.array([row])).vote_distributions()[0]
    return Shown(faces.face_id[row], faces.image(row), int(faces.label[row]), votes)


def by_id(inputs: Inputs, ids: Sequence[str]) -> list[Shown]:
    """Faces of a run by id."""
    places = {name: row for row, name in enumerate(inputs.faces.face_id.tolist())}
    for name in ids:
        if name not in places:
            raise unknown_face(inputs.folder, name, list(places))
    return [of_run(inputs.faces, places[name]) for name in ids]


def found_in(inputs: Inputs, images: Sequence[Path]) -> list[Shown]:
    """The faces in photographs, made as the run's were; FerError where one shows none."""
    if not images:
        return []
    aligner = aligner_as(inputs.manifest["settings"], PhotoFiles(Path()))
    nothing = np.full(len(inputs.faces.classes), np.nan)
    shown = []
    for path in images:
        for row in aligner.rows(Photo("", str(path), None, {})):
            if "image" not in row:
                raise FerError(f"{printable(path)} cannot be shown: {row['status']} ({row['reason']}); leave it out")
            picture = decode_face(row["image"]["bytes"])
            further = "#" + row["face_id"].partition("#")[2] if "#" in row["face_id"] else ""
            shown.append(Shown(path.name + further, picture, -1, nothing))
    return shown


# --- maps -----------------------------------------------------------------------------------------------------


def explained(folder: Path, shown: Sequence[Shown], about: Sequence[int], classes: Sequence[str], device: str) -> Map:
    """A model's answers and maps; `about` are classes by number, -1 the one that the model finds most probable."""
    model, config = load_model(folder, kind_of_model(folder))
    order = class_order(folder, config["classes"], classes)
    images = whole([one.picture for one in shown], config["size"]).to(device)
    images = normalise(images, config["mean"], config["std"])
    wanted = [-1 if k < 0 else order[k] for k in about]
    model = model.to(device)
    parts = [class_maps(model, images[k : k + BATCH], wanted[k : k + BATCH]) for k in range(0, len(shown), BATCH)]
    probabilities = torch.softmax(torch.cat([logits for _, logits, _ in parts]), 1).cpu().numpy()[:, order]
    asked = np.array([probabilities[k].argmax() if c < 0 else c for k, c in enumerate(about)])
    maps = torch.cat([maps for maps, _, _ in parts]).cpu().numpy()
    return Map(probabilities, asked, scaled(maps), parts[0][2])


def class_maps(model: nn.Module, images: Tensor, about: Sequence[int]) -> tuple[Tensor, Tensor, str]:
    """(N, h, w) maps, (N, C) logits and `CAM` or `Grad-CAM`, of normalised images (N, 3, H, W).

    `about` are N classes in the model's order, -1 the most probable. The features are the last (N, K, h, w) that a
    module of the network gives. Where their mean over places is what the last linear layer reads, the map is
    sum_k weight[class, k] * feature[k] at each place; elsewhere weights are the mean gradient, and what speaks against
    the class is cut off.
    """
    logits, last, read = observed(model, images)
    if last is None:
        raise FerError("the network has no map of more than one place to explain; give a larger --size in training")
    classes = torch.tensor([int(logits[k].argmax()) if c < 0 else c for k, c in enumerate(about)], device=images.device)
    head, pooled = read or (None, None)
    if (
        head is not None
        and pooled is not None
        and head.out_features == logits.shape[1]
        and pooled.shape == last.shape[:2]
        and torch.allclose(pooled, last.mean((2, 3)), rtol=1e-3, atol=1e-5)
    ):
        return torch.einsum("nk,nkhw->nhw", head.weight[classes], last).detach(), logits.detach(), "CAM"
    score = logits.gather(1, classes[:, None]).sum()
    weights = torch.autograd.grad(score, last)[0].mean((2, 3))
    return torch.einsum("nk,nkhw->nhw", weights, last).relu().detach(), logits.detach(), "Grad-CAM"


def observed(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None, tuple[nn.Linear, Tensor] | None]:
    """(N, C) logits, the last (N, K, h, w) of more than one place, the last linear layer with what it reads."""
    features: Tensor | None = None
    read: tuple[nn.Linear, Tensor] | None = None

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal features, read
        if isinstance(module, nn.Linear):
            read = module, inputs[0]
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
            features = output

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    try:
        logits = model.eval()(images)
    finally:
        for hook in hooks:
            hook.remove()
    return logits, features, read


def scaled(maps: np.ndarray) -> np.ndarray:
    """(N, h, w), each from its least to its greatest value made 0 to 1; one without differences is 0."""
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    return np.divide(maps - low, high - low, out=np.zeros_like(maps), where=high > low)


def tables(result: dict[str, Any]) -> list[Any]:
    """Which models say what about which faces."""
    table = Table("face", "label", "model", "map of", "says", title=Text(f"written to {printable(result['picture'])}"))
    for line in result["faces"]:
        says = f"{printable(line['says'])} {line['distribution'][line['says']]:.1%}"
        cells = (line["face"], line["label"] or "", line["model"], line["about"])
        table.add_row(*(Text(printable(cell)) for cell in cells), Text(says))
    return [table]
