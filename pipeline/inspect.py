"""What `fer inspect` shows of an artifact: counts, distributions, agreement with the labels, single faces."""

import difflib
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.bar import Bar
from rich.cells import set_cell_size
from rich.table import Table
from rich.text import Text
from safetensors import SafetensorError, safe_open

from efficientface import FerError
from efficientface.cache.distributions import NO_TEACHER, SEEN, UNSEEN, Distributions
from efficientface.cache.parquet import read_shards
from efficientface.cache.summary import (
    agreement,
    by_label,
    entropy,
    most_ambiguous,
    most_disagreeing,
    quantiles,
)
from efficientface.data.faces import STATUSES, classes_of, read_table
from efficientface.pipeline.artifact import MANIFEST, STAGE_OF, check_files, data_files, read_manifest
from efficientface.pipeline.status import (
    amount,
    digest_of,
    kind_in_manifest,
    printable,
    quoted,
    sources_of,
    status,
    status_tables,
    subfolders,
)

__all__ = ["face_tables", "run", "some_faces", "status", "status_tables", "tables"]

# As in checkpoint.py and train.py, which import torch.
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
METRICS = "metrics.jsonl"
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # batch norm's, which are no parameters
EXAMPLES = 3  # unusable rows named a status, and most frequent reasons
LAST_EPOCHS = 3
MOST_COLUMNS = 10  # with more classes, distributions are told in words
BAR = 40  # cells


def run(path: Path, face: str | None = None, top: str | None = None, count: int = 10) -> dict[str, Any]:
    """What an artifact is and holds; of a run, its status and a line an artifact.

    With `face` one face of it; with `top`, `ambiguous` or `disagreeing`, the `count` distributions that are most so.
    """
    if face is not None and top is not None:
        raise FerError("--face and --top ask for two things; give one of them")
    if count < 1:
        raise FerError(f"--count {count} is out of range; give a number from 1")
    kind = kind_of(path)
    if kind == "run" and (face is not None or top is not None):
        path = path / "distributions"
        kind = kind_of(path)
    if kind == "run":
        return plain(inspect_run(path))
    manifest = read_manifest(path, kind)
    check_files(path, manifest)
    if top is not None:
        if kind != "distributions":
            raise FerError(f"{path} holds {kind}, --top ranks distributions; give the folder that fer teach wrote")
        return plain(top_faces(path, manifest, top, count))
    if face is not None:
        if kind not in ("distributions", "faces"):
            raise FerError(f"{path} is a {kind}, --face looks into faces or distributions; give their folder")
        return plain(one_face(path, manifest, face))
    about = {
        "kind": kind,
        "path": str(path),
        "classes": manifest["classes"],
        "made_from": sources_of(path, manifest),
        "bytes": sum(entry["bytes"] for entry in manifest["files"].values()),
    }
    inside = {"faces": inspect_faces, "distributions": inspect_distributions}.get(kind, inspect_model)
    return plain({**about, **inside(path, manifest)})


def kind_of(path: Path) -> str:
    """The kind of artifact in a folder, or `run`; FerError says what was looked for."""
    shown = printable(path)
    if not path.exists():
        raise FerError(f"{shown} does not exist; give a run folder or an artifact in it, such as RUN/distributions")
    if not path.is_dir():
        raise FerError(f"{shown} is a file; give the artifact's folder, {quoted(path.parent)}")
    kind = kind_in_manifest(path)
    if kind in STAGE_OF:
        return kind
    by_name = {"faces": "faces", "teacher": "teacher"}.get(path.resolve().name)
    if path.resolve().name.split("-")[0] == "distributions":
        by_name = "distributions"
    if path.resolve().parent.name == "students":
        by_name = "student"
    if (path / MANIFEST).is_file():
        raise FerError(
            f"{printable(path / MANIFEST)} does not say what the folder holds (looked for the kinds "
            f"{', '.join(STAGE_OF)}); restore it, or run {STAGE_OF.get(by_name or '', 'the stage')} again"
        )
    names = subfolders(path)
    if any(name in ("faces", "teacher", "students") or name.split("-")[0] == "distributions" for name in names):
        return "run"
    if by_name is not None:
        return by_name  # and read_manifest says that it is unfinished
    if path.resolve().name == "students" and names:
        raise FerError(f"{shown} holds {len(names)} students; give one, such as {quoted(path / names[0])}")
    raise FerError(
        f"{shown} is neither an artifact nor a run (looked for {MANIFEST}, and for the folders faces, teacher, "
        "distributions and students); give a folder that fer align, teach or distill wrote"
    )


