"""What of a run is done, and the command that comes next: from manifests and file headers alone, without torch."""

import os
import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from rich.table import Table
from rich.text import Text

from efficientface import FerError, untrusted
from efficientface.pipeline.artifact import (
    MANIFEST,
    STAGE_OF,
    check_files,
    digest_of,
    is_begun,
    is_finished,
    place_of,
    read_manifest,
    read_sealed,
)
from efficientface.pipeline.caches import ONE_FILE
from efficientface.pipeline.config import AlignConfig, DistillConfig, PretrainConfig, TeachConfig, parse_source
from efficientface.untrusted import printable

# As in teach.py and checkpoint.py, which import torch.
PLAN = "plan.json"
CHECKPOINT = "checkpoint.safetensors"
NO_OPTION = ("given",)  # of a stage's settings, not to be had from the command line
# What a cache's settings tell about the labelling, apart from the teacher.
LABELLING = (
    *("views", "seed", "min_area", "covers", "label_batch"),
    *("label_precision", "shard_faces", "format", "source", "folds"),
)
COLOUR = {"done": "green", "stale": "yellow", "unfinished": "yellow", "missing": "dim", "damaged": "red"}


@dataclass(frozen=True)
class Stage:
    """One artifact of a run: its folder's name in the run, what it is, and how far it is."""

    name: str
    kind: str
    folder: Path
    state: str  # done, stale, unfinished, missing or damaged
    detail: str
    settings: dict[str, Any]  # of the artifact, or of the training that was interrupted
    manifest: dict[str, Any] | None = None


def status(run: Path) -> dict[str, Any]:
    """State of every artifact of a run, in the order of the stages, and the command to type next.

    An artifact is stale when what it was made from has another manifest now.
    """
    check_is_run(run)
    stages = look(run)
    return {
        "run": str(run),
        "stages": [{"stage": s.name, "state": s.state, "detail": s.detail} for s in stages],
        "next": next_command(run, stages),
    }


def check_is_run(run: Path) -> None:
    """FerError if it is no folder, or an artifact of a run."""
    if not run.is_dir():
        what = "is a file" if run.exists() else "does not exist"
        raise FerError(f"{printable(run)} {what}; give a run folder, or make one with fer align SOURCE {quoted(run)}")
    kind = kind_in_manifest(run)
    if kind is not None:
        home = run.resolve().parent
        home = home.parent if home.name == "students" else home
        what = f"{printable(run)} is an artifact ({printable(kind)})"
        raise FerError(f"{what}; give the run that it lies in, {quoted(home)}")


