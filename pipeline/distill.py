"""Stage 3 of 3: train a student from the cached label distributions. The teacher is not loaded, but for --live."""

import hashlib
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from efficientface import FerError
from efficientface.cache.distributions import Distributions, tempered
from efficientface.data.columns import kept, taken
from efficientface.data.faces import Faces
from efficientface.data.views import draw_views
from efficientface.data.words import Column, differ
from efficientface.pipeline.artifact import (
    read_manifest,
    reference_to,
)
from efficientface.pipeline.caches import open_cache
from efficientface.pipeline.checkpoint import (
    BESIDE,
    finish_model,
    fresh_model,
    init_reference,
    network_options,
    trained_before,
)
from efficientface.pipeline.config import MACHINE, DistillConfig, TeachConfig
from efficientface.pipeline.device import prepare
from efficientface.pipeline.inputs import Inputs, check_classes, read_inputs
from efficientface.pipeline.label import class_order, covered, load_teacher
from efficientface.pipeline.losses import distribution_loss, tempered_divergence
from efficientface.pipeline.predict import predict
from efficientface.pipeline.progress import progress
from efficientface.pipeline.ranks import agree, joined, leads, meet, writing
from efficientface.pipeline.train import Lesson, Lessons, Loss, fit, free_crops, label_lessons, label_objective

log = logging.getLogger(__name__)


def run(run: Path, config: DistillConfig) -> dict[str, Any]:
    """Write RUN/students/NAME; returns the best epoch's metrics and where the student lies.

    LDL and KL read RUN/distributions (or distributions-CACHE); SLL needs faces/ alone.
    """
    with joined(config.device) as device:
        config = replace(config, device=device)
        prepare(device)
        network_options(config.arch, config.modulation)  # what cannot be is told before anything is read
        inputs = read_inputs(run)
        agree(run, asdict(config))
        folder = run / "students" / (config.name or config.loss)
        with writing(folder, run, "fer distill", "give --name to train beside it"):
            return write_student(inputs, run, folder, config)


def write_student(inputs: Inputs, run: Path, folder: Path, config: DistillConfig) -> dict[str, Any]:
    """Train RUN/students/NAME, or find it trained already."""
    made_from = {"faces": inputs.reference(folder), **init_reference(config.init, folder)}
    init, config = config.init, replace(config, init=made_from.get("init", {}).get("path", ""))
    cached, temperature = None, config.temperature
    if config.live:
        made_from["teacher"] = reference_to(finished_teacher(run), folder)
    elif config.loss != "sll":
        cache = run / (f"distributions-{config.cache}" if config.cache else "distributions")
        cached = read_distributions(cache, inputs)
        if config.calibrated:
            temperature = fitted_temperature(cache)
        made_from["distributions"] = reference_to(cache, folder)
    settings = {name: value for name, value in asdict(config).items() if name not in MACHINE}
    if trained := trained_before(folder, "student", made_from, settings, config, BESIDE):
        return {"student": str(folder), **trained["facts"]["best"]}

    train, judge = training_faces(inputs, cached, config), inputs.labelled(config.choose_on)
    classes, crop = train.classes, inputs.facts["crop"]
    if config.live:
        lessons = ask_live(train, run / "teacher", crop, config)
    elif cached is None:
        lessons = label_lessons(train, crop, config)
    else:
        rows = cached.rows_of(train.face_id, train.image_hash, str(cache))
        lessons = replay(cached, crop, config, rows)
    if temperature != 1:
        lessons = with_temperature(lessons, temperature)
    if config.label_weight:
        lessons = with_labels(lessons, train, config.label_weight)
    torch.manual_seed(config.seed)
    options = network_options(config.arch, config.modulation)
    model, asked = fresh_model(config.arch, classes, config.size, options, init)
    log.info("student: %s, %s, on %d faces at %d pixels", config.arch, config.loss, len(train), config.size)
    digests = {f"{name}_manifest": reference["manifest"] for name, reference in made_from.items()}
    facts = {**inputs.facts_by(config.normalisation), **digests}
    loss = objective(train, config, temperature)
    weights, best = fit(model, train, lessons, loss, judge, config, facts, folder)
    if leads():
        finish_model(
            folder,
            "student",
            weights,
            {**asked, "mean": facts["mean"], "std": facts["std"]},
            made_from=made_from,
            settings=settings,
            facts={
                "train_faces": len(train),
                "chosen_on": config.choose_on,
                "temperature": temperature,
                "best": best,
                **config.origin,
            },
        )
    meet()
    return {"student": str(folder), **best}


