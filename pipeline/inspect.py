"""What `fer inspect` shows of an artifact: counts, distributions, agreement with the labels, single faces."""

import bisect
import difflib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from efficientface import FerError, untrusted
from efficientface.cache.distributions import NO_TEACHER, SEEN, UNSEEN, Distributions
from efficientface.cache.summary import (
    agreement,
    by_label,
    entropy,
    most_ambiguous,
    most_disagreeing,
    quantiles,
)
from efficientface.data.faces import STATUSES, classes_of, read_table
from efficientface.data.words import text_array
from efficientface.pipeline.artifact import (
    MANIFEST,
    METRICS,
    MODELS,
    STAGE_OF,
    check_files,
    data_files,
    is_finished,
    read_config,
    read_manifest,
    read_metrics,
)
from efficientface.pipeline.caches import default_cache, home_of, is_file, open_cache, why_left_out
from efficientface.pipeline.inspect_tables import bytes_text, face_tables, tables
from efficientface.pipeline.status import (
    kind_in_manifest,
    printable,
    quoted,
    sources_of,
    status,
    subfolders,
)

__all__ = ["face_tables", "rows", "run", "some_faces", "tables"]

# As in checkpoint.py, which imports torch.
WEIGHTS = "model.safetensors"
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # batch norm's, which are no parameters
EXAMPLES = 3  # unusable rows named a status, and most frequent reasons
LAST_EPOCHS = 3
SPEED = ("lr", "seconds", "faces_per_second")  # what else is shown of these


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
        cache = default_cache(path)
        path = path / "faces" if top is None and not cache.is_dir() else cache
        kind = kind_of(path)
    if kind == "run":
        return plain(inspect_run(path))
    if is_file(path):
        manifest = open_cache(path).manifest
    else:
        manifest = read_manifest(path, kind)
        check_files(path, manifest, digests=kind in MODELS)  # of the others who reads them checks
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
        "made_from": sources_of(home_of(path), manifest),
        "bytes": sum(entry["bytes"] for entry in manifest["files"].values()),
    }
    inside = {"faces": inspect_faces, "distributions": inspect_distributions}.get(kind, inspect_model)
    return plain({**about, **inside(path, manifest)})


def rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The main table of what `run` returned, for CSV: stages, faces, views, labels or epochs."""
    kind = result["kind"]
    if kind == "run":
        return result["stages"]
    if kind == "top":
        return result["faces"]
    if kind == "face":
        whole = {name: value for name, value in result.items() if name not in ("kind", "path", "classes", "views")}
        return [whole, *({"face_id": result["face_id"], **view} for view in result.get("views", []))]
    if kind in ("faces", "distributions"):
        return [
            {**row, "mean": dict(zip(result["classes"], row["mean"], strict=True))} if "mean" in row else row
            for row in result["labels"]
        ]
    return [{"epoch": epoch, "val_accuracy": value} for epoch, value in enumerate(result["val_accuracy"], 1)]


def kind_of(path: Path) -> str:
    """The kind of artifact in a folder, or `run`; FerError says what was looked for."""
    shown = printable(path)
    if not path.exists():
        raise FerError(f"{shown} does not exist; give a run folder or an artifact in it, such as RUN/distributions")
    if is_file(path):
        return "distributions"
    if not path.is_dir():
        raise FerError(f"{shown} is a file; give the artifact's folder, {quoted(path.parent)}")
    kind = kind_in_manifest(path)
    if kind in STAGE_OF:
        return kind
    by_name = {"faces": "faces", "teacher": "teacher"}.get(path.resolve().name)
    if path.resolve().name.split("-")[0] == "distributions":
        by_name = "distributions"
    by_name = {"students": "student", "identities": "identities"}.get(path.resolve().parent.name, by_name)
    if (path / MANIFEST).is_file():
        raise FerError(
            f"{printable(path / MANIFEST)} does not say what the folder holds (looked for the kinds "
            f"{', '.join(STAGE_OF)}); restore it, or run {STAGE_OF.get(by_name or '', 'the stage')} again"
        )
    names = subfolders(path)
    if any(
        name in ("faces", "teacher", "students", "identities") or name.split("-")[0] == "distributions"
        for name in names
    ):
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
    for stage in state["stages"]:
        if is_finished(path / stage["stage"]) and stage["state"] != "damaged":
            stage["inside"] = in_a_line(run(path / stage["stage"]))
    return {"kind": "run", "path": str(path), **state}


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
    columns = ["face_id", "image_hash", "split", "label", "votes", "group", "status", "reason"]
    table = face_rows(folder, manifest, columns)
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
        "labels": [{"label": name_of(classes, k), "faces": labels[k], "splits": crossed.get(k, {})} for k in order],
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
    if not parts:
        raise FerError(f"{folder} has no shards; remove it and run fer align again")
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


def in_order(splits: Iterable[str]) -> list[str]:
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
    names = {split.as_py() or "" for split in text_array(cached.split).unique()}
    splits = []
    for name in in_order(names):
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
        for part in by_label(cached, agree, nats)
    ]
    return {
        "faces": len(cached),
        "left_out": facts.get("left_out", 0),
        "left_out_because": why_left_out(manifest["settings"]),
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


def read_cached(path: Path, manifest: dict[str, Any], views: bool = False) -> Distributions:
    """The distributions at `path`, a folder or a file, in the manifest's order of classes."""
    return open_cache(path).read(views).in_order_of(manifest["classes"], str(path))


