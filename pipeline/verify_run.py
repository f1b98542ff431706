"""`fer verify`: a run from its photographs to its evaluation, every finding listed, nothing repaired.

Bytes and caches are checked by verify.py; here is what ties one stage to the next.
"""

import os
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from efficientface import FerError, untrusted
from efficientface.cache.distributions import NO_TEACHER, SEEN, UNSEEN, Distributions
from efficientface.data.faces import STATUSES, classes_of, hash_image, read_table, schema
from efficientface.data.layouts.files import is_inside
from efficientface.data.photos import PhotoFiles, Photos, Unreadable
from efficientface.data.words import GrowingWords, Words, all_differ, counted, differ, of_batches, places
from efficientface.pipeline.artifact import (
    MANIFEST,
    MODELS,
    digest_file,
    digest_of,
    is_begun,
    is_finished,
    is_part,
    place_of,
    read_metrics,
    read_sealed,
)
from efficientface.pipeline.caches import asked_teachers
from efficientface.pipeline.config import AlignConfig
from efficientface.pipeline.photographs import digests_of, read_inputs, stored
from efficientface.pipeline.progress import progress, working
from efficientface.pipeline.status import CHECKPOINT, PLAN, check_is_run, sources_of, subfolders
from efficientface.pipeline.verify import Report, cache_of, check_bytes, check_cache

TRAINED_ON = "trained_on.parquet"  # as in label.py, which imports torch
DUPLICATES = "duplicates.csv"  # as in align.py, which imports the detector
MISSING = "photographs that are not there any more"


@dataclass
class Known:
    """What faces/ says of the usable faces: each one's id, its picture's hash, its split."""

    classes: list[str]
    face_id: Words
    image_hash: Words
    split: Words


def verify(run: Path) -> dict[str, Any]:
    """Check every artifact of a run, what it was made from, and the photographs if they are there.

    Returns the checks, each with its `artifact`, and `ok`: whether none failed.
    """
    check_is_run(run)
    artifacts = artifacts_in(run)
    if not artifacts:
        raise FerError(f"{run} holds nothing that fer align, fer teach or fer distill wrote; give a run folder")
    report = Report()
    faces = None
    for name, kind in artifacts:
        folder = run / name
        report.about = {"artifact": name}
        if not is_finished(folder):
            _unfinished(folder, kind, report)
            continue
        manifest, whole = check_bytes(folder, kind, report)
        if manifest is None:
            continue
        stale = _made_from(folder, manifest, report)
        if kind == "faces":
            faces = _faces(folder, manifest, list(whole), report)
        elif kind == "distributions":
            keys = check_cache(cache_of(folder, manifest, whole, report), report)
            if keys is not None:
                _folds(folder, manifest, keys, report)
        else:
            _model(folder, manifest, len(whole) == len(manifest["files"]), None if stale else faces, report)
    _evaluation(run, report)
    return {"path": str(run), **report.result()}


def artifacts_in(run: Path) -> list[tuple[str, str]]:
    """Folder and kind of every artifact in a run, finished or not, in the order of the stages."""
    folders = subfolders(run)
    found = [("faces", "faces")] if "faces" in folders else []
    found += [("teacher", "teacher")] if is_begun(run / "teacher") else []
    found += [(f"teacher/{name}", "teacher") for name in subfolders(run / "teacher") if name.startswith("fold-")]
    found += [(name, "distributions") for name in folders if name.partition("-")[0] == "distributions"]
    found += [(f"students/{name}", "student") for name in subfolders(run / "students")]
    return found + [(f"identities/{name}", "identities") for name in subfolders(run / "identities")]


def _unfinished(folder: Path, kind: str, report: Report) -> None:
    """What is under way has a plan or a checkpoint; files without either have lost their manifest."""
    files = [file.name for file in folder.iterdir() if not is_part(file)]
    if not files or (CHECKPOINT if kind in MODELS else PLAN) in files:
        report.note("manifest", ["unfinished: the same command goes on with it"], "")
    else:
        report.add("manifest", [f"{MANIFEST} is missing beside {len(files)} files, first {min(files)}"], "")


def _made_from(folder: Path, manifest: dict[str, Any], report: Report) -> bool:
    """Compare what the artifact was made from with what is there now; whether something is another."""
    sources = [source for source in sources_of(folder, manifest) if source["state"] != "not checked"]
    changed = [f"made from other {s['name']} than {s['path']} holds now" for s in sources if s["state"] == "changed"]
    away = [f"{s['name']} ({s['path']})" for s in sources if s["state"] == "not there"]
    same = [s["name"] for s in sources if s["state"] == "unchanged"]
    if changed or same:
        fine = f"{', '.join(same)} as now" + (f"; not there: {', '.join(away)}" if away else "")
        report.add("made from", changed, fine)
    elif away:
        report.skip("made from", f"not there: {', '.join(away)}")
    return bool(changed)