def objective(train: Faces, config: DistillConfig, temperature: float) -> Loss:
    """What --loss stands for; all on equation (5)'s scale, so that ways of learning are compared at equal steps."""
    if config.loss == "sll":
        return label_objective(train, config, scale=1 / len(train.classes))
    if config.loss == "kl":
        return lambda logits, target: tempered_divergence(logits, target, temperature)
    return distribution_loss


def read_distributions(cache: Path, inputs: Inputs) -> Distributions:
    """A run's cache, refused if it disagrees with faces/ in classes, faces, pictures, splits or labels.

    A cache of votes or labels has no distribution for faces without them: those are not trained on.
    """
    opened = open_cache(cache)
    settings = opened.manifest["settings"]
    cached = opened.read().in_order_of(inputs.faces.classes, str(cache))
    faces = inputs.faces.select(covered(inputs.faces, settings.get("covers", TeachConfig.covers)))
    if opened.manifest["facts"].get("left_out") and settings.get("source", TeachConfig.source) != "ldg":
        faces = faces.select(cached.has(faces.face_id))
    rows = cached.rows_of(faces.face_id, faces.image_hash, str(cache))
    for what in ("split", "label"):
        other = np.flatnonzero(differ(getattr(cached, what), rows, getattr(faces, what)))
        if len(other):
            raise FerError(
                f"{cache} was made when {len(other):,} of {len(faces):,} faces had another {what}, first "
                f"{faces.face_id[other[0]]}; run fer teach with --cache NAME and give that"
            )
    return cached


def fitted_temperature(cache: Path) -> float:
    """The temperature in a cache's manifest."""
    calibration = open_cache(cache).manifest["facts"].get("calibration")
    if calibration is None:
        raise FerError(f"{cache} has no fitted temperature; run fer teach again with --calibrate")
    return float(calibration["temperature"])


def finished_teacher(run: Path) -> Path:
    """RUN/teacher, which --live asks."""
    read_manifest(run / "teacher", "teacher")
    return run / "teacher"


def ask_live(train: Faces, teacher: Path, crop: int, config: DistillConfig) -> Lessons:
    """The authors' online way: in every epoch the teacher answers about that epoch's crops.

    The crops are those that `fer teach --views EPOCHS` with the same seed and --min-area would store, in the order
    that a student of this seed replays them: what is trained on is the same, and the teacher is asked as often.
    """
    model, described = load_teacher(teacher, config.device)
    order = class_order(described["classes"], train.classes, teacher)
    boxes, flips = draw_views(config.seed, train.face_id, range(config.epochs), crop, config.min_area)
    offsets = replay_offsets(config.seed, train.face_id)

    def lessons(rows: np.ndarray, turns: np.ndarray) -> Lesson:
        view = (offsets[rows] + turns) % config.epochs
        box, flip = boxes[rows, view][:, None], flips[rows, view][:, None]
        with progress("asking the teacher", len(rows)) as advance:
            answers = predict(
                model, train, box, flip, size=described["size"], mean=described["mean"], std=described["std"],
                device=config.device, batch=config.label_batch, workers=config.workers, shown=rows, advance=advance,
            )[:, 0, order]  # fmt: skip
        return Lesson(box, flip, answers)

    return lessons


