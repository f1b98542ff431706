"""`fer cache verify`: everything about a cache that can be checked, every finding listed, nothing repaired.

What every artifact has, a manifest and files, is checked here for `fer verify` too (verify_run.py).
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from efficientface import FerError, untrusted
from efficientface.cache.distributions import SUM_TOLERANCE, Distributions, join
from efficientface.data.columns import ROWS
from efficientface.data.faces import classes_of, hash_image, read_faces, read_table
from efficientface.data.words import Index, Words, all_differ, counted, leads_out, numbered, places
from efficientface.pipeline.artifact import (
    DIGEST,
    MANIFEST,
    data_files,
    digest_file,
    digest_of,
    is_finished,
    is_listing,
    read_manifest,
)
from efficientface.pipeline.caches import (
    ONE_FILE,
    Cache,
    asked_teachers,
    cache_in,
    check_manifest,
    is_file,
    open_cache,
    why_left_out,
)
from efficientface.pipeline.progress import progress
from efficientface.pipeline.status import sources_of

OK, FAILED, NOTED, NOT_CHECKED = "ok", "FAILED", "noted", "not checked"
CONTENT = ("rows", "keys", "splits", "pictures", "distributions", "labels", "accuracy")
FEW = 30  # labelled faces of a split: fewer do not tell a teacher from guessing
TEACHER_TOLERANCE = 1e-3  # one at a time, a network answers to 1e-6 what it answered in a batch
# A GPU cuts views within 2 grey levels of what a CPU does, which changed a probability by up to 1.2e-3 in 600 views.
GPU_TOLERANCE = 1e-2
BF16_TOLERANCE = 0.1  # of what was labelled in bf16: it is asked about in fp32 too


class Report:
    """Checks in their order, each with a state and a line, and what was found wrong."""

    def __init__(self) -> None:
        self.checks: list[dict[str, Any]] = []
        self.about: dict[str, str] = {}  # what else each check says from now on: the artifact, if there are several

    def result(self) -> dict[str, Any]:
        """The checks, how many `failed`, and `ok`: whether none did."""
        failed = sum(check["state"] == FAILED for check in self.checks)
        return {"ok": not failed, "failed": failed, "checks": self.checks}

    def add(self, check: str, findings: Sequence[str], fine: str) -> None:
        """A check that was made: `fine` is said if nothing was found."""
        state, detail = (FAILED, findings[0]) if findings else (OK, fine)
        self.checks.append({**self.about, "check": check, "state": state, "detail": detail, "findings": list(findings)})

    def note(self, check: str, remarks: Sequence[str], fine: str) -> None:
        """A check of the data as they are given: what was found is told, and no fault of the cache."""
        self.add(check, remarks, fine)
        self.checks[-1]["state"] = NOTED if remarks else OK

    def skip(self, check: str, why: str) -> None:
        self.checks.append({**self.about, "check": check, "state": NOT_CHECKED, "detail": why, "findings": []})


def verify(path: Path, teachers: Sequence[Path] = (), sample: int = 100, seed: int = 0) -> dict[str, Any]:
    """Check a cache, a folder or an HDF5 file; with `teachers`, ask them again about `sample` random views.

    Returns the checks, each `ok`, `FAILED`, `noted` or `not checked`, and `ok`: whether none failed.
    """
    if sample < 1:
        raise FerError(f"--sample {sample} is out of range; give a number from 1")
    report = Report()
    cache = _open(path, report)
    keys = check_cache(cache, report)
    if cache is None:
        report.skip("teacher", "see above")
    elif not teachers:
        report.skip("teacher", "no --teacher given")
    else:
        try:
            _teachers(cache, keys, teachers, sample, seed, report)
        except FerError as error:
            report.add("teacher", [str(error)], "")
    return {"path": str(path), **report.result()}


def check_cache(cache: Cache | None, report: Report) -> Distributions | None:
    """Check what a cache holds, as far as its bytes are whole; the rows that can be read, without their views."""
    if cache is None:
        for check in ("shards", *CONTENT, "faces", "views"):
            report.skip(check, "see above")
        return None
    keys = _content(cache, report)
    crop = None
    if keys is None:
        report.skip("faces", "no shard can be read")
    else:
        crop = _faces(cache, keys, report)
    _views(cache, crop, report)
    return keys


# --- bytes -----------------------------------------------------------------------------------------------------


def _open(path: Path, report: Report) -> Cache | None:
    """The cache as far as its bytes can be trusted: shards with a wrong digest are left out, and reported."""
    if is_file(path):
        if not path.is_file():
            raise FerError(f"{path} does not exist; give a cache that fer teach or fer cache convert wrote")
        try:
            cache = open_cache(path)
        except FerError as error:
            report.add("files", [str(error)], "")
            return None
        report.add("files", [], f"{path.stat().st_size:,} bytes, as the digest in the first of them says")
        return cache
    if not is_finished(path):
        read_manifest(path, "distributions")  # which says what is missing
    return cache_of(path, *check_bytes(path, "distributions", report), report)


def check_bytes(folder: Path, kind: str, report: Report) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The manifest of an artifact, None if it is none; and the entries of those files that are as it says."""
    try:
        text = untrusted.read_bytes(folder / MANIFEST, untrusted.LARGEST_JSON)
        stated = untrusted.read_bytes(folder / DIGEST) if (folder / DIGEST).is_file() else b""
    except ValueError as error:
        report.add("manifest", [f"{MANIFEST} or {DIGEST} is {error}"], "")
        report.skip("files", "see above")
        return None, {}
    findings, second = [], False
    # two lines, one of them this manifest's, if a stage that replaces it was interrupted between its last two writes
    whole_lines = re.fullmatch(rb"([0-9a-f]{64}\n){1,2}", stated)
    if not whole_lines or hashlib.blake2b(text, digest_size=32).hexdigest().encode() not in stated.split(b"\n"):
        findings.append(f"{MANIFEST} does not have the digest that {DIGEST} says")
    else:
        second = len(stated) > 65
    manifest = None
    try:
        found = untrusted.parse_json(text)
        check_manifest(found if isinstance(found, dict) else {}, folder / MANIFEST, kind)
        manifest = found
    except ValueError:
        findings.append(f"{MANIFEST} is not JSON")
    except FerError as error:
        findings.append(str(error))
    if manifest is not None and not is_listing(manifest.get("files")):
        findings.append(f"{MANIFEST} has no list of files with sizes and digests")
        manifest = None
    if second and not findings:
        report.note("manifest", [f"{DIGEST} has a second digest, of a manifest that was being replaced"], "")
    else:
        report.add("manifest", findings, f"as {DIGEST} says")
    if manifest is None:
        report.skip("files", "see above")
        return None, {}
    return manifest, _whole_files(folder, manifest, report)


