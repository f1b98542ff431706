"""`fer report`: a whole run as one HTML page, for whoever did not make it.

The page is web/report.html, filled in by Jinja, which escapes whatever comes from files; it has no script, asks nothing
of any network, and a content security policy lets it ask nothing. Everything in it is read from the run's artifacts, or
answered by its models about its faces: the same run gives the same page, unless `latency` is measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from markupsafe import Markup
from rich.table import Table
from rich.text import Text

from efficientface import FerError, __version__
from efficientface.models.counting import count_as_paper
from efficientface.pipeline import evaluate, inspect, profile, report_pictures
from efficientface.pipeline.artifact import check_files, digest_of, read_metrics, write_text
from efficientface.pipeline.caches import asked_teachers
from efficientface.pipeline.charts import Line, line_chart
from efficientface.pipeline.checkpoint import load_model
from efficientface.pipeline.config import AlignConfig, TeachConfig
from efficientface.pipeline.device import prepare
from efficientface.pipeline.inputs import Inputs, read_inputs
from efficientface.pipeline.inspect_tables import bytes_text, distributions_tables, faces_tables
from efficientface.pipeline.metrics import BINS, reliability
from efficientface.pipeline.page import WEB, check_target, read, source
from efficientface.pipeline.status import (
    LABELLING,
    Stage,
    cache_name,
    check_is_run,
    command,
    labelling,
    look,
    next_command,
    options,
    printable,
    results,
    sources_of,
    started_from,
    training,
)

MODELS = 6  # of which all is shown: the teacher, and the students that do best on the split that chose their epoch
CLASSES = 30  # with more, people's names, there is no matrix and no table of classes
SHADES = 20  # of a matrix's cells, as many as report.css has
TRAINED = ("teacher", "student", "identities")


def run(
    run: Path,
    out: Path | None = None,
    *,
    faces: bool = True,
    seed: int = 0,
    latency: bool = False,
    device: str = "cpu",
) -> dict[str, Any]:
    """Write the report of a run to `out`, RUN/report.html if not given.

    Without `faces` there is no picture of anybody in it. `seed` picks the faces that are shown. With `latency` the time
    that each network takes for one face is measured on `device`, which also answers.
    """
    out = run / "report.html" if out is None else out
    check_is_run(run)
    check_target(out, "--out", "report.html")
    place = prepare(device)
    home = run.resolve()
    stages = look(home)
    for stage in stages:
        if stage.state == "damaged":
            raise FerError(stage.detail)
        if stage.manifest is not None:
            check_files(stage.folder, stage.manifest, digests=True)
    if all(stage.state == "missing" for stage in stages):
        raise FerError(
            f"{printable(run)} holds nothing that fer align, fer teach or fer distill wrote; give a run folder"
        )
    inputs = read_inputs(home) if stages[0].state == "done" else None
    evaluated = results(home)
    split = "test" if "test" in evaluated else next(iter(evaluated), None)
    judged = asked(stages, evaluated[split], inputs, device) if inputs and split is not None else {}
    shots = report_pictures.Pictures() if faces else None
    data: dict[str, Any] = {
        "name": home.name,
        "version": __version__,
        "figures": figures(stages, evaluated.get(split or "")),
        "stages": stages,
        "next": next_command(home, stages),
        "faces": aligned(stages[0], home),
        "caches": [cached(stage) for stage in stages if stage.kind == "distributions" and stage.manifest],
        "curves": curves(stages),
        "results": [
            {"split": name, "tables": [as_table(table) for table in evaluate.side_by_side(result)]}
            for name, result in evaluated.items()
        ],
        "split": split,
        "left_out": [name for name in evaluated[split]["models"] if name not in judged] if split is not None else [],
        "calibration": calibration(judged),
        "details": [details(name, evaluated[split]) for name in judged] if split is not None else [],
        "cost": cost(stages, place if latency else None),
        "latency": device if latency else None,
        "provenance": [provenance(stage) for stage in stages if stage.manifest],
        "commands": commands(home, stages, evaluated),
        "with_faces": faces,
        "photographs": None,
        "rejected": None,
        "labels": None,
        "gallery": None,
        "looks": None,
    }
    if shots is not None and inputs is not None:
        data |= report_pictures.of_faces(inputs, shots, seed)
        if judged:
            data |= report_pictures.of_answers(inputs, judged, shots, seed, device)
    text = page(data, home)
    write_text(out, text)
    return {
        "report": str(out),
        "bytes": len(text.encode()),
        "pictures": shots.count if shots is not None else 0,
        "models": list(judged),
        "missing": [stage.name for stage in stages if stage.state == "missing"],
    }


def tables(result: dict[str, Any]) -> list[Any]:
    """What was written, for a terminal; with a word about the pictures, before the page is passed on."""
    lines = [Text(f"{printable(result['report'])}  {bytes_text(result['bytes'])}, {result['pictures']} pictures")]
    if result["missing"]:
        lines.append(Text(f"not in it, as the run does not have it: {', '.join(map(printable, result['missing']))}"))
    if result["pictures"]:
        lines.append(
            Text("the pictures are in the file: whoever gets it sees them (--no-faces leaves them out)", "dim")
        )
    return lines


# --- what the artifacts say -----------------------------------------------------------------------------------


def figures(stages: Sequence[Stage], result: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The most telling numbers, name and text."""
    found: list[tuple[str, str]] = []
    manifest = stages[0].manifest
    if manifest is not None:
        counts = {name: manifest["facts"].get(name) for name in ("images", "faces")}
        found += [
            (shown, f"{counts[name]:,}")
            for name, shown in (("images", "photographs"), ("faces", "faces"))
            if counts[name]
        ]
        found.append(("classes", f"{len(manifest['classes']):,}"))
    if result is not None:
        now = judged_now(stages, result)
        shown = [stage for stage in now if stage.kind == "teacher"]
        shown += [stage for stage in now if stage.kind == "student"][:1]
        for name in map(name_of, shown):
            found.append((f"{name}: right on {result['split']}", f"{result['models'][name]['accuracy']:.1%}"))
        found += [
            (f"{name}: parameters", f"{result['models'][name]['parameters']:,}") for name in map(name_of, shown[-1:])
        ]
    return found


