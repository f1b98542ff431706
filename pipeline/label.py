"""Writing distributions/: every face's distribution from teachers, human votes, smoothed labels, or a mixture.

A shard that exists is not made again, and the manifest comes last.
"""

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock
from scipy.optimize import linear_sum_assignment, minimize_scalar
from torch import nn

from efficientface import FerError, untrusted
from efficientface.cache.distributions import NO_TEACHER, SEEN, UNSEEN, Distributions, join, tempered
from efficientface.cache.parquet import checked_shards, read_shard, write_shard
from efficientface.data.batches import canonical
from efficientface.data.columns import ROWS
from efficientface.data.faces import Faces, read_faces
from efficientface.data.views import draw_views
from efficientface.data.words import Index, Words, of_batches, places
from efficientface.models.inference import for_inference
from efficientface.pipeline.artifact import (
    MANIFEST,
    check_files,
    data_files,
    describe,
    digest_file,
    digest_of,
    is_finished,
    is_part,
    read_manifest,
    reference_to,
    refuse_other,
    remove_file,
    replacing,
    write_json,
    write_manifest,
)
from efficientface.pipeline.caches import ONE_FILE, asked_teachers, assemble, open_cache, why_left_out
from efficientface.pipeline.checkpoint import load_model
from efficientface.pipeline.cluster import carry_out, check_seen
from efficientface.pipeline.config import Job, TeachConfig, parse_source
from efficientface.pipeline.device import prepare
from efficientface.pipeline.inputs import Inputs
from efficientface.pipeline.jobs import JOBS, refuse_other_job
from efficientface.pipeline.metrics import SMALLEST, calibration_error
from efficientface.pipeline.predict import predict
from efficientface.pipeline.progress import progress
from efficientface.pipeline.ranks import leads, meet, rank_and_world

log = logging.getLogger(__name__)

TRAINED_ON = "trained_on.parquet"
PLAN = "plan.json"
ADDING = ".adding-views"  # in distributions/: finished shards with more views, until all are there
COMPARED = 512  # faces that a teacher answers in fp32 too where it labels in less
OTHERWISE = "give --cache NAME to write beside it, or remove it"
Advance = Callable[[int], None]  # told the number of faces just done


@dataclass(frozen=True)
class Teachers:
    """Finished teachers that answer for the classes of faces/, in their order."""

    folders: Sequence[Path]
    models: Sequence[tuple[nn.Module, dict[str, Any], list[int]]]  # network, config, where the classes stand in it
    batch: int  # views in one forward pass
    device: str = "cpu"
    workers: int = 0
    precision: str = "fp32"  # or `bf16`

    def ask(
        self,
        faces: Faces,
        boxes: np.ndarray,
        flips: np.ndarray,
        fold: np.ndarray,
        advance: Advance = lambda count: None,
    ) -> np.ndarray:
        """(N, K, C) float32 distributions of K views of N faces, boxes (N, K, 4) and flips (N, K).

        A face of fold k >= 0 (N,) is answered by the k-th teacher, any other by the mean of all.
        """
        total = np.zeros((*boxes.shape[:2], len(faces.classes)))
        for number, (model, described, order) in enumerate(self.models):
            rows = np.flatnonzero((fold == number) | (fold < 0))
            if not len(rows):
                continue
            total[rows] += predict(
                model, faces.select(rows), boxes[rows], flips[rows],
                size=described["size"], mean=described["mean"], std=described["std"],
                device=self.device, batch=self.batch, workers=self.workers, precision=self.precision,
                advance=advance,
            )[..., order]  # fmt: skip
        count = np.where(fold < 0, len(self.models), 1)
        return (total / count[:, None, None]).astype(np.float32)

    def answers(self, fold: np.ndarray) -> int:
        """How many answers faces of these folds (N,) take: one, or one of each teacher."""
        return int(np.where(fold < 0, len(self.models), 1).sum())

    def asked_by_one(self) -> TeachConfig:
        """How another process asks them as these are asked, with one thread."""
        return TeachConfig(label_batch=self.batch, label_precision=self.precision, device=self.device, workers=1)

    def trained_on(self, faces: Faces) -> np.ndarray:
        """(N,) bool: whether at least one of them was trained on the picture.

        An imported teacher does not say; it counts as trained on all but the test split, since validation faces may
        have been carved from its training set.
        """
        seen = np.zeros(len(faces), bool)
        for folder in self.folders:
            if TRAINED_ON in read_manifest(folder, "teacher")["files"]:
                seen |= places(faces.image_hash, pictures_of(folder)) >= 0
            else:
                log.info("%s does not say what it was trained on; all faces but test are marked as seen", folder)
                seen |= faces.split != "test"
        return seen

    def described(self) -> dict[str, Any]:
        """What the cache's manifest says of them."""
        first = self.models[0][1]
        return {"arch": first["arch"], "size": first["size"], "teachers": len(self.models)}