def _several(wrong: dict[str, list[str]]) -> list[str]:
    """A finding for each kind of offenders: how many, and the first."""
    return [f"{len(names)} {what}, first {names[0]}" for what, names in wrong.items()]


# --- faces and photographs -------------------------------------------------------------------------------------


def _faces(folder: Path, manifest: dict[str, Any], whole: list[str], report: Report) -> Known | None:
    """Every stored picture against its hash, and the rows against the manifest; then the photographs."""
    classes, wrong, seen = manifest["classes"], dict[str, list[str]](), GrowingWords()
    known = {name: GrowingWords() for name in ("face_id", "image_hash", "split")}
    photographs, photo_hashes, last = GrowingWords(), GrowingWords(), None  # the faces of one come one after the other
    findings = []
    usable, sizes = 0, Counter[str]()
    tables = [name for name in whole if name.endswith(".parquet")]
    with progress("hashing faces", len(tables), "files") as advance:
        for name in tables:
            try:
                table = read_table(folder / name)
                if list(classes_of(table.schema, folder / name)) != classes:
                    findings.append(f"{name} has other classes, or in another order, than {MANIFEST}")
                table = table.select(["face_id", "image", "image_hash", "split", "label", "source_hash", "status"])
                table = table.cast(pa.schema([schema(classes).field(column) for column in table.column_names]))
            except FerError as error:
                findings.append(str(error))
                continue
            except (KeyError, pa.ArrowException) as error:
                findings.append(f"{name} does not have the columns of docs/files.md ({str(error).splitlines()[0]})")
                continue
            pictures = [picture for chunk in table["image"].chunks for picture in chunk.field("bytes")]
            columns = [table[column].to_pylist() for column in ("face_id", "image_hash", "split", "label", "status")]
            hashes = table["source_hash"].to_pylist()
            photos: list[tuple[str, str]] = []
            for face_id, stated, split, label, status, picture, photo_hash in zip(
                *columns, pictures, hashes, strict=True
            ):
                face_id = str(face_id)
                usable += picture.is_valid
                sizes[split] += picture.is_valid
                if (hash_image(picture.as_buffer()) if picture.is_valid else None) != stated:
                    wrong.setdefault("pictures that are not as their image_hash says", []).append(face_id)
                if label is not None and not 0 <= label < len(classes):
                    wrong.setdefault("labels of no class", []).append(face_id)
                if status not in STATUSES:
                    wrong.setdefault("rows of no known status", []).append(face_id)
                photo = face_id.partition("#")[0]
                if photo_hash is not None and photo != last:
                    last = photo
                    photos.append((photo, photo_hash))
            seen.append([str(face_id) for face_id in columns[0]])
            stated_rows = table.select(list(known)).filter(table["image_hash"].is_valid())
            for column, words in known.items():
                words.append(stated_rows[column])
            photographs.append([photo for photo, _ in photos])
            photo_hashes.append([photo_hash for _, photo_hash in photos])
            advance(1)
    ids = seen.whole()
    if not all_differ(ids):
        wrong["face ids more than once"] = [face_id for face_id, count in counted(ids).items() if count > 1]
    findings += _several(wrong)
    complete = len(whole) == len(manifest["files"]) and not findings
    splits = {split: count for split, count in sizes.items() if split is not None and count}
    for what, found in (("faces", usable), ("splits", splits)):
        stated = manifest["facts"].get(what, found)
        if complete and stated != found:
            findings.append(f"{found} {what} instead of {stated}")
    report.add("faces", findings, f"{usable:,} pictures of {len(ids):,} rows hashed again, ids once, labels of classes")
    _duplicates(folder, manifest, complete, report)
    _photographs(folder, manifest, photographs.whole(), photo_hashes.whole(), report)
    whole_columns = {name: column.whole() for name, column in known.items()}
    return Known(classes, **whole_columns) if complete and not findings else None


def _duplicates(folder: Path, manifest: dict[str, Any], complete: bool, report: Report) -> None:
    """The table beside faces/ against the one that they give."""
    table, told = folder.parent / DUPLICATES, manifest["facts"].get("duplicates")
    if told is None:  # older runs do not say whether there is one
        return
    if not complete:
        report.skip("duplicates", "see above")
        return
    from efficientface.pipeline.align import as_csv, duplicates  # here, because the detector takes long to import

    try:
        found = duplicates([folder / name for name in sorted(manifest["files"])], tuple(manifest["classes"]))
    except (ValueError, KeyError, TypeError) as error:  # no or no hexadecimal source_dhash
        report.add("duplicates", [f"faces/ do not tell ({str(error).splitlines()[0]})"], "")
        return
    expected = as_csv(found)
    there = untrusted.read_bytes(table) if table.is_file() else b""
    differs = [f"{table.name} is not what faces/ give"] if there != expected.encode() else []
    report.add("duplicates", differs, f"{len(found):,} photographs in two splits, as {table.name} says")