def plain(value: Any) -> Any:
    """As JSON can tell it: what is not a finite number is None."""
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_labels(labels: np.ndarray, classes: Sequence[str], path: Path) -> None:
    """FerError if a label is the number of no class."""
    wrong = (labels >= len(classes)) | (labels < -1)
    if wrong.any():
        raise FerError(
            f"{path} has {int(wrong.sum())} labels that are the number of none of its {len(classes)} classes, "
            f"first {labels[wrong][0]}; restore it, or run its stage again"
        )


def name_of(classes: Sequence[str], label: int) -> str | None:
    """A class's name, None for -1."""
    return None if label < 0 else classes[label]


# --- a run ----------------------------------------------------------------------------------------------------


def inspect_run(path: Path) -> dict[str, Any]:
    """Status, and what is in every whole artifact in a line."""
    state = status(path)
    lines = {}
    for stage in state["stages"]:
        # not the manifest's words, which status has already
        if stage["state"] in ("done", "stale"):
            lines[stage["stage"]] = in_a_line(run(path / stage["stage"]))
    return {"kind": "run", "path": str(path), **state, "artifacts": lines}


def in_a_line(result: dict[str, Any]) -> str:
    """An artifact's most telling figures."""
    kind, size = result["kind"], bytes_text(result["bytes"])
    if kind == "faces":
        share = result["faces"] / result["rows"] if result["rows"] else 0
        return f"a face from {share:.1%} of {result['rows']:,} rows, {result['labelled']:,} with a label, {size}"
    if kind == "distributions":
        all_faces = result["all"]
        agreed = f"agree with {all_faces['share']:.1%} of the labels, " if all_faces["labelled"] else ""
        return f"{agreed}entropy {result['entropy']['mean']:.2f} nats, {size}"
    return f"{result['parameters']:,} parameters, {result['size']} pixels, {size}"


# --- faces ----------------------------------------------------------------------------------------------------