def load_teacher(folder: Path, device: str, precision: str = "fp32") -> tuple[nn.Module, dict[str, Any]]:
    """A finished teacher as it labels, and its config."""
    model, described = load_model(folder, "teacher")
    scripted = torch.device(device).type == "cpu" and precision == "fp32"
    return for_inference(model, described["size"], scripted), described


def load_teachers(folders: Sequence[Path], classes: tuple[str, ...], config: TeachConfig) -> Teachers:
    """The finished teachers in these folders, ready to answer for `classes`."""
    models = []
    for folder in folders:
        model, described = load_teacher(folder, config.device, config.label_precision)
        models.append((model, described, class_order(described["classes"], classes, folder)))
    return Teachers(folders, models, config.label_batch, config.device, config.workers, config.label_precision)


def cache_distributions(
    inputs: Inputs,
    folders: Sequence[Path],
    fold: np.ndarray | None,
    out: Path,
    config: TeachConfig,
    job: Job | None = None,
    client: Any = None,
) -> dict[str, Any]:
    """Write the canonical distribution and V replay views of every usable face to `out`, a shard at a time.

    folders: the teachers that the source asks, none if it asks none; fold: (N,) of each face the teacher that has not
    seen it, see folds.py, None without folds. Faces that the source says nothing about (no votes, no label), or that
    `covers` does not name, are left out, and counted. With `job` only the shards of that job are made; merge.py does
    the rest. `client`, of Dask, has them made by its workers.
    """
    weights = parse_source(config.source)
    if config.views and not folders:
        log.info("distributions: no views are stored, %s says the same about every view", config.source)
    settings: dict[str, Any] = {
        "source": config.source,
        "folds": config.folds,
        # without a teacher every view has the same distribution: storing them would say nothing
        "views": config.views if folders else 0,
        "seed": config.seed,
        "min_area": config.min_area,
        "covers": config.covers,
        "label_batch": config.label_batch,
        "label_precision": config.label_precision if folders else "fp32",
        "shard_faces": config.shard_faces,
    }
    made_from = {"faces": inputs.reference(out), **teacher_references(folders, out)}
    if is_finished(out):
        return cached_before(out, made_from, settings, config)

    teachers: Teachers | None = None
    judged: dict[str, Any] = {}
    if folders:
        teachers = load_teachers(folders, inputs.faces.classes, config)
        judged = {"teacher": {**teachers.described(), **check_teacher(teachers, inputs, config.choose_on)}}
        judged["device"] = torch.device(config.device).type
        if config.label_precision != "fp32":
            judged["against_fp32"] = against_fp32(teachers, inputs, fold)
    sayable = covered(inputs.faces, config.covers) & said_about(inputs.faces, weights)
    plan = {
        "settings": settings,
        "made_from": {name: reference["manifest"] for name, reference in made_from.items()},
        "format": config.format,
        "calibrate": config.choose_on if config.calibrate else "",
        "versions": {"torch": torch.__version__, "OpenCV": cv2.__version__},
        "references": made_from,
        "classes": list(inputs.faces.classes),
        "rows": int(sayable.sum()),
        "facts": {**judged, "left_out": int((~sayable).sum())},
    }
    if job is not None:
        with FileLock(out.parent / f".{out.name}-plan.lock"):
            _begin(out, plan, job)
    elif leads():
        _begin(out, plan)
    meet()
    if not sayable.all():
        log.info(
            "distributions: %s of %s faces left out, %s",
            f"{int((~sayable).sum()):,}",
            f"{len(sayable):,}",
            why_left_out(settings),
        )
    faces = inputs.faces.select(sayable)
    if fold is not None:
        fold = fold[sayable]
        check_folds(faces, folders, fold)
    elif teachers is None:
        fold = np.full(len(faces), NO_TEACHER, np.int8)
    else:
        fold = np.where(teachers.trained_on(faces), SEEN, UNSEEN).astype(np.int8)
    labeller = Labeller(teachers, weights, settings, inputs.facts["crop"])
    rank, world = rank_and_world()
    log.info("distributions: %s views of %s faces", f"{len(faces) * (1 + settings['views']):,}", f"{len(faces):,}")
    tasks = []
    with progress("labelling", labeller.answers(fold)) as advance:
        for k, name in enumerate(shard_names(plan)):
            rows = np.arange(k * config.shard_faces, min((k + 1) * config.shard_faces, len(faces)))
            mine = job.has(k) if job is not None else k % world == rank
            if not mine or is_whole(out / name):
                advance(labeller.answers(fold[rows]))
            elif client is not None:
                (out / name).unlink(missing_ok=True)  # a damaged one, which would be taken for the worker's
                tasks.append((name, rows))
            else:
                labeller.write(out / name, faces.select(rows), fold[rows], advance)
        if tasks:
            send = Sender(inputs, faces, fold, labeller, out)
            carry_out(client, (send.task(name, rows) for name, rows in tasks), advance)
    if job is not None:
        return {
            "distributions": str(out),
            "shard": str(job),
            "files": sum(job.has(k) for k in range(len(shard_names(plan)))),
            "next": f"fer merge {out.parent}, when all {job.of} are done",
        }
    meet()
    if leads():
        finish(out, plan)
    meet()
    return summary(read_manifest(out, "distributions"), out)