def fold_meaning(fold: int) -> str:
    """What the column `fold` says about the teacher that answered."""
    known = {
        SEEN: "trained on by the teacher that answered",
        UNSEEN: "trained on by no teacher",
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
    cache = open_cache(folder)
    ids: list[str] = []
    for name in cache.shards:
        keys = cache.read_shard(name, views=False).face_id
        rows = np.flatnonzero(keys == face)
        if len(rows):
            break
        ids += keys.tolist()
    else:
        left_out = manifest["facts"].get("left_out")
        without = f" ({left_out:,} left out, {why_left_out(manifest['settings'])})" if left_out else ""
        raise unknown_face(folder, face, ids, without)
    part = cache.read_shard(name).select(rows[:1])
    part.check(str(folder))
    part = part.in_order_of(manifest["classes"], str(folder))
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
    sources = {source["name"]: source for source in sources_of(home_of(folder), manifest)}
    if "faces" not in sources or sources["faces"]["state"] == "not there":
        return None
    faces = Path(sources["faces"]["path"])
    made = read_manifest(faces, "faces")
    table = face_rows(faces, made, ["face_id", "image_hash", "votes"])
    table = table.filter(pc.and_(pc.equal(table["face_id"], face), pc.equal(table["image_hash"], image_hash)))
    votes = table["votes"].to_pylist()
    return dict(zip(made["classes"], votes[0], strict=True)) if votes and votes[0] is not None else None


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


def unknown_face(folder: Path, face: str, ids: list[str], without: str = "") -> FerError:
    """With up to three ids that contain the wanted one, or else are spelt alike; `without` tells of others."""
    near = [name for name in ids if face and face in name][:3] or alike(face, ids)
    hint = f"did you mean {' or '.join(map(printable, near))}?" if near else f"its first is {printable(ids[0])}"
    return FerError(f"{printable(folder)} has no face {printable(face)} among its {len(ids):,}{without}; {hint}")


def alike(face: str, ids: list[str]) -> list[str]:
    """Up to three ids spelt like `face`, out of the hundreds that begin or end like it: comparing all takes long."""
    near = set()
    for step in (1, -1):
        turned = sorted(name[::step] for name in ids)
        place = bisect.bisect(turned, face[::step])
        near |= {name[::step] for name in turned[max(0, place - 200) : place + 200]}
    return difflib.get_close_matches(face, sorted(near), n=3)


# --- teacher and student --------------------------------------------------------------------------------------


def inspect_model(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Architecture, size, how it was trained and how well that went."""
    try:
        config, lines = read_config(folder), read_metrics(folder)
        with untrusted.safetensors_file(folder / WEIGHTS, "numpy") as weights:
            shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, ValueError) as error:
        raise FerError(f"{folder} does not hold a model ({error}); restore it, or run its stage again") from error
    if not all(isinstance(line.get(name), int | float) for line in lines[-LAST_EPOCHS:] for name in SPEED):
        raise FerError(f"{folder / METRICS} does not hold the metrics of a training; restore it, or train again")
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
