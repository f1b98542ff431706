"""`fer card`: a model card or a data set's card in Hugging Face's form, filled from a run's artifacts alone.

What an artifact does not say is named as missing, never guessed. The text is Markdown with YAML before it; whatever
comes from files is escaped in both.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from efficientface import FerError, __version__
from efficientface.pipeline import inspect
from efficientface.pipeline.artifact import digest_of, is_finished, read_manifest, write_text
from efficientface.pipeline.caches import ONE_FILE
from efficientface.pipeline.page import WEB
from efficientface.pipeline.status import printable, results, sources_of, subfolders

TAGS = ["facial-expression-recognition", "efficientface"]
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
SCORES = (
    ("accuracy", "accuracy", "Accuracy"),
    ("f1", "macro_f1", "Macro-F1"),
    ("expected_calibration_error", "calibration_error", "Expected calibration error"),
)
# Settings of a training that tell most about it.
TOLD = (
    *("epochs", "batch_size", "lr", "schedule", "min_area", "loss", "cache", "temperature", "label_weight"),
    *("sampling", "label_smoothing", "class_weights", "precision", "choose_on", "seed"),
)


def run(path: Path, out: Path | None = None, licence: str | None = None) -> dict[str, Any]:
    """The card of a model in the folder `path`, or of the faces and distributions of a run; written to `out` if given.

    `licence` is Hugging Face's name of one, such as apache-2.0; without it the card says that none is chosen.
    """
    if licence is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.\-]*", licence):
        raise FerError(
            f"--license {printable(licence)} is no name of Hugging Face's; give one such as apache-2.0 or other"
        )
    if out is not None and not out.parent.is_dir():
        raise FerError(f"{printable(out.parent)} does not exist; make that folder first, or write the card elsewhere")
    if out is not None and out.is_dir():
        raise FerError(f"{printable(out)} is a folder; give a file's name, such as {printable(out / 'README.md')}")
    kind = inspect.kind_of(path)
    if kind not in ("run", "teacher", "student"):
        raise FerError(
            f"{printable(path)} holds {kind}; give a teacher's or student's folder for a model card, "
            "or the run for the card of its faces"
        )
    text = dataset_card(path, licence) if kind == "run" else model_card(path, kind, licence)
    if out is not None:
        write_text(out, text)
    return {
        "card": str(out) if out is not None else None,
        "kind": "dataset" if kind == "run" else "model",
        "text": text,
    }


def model_card(folder: Path, kind: str, licence: str | None) -> str:
    """The card of a finished model; what its run knows of its faces and scores is looked for beside it."""
    manifest = read_manifest(folder, kind)
    model = inspect.run(folder)
    name = folder.resolve().name
    faces = home_of_faces(folder, manifest)
    evaluated = results(faces.parent) if faces is not None else {}
    digest = digest_of(folder)
    scores = {
        split: {**found[0], "chosen_here": found[0]["chosen_on"] == split}
        for split, result in evaluated.items()
        if (found := [model for model in result["models"].values() if model["manifest"] == digest])
    }
    about = None
    if faces is not None:
        made = read_manifest(faces, "faces")
        about = {"facts": made["facts"], "settings": made["settings"], "datasets": names_of(made)}
    data: dict[str, Any] = {
        "license": licence,
        "library_name": "efficientface",
        "pipeline_tag": "image-classification",
        "tags": TAGS,
    }
    if scores:
        data["metrics"] = ["accuracy", "f1"]
        data["model-index"] = [{"name": printable(name), "results": model_index(scores, about)}]
    return filled(
        "model-card.md",
        data,
        name=name,
        kind=kind,
        model=model,
        about=about,
        scores=scores,
        evaluated=evaluated,
        settings={key: model["settings"][key] for key in TOLD if model["settings"].get(key) not in (None, "")},
        sources=[source["name"] for source in sources_of(folder, manifest)],
        digest=digest,
        imported=manifest["facts"].get("imported"),
        licence=licence,
    )


def model_index(scores: Mapping[str, Any], about: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Hugging Face's model-index: an entry a split, with the scores as shares."""
    named = ", ".join(map(printable, about["datasets"])) if about else ""
    task = {"type": "image-classification", "name": "Facial expression recognition"}
    return [
        {
            "task": task,
            "dataset": {"name": named or "not known", "type": slug(named), "split": printable(split)},
            "metrics": [
                {"type": metric, "name": shown, "value": round(model[key], 6)} for metric, key, shown in SCORES
            ],
        }
        for split, model in scores.items()
    ]