@dataclass(frozen=True)
class Labeller:
    """Makes the shards of one cache."""

    teachers: Teachers | None
    weights: dict[str, float]  # of what is said in a distribution, the teachers' answers being `ldg`
    settings: dict[str, Any]  # the cache's: views, seed, min_area
    crop: int  # pixels a side of a stored face

    def answers(self, fold: np.ndarray) -> int:
        """How many answers faces of these folds (N,) take."""
        return self.teachers.answers(fold) if self.teachers else len(fold)

    def write(self, path: Path, faces: Faces, fold: np.ndarray, advance: Advance) -> None:
        """One file, whole or not at all: N faces; fold (N,)."""
        boxes, flips = draw_views(
            self.settings["seed"], faces.face_id, range(self.settings["views"]), self.crop, self.settings["min_area"]
        )
        whole_box, whole_flip = canonical(len(faces), self.crop)
        known = said_without_teacher(faces, self.weights)
        answers = np.repeat(known[:, None], 1 + boxes.shape[1], axis=1).astype(np.float32)
        if self.teachers is not None:
            seen_views = np.concatenate([whole_box, boxes], 1), np.concatenate([whole_flip, flips], 1)
            answers += np.float32(self.weights["ldg"]) * self.teachers.ask(faces, *seen_views, fold, advance)
        shard = as_shard(faces, fold, answers, boxes, flips)
        shard.check(path.name)
        with replacing(path) as part_file:
            write_shard(shard, part_file)


class Sender:
    """Makes tasks for the workers of a cluster: they read faces and teachers themselves."""

    def __init__(self, inputs: Inputs, faces: Faces, fold: np.ndarray, labeller: Labeller, out: Path):
        self.faces, self.fold, self.labeller, self.out = faces, fold, labeller, out
        self.files = [file.absolute() for file in data_files(inputs.folder, inputs.manifest)]
        self.ends = np.cumsum([pq.read_metadata(file).num_rows for file in self.files])
        teachers = labeller.teachers
        self.folders = tuple(folder.absolute() for folder in teachers.folders) if teachers else ()
        seen = [out.absolute() / PLAN, *(folder / MANIFEST for folder in (self.files[0].parent, *self.folders))]
        self.seen = [(path, digest_file(path)) for path in seen]
        # what these manifests name; of faces/ a task needs a few files only
        self.stated = {
            path.parent / name: entry["blake2b"]
            for path, _ in self.seen[1:]
            for name, entry in json.loads(path.read_bytes())["files"].items()
        }

    def task(self, name: str, rows: np.ndarray) -> "LabelTask":
        """The shard of the faces at `rows`, that stand in these few files of faces/."""
        place = self.faces.place[rows]
        first, last = np.searchsorted(self.ends, place[[0, -1]], side="right")
        began = self.ends[first - 1] if first else 0
        teachers, files = self.labeller.teachers, self.files[first : last + 1]
        others = set(self.files).difference(files)
        return LabelTask(
            path=self.out.absolute() / name,
            files=files,
            rows=place - began,
            fold=self.fold[rows],
            labeller=replace(self.labeller, teachers=None),
            folders=self.folders,
            config=teachers.asked_by_one() if teachers else None,
            seen=self.seen,
            needs=[*self.seen, *((path, digest) for path, digest in self.stated.items() if path not in others)],
        )