def name_of(stage: Stage) -> str:
    """What fer evaluate calls a model."""
    return stage.name.removeprefix("students/")


def judged_now(stages: Sequence[Stage], result: Mapping[str, Any]) -> list[Stage]:
    """The models that `result` judged and that are still the same, in the order of by_validation."""
    digests = {name: model["manifest"] for name, model in result["models"].items()}
    return [stage for stage in by_validation(stages) if digests.get(name_of(stage)) == digest_of(stage.folder)]


def by_validation(stages: Sequence[Stage]) -> list[Stage]:
    """The finished models, the teacher first, then students with the best accuracy on the split that chose theirs."""

    def order(stage: Stage) -> tuple[bool, float, str]:
        best = (stage.manifest or {})["facts"].get("best") or {}
        return stage.name != "teacher", -float(best.get("val_accuracy", 0)), stage.name

    return sorted((s for s in stages if s.state == "done" and (s.kind == "student" or s.name == "teacher")), key=order)


def asked(
    stages: Sequence[Stage], result: Mapping[str, Any], inputs: Inputs, device: str
) -> dict[str, report_pictures.Answer]:
    """What the first of the models that `result` judged, as they are now, say about the faces of its split."""
    faces = inputs.labelled(result["split"])
    found = {}
    for stage in judged_now(stages, result)[:MODELS]:
        p, _ = evaluate.ask(stage.folder, stage.kind, faces, inputs.facts["crop"], device, 256)
        found[name_of(stage)] = report_pictures.Answer(stage.folder, faces, p)
    return found


def aligned(stage: Stage, run: Path) -> dict[str, Any] | None:
    """What became of the photographs, as fer inspect tells it."""
    if stage.manifest is None:
        return None
    result = inspect.run(run / "faces")
    return {"tables": [as_table(table) for table in faces_tables(result) if isinstance(table, Table)]}


def cached(stage: Stage) -> dict[str, Any]:
    """What a cache says, as fer inspect tells it, and its mean distributions as a matrix."""
    result = inspect.run(stage.folder)
    shown = [as_table(table) for table in distributions_tables(result) if isinstance(table, Table)]
    classes = result["classes"]
    if len(classes) > CLASSES:
        return {"name": stage.name, "tables": shown, "means": None}
    means = {
        "corner": "label, faces",
        "classes": classes,
        "rows": [
            {
                "name": row["label"] or "no label",
                "count": row["faces"],
                "cells": [
                    cell(p, f"{100 * p:.1f}", row["label"] == name)
                    for name, p in zip(classes, row["mean"], strict=True)
                ],
            }
            for row in result["labels"]
            if row["faces"]
        ],
    }
    return {"name": stage.name, "tables": shown[:-1], "means": means}


