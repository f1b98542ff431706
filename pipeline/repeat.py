"""The finished stages of a run as they would be typed again: a configuration file for `fer --config`, and for DVC."""

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from efficientface import FerError, untrusted
from efficientface.pipeline.config import CONFIGS, TOLD_BY, parse_source
from efficientface.pipeline.status import (
    LABELLING,
    NO_OPTION,
    Stage,
    cache_name,
    check_is_run,
    look,
    options,
    printable,
    sources_of,
    started_from,
)


@dataclass(frozen=True)
class Made:
    """What one command made: how it is typed, all its settings, what it read and what it left."""

    command: str
    name: str  # of one among several of the same command: a cache's or a model's
    arguments: list[str]
    settings: dict[str, Any]
    inputs: list[Path]
    outputs: list[Path]
    checkpoints: tuple[str, ...] = ()  # of fer teach


def configuration(run: Path, given: Mapping[str, Any]) -> str:
    """A TOML file with all settings of a run's finished stages, a table a command; above it the commands as comments.

    `given` holds the tables of another such file. What they have and a run does not keep is printed too: --device and
    --workers, which say nothing about a result, and the options of commands that make no artifact.
    """
    import tomli_w

    made = finished(run)
    lines, tables = [], dict[str, list[dict[str, Any]]]()
    for stage in made:
        several = sum(other.command == stage.command for other in made) > 1
        words = [*stage.arguments, *(told(stage) if several else [])]
        lines.append(f"# {printable(shlex.join(['fer', '--config', 'FILE', stage.command, *words]))}\n")
        tables.setdefault(stage.command, []).append(table_of(stage) | beside(stage, given.get(stage.command, {})))
    printed = {name: found[0] if len(found) == 1 else found for name, found in tables.items()}
    text = tomli_w.dumps({**given, **printed})
    return "".join(lines) + "\n" + text


def beside(stage: Made, given: dict[str, Any] | list[dict[str, Any]]) -> dict[str, Any]:
    """The options of a stage's table, or of that of several which is about it, that its settings do not hold."""
    config = CONFIGS[stage.command]
    for table in [given] if isinstance(given, dict) else given:
        about = {option: getattr(config, option) for option in TOLD_BY.get(stage.command, ())}
        if isinstance(given, dict) or all(stage.settings[name] == table.get(name, own) for name, own in about.items()):
            # a preset and a recipe are written out as their settings
            kept = {name.replace("_", "-") for name in (*stage.settings, "preset", "recipe")}
            return {name: value for name, value in table.items() if name not in kept}
    return {}


def told(stage: Made) -> list[str]:
    """The option that tells this stage from others of its command; none for the one that defaults make."""
    config = CONFIGS[stage.command]
    for option in TOLD_BY[stage.command]:
        if stage.settings.get(option, "") != getattr(config, option):
            return [f"--{option}", str(stage.settings[option])]
    return []


def table_of(stage: Made) -> dict[str, Any]:
    """Settings by the options' names; those that are empty or not known are left out, as if not given."""
    table: dict[str, Any] = {}
    for field in fields(CONFIGS[stage.command]):
        value = stage.settings.get(field.name)
        if field.name in NO_OPTION or value is None or value == "":
            continue
        table[field.name.replace("_", "-")] = ",".join(map(str, value)) if isinstance(value, list) else value
    return table | ({"checkpoint": list(stage.checkpoints)} if stage.checkpoints else {})