@dataclass(frozen=True)
class LabelTask:
    """One shard, for a worker on a cluster."""

    path: Path
    files: Sequence[Path]  # shards of faces/
    rows: np.ndarray  # (N,) in these
    fold: np.ndarray  # (N,)
    labeller: Labeller  # without its teachers
    folders: tuple[Path, ...]  # theirs
    config: TeachConfig | None  # how they are asked
    seen: Sequence[tuple[Path, str]]  # files that a worker must see as they are here, with their digests
    needs: Sequence[tuple[Path, str]]  # these, and what else is read

    @property
    def size(self) -> int:
        count = max(len(self.folders), 1)
        return int(np.where(self.fold < 0, count, 1).sum())

    def make(self) -> None:
        if is_whole(self.path):
            return
        for path, digest in self.seen:
            check_seen(path, digest)
        torch.set_num_threads(1)  # a thread a task: the cluster's settings say how many of these a worker has
        faces = read_faces(self.files).select(self.rows)
        teachers = teachers_once(self.folders, faces.classes, self.config) if self.config else None
        replace(self.labeller, teachers=teachers).write(self.path, faces, self.fold, lambda count: None)


@lru_cache(maxsize=1)
def teachers_once(folders: tuple[Path, ...], classes: tuple[str, ...], config: TeachConfig) -> Teachers:
    """The teachers that a worker asks, loaded for its first shard."""
    prepare(config.device)
    return load_teachers(folders, classes, config)