def _whole_files(folder: Path, manifest: dict[str, Any], report: Report) -> dict[str, Any]:
    findings, whole = [], {}
    with progress("hashing", len(manifest["files"]), "files") as advance:
        for name, entry in sorted(manifest["files"].items()):
            file = folder / name
            if not file.is_file():
                findings.append(f"{name} is missing")
            elif file.stat().st_size != entry["bytes"]:
                findings.append(f"{name} has {file.stat().st_size} bytes instead of {entry['bytes']}")
            elif digest_file(file) != entry["blake2b"]:
                findings.append(f"{name} does not have the digest that {MANIFEST} says")
            else:
                whole[name] = entry
            advance(1)
    there = {file.name for file in folder.iterdir() if not is_finished(file)}  # teacher/ has fold teachers in it
    others = sorted(there - {*manifest["files"], MANIFEST, DIGEST})
    what = "cache" if manifest["kind"] == "distributions" else "artifact"
    fine = f"{len(whole)} with the right digests" + (f"; not of the {what}: {', '.join(others)}" if others else "")
    report.add("files", findings, fine)
    return whole


def cache_of(path: Path, manifest: dict[str, Any] | None, whole: dict[str, Any], report: Report) -> Cache | None:
    """The cache in a folder as far as its files are whole; None if none of it is."""
    if manifest is None:
        return None
    if ONE_FILE in whole:
        try:
            return cache_in(path, {**manifest, "files": whole})
        except FerError as error:
            report.add("hdf5", [str(error)], "")
            return None
    tables: dict[str, Path | slice] = {name: path / name for name in whole if name.endswith(".parquet")}
    return Cache(path, path, manifest, tables) if tables else None