def inspect_faces(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Counts of rows by status, and of usable faces by split and label."""
    table = face_rows(folder, manifest, ["face_id", "image_hash", "split", "label", "votes", "group", "status", "reason"])
    classes = manifest["classes"]
    check_labels(table["label"].fill_null(-1).to_numpy(), classes, folder)
    usable = table.filter(pc.is_valid(table["image_hash"]))
    counts = usable.group_by(["split", "label"]).aggregate([([], "count_all")]).to_pylist()
    splits, labels = Counter[str](), Counter[int]()
    crossed: dict[int, dict[str, int]] = {}
    for row in counts:
        split, label = row["split"] or "", -1 if row["label"] is None else row["label"]
        splits[split] += row["count_all"]
        labels[label] += row["count_all"]
        crossed.setdefault(label, {})[split] = row["count_all"]
    order = [*range(len(classes)), *([-1] if labels[-1] else [])]
    facts, settings = manifest["facts"], manifest["settings"]
    return {
        "rows": len(table),
        "faces": len(usable),
        "labelled": labels.total() - labels[-1],
        "with_votes": len(usable) - usable["votes"].null_count,
        "groups": pc.count_distinct(usable["group"]).as_py(),
        "statuses": statuses(table),
        "splits": {split: splits[split] for split in in_order(splits)},
        "labels": [
            {"label": name_of(classes, k), "faces": labels[k], "splits": crossed.get(k, {})} for k in order
        ],
        **{name: facts.get(name) for name in ("mean", "std", "mean_over", "decoders", "detector", "notes")},
        "settings": settings,
    }


def face_rows(folder: Path, manifest: dict[str, Any], columns: list[str]) -> pa.Table:
    """Columns of all shards of faces/."""
    parts = []
    for path in data_files(folder, manifest):
        part = read_table(path, images=False)
        if list(classes_of(part.schema, path)) != manifest["classes"]:
            raise FerError(f"{path} has other classes than {folder / MANIFEST}; restore it, or run fer align again")
        missing = [name for name in columns if name not in part.column_names]
        if missing:
            raise FerError(f"{path} lacks the columns {', '.join(missing)}; restore it, or run fer align again")
        parts.append(part.select(columns))
    return pa.concat_tables(parts)


def statuses(table: pa.Table) -> list[dict[str, Any]]:
    """Rows by what became of the photograph, in the order of STATUSES; with reasons where there is no face."""
    found = []
    counts = {row["values"]: row["counts"] for row in pc.value_counts(table["status"].combine_chunks()).to_pylist()}
    for name in sorted(counts, key=lambda n: STATUSES.index(n) if n in STATUSES else len(STATUSES)):
        rows = table.filter(pc.and_(pc.equal(table["status"], name), pc.is_null(table["image_hash"])))
        reasons = Counter(rows["reason"].to_pylist())
        first = rows.slice(0, EXAMPLES).select(["face_id", "reason"]).to_pylist()
        found.append(
            {
                "status": name,
                "rows": counts[name],
                "without_a_face": len(rows),
                "reasons": [{"reason": r, "rows": n} for r, n in reasons.most_common(EXAMPLES) if r is not None],
                "further_reasons": max(0, len(reasons) - EXAMPLES),
                "first": first,
            }
        )
    return found


def in_order(splits: Counter[str]) -> list[str]:
    """Split names: training, validation, test, then others by name."""
    usual = ("train", "val", "test")
    return sorted(splits, key=lambda name: (usual.index(name) if name in usual else len(usual), name))


# --- distributions --------------------------------------------------------------------------------------------


def inspect_distributions(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Counts, mean distributions by label, entropy, and agreement of the most probable class with the label."""
    cached = read_cached(folder, manifest)
    facts, classes = manifest["facts"], cached.classes
    agree, nats, labelled = agreement(cached), entropy(cached.canonical), cached.label >= 0
    most = math.log(len(classes)) if len(classes) > 1 else 1.0
    counts = Counter("" if split is None else split for split in cached.split.tolist())
    splits = []
    for name in in_order(counts):
        rows = cached.split == (name or None)
        splits.append({"split": name, **counted(rows, labelled, agree, nats)})
    folds, in_fold = np.unique(cached.fold, return_counts=True)
    labels = [
        {
            "label": name_of(classes, part.label),
            "faces": part.faces,
            "agree": part.agree if part.label >= 0 else None,
            "share": part.agree / part.faces if part.faces and part.label >= 0 else None,
            "entropy": part.entropy,
            "mean": part.mean,
        }
        for part in by_label(cached)
    ]
    return {
        "faces": len(cached),
        "views": facts.get("views"),
        "source": facts.get("source"),
        "teacher": facts.get("teacher"),
        "settings": manifest["settings"],
        "folds": [
            {"fold": int(fold), "faces": int(faces), "meaning": fold_meaning(int(fold))}
            for fold, faces in zip(folds, in_fold, strict=True)
        ],
        "all": {
            **counted(np.ones(len(cached), bool), labelled, agree, nats),
            "mean": cached.canonical.mean(0, dtype=np.float64),
        },
        "splits": splits,
        "labels": labels if not labelled.all() else labels[:-1],
        "entropy": {"mean": nats.mean(), "share_of_maximum": nats.mean() / most, "maximum": most, **quantiles(nats)},
        "largest_probability": {"mean": cached.canonical.max(1).mean(dtype=np.float64)},
    }


def counted(rows: np.ndarray, labelled: np.ndarray, agree: np.ndarray, nats: np.ndarray) -> dict[str, Any]:
    """Of the faces at `rows` (N,) bool: how many, how many have a label, how many of those are agreed about."""
    judged, agreed = int((rows & labelled).sum()), int((rows & agree).sum())
    return {
        "faces": int(rows.sum()),
        "labelled": judged,
        "agree": agreed,
        "share": agreed / judged if judged else None,
        "entropy": nats[rows].mean(),
    }


def read_cached(folder: Path, manifest: dict[str, Any], files: list[Path] | None = None, views: bool = False) -> Distributions:
    """The distributions of a folder, or of some of its files, in the manifest's order of classes."""
    cached = read_shards(files or data_files(folder, manifest), views=views)
    cached = cached.in_order_of(manifest["classes"], str(folder))
    check_labels(cached.label, cached.classes, folder)
    return cached


def fold_meaning(fold: int) -> str:
    """What the column `fold` says about the teacher that answered."""
    known = {
        SEEN: "the answering teacher had trained on these faces",
        UNSEEN: "no teacher had trained on these faces",
        NO_TEACHER: "not from a teacher",
    }
    return known.get(fold, f"answered by out-of-fold teacher {fold}")


def top_faces(folder: Path, manifest: dict[str, Any], top: str, count: int) -> dict[str, Any]:
    """The `count` faces whose distributions are most ambiguous or disagree most with the label."""
    cached = read_cached(folder, manifest)
    if top not in ("ambiguous", "disagreeing"):
        raise FerError(f"--top {top} is not known; choose from ambiguous, disagreeing")
    if top == "disagreeing" and not (cached.label >= 0).any():
        raise FerError(f"{folder} has no labels to disagree with among its {len(cached)} faces; give --top ambiguous")
    ranked = {"ambiguous": most_ambiguous, "disagreeing": most_disagreeing}[top](cached, count)
    of = len(cached) if top == "ambiguous" else int((cached.label >= 0).sum())
    return {
        "kind": "top",
        "path": str(folder),
        "top": top,
        "of": of,
        "faces": [described(cached, row) for row in ranked],
    }


def some_faces(folder: Path, count: int) -> list[dict[str, Any]]:
    """`count` faces of distributions/ from all over its test split, or over all faces where there is none."""
    cached = read_cached(folder, read_manifest(folder, "distributions"))
    rows = np.flatnonzero(cached.split == "test")
    rows = rows if len(rows) else np.arange(len(cached))
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int))
    return plain([described(cached, row) for row in rows[chosen]])