def _photographs(folder: Path, manifest: dict[str, Any], keys: Words, hashes: Words, report: Report) -> None:
    """Every photograph that faces were cut from, hashed again: by the encoded path that begins its faces' ids."""
    from efficientface.pipeline.align import photo_of

    sources = {name: told for name, told in manifest["made_from"].items() if isinstance(told, dict) and "path" in told}
    sound: dict[str, Path] = {}
    if not sources:
        report.skip("sources", "sources not checked: faces/ names none")
    for name, told in sources.items():
        root = Path(os.path.normpath(folder / str(told["path"])))
        prefix = f"{name}/" if len(sources) > 1 or name != "source" else ""
        below = np.flatnonzero(pc.starts_with(keys.arrow, prefix).to_numpy(zero_copy_only=False))
        if not root.is_dir():
            where = place_of(folder, str(told["path"]))
            report.skip(
                "sources", f"sources not checked: {where} is not {'on this machine' if '://' in where else 'there'}"
            )
            continue
        photos = None  # those of the source before
        try:
            photos = stored(root, str(told.get("layout")), manifest["settings"])
        except FerError as error:
            report.add("sources", [str(error)], "")
            continue
        wrong: dict[str, list[str]] = {}
        with progress("hashing photographs", len(below), "photographs") as advance:
            for row in below:
                what = _differs(photos, root, photo_of(keys[row]).removeprefix(prefix), hashes[row])
                if what:
                    wrong.setdefault(what, []).append(keys[row])
                advance(1)
        if len(below) and len(wrong.get(MISSING, [])) == len(below):
            report.skip("sources", f"sources not checked: {root} holds none of the photographs")
        else:
            report.add("sources", _several(wrong), f"{len(below):,} photographs hashed again below {root}")
            if not wrong:
                sound[name] = root / str(told.get("file", ""))
    photos = None  # their listing, which is read again
    if len(sound) == len(sources):
        _labels(manifest, sound, report)


def _labels(manifest: dict[str, Any], sources: dict[str, Path], report: Report) -> None:
    """What the sources say of their photographs (split, label, votes, person, box), read again."""
    known = {field.name for field in fields(AlignConfig)}
    given = {name: value for name, value in manifest["settings"].items() if name in known}
    paths: dict[str, Path | str] = {"" if name == "source" else name: path for name, path in sources.items()}
    try:
        with working("reading the sources' labels"):
            digests = digests_of(read_inputs(paths, AlignConfig(**given)))
    except (FerError, TypeError) as error:
        report.add("labels", [f"the sources cannot be read as they were ({error})"], "")
        return
    others = [name for name in sources if digests[name] != manifest["made_from"][name].get("digest")]
    differ = [f"{', '.join(others)}: other photographs, labels, splits or boxes than faces/ were made from"]
    report.add("labels", differ if others else [], f"as {' and '.join(str(path) for path in sources.values())} say")


def _differs(photos: Photos, root: Path, file: str, stated: str) -> str:
    """What is wrong with a photograph, nothing if it has its hash; none outside of the source's folder is opened."""
    try:
        if isinstance(photos, PhotoFiles):
            if not is_inside(os.path.realpath(root), root / file):
                return "photographs that lead out of their source"
            if not (root / file).is_file():
                return MISSING
        return "" if hash_image(photos.read(file)) == stated else "photographs that were changed since"
    except Unreadable as error:
        return MISSING if str(error) == "does not exist" else "photographs that cannot be read any more"
    except (OSError, ValueError):  # ValueError: a null byte in the name
        return "photographs that cannot be read any more"


# --- models, and who answered whom -----------------------------------------------------------------------------


def _model(folder: Path, manifest: dict[str, Any], whole: bool, faces: Known | None, report: Report) -> None:
    """Weights that fit their description, classes in the order of the faces, the best epoch among the metrics."""
    if not whole:
        report.skip("model", "see above")
        return
    from efficientface.pipeline.checkpoint import load_model  # here, because torch takes seconds

    findings, lines = [], []
    try:
        with working("loading a model"):
            model, _ = load_model(folder, manifest["kind"])
        broken = sorted(name for name, tensor in model.state_dict().items() if not tensor.isfinite().all())
        if broken:
            findings.append(f"{len(broken)} tensors with NaN or infinity, first {broken[0]}")
        lines = read_metrics(folder)
    except FerError as error:
        findings.append(str(error))
    if faces is not None and "faces" in manifest["made_from"] and manifest["classes"] != faces.classes:
        classes = ", ".join(map(str, manifest["classes"]))
        findings.append(f"the classes {classes}, faces/ has {', '.join(map(str, faces.classes))}")
    best = manifest["facts"].get("best")
    if best is not None and not findings:
        same = [line for line in lines if isinstance(best, dict) and best.items() <= line.items()]
        if len(same) != 1:
            findings.append("the best epoch that the manifest tells of is not among the metrics")
    report.add("model", findings, "weights as described, classes in order" + (", metrics" if lines else ""))
    if faces is not None and TRAINED_ON in manifest["files"]:
        report.add("trained on", *_trained_on(folder, faces))