# --- numbers ---------------------------------------------------------------------------------------------------


def _parts(cache: Cache, views: bool) -> Iterator[Distributions]:
    """The shards that can be read, in the manifest's order of classes."""
    with progress("checking", len(cache.shards), "shards") as advance:
        for name in cache.shards:
            try:
                yield cache.read_shard(name, views).in_order_of(cache.manifest["classes"], name)
            except FerError:
                continue  # reported under `shards`
            advance(1)


def _content(cache: Cache, report: Report) -> Distributions | None:
    """Check all but views and faces; the rows that can be read, without their views."""
    manifest, facts = cache.manifest, cache.manifest["facts"]
    findings, views = [], Counter[int]()
    for name in cache.shards:
        try:
            part = cache.read_shard(name)
            views[part.views] += 1
            if list(part.classes) != manifest["classes"]:
                findings.append(f"{name} has the classes {', '.join(part.classes)}, the manifest has "
                                f"{', '.join(manifest['classes'])}")  # fmt: skip
        except FerError as error:
            findings.append(str(error))
    report.add("shards", findings, f"{len(cache.shards)}, classes in order: {', '.join(manifest['classes'])}")
    parts = _parts(cache, views=False)
    first = next(parts, None)
    if first is None:
        for check in CONTENT:
            report.skip(check, "no shard can be read")
        return None
    keys = join(chain([first], parts))
    findings = []
    if facts.get("faces", len(keys)) != len(keys):
        findings.append(f"{len(keys):,} faces instead of {facts['faces']}")
    if len(views) > 1 or facts.get("views", max(views)) not in views:
        counts = ", ".join(f"{count} with {v}" for v, count in sorted(views.items()))
        findings.append(f"shards of other numbers of views than {facts.get('views')}: {counts}")
    report.add("rows", findings, f"{len(keys):,} faces, {max(views)} stored views a face")
    _keys(keys, report)
    _numbers(keys, report)
    return keys


def _keys(keys: Distributions, report: Report) -> None:
    findings = []
    if not all_differ(keys.face_id):
        ids, counts = np.unique(keys.face_id, return_counts=True)
        findings.append(f"{int((counts > 1).sum())} face ids more than once, first {ids[counts > 1][0]}")
    outside = np.unique(keys.face_id[leads_out(keys.face_id)])
    if len(outside):
        findings.append(f"{len(outside)} face ids that lead out of their source, first {outside[0]}")
    report.add("keys", findings, f"{len(keys):,} face ids, each once")
    sizes = counted(keys.split).most_common()
    fine = ", ".join(f"{'no split' if name is None else name} {count:,}" for name, count in sizes)
    report.add("splits", _in_two_splits(keys.face_id, "face ids", keys), fine)
    # FER+ as distributed has hundreds: what was trained on is tested on, but that is the source's
    report.note("pictures", _in_two_splits(keys.image_hash, "equal pictures", keys), "none equal in two splits")