def described(cached: Distributions, row: int) -> dict[str, Any]:
    """One face's distribution with names."""
    canonical, label = cached.canonical[row], int(cached.label[row])
    return {
        "face_id": cached.face_id[row],
        "split": cached.split[row],
        "label": name_of(cached.classes, label),
        "top": cached.classes[canonical.argmax()],
        "top_probability": canonical.max(),
        "label_probability": canonical[label] if label >= 0 else None,
        "entropy": entropy(canonical),
        "distribution": dict(zip(cached.classes, canonical.tolist(), strict=True)),
    }


# --- one face -------------------------------------------------------------------------------------------------


def one_face(folder: Path, manifest: dict[str, Any], face: str) -> dict[str, Any]:
    """A face of distributions/ with its views and, where faces/ has them, human votes; or a row of faces/."""
    if manifest["kind"] == "faces":
        return {"kind": "face", "path": str(folder), "classes": manifest["classes"], **face_row(folder, manifest, face)}
    ids: list[str] = []
    for file in data_files(folder, manifest):
        part = read_cached(folder, manifest, [file])
        rows = np.flatnonzero(part.face_id == face)
        if len(rows):
            break
        ids += part.face_id.tolist()
    else:
        raise unknown_face(folder, face, ids)
    row = int(rows[0])
    part = read_cached(folder, manifest, [file], views=True).select(np.array([row]))
    views = [
        {
            "box": part.view_box[0, k],
            "flip": bool(part.view_flip[0, k]),
            "top": part.classes[part.view_distribution[0, k].argmax()],
            "top_probability": part.view_distribution[0, k].max(),
            "distribution": dict(zip(part.classes, part.view_distribution[0, k].tolist(), strict=True)),
        }
        for k in range(part.views)
    ]
    return {
        "kind": "face",
        "path": str(folder),
        "classes": part.classes,
        **described(part, 0),
        "fold": int(part.fold[0]),
        "fold_meaning": fold_meaning(int(part.fold[0])),
        "share_of_maximum": float(entropy(part.canonical[0])) / math.log(max(len(part.classes), 2)),
        "votes": votes_about(folder, manifest, face, part.image_hash[0]),
        "views": views,
    }


def votes_about(folder: Path, manifest: dict[str, Any], face: str, image_hash: str) -> dict[str, float] | None:
    """Human votes by class from the faces/ that the distributions were made from; None if there are none.

    They are not taken from faces/ that are not the same any more, if the picture is another.
    """
    sources = {source["name"]: source for source in sources_of(folder, manifest)}
    if "faces" not in sources or sources["faces"]["state"] == "not there":
        return None
    faces = Path(sources["faces"]["path"])
    described = read_manifest(faces, "faces")
    table = face_rows(faces, described, ["face_id", "image_hash", "votes"])
    table = table.filter(pc.and_(pc.equal(table["face_id"], face), pc.equal(table["image_hash"], image_hash)))
    votes = table["votes"].to_pylist()
    return dict(zip(described["classes"], votes[0], strict=True)) if votes and votes[0] is not None else None


def face_row(folder: Path, manifest: dict[str, Any], face: str) -> dict[str, Any]:
    """A row of faces/ without its picture, for people: label and votes by name."""
    columns = ["face_id", "split", "label", "votes", "votes_other", "group", "source", "box", "score", "yaw", "pitch"]
    columns += ["roll", "n_faces", "status", "reason", "image_hash"]
    table = face_rows(folder, manifest, columns)
    rows = table.filter(pc.equal(table["face_id"], face)).to_pylist()
    if not rows:
        raise unknown_face(folder, face, table["face_id"].to_pylist())
    row, classes = rows[0], manifest["classes"]
    label = -1 if row["label"] is None else row["label"]
    check_labels(np.array([label]), classes, folder)
    votes = dict(zip(classes, row["votes"], strict=True)) if row["votes"] is not None else None
    return {**row, "label": name_of(classes, label), "votes": votes}


