"""How good a run's teacher and students are on one split, by labels and, where faces have votes, by distributions."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow.compute as pc
from filelock import FileLock
from rich.table import Table
from rich.text import Text

from efficientface import FerError
from efficientface.data.batches import canonical
from efficientface.data.faces import Faces
from efficientface.pipeline import pictures
from efficientface.pipeline.artifact import (
    digest_file,
    digest_of,
    is_begun,
    is_finished,
    make_folder,
    read_manifest,
    read_metrics,
    reference_to,
    write_sealed,
)
from efficientface.pipeline.checkpoint import load_model
from efficientface.pipeline.device import prepare
from efficientface.pipeline.inputs import Inputs, read_inputs
from efficientface.pipeline.inspect import face_rows
from efficientface.pipeline.metrics import mcnemar, score, share, spread
from efficientface.pipeline.predict import predict
from efficientface.pipeline.progress import progress
from efficientface.pipeline.status import kind_in_manifest, printable, read_result
from efficientface.pipeline.subsets import COLUMNS, subset

log = logging.getLogger(__name__)

LOCK = ".evaluation.lock"  # in the run folder, held while results are written


def run(
    run: Path,
    split: str = "test",
    device: str = "cpu",
    batch_size: int = 256,
    names: Sequence[str] | None = None,
    png: bool = True,
    *,
    models: Sequence[Path] = (),
    subsets: Sequence[str] = (),
    compare: tuple[str, str] | None = None,
    plots: Path | None = None,
) -> dict[str, Any]:
    """Judge models on the usable labelled faces of a split of `run`, the canonical view of each.

    `names` picks some of the run's: `teacher`, or students by name; `models` are folders of others. `subsets` are parts
    of the split (subsets.py), `compare` two of the models for McNemar's test. Writes RUN/evaluation/SPLIT.json and a
    confusion matrix as confusion-NAME-SPLIT.png, with `plots` these and the training curves there as PNG and SVG;
    returns what it says of each model: what metrics.score gives. The JSON holds besides what earlier calls said of
    others that are as they were then.
    """
    prepare(device)
    chosen = gather(run, names, models)
    unknown = [name for name in compare or () if name not in chosen]
    if unknown:
        raise FerError(f"--compare {unknown[0]}: no such model is judged; there are {', '.join(chosen)}")
    trainings = {}
    if plots is not None:
        make_folder(plots)
        trainings = {name: lines for name, folder in chosen.items() if (lines := read_metrics(folder))}
    out = run / "evaluation"
    out.mkdir(exist_ok=True)
    (run / LOCK).touch()  # where nothing can be written, that is said before the work
    result, right = judge(run, split, chosen, device, batch_size, subsets)
    if compare is not None:
        result["comparison"] = compared(compare, right)
    with FileLock(run / LOCK):  # other calls may have judged other models meanwhile
        return leave(out, result, png, plots, trainings)


def leave(
    out: Path,
    result: dict[str, Any],
    png: bool,
    plots: Path | None,
    trainings: Mapping[str, list[dict[str, Any]]],
) -> dict[str, Any]:
    """Draw what is asked for and write SPLIT.json; returns `result` with its pictures."""
    split = result["split"]
    plain = quote(split, safe=" ")  # a split of the source's own may be called a/b
    result["pictures"] = {}
    targets = [out / "confusion-{}.png"] if png else []
    targets += [plots / f"confusion-{{}}{suffix}" for suffix in pictures.SUFFIXES] if plots else []
    for name, model in result["models"].items():
        title = f"{name} on {split}: {100 * model['accuracy']:.1f} % of {model['count']:,} faces"
        for target in targets:
            path = target.with_name(target.name.format(f"{in_file(name)}-{plain}"))
            pictures.confusion(path, model["confusion"], result["classes"], title)
            if path.parent == out:
                result["pictures"][path.name] = digest_file(path)
    path = out / f"{plain}.json"
    write_sealed(path, with_others(path, result))
    if plots is not None and trainings:
        for suffix in pictures.SUFFIXES:
            pictures.curves(plots / f"curves{suffix}", trainings)
    return result


def in_file(model: str) -> str:
    """A model's name as it stands in a file's."""
    return model.replace(os.sep, "-")


def with_others(path: Path, result: dict[str, Any]) -> dict[str, Any]:
    """`result`, and what the file says of other models, if these and the faces are as they were then."""
    if not path.exists():
        return result
    try:
        earlier = read_result(path)
    except FerError as error:
        log.warning("%s; nothing of it is kept", error)
        return result
    if earlier.get("faces_manifest") != result["faces_manifest"]:
        return result
    kept = {}
    for name, model in earlier["models"].items():
        folder = path.parent / str(model.get("path"))
        if name not in result["models"] and is_sound(folder) and digest_of(folder) == model["manifest"]:
            kept[name] = model
    if not kept:
        return result
    log.info("%s keeps what it says of %s", path, ", ".join(map(printable, kept)))
    subsets = {part: f for part, f in earlier["subsets"].items() if result["subsets"].get(part, f) == f}
    for name, model in kept.items():
        kept[name] = {**model, "subsets": {part: s for part, s in model["subsets"].items() if part in subsets}}
    models = {**kept, **result["models"]}
    models = {name: models[name] for name in sorted(models, key=lambda name: (name != "teacher", "/" in name, name))}
    folders = {name: path.parent / model["path"] for name, model in models.items()}
    manifests = {name: read_manifest(folder, kind_of_model(folder)) for name, folder in folders.items()}
    drawn = {f"confusion-{in_file(name)}-{path.stem}.png" for name in kept}
    merged = {**result, "subsets": subsets | result["subsets"], "models": models}
    merged["seeds"] = over_seeds(models, manifests)
    before = {name: digest for name, digest in earlier.get("pictures", {}).items() if name in drawn}
    merged["pictures"] = before | result["pictures"]
    told = earlier.get("comparison")
    if told and "comparison" not in result:
        was, now = (
            [of.get(told[key], {}).get("manifest") for key in ("first", "second")] for of in (earlier["models"], models)
        )
        if was == now:
            merged["comparison"] = {**told, "subsets": {p: t for p, t in told["subsets"].items() if p in subsets}}
    return merged


def is_sound(folder: Path) -> bool:
    """Whether a model is there whose manifest is as it was signed."""
    try:
        return is_finished(folder) and bool(read_manifest(folder, kind_of_model(folder)))
    except FerError:
        return False


def judge(
    run: Path,
    split: str,
    models: Mapping[str, Path],
    device: str = "cpu",
    batch_size: int = 256,
    subsets: Sequence[str] = (),
) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """What `run` returns about `models`, folders by name; and which faces each is right about.

    The latter by part of the split (`""` is all of it), then by model: (N,) bool.
    """
    inputs = read_inputs(run)
    faces = inputs.labelled(split)
    targets = faces.vote_distributions()
    images = face_rows(inputs.folder, inputs.manifest, list(COLUMNS))
    images = images.filter(pc.equal(images["split"], split))
    labelled = images["label"].is_valid().to_numpy()
    found = images["image_hash"].is_valid().to_numpy()
    parts: dict[str, np.ndarray] = {}  # which of the split's images
    about: dict[str, Any] = {}
    for given in subsets:
        name = Path(given).name if Path(given).name not in parts else given
        if name in parts:
            raise FerError(f"--subset {given} is given twice; leave one of them out")
        rows, facts = subset(given, images, split)
        parts[name] = rows & labelled
        digest = hashlib.blake2b(rows.tobytes(), digest_size=16).hexdigest()
        about[name] = {"images": int(parts[name].sum()), "faces": int((parts[name] & found).sum()), **facts}
        about[name]["rows"] = digest
        if not about[name]["faces"]:
            raise FerError(
                f"--subset {given} has no labelled face in split {split}, of {about[name]['images']} labelled images; "
                "give another subset or --split"
            )
        if facts.get("missing"):
            log.warning(
                "%s names %d photographs that are not in split %s, first %s",
                given, facts["missing"], split, printable(facts["first_missing"]),
            )  # fmt: skip
    result: dict[str, Any] = {
        "run": str(run),
        "faces_manifest": inputs.digest,
        "split": split,
        "count": len(faces),
        "count_with_votes": int((~np.isnan(targets).any(1)).sum()),
        "images": int(labelled.sum()),
        "classes": list(faces.classes),
        "subsets": about,
        "models": {},
    }
    parts = {"": labelled, **parts}
    right: dict[str, dict[str, np.ndarray]] = {name: {} for name in parts}
    manifests = {}
    for name, folder in models.items():
        kind = kind_of_model(folder)
        manifests[name] = read_manifest(folder, kind)
        strange = _check_origin(folder, manifests[name], inputs)
        probabilities, facts = ask(folder, kind, faces, inputs.facts["crop"], device, batch_size)
        scores = {}
        for part, rows in parts.items():
            inside = rows[labelled & found]
            label = faces.label[inside]
            scores[part] = score(probabilities[inside], label, faces.classes, targets[inside])
            right[part][name] = probabilities[inside].argmax(1) == label
            scores[part]["all_images"] = share(int(right[part][name].sum()), int(rows.sum()))
        result["models"][name] = {
            **facts,
            **reference_to(folder, run / "evaluation"),
            "chosen_on": manifests[name]["facts"].get("chosen_on"),
            "trained_on_other_faces": strange,
            **scores.pop(""),
            "subsets": scores,
        }
    result["seeds"] = over_seeds(result["models"], manifests)
    return result, right


def compared(names: tuple[str, str], right: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """McNemar's test between two models, on the whole split and on each subset."""
    tests = {part: mcnemar(*(models[name] for name in names)) for part, models in right.items()}
    return {"first": names[0], "second": names[1], **tests.pop(""), "subsets": tests}