def _in_two_splits(column: Words, what: str, keys: Distributions) -> list[str]:
    """A finding if a value of the column (N,) occurs in more than one split."""
    if all_differ(column):
        return []
    key, split = numbered(column), numbered(keys.split)
    splits = split.max(initial=0) + 1
    shared = np.bincount(np.unique(key * splits + split) // splits) > 1
    if not shared.any():
        return []
    first = keys.face_id[shared[key].argmax()]
    return [f"{int(shared.sum())} {what} in more than one split, first of face {first}"]


def _numbers(keys: Distributions, report: Report) -> None:
    report.add("distributions", _wrong(keys.canonical, keys.face_id, "canonical"), "finite, and each sums to 1")
    classes, findings = len(keys.classes), []
    unknown = (keys.label < -1) | (keys.label >= classes)
    if unknown.any():
        findings.append(f"{int(unknown.sum())} labels of no class, first of face {keys.face_id[unknown][0]}")
    strange = keys.fold < -3
    if strange.any():
        findings.append(f"{int(strange.sum())} folds below -3, first of face {keys.face_id[strange][0]}")
    folds = zip(*np.unique(keys.fold, return_counts=True), strict=True)
    told = ", ".join(f"fold {fold}: {count:,}" for fold, count in folds)
    report.add("labels", findings, f"{int((keys.label >= 0).sum()):,} faces with one; {told}")

    right, chance = np.empty(len(keys), bool), 1 / classes
    for k in range(0, len(keys), ROWS):
        right[k : k + ROWS] = keys.canonical[k : k + ROWS].argmax(1) == keys.label[k : k + ROWS]
    findings, told_splits = [], []
    for split in sorted(counted(keys.split), key=str):
        judged = (keys.split == split) & (keys.label >= 0)
        count = int(judged.sum())
        if count:
            share = right[judged].mean()
            told_splits.append(f"{split or 'no split'} {share:.1%} of {count:,}")
            if share <= chance and count >= FEW:
                findings.append(
                    f"{split or 'no split'}: the most probable class is the label of {share:.1%} of {count:,} faces, "
                    f"no better than guessing among {classes} ({chance:.1%}); is the order of classes right?"
                )
    if told_splits:
        report.add("accuracy", findings, f"{', '.join(told_splits)}; chance {chance:.1%}")
    else:
        report.skip("accuracy", "no face has a label")


def _wrong(values: np.ndarray, ids: Words, what: str) -> list[str]:
    """Findings about distributions (N, ..., C) of N faces."""
    count, first = Counter[str](), dict[str, str | None]()
    for k in range(0, len(values), ROWS):
        part = values[k : k + ROWS]
        finite = np.isfinite(part).all(-1)
        with np.errstate(invalid="ignore"):
            kinds = {
                "that are not finite": ~finite,
                "with a negative probability": finite & (part < 0).any(-1),
                "that do not sum to 1": finite & (np.abs(part.sum(-1) - 1) > SUM_TOLERANCE),
            }
        for kind, wrong in kinds.items():
            if wrong.any():
                first.setdefault(kind, ids[k + np.argwhere(wrong)[0][0]])
            count[kind] += int(wrong.sum())
    return [
        f"{number} {what} distributions {kind}, first of face {first[kind]}" for kind, number in count.items() if number
    ]


def _views(cache: Cache, crop: int | None, report: Report) -> None:
    """Stored views a shard at a time: boxes inside the face, distributions that are some."""
    outside, numbers, first, count = 0, Counter[str](), "", 0
    for part in _parts(cache, views=True):
        count += len(part) * part.views
        box = part.view_box.astype(np.int64)
        edge = np.maximum(box[..., 0] + box[..., 2], box[..., 1] + box[..., 3])
        wrong = (box[..., 2] < 1) | (box[..., 3] < 1) | (edge > (crop if crop is not None else 65535))
        if wrong.any():
            first = first or part.face_id[np.argwhere(wrong)[0][0]]
            outside += int(wrong.sum())
        for finding in _wrong(part.view_distribution, part.face_id, "view"):
            number, rest = finding.split(" ", 1)
            numbers[rest.split(", first")[0]] += int(number)
    findings = [f"{outside} view boxes that are empty or reach beyond the face, first of {first}"] if outside else []
    findings += [f"{number} {what}" for what, number in numbers.items()]
    inside = f"inside the face of {crop} pixels" if crop is not None else "not empty (faces/ would tell their limits)"
    if count:
        report.add("views", findings, f"{count:,}, finite, each sums to 1, boxes {inside}")
    else:
        report.skip("views", "none are stored")


# --- against faces/ and the teacher ----------------------------------------------------------------------------


def _faces(cache: Cache, keys: Distributions, report: Report) -> int | None:
    """Pictures hashed again and compared by id, labels and splits with them; the faces' size in pixels, if known."""
    source = {source["name"]: source for source in sources_of(cache.folder, cache.manifest)}.get("faces")
    if source is None or source["state"] in ("not there", "not checked"):
        where = f", {source['path']} is not there" if source else ""
        report.skip("faces", f"what it was made from cannot be compared{where}")
        return None
    folder = Path(source["path"])
    findings = []
    by_id = Index(keys.face_id)
    seen = np.zeros(len(keys), bool)
    wrong: dict[str, list[str]] = {}
    try:
        made = read_manifest(folder, "faces")
        files = data_files(folder, made)
        with progress("hashing faces", len(files), "files") as advance:
            for file in files:
                table = read_table(file)
                names = classes_of(table.schema, file)
                columns = [table[name].to_pylist() for name in ("face_id", "image_hash", "split", "label")]
                pictures = [picture for chunk in table["image"].chunks for picture in chunk.field("bytes")]
                rows = by_id.places(table["face_id"])
                there = np.flatnonzero(rows >= 0)
                part = keys.select(rows[there])
                theirs = zip(part.image_hash, part.split, part.label.tolist(), strict=True)
                about = dict(zip(there.tolist(), theirs, strict=True))
                for number, (face_id, stated, split, label, picture) in enumerate(zip(*columns, pictures, strict=True)):
                    if not picture.is_valid:
                        continue
                    if number not in about:
                        wrong.setdefault("faces without a distribution", []).append(face_id)
                        continue
                    seen[rows[number]] = True
                    their_hash, their_split, their_label = about[number]
                    actual = hash_image(picture.as_buffer())
                    if actual != stated:
                        wrong.setdefault("pictures in faces/ that are not as their image_hash says", []).append(face_id)
                    if actual != their_hash:
                        wrong.setdefault("distributions about another picture", []).append(face_id)
                    if split != their_split:
                        wrong.setdefault("faces in another split", []).append(face_id)
                    known = keys.classes[their_label] if 0 <= their_label < len(keys.classes) else None
                    if (names[label] if label is not None and 0 <= label < len(names) else label) != known:
                        wrong.setdefault("faces with another label", []).append(face_id)
                advance(1)
    except FerError as error:
        findings.append(str(error))
        report.add("faces", findings, "")
        return None
    if not seen.all():
        wrong["distributions without a face"] = keys.face_id[~seen].tolist()
    left_out = int(cache.manifest["facts"].get("left_out", 0))
    if left_out and len(wrong.get("faces without a distribution", [])) == left_out:
        del wrong["faces without a distribution"]  # none was to be made, as the manifest says
    findings += [f"{len(ids)} {what}, first {ids[0]}" for what, ids in wrong.items()]
    changed = " (its manifest is another now)" if source["state"] == "changed" else ""
    fine = f"{int(seen.sum()):,} pictures hashed again, ids, splits and labels as there{changed}"
    if left_out:
        fine += f"; {left_out:,} faces left out, {why_left_out(cache.manifest['settings'])}"
    report.add("faces", findings, fine)
    return int(made["settings"]["crop"]) if "crop" in made["settings"] else None


def _teachers(
    cache: Cache, keys: Distributions | None, teachers: Sequence[Path], sample: int, seed: int, report: Report
) -> None:
    """Ask again about random views, one at a time, and compare: of a mean of teachers, all of them."""
    from efficientface.pipeline.checkpoint import load_model  # here, because torch takes seconds to import
    from efficientface.pipeline.predict import predict

    source = {source["name"]: source for source in sources_of(cache.folder, cache.manifest)}.get("faces")
    if keys is None or source is None or source["state"] in ("not there", "not checked"):
        report.skip("teacher", "faces/ is not there to be shown to it")
        return
    made_of = cache.manifest["settings"].get("source", "ldg")
    if made_of != "ldg":
        report.skip("teacher", f"the distributions are {made_of}, not the answers of a teacher alone")
        return
    loaded = [load_model(teacher, "teacher") for teacher in teachers]
    for teacher, (_, described) in zip(teachers, loaded, strict=True):
        if set(described["classes"]) != set(keys.classes):
            report.add("teacher", [f"{teacher} answers for other classes: {', '.join(described['classes'])}"], "")
            return
    made_with = [reference["manifest"] for reference in asked_teachers(cache.manifest)]
    given = [digest_of(teacher) for teacher in teachers]
    findings = [
        f"{teacher} is not the teacher that the cache was made with (its manifest is another)"
        for teacher, digest in zip(teachers, given, strict=True)
        if digest not in made_with
    ]
    asked = np.ones((len(keys), len(teachers)), bool) if findings else _who_answered(keys.fold, given, made_with)
    rows = np.flatnonzero(asked.any(1))
    if not len(rows):
        others = f"{len(made_with)} teachers were asked about every face; give each with --teacher"
        report.add("teacher", [others], "")
        return
    parts = list(_parts(cache, views=True))
    if len({part.views for part in parts}) > 1:
        report.skip("teacher", "shards have different numbers of views")
        return
    whole = join(parts)
    rng = np.random.default_rng(seed)
    rows = rng.choice(rows, sample)
    views = rng.integers(-1, whole.views, sample)  # -1: the whole face
    folder = Path(source["path"])
    faces = read_faces(data_files(folder, read_manifest(folder, "faces")))
    place = places(keys.face_id[rows], faces.face_id)
    known = place >= 0
    rows, views, asked = rows[known], views[known], asked[rows[known]]
    if not len(rows):
        report.add("teacher", ["none of the sampled faces is in faces/"], "")
        return
    shown = faces.select(place[known])
    crop = int(read_manifest(folder, "faces")["settings"]["crop"])
    boxes, flips = np.zeros((len(rows), 1, 4), np.uint16), np.zeros((len(rows), 1), bool)
    boxes[:, 0] = (0, 0, crop, crop)
    stored = keys.canonical[rows].copy()
    for k, (row, view) in enumerate(zip(rows, views, strict=True)):
        if view >= 0:
            boxes[k, 0], flips[k, 0] = whole.view_box[row, view], whole.view_flip[row, view]
            stored[k] = whole.view_distribution[row, view]
    inside = (boxes[:, 0, :2].astype(int) + boxes[:, 0, 2:] <= crop).all(1) & (boxes[:, 0, 2:] > 0).all(1)
    if not inside.all():
        report.add("teacher", [f"{int((~inside).sum())} of the sampled boxes are not inside the face"], "")
        return
    answers = np.zeros((len(rows), len(keys.classes)))
    for k, (model, described) in enumerate(loaded):
        order = [described["classes"].index(name) for name in keys.classes]
        seen_as = {name: described[name] for name in ("size", "mean", "std")}
        answer = predict(model, shown, boxes, flips, batch=1, **seen_as)[:, 0, order]
        answers += answer * (asked[:, k] / asked.sum(1))[:, None]
    difference = float(np.abs(answers - stored).max())
    told = f"{len(rows)} views answered again, largest difference {difference:.1e}"
    by_gpu = cache.manifest["facts"].get("device", "cpu") != "cpu"
    allowed = GPU_TOLERANCE if by_gpu else TEACHER_TOLERANCE
    if cache.manifest["settings"].get("label_precision") == "bf16":
        allowed = BF16_TOLERANCE
    if not difference <= allowed:
        findings.append(told)
    report.add("teacher", findings, told)


def _who_answered(fold: np.ndarray, given: Sequence[str], made_with: Sequence[str]) -> np.ndarray:
    """(N, teachers) bool: whether a given teacher's answer is part of a face's distribution; fold: (N,).

    A face of fold K >= 0 was answered by teacher K alone, another by all of them, whose mean takes them all.
    """
    number = np.array([made_with.index(digest) for digest in given])
    all_given = len(set(given)) == len(made_with)
    return np.where(fold[:, None] >= 0, fold[:, None] == number, all_given)


def tables(result: dict[str, Any]) -> list[Any]:
    """A line a check; where more than one thing was found, a line each."""
    from rich.text import Text

    from efficientface.pipeline.status import printable

    colour = {OK: "green", FAILED: "bold red", NOTED: "yellow", NOT_CHECKED: "dim"}
    width = 2 + max((len(printable(check.get("artifact", ""))) for check in result["checks"]), default=0)
    lines: list[Any] = []
    for check in result["checks"]:
        for k, detail in enumerate(check["findings"] or [check["detail"]]):
            state, name = (check["state"], check["check"]) if k == 0 else ("", "")
            line = Text(f"{state:<12}", style=colour[check["state"]])
            if "artifact" in check:
                line.append(f"{printable(check['artifact']):<{width}}", "default")
            lines.append(line.append(f"{name:<15}", "default").append(printable(detail), "default"))
    return lines