def unknown_face(folder: Path, face: str, ids: list[str]) -> FerError:
    """With up to three ids that are spelt alike."""
    near = difflib.get_close_matches(face, ids, n=3, cutoff=0.6)
    hint = f"did you mean {', '.join(map(printable, near))}?" if near else f"its ids look like {printable(ids[0])}"
    return FerError(f"{printable(folder)} has no face {printable(face)} among its {len(ids):,}; {hint}")


# --- teacher and student --------------------------------------------------------------------------------------


def inspect_model(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Architecture, size, how it was trained and how well that went."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        lines = [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]
        with safe_open(folder / WEIGHTS, framework="numpy") as weights:
            shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, ValueError, SafetensorError) as error:
        raise FerError(f"{folder} does not hold a model ({error}); restore it, or run its stage again") from error
    facts = manifest["facts"]
    return {
        **{name: config.get(name) for name in ("arch", "options", "size", "mean", "std")},
        "parameters": sum(math.prod(shape) for name, shape in shapes.items() if name.split(".")[-1] not in BUFFERS),
        "settings": manifest["settings"],
        "train_faces": facts.get("train_faces"),
        "chosen_on": facts.get("chosen_on"),
        "best": facts.get("best"),
        "epochs": len(lines),
        "val_accuracy": [line["val_accuracy"] for line in lines],
        "last": lines[-LAST_EPOCHS:],
    }


# --- tables ---------------------------------------------------------------------------------------------------


def tables(result: dict[str, Any]) -> list[Any]:
    """Whatever `run` returned, for a terminal."""
    shown = {
        "run": run_tables,
        "faces": faces_tables,
        "distributions": distributions_tables,
        "top": top_tables,
        "face": one_face_tables,
    }
    return shown.get(result["kind"], model_tables)(result)


def run_tables(result: dict[str, Any]) -> list[Any]:
    table, *rest = status_tables(result)
    figures = grid()
    for name, line in result["artifacts"].items():
        figures.add_row(text(name), text(line))
    return [table, *([Text(), figures] if result["artifacts"] else []), *rest]


def faces_tables(result: dict[str, Any]) -> list[Any]:
    settings = result["settings"]
    facts = grid()
    facts.add_row("made from", sources_text(result["made_from"]))
    facts.add_row("rows", f"{result['rows']:,}, {result['faces']:,} of them with a face")
    labels = f"{result['labelled']:,} with a label, {result['faces'] - result['labelled']:,} without"
    facts.add_row("labels", labels + (f", {result['with_votes']:,} with votes" if result["with_votes"] else ""))
    if result["groups"]:
        facts.add_row("groups", f"{result['groups']:,}")
    crop = settings.get("crop")
    if crop:
        facts.add_row("pictures", text(f"{crop} x {crop} pixels" + (f", {settings['encode']}" if "encode" in settings else "")))
    for name in ("mean", "std"):
        if result[name]:
            facts.add_row(name, "  ".join(f"{value:.4f}" for value in result[name]) + "  (red, green, blue; 0 to 1)")
    if result["decoders"]:
        facts.add_row("decoders", text(", ".join(f"{version} for {what}" for what, version in result["decoders"].items())))
    if result["detector"]:
        facts.add_row("detector", text(result["detector"]))
    for k, note in enumerate(result["notes"] or []):
        facts.add_row("notes" if k == 0 else "", text(note))
    facts.add_row("size", bytes_text(result["bytes"]))

    outcome = listing("status", "rows", "share", "without a face: why, and which first", right=(1, 2))
    for part in result["statuses"]:
        why = Text(overflow="fold")
        reasons = [f"{reason['reason']} ({reason['rows']:,})" for reason in part["reasons"]]
        reasons += [f"{part['further_reasons']:,} further reasons"] * bool(part["further_reasons"])
        first = [row["face_id"] for row in part["first"]]
        why.append(printable("; ".join(reasons)))
        if first:
            why.append(("\n" if reasons else "") + "first: ", "dim").append(printable(", ".join(first)))
        share = part["rows"] / result["rows"]
        outcome.add_row(text(part["status"]), f"{part['rows']:,}", f"{share:.2%}", why)

    splits = list(result["splits"])
    counts = listing("label", *[split or "no split" for split in splits], "all", right=range(1, len(splits) + 2))
    for row in result["labels"]:
        cells = [f"{row['splits'].get(split, 0):,}" for split in splits]
        counts.add_row(label_text(row["label"]), *cells, f"{row['faces']:,}")
    counts.add_section()
    counts.add_row("all", *[f"{result['splits'][split]:,}" for split in splits], f"{result['faces']:,}")
    return [heading(result), facts, Text(), outcome, Text(), counts]