def _trained_on(folder: Path, faces: Known) -> tuple[list[str], str]:
    pictures = trained_pictures(folder)
    if pictures is None:
        return [f"{TRAINED_ON} does not name faces and their pictures"], ""
    ids, hashes = pictures
    rows = places(ids, faces.face_id)
    other, there = rows < 0, np.flatnonzero(rows >= 0)
    other[there] = differ(faces.image_hash, rows[there], hashes[there]) | (faces.split[rows[there]] != "train")
    others = ids[other].tolist()
    strange = _several({"faces that are not among the training faces of faces/": others}) if others else []
    return strange, f"{len(ids):,} faces, all of split train"


def trained_pictures(folder: Path) -> tuple[Words, Words] | None:
    """Ids and image hashes, (N,) text each, that a teacher says it was trained on; None if it does not."""
    try:
        names = ("face_id", "image_hash")
        ids, hashes = of_batches(names, untrusted.parquet_batches(folder / TRAINED_ON, names)).values()
        return ids, hashes
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return None


def _folds(folder: Path, manifest: dict[str, Any], keys: Distributions, report: Report) -> None:
    """Whether each face's `fold` is true: who answered about it had been trained on its picture, or had not."""
    references = asked_teachers(manifest)
    there = [folder / reference["path"] for reference in references]
    if any(not is_finished(t) or digest_of(t) != r["manifest"] for t, r in zip(there, references, strict=True)):
        report.skip("folds", "a teacher that was asked is not there as it was")
        return
    told = [trained_pictures(teacher) for teacher in there]
    if any(pictures is None for pictures in told):
        report.skip("folds", "a teacher does not say what it was trained on")
        return
    by_teacher = [places(keys.image_hash, pictures[1]) >= 0 for pictures in told if pictures]
    true = keys.fold == NO_TEACHER
    if there:
        seen = np.any(by_teacher, axis=0)
        for fold, by_this in enumerate(by_teacher):
            seen = np.where(keys.fold == fold, by_this, seen)
        true = (keys.fold >= UNSEEN) & (keys.fold < len(there)) & (seen == (keys.fold == SEEN))
    wrong = keys.face_id[~true].tolist()
    findings = _several({"faces whose fold is not what their teachers were trained on": wrong}) if wrong else []
    report.add("folds", findings, f"as {len(there)} teachers were trained")


# --- evaluation ------------------------------------------------------------------------------------------------


def _evaluation(run: Path, report: Report) -> None:
    """The results' own digests, and whether they are about the models that are there now."""
    named: set[str] = set()
    for folder in (run / "evaluation", run / "ablation"):
        for path in sorted(folder.glob("*.json")):
            report.about = {"artifact": f"{folder.name}/{path.name}"}
            try:
                result = read_sealed(path)
            except FerError as error:
                report.add("digest", [str(error)], "")
                continue
            report.add("digest", [], "as the file says")
            if folder.name == "evaluation":
                try:
                    findings, fine = _judged(run, path, result)
                    named |= set(result["pictures"])
                except (KeyError, TypeError, ValueError, AttributeError):
                    findings, fine = ["it does not hold what fer evaluate writes"], ""
                report.add("models", findings, fine)
    left = {path.name for path in (run / "evaluation").glob("*.png")} - named
    if left:
        report.about = {"artifact": "evaluation"}
        report.note("pictures", [f"{len(left)} of no result that is there, first {min(left)}"], "")


def _judged(run: Path, path: Path, result: dict[str, Any]) -> tuple[list[str], str]:
    findings, same, others = [], [], []
    if unquote(path.stem) != result["split"]:
        findings.append(f"it is about the split {result['split']}")
    for name, model in result["models"].items():
        folder = run / "teacher" if name == "teacher" else run / "students" / name
        if "/" in name or not is_finished(folder):
            others.append(name)
        elif digest_of(folder) != model["manifest"]:
            findings.append(f"{name} was judged when it was another model than now; run fer evaluate again")
        else:
            same.append(name)
    for name, digest in result["pictures"].items():
        picture = path.with_name(name)
        if not picture.is_file() or digest_file(picture) != digest:
            findings.append(f"{name} is not the picture that was drawn")
    return findings, f"{', '.join(same)} as now" + (f"; not of this run: {', '.join(others)}" if others else "")