def slug(name: str) -> str:
    """A data set's name as the hub writes such names."""
    return re.sub(r"[^a-z0-9_.-]+", "-", name.lower()).strip("-.") or "unknown"


def home_of_faces(folder: Path, manifest: Mapping[str, Any]) -> Path | None:
    """The faces/ that a model was trained on, None if they are not there as they were."""
    found = {source["name"]: source for source in sources_of(folder, dict(manifest))}.get("faces")
    return Path(found["path"]) if found is not None and found["state"] == "unchanged" else None


def names_of(manifest: Mapping[str, Any]) -> list[str]:
    """What the sources of faces/ are called: their folder's names."""
    told = [source for source in manifest["made_from"].values() if isinstance(source, dict) and "path" in source]
    return [Path(str(source["path"])).name or "photographs" for source in told]


def dataset_card(run: Path, licence: str | None) -> str:
    """The card of a run's aligned faces, and of the distributions cached about them."""
    manifest = read_manifest(run / "faces", "faces")
    if manifest["settings"].get("layout") == "identities":
        raise FerError(
            f"{printable(run)} holds faces of people without expressions; a card is for faces with expressions"
        )
    faces = inspect.run(run / "faces")
    caches = [name for name in subfolders(run) if name.partition("-")[0] == "distributions"]
    told = [{"name": name, **inspect.run(run / name)} for name in caches if is_finished(run / name)]
    tables = [entry["name"] for entry in told if not (run / entry["name"] / ONE_FILE).is_file()]
    name = run.resolve().name
    data: dict[str, Any] = {
        "license": licence,
        "pretty_name": printable(name),
        "task_categories": ["image-classification"],
        "tags": TAGS,
        "size_categories": [next((name for most, name in SIZES if faces["rows"] < most), "1M<n<10M")],
        "configs": [
            {
                "config_name": entry,
                "data_files": f"{entry}/*.parquet",
                **({"default": True} if entry == "faces" else {}),
            }
            for entry in ("faces", *tables)
        ],
    }
    return filled(
        "dataset-card.md",
        data,
        name=name,
        faces=faces,
        notes=[note.replace(f"{run.resolve().parent}/", "") for note in faces["notes"] or []],  # no more of our paths
        datasets=names_of(manifest),
        caches=told,
        digest=digest_of(run / "faces"),
        licence=licence,
    )


# --- Markdown -------------------------------------------------------------------------------------------------


def filled(template: str, front: Mapping[str, Any], **about: Any) -> str:
    """A card: YAML between two lines of ---, then the template in web/ filled in."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(WEB),
        undefined=jinja2.StrictUndefined,
        finalize=escaped,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = code
    text = yaml.safe_dump(
        {key: value for key, value in front.items() if value is not None}, sort_keys=False, allow_unicode=True
    )
    return f"---\n{text}---\n\n{environment.get_template(template).render(about, version=__version__)}\n"


def escaped(value: Any) -> Any:
    """Text from a file as Markdown that shows just that text; what a template made is left as it is."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    # HTML's entities as well: Markdown passes < and & on; and an address is no link
    plain = printable(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]#|~$])", r"\\\1", plain).replace("://", ":\\//")


def code(value: Any) -> Markup:
    """Text from a file as Markdown's code, between more backticks than it holds."""
    plain = printable(value).replace("|", "¦")  # a bar would end a table's cell even there
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", plain)), default=0))
    space = " " if "`" in plain else ""
    return Markup(f"{fence}{space}{plain}{space}{fence}")