def with_temperature(lessons: Lessons, temperature: float) -> Lessons:
    """The same lessons with softmax(log p / T) in place of the targets p."""

    def softened(rows: np.ndarray, turns: np.ndarray) -> Lesson:
        boxes, flips, targets = lessons(rows, turns)
        return Lesson(boxes, flips, tempered(targets, temperature))

    return softened


def with_labels(lessons: Lessons, train: Faces, weight: float) -> Lessons:
    """The same lessons with (1 - weight) of the targets plus weight of the label; a face without one keeps its own."""
    # the last row is that of the label -1
    onehot = np.eye(len(train.classes) + 1, len(train.classes), dtype=np.float32)

    def mixed(rows: np.ndarray, turns: np.ndarray) -> Lesson:
        boxes, flips, targets = lessons(rows, turns)
        label = train.label[rows]
        share = np.where(label >= 0, weight, 0).astype(np.float32)[:, None]
        return Lesson(boxes, flips, (1 - share) * targets + share * onehot[label])

    return mixed


def training_faces(inputs: Inputs, cached: Distributions | None, config: DistillConfig) -> Faces:
    """Labelled training faces, or with --unlabelled every training face that has a distribution."""
    if config.unlabelled:
        train = inputs.faces.select(inputs.faces.split == "train")
        if cached is None:
            return train
        known = cached.has(train.face_id)
        unlabelled = train.label < 0
        if unlabelled.any() and not (known & unlabelled).any():
            raise FerError(
                f"none of the {int(unlabelled.sum()):,} training faces without a label has a distribution; leave out "
                "--unlabelled, or give the --cache of a teacher that was asked about all (fer teach --covers all)"
            )
        return train.select(known)
    train = inputs.labelled("train")
    if config.loss == "sll":
        check_classes(train, inputs.folder)
    if cached is not None:
        known = cached.has(train.face_id)
        if not known.any():
            raise FerError(
                f"none of the {len(train):,} labelled training faces has a distribution; give another --cache"
            )
        if not known.all():
            log.info("student: %d of %d faces have no distribution and are left out", (~known).sum(), len(train))
        train = train.select(known)
    return train


def replay(cached: Distributions, crop: int, config: DistillConfig, own: np.ndarray | None = None) -> Lessons:
    """Label distribution learning from N cached rows: each time one stored view of the face, with the teacher's answer.

    own: (N,) the rows to learn from, all if None; the views are not copied, being most of the cache.
    When it is shown for the e-th time, from 0, which is in epoch e if every face comes once an epoch, a face uses view
    (e + h) mod V, h a hash of the student's seed and the face id, so that students of different seeds differ in their
    crops too. Without stored views the student crops freely and every crop has the canonical distribution.
    """
    own = np.arange(len(cached)) if own is None else own
    if not cached.views:
        crops = free_crops(cached.face_id[own], crop, config)
        return lambda rows, turns: Lesson(*crops(rows, turns), taken(cached.canonical, own[rows]))

    offsets = replay_offsets(config.seed, cached.face_id[own])
    boxes, flips = cached.view_box.reshape(-1, 1, 4), cached.view_flip.reshape(-1, 1)
    answers = cached.view_distribution.reshape(-1, len(cached.classes))

    def lessons(rows: np.ndarray, turns: np.ndarray) -> Lesson:
        at = kept(own[rows] * cached.views + (offsets[rows] + turns) % cached.views)
        return Lesson(taken(boxes, at), taken(flips, at), taken(answers, at))

    return lessons


def replay_offsets(seed: int, face_ids: Column) -> np.ndarray:
    """(N,) uint32: where in its stored views a student of this seed begins with each face, 32 bits of a hash."""
    found = np.empty(len(face_ids), "<u4")
    for k, face_id in enumerate(face_ids):
        digest = hashlib.blake2b(f"{seed}\0{face_id}".encode(), digest_size=4).digest()
        found[k] = int.from_bytes(digest, "little")
    return kept(found)