def distributions_tables(result: dict[str, Any]) -> list[Any]:
    facts, teacher = grid(), result["teacher"]
    facts.add_row("made from", sources_text(result["made_from"]))
    facts.add_row("faces", f"{result['faces']:,}, {result['all']['labelled']:,} with a label")
    views = amount(result["views"]) + " a face, beside the whole one" if result["views"] else "none, for per-image use"
    facts.add_row("stored views", text(views))
    if isinstance(teacher, dict):
        words = [str(teacher["arch"])] if "arch" in teacher else []
        words += [f"{teacher['size']} pixels"] if "size" in teacher else []
        words += [f"{teacher['accuracy']:.1%} right on {teacher['accuracy_on']}"] if "accuracy" in teacher else []
        facts.add_row(text(result["source"] or "source"), text(", ".join(words)))
    elif result["source"]:
        facts.add_row("source", text(result["source"]))
    for k, fold in enumerate(result["folds"]):
        facts.add_row("fold" if k == 0 else "", f"{fold['fold']:>2}  {fold['faces']:,} faces: {fold['meaning']}")
    spread = result["entropy"]
    mean = f"{spread['mean']:.3f} nats, {spread['share_of_maximum']:.1%} of the possible {spread['maximum']:.3f}"
    facts.add_row("mean entropy", mean)
    facts.add_row("", "   ".join(f"{name} {spread[name]:.3f}" for name in ("min", "p25", "median", "p75", "p95", "max")))
    facts.add_row("mean largest p", f"{result['largest_probability']['mean']:.1%}")
    facts.add_row("size", bytes_text(result["bytes"]))

    splits = listing("split", "faces", "with label", "agree", "share", "entropy", right=range(1, 6))
    for row in [*result["splits"], {"split": "all", **result["all"]}]:
        if row["split"] == "all" and row is not result["splits"][0]:
            splits.add_section()
        agreed = (f"{row['agree']:,}", f"{row['share']:.1%}") if row["labelled"] else ("", "")
        splits.add_row(text(row["split"] or "no split"), f"{row['faces']:,}", f"{row['labelled']:,}", *agreed, f"{row['entropy']:.3f}")
    return [heading(result), facts, Text(), splits, Text(), means_table(result)]


def means_table(result: dict[str, Any]) -> Table:
    """Rows are labels, columns the mean probability of every class in percent."""
    classes = result["classes"]
    columns = len(classes) <= MOST_COLUMNS
    told = classes if columns else ["mean distribution, the most probable classes"]
    right = range(1, 4 + len(classes) if columns else 4)
    table = listing("label", "faces", "agree", "entropy", *told, right=right)
    if columns:
        table.title = Text("mean distribution of the faces of a label, in %", style="dim")
        table.title_justify = "left"
    for row in [*result["labels"], {"label": "all", **result["all"]}]:
        if row["label"] == "all" and "labelled" in row:
            table.add_section()
            first = Text("all")
        else:
            first = label_text(row["label"])
        share = f"{row['share']:.1%}" if row["share"] is not None else ""
        nats = f"{row['entropy']:.3f}" if row["entropy"] is not None else ""
        if not row["faces"]:
            cells = [Text("")] * len(told)
        elif columns:
            cells = [percent(p, own=name == row["label"]) for name, p in zip(classes, row["mean"], strict=True)]
        else:
            cells = [text(in_words(dict(zip(classes, row["mean"], strict=True)), most=4))]
        table.add_row(first, f"{row['faces']:,}", share, nats, *cells)
    return table


def top_tables(result: dict[str, Any]) -> list[Any]:
    """The faces in their order, each with its distribution as a line of bars."""
    what = "by entropy, largest first" if result["top"] == "ambiguous" else "by the label's probability, least first"
    about = Text.assemble((f"{len(result['faces'])} of {result['of']:,} faces, {what}", "dim"))
    return [heading(result), about, *face_tables(result["faces"])]


