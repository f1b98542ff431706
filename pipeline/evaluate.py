"""How good a run's teacher and students are on one split, by labels and, where faces have votes, by distributions."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from efficientface import FerError
from efficientface.data.batches import canonical
from efficientface.data.faces import Faces
from efficientface.pipeline.artifact import is_begun, is_finished, read_manifest, reference_to, replacing, write_json
from efficientface.pipeline.checkpoint import load_model
from efficientface.pipeline.device import prepare
from efficientface.pipeline.inputs import Inputs, read_inputs
from efficientface.pipeline.metrics import confusion_png, score
from efficientface.pipeline.predict import predict
from efficientface.pipeline.progress import progress

log = logging.getLogger(__name__)


def run(
    run: Path,
    split: str = "test",
    device: str = "cpu",
    batch_size: int = 256,
    names: Sequence[str] | None = None,
    png: bool = True,
) -> dict[str, Any]:
    """Judge the models of `run` on the usable labelled faces of a split, the canonical view of each.

    `names` picks some of them: `teacher`, or students by name. Writes RUN/evaluation/SPLIT.json and a confusion matrix
    as confusion-NAME-SPLIT.png; returns what the JSON holds: of each model in `models` what metrics.score gives.
    """
    prepare(device)
    inputs = read_inputs(run)
    faces = inputs.labelled(split)
    targets = faces.vote_distributions()
    out = run / "evaluation"
    result: dict[str, Any] = {
        "run": str(run),
        "split": split,
        "count": len(faces),
        "count_with_votes": int((~np.isnan(targets).any(1)).sum()),
        "classes": list(faces.classes),
        "models": {},
    }
    for name, folder in find_models(run, names).items():
        kind = "teacher" if name == "teacher" else "student"
        chosen_on = _check_origin(folder, read_manifest(folder, kind), inputs)
        probabilities, facts = ask(folder, kind, faces, inputs.facts["crop"], device, batch_size)
        result["models"][name] = {
            **facts,
            "chosen_on": chosen_on,
            **score(probabilities, faces.label, faces.classes, targets),
        }
    out.mkdir(exist_ok=True)
    write_json(out / f"{split}.json", result)
    for name, model in result["models"].items() if png else ():
        title = f"{name} on {split}: {100 * model['accuracy']:.1f} % of {model['count']:,} faces"
        with replacing(out / f"confusion-{name}-{split}.png") as part:
            confusion_png(part, model["confusion"], faces.classes, title)
    return result


def find_models(run: Path, names: Sequence[str] | None) -> dict[str, Path]:
    """The finished models of a run by name, the teacher first; with `names` just those, in that order."""
    found = {"teacher": run / "teacher"} if is_begun(run / "teacher") else {}
    for folder in sorted(path for path in (run / "students").glob("*") if path.is_dir()):
        if folder.name == "teacher":
            raise FerError(f"{folder} has the name of the run's teacher; rename the folder")
        found[folder.name] = folder
    if names is not None:
        unknown = [name for name in names if name not in found]
        if unknown:
            known = f"it has {', '.join(found)}" if found else "it has no models; run fer teach and fer distill first"
            raise FerError(f"{run} has no model {unknown[0]}; {known}")
        return {name: found[name] for name in names}
    for name, folder in found.items():
        if not is_finished(folder):
            log.warning("%s left out: %s is unfinished", name, folder)
    finished = {name: folder for name, folder in found.items() if is_finished(folder)}
    if not finished:
        raise FerError(f"{run} has no finished teacher or student; run fer teach or fer distill first")
    return finished


def ask(
    folder: Path, kind: str, faces: Faces, crop: int, device: str, batch_size: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """A model's probabilities (N, C) for whole faces in the order of their classes, and facts about the model."""
    model, config = load_model(folder, kind)
    if set(config["classes"]) != set(faces.classes):
        raise FerError(
            f"{folder} answers for the classes {', '.join(config['classes'])}, "
            f"the faces have {', '.join(faces.classes)}; evaluate it in a run of its own classes"
        )
    boxes, flips = canonical(len(faces), crop)
    with progress(f"evaluating {folder.name}", len(faces)) as advance:
        answers = predict(
            model, faces, boxes, flips,
            size=config["size"], mean=config["mean"], std=config["std"],
            device=device, batch=batch_size, advance=advance,
        )[:, 0]  # fmt: skip
    if not np.isfinite(answers).all():
        broken = int((~np.isfinite(answers)).any(1).sum())
        raise FerError(f"{folder} answers NaN for {broken} of {len(faces)} faces; train it again with a smaller --lr")
    facts = {
        "arch": config["arch"],
        "size": config["size"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    return answers[:, [config["classes"].index(name) for name in faces.classes]], facts


def _check_origin(folder: Path, manifest: dict[str, Any], inputs: Inputs) -> str | None:
    """The split that chose the best epoch; FerError if other faces than the run's trained the model.

    Their splits may differ, and a test face may have been trained on. A model that names no faces, an
    imported one, passes.
    """
    faces = manifest["made_from"].get("faces")
    if faces and faces["manifest"] != reference_to(inputs.folder, folder)["manifest"]:
        raise FerError(f"{folder} was made from other faces than {inputs.folder} holds now; remove it and train again")
    return manifest["facts"].get("chosen_on")


def rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a model, for CSV."""
    return [{"split": result["split"], "model": name, **model} for name, model in result["models"].items()]


def tables(result: dict[str, Any]) -> list[Table]:
    """The models side by side, then each one's classes and confusion matrix."""
    models = result["models"].items()
    split = result["split"]
    return [
        comparison(result),
        *(
            table
            for name, model in models
            for table in (class_table(name, model, split), confusion_table(name, model, split))
        ),
    ]


def comparison(result: dict[str, Any], votes: str = "votes") -> Table:
    """One row a model; `votes` is what the source's vote columns hold."""
    split, count, with_votes = result["split"], result["count"], result["count_with_votes"]
    chosen_here = [name for name, model in result["models"].items() if model["chosen_on"] == split]
    title = f"{split}: {count:,} labelled faces" + (f", {with_votes:,} with {votes}" if with_votes else "")
    notes = [f"[95 % interval]; KL and JS in nats, to the {votes}" if with_votes else "[95 % interval]"]
    if chosen_here:
        notes.append(f"best epoch chosen on {split} itself, so too good: {', '.join(chosen_here)}")
    table = Table("model", title=title, caption="\n".join(notes).replace("[", r"\["))
    for column in ("accuracy %", "macro-F1 %", "ECE %", *(("KL", "JS", "cosine") if with_votes else ())):
        table.add_column(column, justify="right")
    for name, model in result["models"].items():
        cells = [
            _interval(model["accuracy"], model["accuracy_interval"]),
            _interval(model["macro_f1"], model["macro_f1_interval"]),
            f"{100 * model['calibration_error']:.1f}",
        ]
        if with_votes:
            cells += [f"{model['distribution'][key]:.3f}" for key in ("kl", "js", "cosine")]
        table.add_row(name, *cells)
    return table


def class_table(name: str, model: dict[str, Any], split: str) -> Table:
    """Precision, recall and F1 of each class; a dash where there is nothing to divide by."""
    table = Table("class", title=f"{name} on {split}, by class")
    for column in ("precision %", "recall %", "F1 %", "faces"):
        table.add_column(column, justify="right")
    for label, row in model["classes"].items():
        shares = ["-" if row[key] is None else f"{100 * row[key]:.1f}" for key in ("precision", "recall", "f1")]
        table.add_row(label, *shares, f"{row['support']:,}")
    return table


def confusion_table(name: str, model: dict[str, Any], split: str) -> Table:
    """Counts, a row a true class."""
    table = Table("true \\ predicted", title=f"{name} on {split}, confusion matrix")
    for label in model["classes"]:
        table.add_column(label, justify="right")
    for k, (label, counts) in enumerate(zip(model["classes"], model["confusion"], strict=True)):
        cells = [f"{count:,}" if count else "." for count in counts]
        cells[k] = f"[bold]{cells[k]}[/bold]"
        table.add_row(label, *cells)
    return table


def _interval(value: float, limits: Sequence[float]) -> str:
    return rf"{100 * value:.2f} \[{100 * limits[0]:.1f}, {100 * limits[1]:.1f}]"