def dvc(run: Path) -> str:
    """A dvc.yaml of a run's finished stages, for the folder that the run's path is relative to."""
    import yaml

    stages: dict[str, Any] = {}
    for stage in finished(run):
        asked = [word for path in stage.checkpoints for word in ("--checkpoint", path)]
        words = [*stage.arguments, *asked, *options(CONFIGS[stage.command], stage.settings)]
        name = "-".join((stage.command, stage.name)) if stage.name else stage.command
        _add(stages, name, stage.command, words, stage.inputs, {"outs": list(map(_path, stage.outputs))})
    for path in sorted((run / "evaluation").glob("*.json")):
        try:
            judged = untrusted.read_json(path)
            # a model of another run has that run's name before a slash
            models = [run / ("" if name == "teacher" else "students") / name for name in judged["models"]]
            drawn = [path.parent / name for name in judged["pictures"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FerError(f"{path} is not what fer evaluate writes; make it again") from error
        split = unquote(path.stem)
        there = [folder for folder in models if folder.is_dir()]
        left = {"outs": list(map(_path, drawn)), "metrics": [{_path(path): {"cache": False}}]}
        _add(stages, f"evaluate-{split}", "evaluate", [str(run), "--split", split], [run / "faces", *there], left)
    return yaml.safe_dump({"stages": stages}, sort_keys=False, allow_unicode=True, width=10_000)


def _add(
    stages: dict[str, Any], name: str, command: str, words: list[str], inputs: list[Path], left: dict[str, Any]
) -> None:
    """A stage under a name that DVC takes: letters, digits, - and _."""
    name = "".join(c if c.isascii() and c.isalnum() or c in "-_" else "_" for c in name)
    while name in stages:
        name += "_"
    line = _literal(shlex.join(["fer", command, *words]))
    stages[name] = {
        "cmd": line,
        "deps": list(map(_path, inputs)),
        **{key: value for key, value in left.items() if value},
    }


def _path(path: Path) -> str:
    return _literal(path.as_posix())


def _literal(text: str) -> str:
    """DVC puts values in place of ${...}, but not after a backslash."""
    return text.replace("${", "\\${")


def finished(run: Path) -> list[Made]:
    """The finished stages of a run in the order in which they are to be typed; FerError if there are none.

    Imported models are no stage: where a cache asks one, it is given by --checkpoint.
    """
    check_is_run(run)
    stages = [stage for stage in look(run) if stage.manifest and "imported" not in stage.manifest["facts"]]
    made = [_aligned(run, stage) for stage in stages if stage.kind == "faces"]
    teachers = {stage.name: stage for stage in stages if stage.kind == "teacher"}
    owned: set[Path] = set()  # teachers that a cache's command has trained: DVC wants each file from one stage
    caches = [stage for stage in stages if stage.kind == "distributions"]
    for stage in caches:
        made.append(_cached(run, stage, teachers, owned))
    if "teacher" in teachers and not caches:
        folder = run / "teacher"
        settings = started_from(teachers["teacher"].settings, folder)
        made.append(Made("teach", "", [str(run)], settings, [run / "faces"], [folder]))
    for stage in stages:
        if stage.kind in ("student", "identities"):
            made.append(_trained(run, stage))
    if not made:
        raise FerError(f"{printable(run)} has no finished stage; fer status {printable(run)} says what comes next")
    return made


def _aligned(run: Path, faces: Stage) -> Made:
    sources = {source["name"]: source["path"] for source in sources_of(faces.folder, faces.manifest or {})}
    if list(sources) == ["source"]:
        words = list(sources.values())
    else:
        words = [f"{name}={path}" for name, path in sources.items()]
    beside = run / "duplicates.csv"
    left = [faces.folder, *([beside] if beside.exists() else [])]
    return Made("align", "", [*words, str(run)], faces.settings, [Path(path) for path in sources.values()], left)


def _cached(run: Path, cache: Stage, teachers: dict[str, Stage], owned: set[Path]) -> Made:
    """`fer teach` for one cache: with the training of its teachers if they are the run's own, else --checkpoint."""
    manifest = cache.manifest or {}
    given = {name: cache.settings[name] for name in LABELLING if name in cache.settings}
    calibration = manifest["facts"].get("calibration")
    given |= {
        "format": given.get("format", "parquet"),
        "cache": cache_name(cache),
        "calibrate": calibration is not None,
    }
    asked = [Path(source["path"]) for source in sources_of(cache.folder, manifest) if source["name"] != "faces"]
    inputs, left = [run / "faces"], [cache.folder]
    own = {stage.folder: stage for stage in teachers.values()}
    trained = "ldg" in parse_source(given.get("source", "ldg")) and asked and all(path in own for path in asked)
    if trained and not given.get("folds"):
        # a cache of other crops asked the teacher as it was
        trained = len(asked) == 1 and all(
            own[asked[0]].settings.get(n, given[n]) == given[n] for n in ("seed", "min_area")
        )
    if not trained:
        about = {"choose_on": calibration["chosen_on"]} if calibration else {}
        checkpoints = tuple(map(str, asked))
        return Made("teach", cache_name(cache), [str(run)], given | about, inputs + asked, left, checkpoints)
    settings = started_from(own[asked[0]].settings, asked[0]) | given
    for folder in asked:
        if folder in owned:
            inputs.append(folder)
        elif any(path.is_dir() for path in folder.iterdir()):  # fold teachers lie in teacher/: DVC wants them apart
            left += sorted(path for path in folder.iterdir() if path.is_file())
        else:
            left.append(folder)
    owned.update(asked)
    return Made("teach", cache_name(cache), [str(run)], settings, inputs, left)


def _trained(run: Path, model: Stage) -> Made:
    command = "distill" if model.kind == "student" else "pretrain"
    settings, name = started_from(model.settings, model.folder), model.folder.name
    usual = settings.get("name") or settings.get("loss" if command == "distill" else "arch")
    if name != usual:  # the folder was renamed
        settings = settings | {"name": name}
    inputs = [Path(os.path.normpath(source["path"])) for source in sources_of(model.folder, model.manifest or {})]
    return Made(command, name, [str(run)], settings, inputs, [model.folder])