def face_tables(faces: list[dict[str, Any]]) -> list[Any]:
    """A line a face: its label, its distribution as small upright bars, and what they say."""
    if not faces:
        return [Text("no faces", style="dim")]
    classes = list(faces[0]["distribution"])
    table = listing("face", "split", "label", initials(classes), "says", "", "label's p", "entropy", right=(5, 6, 7))
    table.columns[0].overflow = "fold"
    table.columns[3].no_wrap = True
    for face in faces:
        agrees = "green" if face["top"] == face["label"] else "yellow" if face["label"] is not None else ""
        own = f"{face['label_probability']:.1%}" if face["label_probability"] is not None else ""
        table.add_row(
            text(face["face_id"]),
            text(face["split"] or ""),
            label_text(face["label"]),
            upright(face["distribution"], face["label"]),
            text(face["top"], style=agrees),
            f"{face['top_probability']:.1%}",
            own,
            f"{face['entropy']:.2f}",
        )
    return [table]


def one_face_tables(result: dict[str, Any]) -> list[Any]:
    """Bars a class; beside them the votes, below the stored views."""
    facts = grid()
    facts.add_row("label", label_text(result["label"]))
    facts.add_row("split", text(result["split"] or "no split"))
    shown = [heading({**result, "kind": "face", "path": result["face_id"]}), facts]
    if "distribution" in result:
        facts.add_row("fold", f"{result['fold']}: {result['fold_meaning']}")
        facts.add_row("entropy", f"{result['entropy']:.3f} nats, {result['share_of_maximum']:.1%} of the possible")
        shown += [Text(), bars(result)]
    else:
        found = f"{result['status']}" + (f" ({result['reason']})" if result["reason"] else "")
        facts.add_row("status", text(found))
        facts.add_row("source", text(result["source"]))
        for name in ("group", "image_hash", "n_faces"):
            if result[name] is not None:
                facts.add_row(name.replace("_", " "), text(result[name]))
        if result["box"]:
            x1, y1, x2, y2 = result["box"]
            facts.add_row("box", f"{x1:.0f}, {y1:.0f} to {x2:.0f}, {y2:.0f} pixels of the source")
        if result["score"] is not None:
            facts.add_row("score", f"{result['score']:.3f}")
        if result["yaw"] is not None:
            angles = f"yaw {result['yaw']:.0f}, pitch {result['pitch']:.0f}, roll {result['roll']:.0f} degrees"
            facts.add_row("pose", angles)
        if result["votes_other"]:
            unknown, no_face = result["votes_other"]
            facts.add_row("other votes", f"{unknown:g} unknown, {no_face:g} not a face")
        if result["votes"]:
            shown += [Text(), bars(result)]
    if result.get("views"):
        shown += [Text(), views_table(result)]
    return shown


def bars(result: dict[str, Any]) -> Table:
    """A row a class: distribution and votes, each as a lying bar and a number."""
    distribution, votes = result.get("distribution"), result.get("votes")
    width = BAR if not (distribution and votes) else BAR // 2
    total = sum(votes.values()) if votes else 0
    heads: list[str] = []
    if distribution:
        heads += ["distribution", ""]
    if votes:
        heads += [f"{total:g} votes", ""]
    table = listing("", *heads, right=[k for k in range(1, len(heads) + 1) if k % 2 == 0])
    for name in result["classes"]:
        own = name == result["label"]
        first = Text.assemble(printable(name), " ◂ label" if own else "", style="bold green" if own else "")
        cells: list[Any] = []
        if distribution:
            p = distribution[name]
            cells += [Bar(1.0, 0, p, width=width, color="green" if own else "cyan"), f"{p:.1%}"]
        if votes:
            cells += [Bar(total or 1.0, 0, votes[name], width=width, color="magenta"), f"{votes[name]:g}"]
        table.add_row(first, *cells)
    return table


def views_table(result: dict[str, Any]) -> Table:
    """The stored views: where they lie in the face, and what the teacher said of them."""
    classes = result["classes"]
    table = listing("view", "top", "left", "height", "width", "flip", initials(classes), "says", "", right=(0, 1, 2, 3, 4, 8))
    table.columns[6].no_wrap = True
    for k, view in enumerate(result["views"], 1):
        table.add_row(
            str(k),
            *map(str, view["box"]),
            "flip" if view["flip"] else "",
            upright(view["distribution"], result["label"]),
            text(view["top"], style="" if view["top"] == result["top"] else "yellow"),
            f"{view['top_probability']:.1%}",
        )
    return table