def shard_names(plan: dict[str, Any]) -> list[str]:
    """The files that the plan is to make, in order."""
    return [f"part-{k:05d}.parquet" for k in range(-(-plan["rows"] // plan["settings"]["shard_faces"]))]


def cached_before(
    out: Path, made_from: dict[str, Any], settings: dict[str, Any], config: TeachConfig
) -> dict[str, Any]:
    """What is told of a cache that is finished; FerError if it was made from other things or by other settings.

    A temperature that was not asked for then is fitted now.
    """
    manifest = read_manifest(out, "distributions")
    form = "hdf5" if ONE_FILE in manifest["files"] else "parquet"
    was, now = manifest["settings"] | {"format": form}, settings | {"format": config.format}
    refuse_other(out, {**manifest, "settings": was}, made_from, now, OTHERWISE)
    check_files(out, manifest)
    if leads():
        clear(out, manifest)
        if config.calibrate and manifest["facts"].get("calibration", {}).get("chosen_on") != config.choose_on:
            calibrate_finished(out, manifest, config.choose_on)
    meet()
    log.info("distributions: already cached, %s", out)
    return summary(read_manifest(out, "distributions"), out)


def as_shard(
    faces: Faces, fold: np.ndarray, answers: np.ndarray, boxes: np.ndarray, flips: np.ndarray
) -> Distributions:
    """Rows of a cache about N faces: fold (N,); answers (N, 1 + V, C), the canonical first; boxes, flips of V views."""
    return Distributions(
        classes=faces.classes,
        face_id=faces.face_id,
        image_hash=faces.image_hash,
        split=faces.split,
        label=faces.label,
        fold=fold,
        canonical=answers[:, 0],
        view_box=boxes,
        view_flip=flips,
        view_distribution=answers[:, 1:],
    )


def add_views(inputs: Inputs, out: Path, more: int, config: TeachConfig) -> dict[str, Any]:
    """Ask the teachers of a finished cache about `more` further views of every face; what is there stays as it is.

    Killed at any moment, the cache is the old one or the new one; finished shards are not made again. Killed when all
    but the clearing up was done, the next call does only that.
    """
    manifest = read_manifest(out, "distributions")
    added = (out / ADDING / str(manifest["facts"]["views"])).is_dir()
    meet()
    if added:
        if leads():
            clear(out, manifest)
            shutil.rmtree(out / ADDING)
        meet()
        return summary(manifest, out)
    settings, made_from = manifest["settings"], manifest["made_from"]
    cache = open_cache(out)
    if cache.hdf5 is not None:
        raise FerError(
            f"{out} is one HDF5 file, to which nothing can be added; make it a folder with fer cache convert"
        )
    if made_from["faces"]["manifest"] != inputs.digest:
        raise FerError(f"{out} was made from other faces than the run holds now; run fer teach with --cache NAME")
    folders = teachers_of(out, manifest)
    if not folders:
        raise FerError(f"{out} holds {settings['source']}, the same for every view; views of it would say nothing")
    weights = parse_source(settings["source"])
    before = manifest["facts"]["views"]
    numbers = range(before, before + more)
    stored = {name: settings[name] for name in ("label_batch", "label_precision") if name in settings}
    as_before = {"label_precision": "fp32"} | stored
    teachers = load_teachers(folders, inputs.faces.classes, replace(config, **as_before))
    made = out / ADDING / f"{before + more}"
    names = [f"part-{k:05d}-views-{before + more}.parquet" for k in range(len(cache.shards))]
    known_faces = Index(inputs.faces.face_id)
    rank, world = rank_and_world()
    with progress("labelling", teachers.answers(cache.read(views=False).fold)) as advance:
        for k, old in enumerate(cache.shards):
            if k % world != rank or is_whole(made / names[k]) or is_whole(out / names[k]):
                continue
            made.mkdir(parents=True, exist_ok=True)
            part = cache.read_shard(old).in_order_of(inputs.faces.classes, str(out))
            rows = known_faces.places(part.face_id)
            if (rows < 0).any():
                raise FerError(f"{out / old} is about faces that {inputs.folder} does not have; restore it")
            shown = inputs.faces.select(rows)
            boxes, flips = draw_views(
                settings["seed"], part.face_id, numbers, inputs.facts["crop"], settings["min_area"]
            )
            known = said_without_teacher(shown, weights)[:, None].astype(np.float32)
            answers = known + np.float32(weights["ldg"]) * teachers.ask(shown, boxes, flips, part.fold, advance)
            longer = replace(
                part,
                view_box=np.concatenate([part.view_box, boxes], 1),
                view_flip=np.concatenate([part.view_flip, flips], 1),
                view_distribution=np.concatenate([part.view_distribution, answers], 1),
            )
            longer.check(names[k])
            with replacing(made / names[k]) as file:
                write_shard(longer, file)
    meet()
    if leads():
        for name in names:
            if (made / name).exists():  # killed in between, some were moved already
                (made / name).replace(out / name)
        read_back([out / name for name in names])
        told = {name: manifest[name] for name in ("classes", "made_from")}
        told["settings"] = {**settings, "views": before + more}
        told["facts"] = {**manifest["facts"], "views": before + more}
        if (device := torch.device(config.device).type) != "cpu":
            told["facts"]["device"] = device
        clear(out, write_manifest(out, "distributions", files=names, **told))
        shutil.rmtree(out / ADDING)
    meet()
    return summary(read_manifest(out, "distributions"), out)


def is_whole(shard: Path) -> bool:
    """Whether a shard is there; one that was damaged since is made again, aloud."""
    if not shard.exists():
        return False
    try:
        read_shard(shard)
    except FerError as error:
        log.warning("%s; it is made again", error)
        return False
    return True


def pictures_of(teacher: Path) -> Words:
    """(N,) text, the hashes of the pictures that a teacher says it was trained on."""
    try:
        return of_batches(["image_hash"], untrusted.parquet_batches(teacher / TRAINED_ON, ["image_hash"]))["image_hash"]
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise FerError(f"{teacher / TRAINED_ON} cannot be read ({error}); restore it") from error


def check_folds(faces: Faces, folders: Sequence[Path], fold: np.ndarray) -> None:
    """FerError if a teacher would answer as one that had not seen the face: its folds were drawn in another way."""
    for number, folder in enumerate(folders):
        mine = faces.image_hash[fold == number]
        seen = int((places(mine, pictures_of(folder)) >= 0).sum())
        if seen:
            raise FerError(
                f"{folder} was trained on {seen:,} of the {len(mine):,} faces that it is to answer about unseen; "
                f"remove {folder.parent}/fold-* to train the teachers of these folds"
            )


def check_source(inputs: Inputs, source: str, covers: str) -> None:
    """FerError if no face would have a distribution: to be known before a teacher is trained."""
    sayable = said_about(inputs.faces, parse_source(source))
    if not sayable.any():
        raise FerError(
            f"--source {source} says nothing about any of the {len(inputs.faces):,} faces of {inputs.folder}; "
            "align a source with votes or labels, or give --source ldg"
        )
    if not (sayable & covered(inputs.faces, covers)).any():
        raise FerError(
            f"--covers {covers} leaves none of the {int(sayable.sum()):,} faces of {inputs.folder} that --source "
            f"{source} says something about; give --covers all"
        )


def covered(faces: Faces, covers: str) -> np.ndarray:
    """(N,) bool: which faces --covers names."""
    return (faces.split == "train") & (faces.label >= 0) if covers == "train" else np.ones(len(faces), bool)


def said_about(faces: Faces, weights: dict[str, float]) -> np.ndarray:
    """(N,) bool: which faces have votes or a label where a source of these weights needs them."""
    found = np.ones(len(faces), bool)
    for k in range(0, len(faces) if weights.keys() != {"ldg"} else 0, ROWS):
        part = faces.select(np.arange(k, min(k + ROWS, len(faces))))
        found[k : k + ROWS] = np.isfinite(said_without_teacher(part, weights)).all(1)
    return found


def said_without_teacher(faces: Faces, weights: dict[str, float]) -> np.ndarray:
    """(N, C) float64: the weighted sum of what votes and labels say, NaN for faces without them; the LDG adds 0."""
    total = np.zeros((len(faces), len(faces.classes)))
    for name, weight in weights.items():
        if name == "votes":
            total += weight * faces.vote_distributions()
        elif name != "ldg":
            share = float(name.partition(":")[2])
            smoothed = np.eye(len(faces.classes))[faces.label] * (1 - share) + share / len(faces.classes)
            total += weight * np.where(faces.label[:, None] >= 0, smoothed, np.nan)
    return total


def teacher_references(folders: Sequence[Path], out: Path) -> dict[str, dict[str, str]]:
    """How a cache's manifest names its teachers: `teacher` if it is one, else `teacher-0`, `teacher-1` ..."""
    names = ["teacher"] if len(folders) == 1 else [f"teacher-{k}" for k in range(len(folders))]
    return {name: reference_to(folder, out) for name, folder in zip(names, folders, strict=True)}


def teachers_of(out: Path, manifest: dict[str, Any]) -> list[Path]:
    """The teachers' folders that a cache's manifest names, in their order; FerError if one is another now."""
    folders = []
    for reference in asked_teachers(manifest):
        folder = out / reference["path"]
        if not is_finished(folder) or digest_of(folder) != reference["manifest"]:
            raise FerError(f"{folder} is not the teacher that {out} was made with; restore it")
        folders.append(folder)
    return folders


def finish(folder: Path, plan: dict[str, Any]) -> None:
    """Read all shards back, for HDF5 assemble them, then write the manifest; what it does not name is removed last."""
    shards = shard_names(plan)
    written = read_back([folder / name for name in shards])
    facts = {
        "faces": len(written),
        "views": plan["settings"]["views"],
        "source": plan["settings"]["source"],
        "min_area": plan["settings"]["min_area"],
        **plan["facts"],
        "fold_faces": {str(k): int((written.fold == k).sum()) for k in np.unique(written.fold)},
    }
    if plan["calibrate"]:
        facts["calibration"] = calibrate(written, plan["calibrate"], folder)
    about: dict[str, Any] = {
        "classes": written.classes, "made_from": plan["references"], "settings": plan["settings"], "facts": facts
    }  # fmt: skip
    if plan["format"] == "hdf5":
        assemble(folder, shards, describe("distributions", **about))
    files = [ONE_FILE] if plan["format"] == "hdf5" else shards
    clear(folder, write_manifest(folder, "distributions", files=files, **about))


def read_back(shards: Sequence[Path]) -> Distributions:
    """What was written, checked; the views too, which are not kept: they are most of it."""
    written = join(part.without_views() for part in checked_shards(shards))
    written.check_unique(str(shards[0].parent))
    return written


def clear(folder: Path, manifest: dict[str, Any]) -> None:
    """Remove what the labelling needed while it went on; killed in between, the next call does it."""
    for path in (*folder.glob("part-*.parquet"), *folder.glob(".*.part"), folder / ONE_FILE, folder / PLAN):
        if path.name not in manifest["files"]:
            remove_file(path)


def calibrate(cached: Distributions, split: str, folder: Path) -> dict[str, Any]:
    """The temperature that makes the canonical distributions of a split fit its labels best, and what it mends.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017: T minimises the cross-entropy of
    softmax(log p / T). The stored distributions stay at T = 1.
    """
    # of folds, the answers of single teachers: a mean of them is less sure of itself
    out_of_fold = cached.fold >= 0
    judge = cached.select((out_of_fold if out_of_fold.any() else cached.split == split) & (cached.label >= 0))
    if not len(judge):
        raise FerError(f"{folder} has no labelled faces in split {split} to calibrate on; give another --choose-on")

    def cross_entropy(temperature: float) -> float:
        chosen = tempered(judge.canonical, temperature)[np.arange(len(judge)), judge.label]
        return float(-np.log(np.maximum(chosen, SMALLEST)).mean())

    def error(temperature: float) -> float:
        answers = tempered(judge.canonical, temperature)
        return calibration_error(answers, answers.argmax(1) == judge.label)

    found = minimize_scalar(lambda log_t: cross_entropy(float(np.exp(log_t))), bounds=(-3, 3), method="bounded")
    temperature = float(np.exp(found.x))
    if abs(found.x) > 2.99:
        log.warning(
            "distributions: the temperature that fits %s best is beyond what is looked for, 0.05 to 20; the teacher "
            "tells little about these faces", split,
        )  # fmt: skip
    return {
        "temperature": temperature,
        "chosen_on": split,
        "split": "train, out of fold" if out_of_fold.any() else split,
        "faces": len(judge),
        "ece_before": error(1.0),
        "ece_after": error(temperature),
        "cross_entropy_before": cross_entropy(1.0),
        "cross_entropy_after": cross_entropy(temperature),
    }


def calibrate_finished(out: Path, manifest: dict[str, Any], split: str) -> None:
    """Note a temperature in the manifest of a cache that was finished without one."""
    cache = open_cache(out)
    if cache.hdf5 is not None:
        raise FerError(
            f"{out} is one HDF5 file, in which nothing can be noted; make it a folder with fer cache convert"
        )
    found = calibrate(cache.read(views=False), split, out)
    told = {name: manifest[name] for name in ("classes", "made_from", "settings")}
    facts = {**manifest["facts"], "calibration": found}
    write_manifest(out, "distributions", files=list(manifest["files"]), facts=facts, **told)
    log.info("distributions: calibrated; students made from them before count as made from another cache now")


def check_teacher(teachers: "Teachers", inputs: Inputs, split: str) -> dict[str, Any]:
    """The teacher's accuracy on a split; FerError if it is no better than guessing or always says the same.

    A permuted class order is the field's most common silent failure, so the permutation that would mend the answers,
    if one would, is named: one that does better than the best does on any of a thousand shuffles of the labels.
    """
    judge = inputs.labelled(split)
    nobody = np.full(len(judge), UNSEEN, np.int8)
    answers = teachers.ask(judge, *canonical(len(judge), inputs.facts["crop"]), nobody)[:, 0]
    count, classes = len(judge), judge.classes
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (judge.label, answers.argmax(1)), 1)
    there = confusion.sum(1) > 0
    recall = float((confusion.diagonal()[there] / confusion.sum(1)[there]).mean())
    chance = 1 / int(there.sum())
    if recall > chance:
        return {"accuracy": float(confusion.trace() / count), "accuracy_on": split, "faces": count}
    message = (
        f"the teacher is right about {recall:.1%} of a class's {split} faces on average ({count} faces), "
        f"no better than guessing among {int(there.sum())} classes ({chance:.1%})"
    )
    meant, mended = best_permutation(confusion)
    rng = np.random.default_rng(0)
    by_luck = np.zeros_like(confusion)
    luckiest = 0
    for _ in range(1000):
        by_luck[:] = 0
        np.add.at(by_luck, (rng.permutation(judge.label), answers.argmax(1)), 1)
        luckiest = max(luckiest, best_permutation(by_luck)[1])
    if mended > luckiest:
        raise FerError(
            f"{message}; its answers would be {mended / count:.1%} right if its classes, now read as "
            f"{', '.join(classes)}, were {', '.join(classes[k] for k in meant)}: were the labels or the teacher's "
            "classes in another order? Align again with the right ones, or train another teacher"
        )
    raise FerError(f"{message}; train it longer (--epochs), at a larger --size or with another --lr")


def against_fp32(teachers: "Teachers", inputs: Inputs, fold: np.ndarray | None) -> dict[str, Any]:
    """How far the teachers' answers are from those in fp32, told and returned: of COMPARED whole faces at most."""
    rows = np.arange(0, len(inputs.faces), -(-len(inputs.faces) // COMPARED))
    faces, seen_by = inputs.faces.select(rows), np.full(len(rows), UNSEEN, np.int8) if fold is None else fold[rows]
    about = faces, *canonical(len(faces), inputs.facts["crop"]), seen_by
    answers, exact = (asked.ask(*about)[:, 0] for asked in (teachers, replace(teachers, precision="fp32")))
    found = {
        "faces": len(faces),
        "largest_difference": float(np.abs(answers - exact).max()),
        "other_expression": int((answers.argmax(1) != exact.argmax(1)).sum()),
    }
    log.info(
        "distributions: in %s a probability differs from fp32 by %.1e at most, the first expression of %d of %d faces",
        teachers.precision, found["largest_difference"], found["other_expression"], found["faces"],
    )  # fmt: skip
    return found


def best_permutation(confusion: np.ndarray) -> tuple[list[int], int]:
    """Of a confusion matrix (labels, answers), what each answer should mean for most faces to be right; how many."""
    truth, answered = linear_sum_assignment(-confusion)
    meant = dict(zip(answered.tolist(), truth.tolist(), strict=True))
    return [meant[k] for k in range(len(confusion))], int(confusion[truth, answered].sum())


def class_order(answered: list[str], wanted: tuple[str, ...], teacher: Path) -> list[int]:
    if set(answered) != set(wanted):
        raise FerError(
            f"{teacher} answers for the classes {', '.join(answered)}, faces/ has {', '.join(wanted)}; "
            "give a teacher of the same classes, or fer align --classes"
        )
    return [answered.index(name) for name in wanted]


def _begin(folder: Path, plan: dict[str, Any], job: Job | None = None) -> None:
    """Start labelling, or go on with the same plan; shards of another plan are never mixed in."""
    path = folder / PLAN
    jobs = {} if job is None else {JOBS: job.of}
    if path.exists():
        try:
            begun = dict(untrusted.read_json(path))
            begun |= {part: dict(begun[part]) for part in ("settings", "made_from")}
            begun["settings"].setdefault("covers", TeachConfig.covers)  # older programs do not say
        except (ValueError, KeyError, TypeError):
            raise FerError(f"{path} is damaged; remove {folder} and run fer teach again") from None
        given = json.loads(json.dumps(plan))
        refuse_other_job(folder, begun, given, job)
        for part, was, now in (
            ("settings", begun["settings"], given["settings"]),
            ("made_from", begun["made_from"], given["made_from"]),
        ):
            for name in sorted(was.keys() | now.keys()):
                if was.get(name) != now.get(name):
                    other = f"{name} {was.get(name)}, now {now.get(name)}" if part == "settings" else f"another {name}"
                    raise FerError(
                        f"{folder} was begun with other settings ({other}); give the same to go on, or remove it to "
                        "start again"
                    )
        # what was begun on a GPU has answers of a GPU
        if (device := dict(begun.get("facts", {})).get("device", "cpu")) != "cpu":
            plan["facts"]["device"] = device
    elif folder.exists() and not all(is_part(path) for path in folder.iterdir()):
        raise FerError(f"{folder} has files but neither {PLAN} nor a manifest; move them away and run fer teach again")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, {**plan, **jobs})


def summary(manifest: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What the command prints of a finished cache."""
    facts = manifest["facts"]
    told = {"distributions": str(folder), "faces": facts["faces"], "views": facts["views"], "source": facts["source"]}
    return told | {name: facts[name] for name in ("teacher", "calibration") if name in facts}