def cell(share: float, text: str, own: bool, below: str = "") -> dict[str, Any]:
    """A matrix's cell, coloured by its share (0-1)."""
    return {"shade": round(SHADES * share), "text": text, "own": own, "below": below}


def curves(stages: Sequence[Stage]) -> dict[str, Any] | None:
    """Loss and validation accuracy by epoch of what was trained or is being trained; None if nothing was."""
    lines = {stage.name: found for stage in stages if stage.kind in TRAINED and (found := read_metrics(stage.folder))}
    if not lines:
        return None
    first = [stage.name for stage in by_validation(stages)]
    names = sorted(lines, key=lambda name: first.index(name) if name in first else len(first))[: 2 * MODELS]
    losses, accuracies = [], []
    for name in names:
        best = min(lines[name], key=lambda line: (-line["val_accuracy"], line["val_cross_entropy"], line["epoch"]))
        losses.append(Line(name, [(line["epoch"], line["loss"]) for line in lines[name]]))
        points = [(line["epoch"], 100 * line["val_accuracy"]) for line in lines[name]]
        accuracies.append(Line(name, points, [(best["epoch"], 100 * best["val_accuracy"], 4.5)]))
    return {
        "left_out": [name for name in lines if name not in names],
        "charts": [
            line_chart(accuracies, "Validation accuracy", "epoch", "right, %"),
            line_chart(losses, "Training loss", "epoch", "loss, nats"),
        ],
    }


def calibration(judged: Mapping[str, report_pictures.Answer]) -> dict[str, Any] | None:
    """Reliability diagram: how often a model is right when it says that it is so sure."""
    lines = []
    for name, answer in judged.items():
        counts, right, confidence = reliability(answer.probabilities, answer.right)
        filled = np.flatnonzero(counts)
        points = [(100 * confidence[k] / counts[k], 100 * right[k] / counts[k]) for k in filled]
        radius = 2 + 5 * np.sqrt(counts[filled] / counts.max())
        lines.append(Line(name, points, [(*point, float(r)) for point, r in zip(points, radius, strict=True)]))
    if not lines:
        return None
    return {**line_chart(lines, "Calibration", "mean confidence, %", "right, %", (0, 100, 0, 100)), "bins": BINS}