def model_tables(result: dict[str, Any]) -> list[Any]:
    facts, settings = grid(), result["settings"]
    facts.add_row("made from", sources_text(result["made_from"]))
    options = "".join(f", {name} {value}" for name, value in (result["options"] or {}).items())
    facts.add_row("network", text(f"{result['arch']}{options}, {result['parameters']:,} parameters"))
    facts.add_row("input", text(f"{result['size']} x {result['size']} pixels"))
    facts.add_row("classes", text(", ".join(result["classes"])))
    names = ("loss", "cache", "label_smoothing", "batch_size", "lr", "schedule", "lr_step", "min_area", "precision", "seed")
    skip = "lr_step" if settings.get("schedule") != "step" else ""
    words = [f"{name.replace('_', ' ')} {settings[name]}" for name in names if settings.get(name) not in (None, "") and name != skip]
    facts.add_row("trained", text(f"on {amount(result['train_faces'])} faces: {', '.join(words)}"))
    best = result["best"] or {}
    if "val_accuracy" in best:
        line = f"{best['epoch'] + 1} of {result['epochs']}: {best['val_accuracy']:.2%} right on {result['chosen_on']}"
        facts.add_row("best epoch", text(f"{line}, cross-entropy {best['val_cross_entropy']:.3f} nats"))
    facts.add_row("accuracy", curve(result["val_accuracy"]))
    facts.add_row("size", bytes_text(result["bytes"]))
    last = listing("epoch", "loss", "accuracy", "cross-entropy", "lr", "seconds", "faces/s", right=range(7))
    for line in result["last"]:
        last.add_row(
            str(line["epoch"] + 1),
            f"{line['loss']:.4f}",
            f"{line['val_accuracy']:.2%}",
            f"{line['val_cross_entropy']:.3f}",
            f"{line['lr']:.3g}",
            f"{line['seconds']:.1f}",
            f"{line['faces_per_second']:,.0f}",
        )
    return [heading(result), facts, Text(), last]


# --- parts of tables ------------------------------------------------------------------------------------------


def text(value: Any, style: str = "") -> Text:
    """A value from a file, never read as rich's markup."""
    return Text(printable(value), style=style)


def label_text(label: str | None) -> Text:
    return Text("no label", style="dim") if label is None else text(label)


def heading(result: dict[str, Any]) -> Text:
    return Text.assemble((result["kind"], "bold cyan"), "  ", (printable(result["path"]), "bold"))


def grid() -> Table:
    """Names and values."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def listing(*heads: str | Text, right: Sequence[int] = ()) -> Table:
    """A table without lines; the columns at `right` are set to the right."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for k, head in enumerate(heads):
        table.add_column(head if isinstance(head, Text) else text(head), justify="right" if k in right else "left")
    return table


def sources_text(sources: list[dict[str, Any]]) -> Text:
    """What an artifact was made from, one a line, with a warning where it is not the same any more."""
    lines = []
    for source in sources:
        line = Text.assemble(printable(f"{source['name']}  {source['path']}"))
        if source["state"] == "changed":
            line.append("  changed since: this artifact is stale", "yellow")
        elif source["state"] != "unchanged":
            line.append(f"  {source['state']}", "dim")
        lines.append(line)
    return Text("\n").join(lines) if lines else Text("not said", style="dim")


def percent(p: float, own: bool) -> Text:
    """A cell of the table of means: the label's own class stands out, and so does what it is taken for."""
    style = "bold green" if own else "yellow" if p >= 0.2 else "" if p >= 0.05 else "dim"
    return Text(f"{100 * p:.1f}", style=style)


def in_words(distribution: dict[str, float], most: int) -> str:
    """The most probable classes with their shares."""
    ranked = sorted(distribution.items(), key=lambda item: -item[1])[:most]
    return ", ".join(f"{name} {p:.0%}" for name, p in ranked)


def upright(distribution: dict[str, float], label: str | None) -> Text:
    """Two cells a class, filled from below in eighths; nearly nothing is a point."""
    line = Text()
    for name, p in distribution.items():
        line.append(2 * block(p) if p >= 0.01 else "· ", "green" if name == label else "cyan").append(" ")
    return line


def initials(classes: Sequence[str]) -> Text:
    """The head above upright bars: two letters a class."""
    return text(" ".join(set_cell_size(printable(name), 2) for name in classes))


def curve(values: list[float]) -> str:
    """First and last of a series, and between them its course in at most sixty blocks."""
    if not values:
        return ""
    chosen = np.unique(np.linspace(0, len(values) - 1, min(60, len(values))).astype(int))
    low, high = min(values), max(values)
    course = "".join(block((values[k] - low) / (high - low) if high > low else 1.0) for k in chosen)
    return f"{values[0]:.1%} {course} {values[-1]:.1%}"


def block(share: float) -> str:
    """A block as high as a share of the line, 0 to 1."""
    return "▁▂▃▄▅▆▇█"[min(7, int(8 * share))]


def bytes_text(count: int) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count = count / 1000
    raise AssertionError