def status_tables(result: dict[str, Any]) -> list[Any]:
    """A line an artifact, a second one if `fer inspect` looked into it, and the next command alone, to be copied."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for stage in result["stages"]:
        state = Text(stage["state"], style=COLOUR[stage["state"]])
        detail = Text(printable(stage["detail"]))
        if "inside" in stage:
            detail.append("\n" + printable(stage["inside"]), "dim")
        table.add_row(Text(printable(stage["stage"])), state, detail)
    return [table, Text(), Text.assemble(("next: ", "dim"), (printable(result["next"]), "bold"))]


# --- artifacts ------------------------------------------------------------------------------------------------


def look(run: Path) -> list[Stage]:
    """The artifacts of a run; a stage without any is there as `missing`."""
    faces = look_at(run, "faces", "faces")
    total = faces.manifest["facts"].get("faces") if faces.manifest else None
    if faces.settings.get("layout") == "identities":
        names = [f"identities/{name}" for name in subfolders(run / "identities")] or ["identities"]
        return [faces, *(look_at(run, name, "identities") for name in names)]
    caches = [name for name in subfolders(run) if name.startswith("distributions-")]
    students = [f"students/{name}" for name in subfolders(run / "students")]
    found = [faces, look_at(run, "teacher", "teacher")]
    folds = [f"teacher/{name}" for name in subfolders(run / "teacher") if name.startswith("fold-")]
    found += [look_at(run, name, "teacher") for name in folds]
    # a run that only uses named caches does without the one that has no name
    if not caches or (run / "distributions").is_dir():
        caches = ["distributions", *caches]
    found += [look_at(run, name, "distributions", total) for name in caches]
    found += [look_at(run, name, "student") for name in students]
    if not students:
        found.append(Stage("students", "student", run / "students", "missing", "", {}))
    return [*found, evaluation(run, found)]


def look_at(run: Path, name: str, kind: str, faces: int | None = None) -> Stage:
    """One artifact; `faces`, if known, is how many an unfinished one will have."""
    folder = run / name
    if not folder.is_dir() or kind == "teacher" and not is_begun(folder):
        return Stage(name, kind, folder, "missing", "", {})
    try:
        if not is_finished(folder):
            return unfinished(run, name, kind, faces)
        manifest = read_manifest(folder, kind)
        check_files(folder, manifest)
    except FerError as error:
        return Stage(name, kind, folder, "damaged", str(error), {})
    changed = [source["name"] for source in sources_of(folder, manifest) if source["state"] == "changed"]
    detail = in_short(manifest)
    if changed:
        detail += f"; made from other {' and other '.join(changed)} than there are now"
    settings = manifest["settings"] | ({"format": "hdf5"} if ONE_FILE in manifest["files"] else {})
    return Stage(name, kind, folder, "stale" if changed else "done", detail, settings, manifest)


def evaluation(run: Path, stages: list[Stage]) -> Stage:
    """What `fer evaluate` left; stale if a split was judged without one of the finished models as it is now."""
    folder = run / "evaluation"
    files = sorted(folder.glob("*.json"))
    if not files:
        return Stage("evaluation", "evaluation", folder, "missing", "", {})
    models = {
        stage.name.removeprefix("students/"): digest_of(stage.folder)
        for stage in stages
        if stage.manifest and (stage.kind == "student" or stage.name == "teacher")
    }
    missed = []
    for path in files:
        judged = _judged(path)
        others = [name for name, digest in models.items() if judged.get(name) != digest]
        missed += [f"without {', '.join(others)} as now on {unquote(path.stem)}"] if others else []
    detail = f"on {', '.join(unquote(path.stem) for path in files)}" + "".join(f"; {what}" for what in missed)
    return Stage("evaluation", "evaluation", folder, "stale" if missed else "done", detail, {})


# What fer evaluate says of every model, and what of that are numbers.
NUMBERS = ("parameters", "count", "accuracy", "macro_f1", "calibration_error")
SCORES = (
    "manifest",
    "arch",
    "chosen_on",
    "accuracy_interval",
    "macro_f1_interval",
    "classes",
    "confusion",
    "distribution",
)


def results(run: Path) -> dict[str, dict[str, Any]]:
    """What fer evaluate left, by split; FerError if a file was changed since, or is no such file."""
    found = (read_result(path) for path in sorted((run / "evaluation").glob("*.json")))
    return {result["split"]: result for result in found}


def read_result(path: Path) -> dict[str, Any]:
    """What fer evaluate left of one split."""
    try:
        result = read_sealed(path)
    except FerError as error:
        raise FerError(f"{printable(path.parent)}: {error}") from error
    try:
        fits = isinstance(result["split"], str) and {"count", "images", "classes", "seeds"} <= result.keys()
        comparison = result.get("comparison") or {"subsets": {}}
        of_parts = [result["subsets"], result.get("pictures", {}), comparison["subsets"]]
        fits &= all(isinstance(part, dict) for part in of_parts)
        for model in result["models"].values():
            fits &= {*SCORES, "all_images", "trained_on_other_faces"} <= model.keys()
            fits &= isinstance(model["subsets"], dict)
            fits &= all(isinstance(model[name], int | float) for name in NUMBERS)
    except (KeyError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise FerError(f"{printable(path)} does not hold what fer evaluate writes; run fer evaluate again")
    return result


def _judged(path: Path) -> dict[str, Any]:
    """Digests of the models' manifests by name; none if the file does not say."""
    try:
        return {name: model.get("manifest") for name, model in untrusted.read_json(path)["models"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def sources_of(folder: Path, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """What an artifact was made from: name, path, and whether that is `unchanged`, `changed` or `not there`.

    What is no artifact of ours, photographs, is `not checked`.
    """
    found = []
    for name, reference in manifest["made_from"].items():
        reference = reference if isinstance(reference, dict) else {"path": str(reference)}
        path = Path(os.path.normpath(folder / str(reference.get("path", ""))))
        if "manifest" not in reference:
            state = "not checked"
        elif not is_finished(path):
            state = "not there"
        else:
            state = "unchanged" if digest_of(path) == reference["manifest"] else "changed"
        found.append({"name": name, "path": place_of(folder, str(reference.get("path", ""))), "state": state})
    return found


def kind_in_manifest(folder: Path) -> str | None:
    """What the folder's manifest says that it is, unchecked; None without a manifest that says it."""
    try:
        kind = untrusted.read_json(folder / MANIFEST)["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(kind)


def in_short(manifest: dict[str, Any]) -> str:
    """An artifact in half a line, by its manifest."""
    facts, settings, kind = manifest["facts"], manifest["settings"], manifest["kind"]
    parts: list[str] = []
    if kind == "faces":
        parts += [f"{amount(facts['faces'])} faces"] if "faces" in facts else []
        parts += [f"{len(manifest['classes'])} classes"]
        parts += [f"{settings['crop']} pixels"] if "crop" in settings else []
    elif kind == "distributions":
        of = "labelled training faces" if settings.get("covers") == "train" else "faces"
        parts += [f"{amount(facts['faces'])} {of}"] if "faces" in facts else []
        parts += [f"{amount(facts['views'])} views beside the whole face"] if facts.get("views") else []
        parts += [f"from {facts['source']}"] if "source" in facts else []
    else:
        arch = settings.get("teacher_arch") if kind == "teacher" else settings.get("arch")
        parts += [str(arch)] if arch else []
        parts += [str(settings["loss"])] if "loss" in settings else []
        parts += [f"started from {manifest['made_from']['init']['path']}"] if "init" in manifest["made_from"] else []
        best = facts.get("best", {})
        if {"val_accuracy", "epoch"} <= best.keys():
            parts += [f"{best['val_accuracy']:.1%} on {facts.get('chosen_on', 'val')} after epoch {best['epoch']}"]
    return ", ".join(parts)


def unfinished(run: Path, name: str, kind: str, faces: int | None) -> Stage:
    """An artifact without a manifest: how far it is, and the settings it was begun with."""
    folder = run / name
    if kind in ("teacher", "student", "identities"):
        path = folder / CHECKPOINT
        if not path.is_file():
            return Stage(name, kind, folder, "unfinished", "no epoch finished", {})
        progress = checkpoint_header(path)
        settings, lines = progress["settings"], progress["lines"]
        detail = f"{len(lines)} of {settings['epochs']} epochs"
        if lines:
            detail += f", best so far {max(line['val_accuracy'] for line in lines):.1%} on {settings['choose_on']}"
        begun = {
            "faces": settings["facts"].get("faces" if kind == "teacher" else "faces_manifest"),
            "distributions": settings["facts"].get("distributions_manifest"),
        }
        cache = f"distributions-{settings['cache']}" if settings.get("cache") else "distributions"
        now = {"faces": run / "faces", "distributions": run / cache}
        changed = [n for n, d in begun.items() if d and is_finished(now[n]) and digest_of(now[n]) != d]
        if changed:
            detail += f"; begun with other {' and other '.join(changed)} than there are now"
        return Stage(name, kind, folder, "stale" if changed else "unfinished", detail, settings)
    shards = sorted(folder.glob("part-*.parquet"))
    try:
        rows = sum(rows_in(path) for path in shards)
    except (OSError, ValueError) as error:
        raise FerError(f"{folder} has a shard that cannot be read ({error})") from error
    settings, planned = {}, (folder / PLAN).is_file()
    if planned:
        try:
            plan = untrusted.read_json(folder / PLAN)
            settings = {**plan["settings"], **{name: plan[name] for name in ("format",) if name in plan}}
            faces = plan.get("rows", faces)
        except (ValueError, KeyError, TypeError) as error:
            raise FerError(f"{folder / PLAN} is damaged") from error
    of = f" of {faces:,}" if kind == "distributions" and isinstance(faces, int) else ""
    detail = f"{len(shards)} shards with {rows:,}{of} faces" if shards else "no shard finished"
    if not planned and any(folder.iterdir()):
        detail = f"has files, but neither {PLAN} nor {MANIFEST}, so {STAGE_OF[kind]} cannot go on with it"
    return Stage(name, kind, folder, "unfinished", detail, settings)


def rows_in(path: Path) -> int:
    """Rows of a Parquet file, by its footer."""
    with untrusted.parquet_file(path) as file:
        return file.metadata.num_rows


def checkpoint_header(path: Path) -> dict[str, Any]:
    """Settings and metrics lines of an interrupted training, without its weights."""
    try:
        with untrusted.safetensors_file(path, "numpy") as file:
            progress = untrusted.parse_json((file.metadata() or {})["progress"], nan=True)
        fits = isinstance(progress["settings"]["facts"], dict) and isinstance(progress["lines"], list)
    except (OSError, ValueError, KeyError, TypeError):
        fits = False
    if not fits:
        raise FerError(f"{path} cannot be resumed from; remove it to train from the start")
    return progress


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted; none where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


# --- the next command -----------------------------------------------------------------------------------------


def next_command(run: Path, stages: list[Stage]) -> str:
    """What to type next. It goes on where a stage was interrupted, with the settings that were given then."""
    faces, teacher = stages[:2]
    if teacher.kind == "identities" and faces.state == "done":
        return telling_apart(run, stages[1:])
    caches = [stage for stage in stages if stage.kind == "distributions"]
    begun = [cache for cache in caches if cache.state == "unfinished"]
    done = [cache for cache in caches if cache.state == "done"]
    if faces.state != "done":
        again = command("align", "SOURCE", run, options=options(AlignConfig, faces.settings))
        return first_remove([faces], again)
    waiting = [stage for stage in stages[2:] if stage.kind == "teacher" and stage.state == "unfinished"]
    if waiting:
        return folding(run, waiting[0])
    if begun and teacher.state in ("done", "missing"):
        return labelling(run, teacher, begun[0])
    if not done and (teacher.state == "done" or teacher.state == "missing" and caches[0].manifest):
        return labelling(run, teacher, caches[0])
    if not done or teacher.state == "unfinished":
        # a finished cache of the former teacher would stop the labelling after a whole training; named ones are the
        # user's to make again or to keep
        default = [cache for cache in caches if cache.name == "distributions"]
        former = default if teacher.state != "unfinished" else []
        settings = {k: v for stage in former for k, v in stage.settings.items() if k in LABELLING} | teacher.settings
        settings = started_from(settings, teacher.folder)
        return first_remove([teacher, *former], command("teach", run, options=options(TeachConfig, settings)))
    order = ("unfinished", "done", "stale", "damaged", "missing")
    student = min((s for s in stages if s.kind == "student"), key=lambda s: order.index(s.state))
    if student.state != "done":
        return training(run, teacher, done[0], student)
    if stages[-1].state != "done":
        return command("evaluate", run)
    return command("inspect", done[0].folder, "--top", "disagreeing")


def training(run: Path, teacher: Stage, cache: Stage, student: Stage) -> str:
    """`fer distill` for a student that is not done; a first one reads `cache` and sees the size its teacher saw."""
    settings = started_from(student.settings, student.folder)
    if student.state == "missing":
        settings = {k: v for k, v in teacher.settings.items() if k == "size"} | {"cache": cache_name(cache)}
    elif student.folder.name != (settings.get("name") or settings.get("loss", DistillConfig.loss)):
        settings = settings | {"name": student.folder.name}  # the folder was renamed, or what it held is not known
    return first_remove([student], command("distill", run, options=options(DistillConfig, settings)))


def telling_apart(run: Path, trained: list[Stage]) -> str:
    """`fer pretrain`, or where a network has learned to tell people apart, a student that starts from it."""
    waiting = next((stage for stage in trained if stage.state != "done"), None)
    if waiting is None:
        return command("distill", "RUN", options=["--loss", "sll", "--init", str(trained[0].folder)])
    settings = started_from(waiting.settings, waiting.folder)
    if waiting.state != "missing" and waiting.folder.name != settings.get("arch", PretrainConfig.arch):
        settings = settings | {"name": waiting.folder.name}
    return first_remove([waiting], command("pretrain", run, options=options(PretrainConfig, settings)))


def started_from(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Settings of a training in `folder` with the path of --init as it is typed."""
    init = settings.get("init")
    return {**settings, "init": os.path.normpath(folder / init)} if init else settings


def settings_before(run: Path, cache: str) -> dict[str, Any]:
    """Settings by which a run's teacher and a cache were made, as they are typed; of what is finished."""
    folder = run / "teacher"
    settings = started_from(_settings(folder), folder)
    made = _settings(run / (f"distributions-{cache}" if cache else "distributions"))
    return settings | {name: made[name] for name in LABELLING if name in made}


def _settings(folder: Path) -> dict[str, Any]:
    try:
        manifest = untrusted.read_json(folder / MANIFEST)
        one_file = {"format": "hdf5"} if ONE_FILE in manifest["files"] else {}
        return {**manifest["settings"], **one_file}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # unfinished, or what reads it next says what is wrong


def folding(run: Path, fold: Stage) -> str:
    """`fer teach --folds` where the training of a fold's teacher was interrupted."""
    settings = {**started_from(fold.settings, fold.folder), "folds": fold.settings.get("facts", {}).get("folds")}
    if is_finished(run / "distributions"):
        settings["cache"] = "oof"
    return command("teach", run, options=options(TeachConfig, settings))


def labelling(run: Path, teacher: Stage, cache: Stage) -> str:
    """`fer teach` with teachers that are there, or with none: no training, only the labelling."""
    if cache.settings.get("folds") or "ldg" not in parse_source(cache.settings.get("source", TeachConfig.source)):
        training = look_at(run, "teacher/fold-0", "teacher").settings
        chosen = options(TeachConfig, {**training, **cache.settings, "cache": cache_name(cache)})
        return first_remove([cache], command("teach", run, options=chosen))
    wanted = (*LABELLING, "choose_on")
    settings = {k: v for k, v in (teacher.settings | cache.settings).items() if k in wanted}
    chosen = options(TeachConfig, settings | {"cache": cache_name(cache)})
    trained = str(teacher.folder) if teacher.state == "done" else "TEACHER"
    if teacher.state != "done" and cache.manifest:
        trained = next(s["path"] for s in sources_of(cache.folder, cache.manifest) if s["name"] == "teacher")
    return first_remove([cache], command("teach", run, options=["--checkpoint", trained, *chosen]))


def cache_name(cache: Stage) -> str:
    """NAME of distributions-NAME/, nothing for distributions/."""
    return cache.name.removeprefix("distributions").removeprefix("-")


def options(config: type, settings: dict[str, Any]) -> list[str]:
    """The options that give `settings` to a command, those with the default's value left out."""
    words: list[str] = []
    for field in fields(config):
        value = settings.get(field.name)
        if field.name in NO_OPTION or value is None or value == field.default:
            continue
        option = "--" + field.name.replace("_", "-")
        if value is True:
            words += [option]
        else:
            words += [option, ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    return words


def command(stage: str, *arguments: Path | str, options: list[str] | None = None) -> str:
    """A line for the shell."""
    return shlex.join(["fer", stage, *map(str, arguments), *(options or [])])


def first_remove(stages: list[Stage], then: str) -> str:
    """`then`, after the removal of what it would not overwrite."""
    gone = [str(s.folder) for s in stages if s.state in ("stale", "damaged")]
    strange = [str(s.folder) for s in stages if s.state == "unfinished" and is_strange(s.folder, s.kind)]
    steps = [shlex.join(["rm", "-r", *gone])] if gone else []
    steps += [shlex.join(["mv", name, f"{name}.other"]) for name in strange]
    return " && ".join([*steps, then])


def is_strange(folder: Path, kind: str) -> bool:
    """Whether files lie where a stage would write a table, and not from that stage."""
    return kind in ("faces", "distributions") and any(folder.iterdir()) and not (folder / PLAN).is_file()


# --- words ----------------------------------------------------------------------------------------------------


def quoted(path: Path) -> str:
    """A path as it would be typed."""
    return printable(shlex.quote(str(path)))


def amount(value: Any) -> str:
    """A whole number with thousands' separators; whatever else stands in its place as it is."""
    return f"{value:,}" if isinstance(value, int) else str(value)