def details(name: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """A model's confusion matrix and classes."""
    model, classes = result["models"][name], result["classes"]
    if len(classes) > CLASSES:
        return {"name": name, "matrix": None, "table": None}
    rows = []
    for k, (label, counts) in enumerate(zip(classes, model["confusion"], strict=True)):
        total = max(sum(counts), 1)
        cells = [cell(n / total, f"{n:,}", j == k, f"{n / total:.0%}" if n else "") for j, n in enumerate(counts)]
        rows.append({"name": label, "count": sum(counts), "cells": cells})
    matrix = {"corner": "true, faces", "classes": classes, "rows": rows}
    return {"name": name, "matrix": matrix, "table": as_table(evaluate.class_table(name, model, result["split"]))}


def cost(stages: Sequence[Stage], place: torch.device | None) -> list[dict[str, Any]]:
    """A row a finished network: its size, what it computes for one face, how long its training took."""
    rows = []
    for stage in (s for s in stages if s.kind in TRAINED and s.manifest):
        model, config = load_model(stage.folder, stage.kind)
        multiply_adds, uncounted = count_as_paper(model, config["size"])
        lines = read_metrics(stage.folder)
        row = {
            "name": stage.name,
            "network": config["arch"],
            "size": config["size"],
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "multiply_adds": multiply_adds / 1e6,
            "uncounted": uncounted,
            "bytes": bytes_text(sum(entry["bytes"] for entry in (stage.manifest or {})["files"].values())),
            "epochs": len(lines),
            "time": duration(sum(float(line.get("seconds", 0)) for line in lines)) if lines else None,
            "latency": None,
        }
        if place is not None:
            model = model.to(place).to(memory_format=torch.channels_last)  # as fer profile measures it
            row["latency"] = profile.spread(1e3 * profile.seconds_a_batch(model, place, config["size"], 1))
        rows.append(row)
    return rows


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, the two largest."""
    hours, minutes = int(seconds // 3600), int(seconds % 3600 // 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {int(seconds % 60)} s" if minutes else f"{seconds:.0f} s"


def provenance(stage: Stage) -> dict[str, Any]:
    """What an artifact is made from, and its digest."""
    manifest = stage.manifest or {}
    return {
        "name": stage.name,
        "digest": digest_of(stage.folder),
        "sources": [f"{s['name']}: {s['path']} ({s['state']})" for s in sources_of(stage.folder, manifest)],
        "settings": " ".join(
            f"{name}={value}" for name, value in manifest["settings"].items() if value not in (None, "")
        ),
    }


def commands(run: Path, stages: Sequence[Stage], evaluated: Mapping[str, Any]) -> list[str]:
    """What to type to make the run again, from the folder that it lies in."""
    faces, teacher = stages[:2]
    lines = []
    if faces.manifest is not None:
        told = {name: s for name, s in faces.manifest["made_from"].items() if isinstance(s, dict) and "path" in s}
        paths = {name: str((faces.folder / str(s["path"])).resolve()) for name, s in told.items()}
        named = [path if [*paths] == ["source"] else f"{name}={path}" for name, path in paths.items()] or ["SOURCE"]
        lines.append(command("align", *named, run, options=options(AlignConfig, faces.settings)))
    if teacher.kind == "identities":
        return lines
    taught = False
    for cache in (stage for stage in stages if stage.kind == "distributions" and stage.manifest):
        manifest = cache.manifest or {}
        asked = [str((cache.folder / teacher["path"]).resolve()) for teacher in asked_teachers(manifest)]
        settings = {name: cache.settings[name] for name in LABELLING if name in cache.settings}
        settings |= {"cache": cache_name(cache)}
        if cache.settings.get("folds"):
            line = labelling(run, teacher, whole(cache))
        elif not taught and teacher.manifest and asked == [str(teacher.folder)]:
            taught = True
            trained = started_from(teacher.settings, teacher.folder)
            line = command("teach", run, options=options(TeachConfig, trained | settings))
        else:
            checkpoints = [word for path in asked for word in ("--checkpoint", path)]
            line = command("teach", run, options=checkpoints + options(TeachConfig, settings))
        lines.append(line + (" --calibrate" if "calibration" in manifest["facts"] else ""))
    students = [stage for stage in stages if stage.kind == "student" and stage.manifest]
    lines += [training(run, teacher, faces, whole(student)) for student in students if "arch" in student.settings]
    for split, result in evaluated.items():
        more = ["--split", split] if split != "test" else []
        more += [word for name in result["subsets"] for word in ("--subset", name)]
        if "comparison" in result:
            more += ["--compare", result["comparison"]["first"], result["comparison"]["second"]]
        lines.append(command("evaluate", run, options=more))
    return lines


def whole(stage: Stage) -> Stage:
    """A stage as if nothing had changed since: then a command that makes it begins with no removal."""
    return replace(stage, state="done")


# --- the page -------------------------------------------------------------------------------------------------


def as_table(table: Table) -> dict[str, Any]:
    """A terminal's table for the page."""

    def plain(text: Any) -> str:
        return "" if text is None else Text.from_markup(text).plain if isinstance(text, str) else str(text.plain)

    columns = [[plain(part) for part in column.cells] for column in table.columns]
    return {
        "title": plain(table.title),
        "caption": plain(table.caption),
        "heads": [plain(column.header) for column in table.columns] if table.show_header else [],
        "right": [column.justify == "right" for column in table.columns],
        "rows": list(zip(*columns, strict=True)),
    }


def page(data: Mapping[str, Any], home: Path) -> str:
    """The document. Of paths only what lies below the run's parent folder is told."""
    outside = f"{home.parent}/"

    def shown(value: Any) -> Any:
        # Jinja escapes what this returns; lines of a table's cell stay apart
        if isinstance(value, Markup) or not isinstance(value, str):
            return value
        return "\n".join(printable(line) for line in value.replace(outside, "").split("\n"))

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(WEB),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = read("page.css") + read("report.css")
    policy = f"default-src 'none'; style-src {source(style)}; img-src data:; base-uri 'none'; form-action 'none'"
    return environment.get_template("report.html").render(data, style=Markup(style), policy=Markup(policy))