def over_seeds(models: Mapping[str, Any], manifests: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and deviation of models that differ only in their seed, by what their manifests say; of a seed one model."""
    groups: dict[str, dict[int, str]] = {}
    for name, manifest in manifests.items():
        settings = {key: value for key, value in manifest["settings"].items() if key != "name"}
        if (seed := settings.pop("seed", None)) is not None:
            sources = {key: reference["manifest"] for key, reference in manifest["made_from"].items()}
            key = json.dumps([manifest["kind"], settings, sources], sort_keys=True)
            groups.setdefault(key, {}).setdefault(seed, name)
    found = []
    for seeds in groups.values():
        names = list(seeds.values())
        if len(names) < 2:
            continue
        common = [part for part in models[names[0]]["subsets"] if all(part in models[n]["subsets"] for n in names)]
        parts = {part: [models[name]["subsets"][part] for name in names] for part in common}
        stems = {name.removesuffix(str(seed)).rstrip("-_.") for seed, name in seeds.items()}
        found.append(
            {
                "name": stems.pop() if len(stems) == 1 else ", ".join(names),
                "models": names,
                "seeds": list(seeds),
                **_spreads([models[name] for name in names]),
                "subsets": {part: _spreads(scores) for part, scores in parts.items()},
            }
        )
    return found


def _spreads(scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    spreads = {key: spread([s[key] for s in scores]) for key in ("accuracy", "macro_f1", "calibration_error")}
    return {**spreads, "all_images": spread([s["all_images"]["accuracy"] for s in scores])}


def gather(run: Path, names: Sequence[str] | None, others: Sequence[Path] = ()) -> dict[str, Path]:
    """The models of `run` by name, as find_models has them, then those in the folders `others`."""
    models = find_models(run, names)
    for folder in others:
        kind_of_model(folder)
        place = folder.resolve()
        home = place.parent.parent if place.parent.name == "students" else place.parent
        name = f"{home.name}/{place.name}" if home != place.parent or place.name == "teacher" else place.name
        models[name if name not in models else str(folder)] = folder
    if not models:
        raise FerError(f"{run} has no finished teacher or student; run fer teach or fer distill first")
    return models


def kind_of_model(folder: Path) -> str:
    """`teacher` or `student`; FerError where there is no finished model."""
    kind = kind_in_manifest(folder)
    if kind not in ("teacher", "student"):
        raise FerError(
            f"{folder} holds no finished model; give a folder that fer teach, fer distill or fer import wrote"
        )
    return kind


def find_models(run: Path, names: Sequence[str] | None) -> dict[str, Path]:
    """The finished models of a run by name, the teacher first; with `names` just those, in that order."""
    found = {"teacher": run / "teacher"} if is_begun(run / "teacher") else {}
    for folder in sorted(path for path in (run / "students").glob("[!.]*") if path.is_dir()):
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
    return {name: folder for name, folder in found.items() if is_finished(folder)}


def ask(
    folder: Path, kind: str, faces: Faces, crop: int, device: str, batch_size: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """A model's probabilities (N, C) for whole faces in the order of their classes, and facts about the model."""
    model, config = load_model(folder, kind)
    order = class_order(folder, config["classes"], faces.classes)
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
    return answers[:, order], facts


def class_order(folder: Path, answered: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Where the classes of the faces are in a model's answers."""
    if set(answered) != set(wanted):
        raise FerError(
            f"{folder} answers for the classes {', '.join(answered)}, the faces have {', '.join(wanted)}; "
            "evaluate it in a run of its own classes"
        )
    return [answered.index(name) for name in wanted]


def _check_origin(folder: Path, manifest: dict[str, Any], inputs: Inputs) -> bool:
    """Whether the model was trained on other faces than the run's; FerError if it lies in the run.

    Their splits may differ, and a test face may have been trained on. A model that names no faces, an
    imported one, passes.
    """
    faces = manifest["made_from"].get("faces")
    strange = bool(faces) and faces["manifest"] != inputs.digest
    if strange and folder.resolve().is_relative_to(inputs.folder.parent.resolve()):
        raise FerError(f"{folder} was made from other faces than {inputs.folder} holds now; remove it and train again")
    return strange


def rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a model and subset, the whole split (subset empty) first, for CSV."""
    found = []
    for part in ("", *result["subsets"]):
        for name, model in result["models"].items():
            scores = model["subsets"][part] if part else model
            shown = {**model, **scores}
            del shown["subsets"]
            found.append({"split": result["split"], "subset": part, "model": name, **shown})
    return found


def tables(result: dict[str, Any]) -> list[Table]:
    """The models side by side, then each one's classes and confusion matrix."""
    models = result["models"].items()
    split = result["split"]
    return [
        *side_by_side(result),
        *(
            table
            for name, model in models
            for table in (class_table(name, model, split), confusion_table(name, model, split))
        ),
    ]


def side_by_side(result: dict[str, Any]) -> list[Table]:
    """All models in one table, and in others their subsets, seeds and McNemar's test, where asked for."""
    return [
        comparison(result),
        *([subset_table(result)] if result["subsets"] else []),
        *([seed_table(result)] if result["seeds"] else []),
        *([mcnemar_table(result)] if "comparison" in result else []),
    ]


def comparison(result: dict[str, Any], votes: str = "votes") -> Table:
    """One row a model; `votes` is what the source's vote columns hold.

    Where images gave no face, the accuracy on all images stands beside that on faces: such an image counts as wrong.
    """
    split, count, with_votes = result["split"], result["count"], result["count_with_votes"]
    rejected = result["images"] - count
    chosen_here = [name for name, model in result["models"].items() if model["chosen_on"] == split]
    strangers = [name for name, model in result["models"].items() if model["trained_on_other_faces"]]
    title = f"{split}: {count:,} labelled faces" + (f", {with_votes:,} with {votes}" if with_votes else "")
    title += f"; {rejected:,} more labelled images gave no face" if rejected else ""
    notes = [f"[95 % interval]; KL and JS in nats, to the {votes}" if with_votes else "[95 % interval]"]
    if rejected:
        notes.append("all images: one that gave no face counts as wrong")
    if chosen_here:
        notes.append(f"best epoch chosen on {split} itself, so too good: {', '.join(chosen_here)}")
    if strangers:
        notes.append(f"trained on another run's faces, which may be among these: {', '.join(strangers)}")
    table = Table("model", title=Text(title), caption=Text("\n".join(notes)))
    images = ("all images %",) if rejected else ()
    for column in ("accuracy %", *images, "macro-F1 %", "ECE %", *(("KL", "JS", "cosine") if with_votes else ())):
        table.add_column(column, justify="right")
    for name, model in result["models"].items():
        cells = [
            _interval(model["accuracy"], model["accuracy_interval"]),
            *(
                [_interval(model["all_images"]["accuracy"], model["all_images"]["accuracy_interval"])]
                if rejected
                else []
            ),
            _interval(model["macro_f1"], model["macro_f1_interval"]),
            f"{100 * model['calibration_error']:.1f}",
        ]
        if with_votes:
            cells += [f"{model['distribution'][key]:.3f}" for key in ("kl", "js", "cosine")]
        table.add_row(Text(name), *cells)
    return table


def subset_table(result: dict[str, Any]) -> Table:
    """A row a subset and model: accuracy on the faces that were found, and on all its images."""
    table = Table("subset", "model", title=Text(f"subsets of {result['split']}"))
    for column in ("faces", "accuracy %", "images", "all images %", "macro-F1 %"):
        table.add_column(column, justify="right")
    for name, facts in result["subsets"].items():
        judged = {model: row["subsets"][name] for model, row in result["models"].items() if name in row["subsets"]}
        for first, (model, scores) in enumerate(judged.items()):
            everything = scores["all_images"]
            table.add_row(
                Text(printable(name) if first == 0 else ""),
                Text(model),
                f"{facts['faces']:,}",
                _interval(scores["accuracy"], scores["accuracy_interval"]),
                f"{facts['images']:,}",
                _interval(everything["accuracy"], everything["accuracy_interval"]),
                _interval(scores["macro_f1"], scores["macro_f1_interval"]),
            )
        table.add_section()
    return table


def seed_table(result: dict[str, Any]) -> Table:
    """A row a group of models that differ only in their seed."""
    table = Table("models", "seeds", title="over seeds: mean and standard deviation")
    split = result["split"]
    for column in (
        f"{split}: accuracy %",
        "macro-F1 %",
        *(f"{printable(name)}: accuracy %" for name in result["subsets"]),
    ):
        table.add_column(Text(column), justify="right")
    for group in result["seeds"]:
        parts = [group["subsets"].get(name, {}).get("accuracy") for name in result["subsets"]]
        spreads = [group["accuracy"], group["macro_f1"], *parts]
        cells = [f"{100 * s['mean']:.2f} ± {100 * s['deviation']:.2f}" if s else "-" for s in spreads]
        table.add_row(Text(group["name"]), ", ".join(map(str, group["seeds"])), *cells)
    return table


def mcnemar_table(result: dict[str, Any]) -> Table:
    """McNemar's test, a row a part of the split."""
    test = result["comparison"]
    first, second = test["first"], test["second"]
    title = f"{first} against {second}: McNemar's test, exact"
    table = Table("faces", title=Text(title), caption=Text("p: of so uneven a division, if neither were better"))
    for column in ("both right", f"only {first}", f"only {second}", "both wrong", "difference, points", "p"):
        table.add_column(Text(column), justify="right")
    for name, part in ((result["split"], test), *test["subsets"].items()):
        counts = (part[key] for key in ("both_right", "only_first_right", "only_second_right", "both_wrong"))
        p = f"{part['p']:.4f}" if part["p"] >= 0.0001 else "< 0.0001"
        difference = f"{100 * part['difference']:+.2f}"
        table.add_row(Text(f"{printable(name)} ({part['count']:,})"), *(f"{n:,}" for n in counts), difference, p)
    return table


def class_table(name: str, model: dict[str, Any], split: str) -> Table:
    """Precision, recall and F1 of each class; a dash where there is nothing to divide by."""
    table = Table("class", title=Text(f"{name} on {split}, by class"))
    for column in ("precision %", "recall %", "F1 %", "faces"):
        table.add_column(column, justify="right")
    for label, row in model["classes"].items():
        shares = ["-" if row[key] is None else f"{100 * row[key]:.1f}" for key in ("precision", "recall", "f1")]
        table.add_row(Text(label), *shares, f"{row['support']:,}")
    return table


def confusion_table(name: str, model: dict[str, Any], split: str) -> Table:
    """Counts, a row a true class."""
    table = Table("true \\ predicted", title=Text(f"{name} on {split}, confusion matrix"))
    for label in model["classes"]:
        table.add_column(Text(label), justify="right")
    for k, (label, counts) in enumerate(zip(model["classes"], model["confusion"], strict=True)):
        cells = [f"{count:,}" if count else "." for count in counts]
        cells[k] = f"[bold]{cells[k]}[/bold]"
        table.add_row(Text(label), *cells)
    return table


def _interval(value: float, limits: Sequence[float]) -> str:
    return rf"{100 * value:.2f} \[{100 * limits[0]:.1f}, {100 * limits[1]:.1f}]"
