"""Stage 3 of 3: train a student from the cached label distributions. The teacher is not loaded, but for --live."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from efficientface import FerError
from efficientface.cache.distributions import Distributions, tempered
from efficientface.data.faces import Faces
from efficientface.data.views import draw_views
from efficientface.models import MODULATED, build
from efficientface.pipeline.artifact import (
    check_files,
    is_finished,
    read_manifest,
    reference_to,
    refuse_other,
)
from efficientface.pipeline.caches import open_cache
from efficientface.pipeline.checkpoint import finish_model, load_model
from efficientface.pipeline.config import DistillConfig
from efficientface.pipeline.device import prepare
from efficientface.pipeline.inputs import Inputs, check_classes, read_inputs
from efficientface.pipeline.label import class_order
from efficientface.pipeline.predict import predict
from efficientface.pipeline.progress import progress
from efficientface.pipeline.train import MACHINE, Lesson, fit, leads, meet

log = logging.getLogger(__name__)


def run(run: Path, config: DistillConfig) -> dict[str, Any]:
    """Write RUN/students/NAME; returns the best epoch's metrics and where the student lies.

    LDL reads RUN/distributions (or distributions-CACHE); SLL needs faces/ alone.
    """
    prepare(config.device)
    inputs = read_inputs(run)
    folder = run / "students" / (config.name or config.loss)
    made_from = {"faces": reference_to(inputs.folder, folder)}
    cached, temperature = None, config.temperature
    if config.live:
        made_from["teacher"] = reference_to(finished_teacher(run), folder)
    elif config.loss == "ldl":
        cache = run / (f"distributions-{config.cache}" if config.cache else "distributions")
        cached = read_distributions(cache, inputs)
        if config.calibrated:
            temperature = fitted_temperature(cache)
        made_from["distributions"] = reference_to(cache, folder)
    settings = {name: value for name, value in asdict(config).items() if name not in MACHINE}
    if is_finished(folder):
        manifest = read_manifest(folder, "student")
        refuse_other(folder, manifest, made_from, settings, "give --name to train beside it, or remove it")
        check_files(folder, manifest)
        log.info("student: already trained, %s", folder)
        return {"student": str(folder), **manifest["facts"]["best"]}

    train, judge = training_faces(inputs, cached, config), inputs.labelled(config.choose_on)
    classes, crop = train.classes, inputs.facts["crop"]
    if config.live:
        lesson = ask_live(train, run / "teacher", crop, config)
    elif cached is None:
        lesson = label_lessons(train, crop, config)
    else:
        lesson = replay(cached.select(cached.rows_of(train.face_id, train.image_hash, str(cache))), crop, config)
    if temperature != 1:
        lesson = with_temperature(lesson, temperature)
    torch.manual_seed(config.seed)
    options = {"modulation": config.modulation} if config.arch in MODULATED else {}
    model = build(config.arch, len(classes), **options)
    log.info("student: %s, %s, on %d faces at %d pixels", config.arch, config.loss, len(train), config.size)
    digests = {f"{name}_manifest": reference["manifest"] for name, reference in made_from.items()}
    weights, best = fit(model, train, lesson, judge, config, {**inputs.facts, **digests}, folder)
    if leads():
        asked = {"arch": config.arch, "options": options, "classes": list(classes), "size": config.size}
        finish_model(
            folder,
            "student",
            weights,
            {**asked, "mean": inputs.facts["mean"], "std": inputs.facts["std"]},
            made_from=made_from,
            settings=settings,
            facts={
                "train_faces": len(train),
                "chosen_on": config.choose_on,
                "temperature": temperature,
                "best": best,
            },
        )
    meet()
    return {"student": str(folder), **best}


def read_distributions(cache: Path, inputs: Inputs) -> Distributions:
    """A run's cache, refused if it disagrees with faces/ in classes, faces or pictures.

    A cache of votes or labels has no distribution for faces without them; that is told where such a face is needed.
    """
    opened = open_cache(cache)
    cached = opened.read().in_order_of(inputs.faces.classes, str(cache))
    faces = inputs.faces
    if opened.manifest["facts"].get("left_out"):
        faces = faces.select(np.isin(faces.face_id, cached.face_id))
    cached.rows_of(faces.face_id, faces.image_hash, str(cache))
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


def ask_live(train: Faces, teacher: Path, crop: int, config: DistillConfig) -> Callable[[int], Lesson]:
    """The authors' online way: in every epoch the teacher answers about that epoch's crops.

    The crops are those that `fer teach --views EPOCHS` with the same seed and --min-area would store, in the order
    that a student of this seed replays them: what is trained on is the same, and the teacher is asked as often.
    """
    model, described = load_model(teacher, "teacher")
    order = class_order(described["classes"], train.classes, teacher)
    boxes, flips = draw_views(config.seed, train.face_id, range(config.epochs), crop, config.min_area)
    offsets = replay_offsets(config.seed, train.face_id)
    rows = np.arange(len(train))

    def lesson(epoch: int) -> Lesson:
        view = (offsets + epoch) % config.epochs
        box, flip = boxes[rows, view][:, None], flips[rows, view][:, None]
        with progress(f"epoch {epoch + 1}/{config.epochs}: asking", len(train)) as advance:
            answers = predict(
                model, train, box, flip, size=described["size"], mean=described["mean"], std=described["std"],
                device=config.device, batch=config.label_batch, workers=config.workers, advance=advance,
            )[:, 0, order]  # fmt: skip
        return Lesson(box, flip, answers)

    return lesson


def with_temperature(lesson: Callable[[int], Lesson], temperature: float) -> Callable[[int], Lesson]:
    """The same lessons with softmax(log p / T) in place of the targets p."""

    def softened(epoch: int) -> Lesson:
        boxes, flips, targets = lesson(epoch)
        return Lesson(boxes, flips, tempered(targets, temperature))

    return softened


def training_faces(inputs: Inputs, cached: Distributions | None, config: DistillConfig) -> Faces:
    """Labelled training faces, or with --unlabelled every training face that has a distribution."""
    if config.unlabelled:
        train = inputs.faces.select(inputs.faces.split == "train")
        return train if cached is None else train.select(np.isin(train.face_id, cached.face_id))
    train = inputs.labelled("train")
    if config.loss == "sll":
        check_classes(train, inputs.folder)
    return train


def label_lessons(train: Faces, crop: int, config: DistillConfig) -> Callable[[int], Lesson]:
    """Single-label learning: fresh crops every epoch, the label as a one-hot distribution."""
    targets = np.eye(len(train.classes), dtype=np.float32)[train.label]

    def lesson(epoch: int) -> Lesson:
        return Lesson(*draw_views(config.seed, train.face_id, [epoch], crop, config.min_area), targets)

    return lesson


def replay(cached: Distributions, crop: int, config: DistillConfig) -> Callable[[int], Lesson]:
    """Label distribution learning from N cached rows: each epoch one stored view a face, with the teacher's answer.

    In epoch e a face uses view (e + h) mod V, h a hash of the student's seed and the face id, so that students of
    different seeds differ in their crops too. Without stored views the student crops freely and every crop has the
    canonical distribution.
    """
    if not cached.views:

        def per_image(epoch: int) -> Lesson:
            boxes, flips = draw_views(config.seed, cached.face_id, [epoch], crop, config.min_area)
            return Lesson(boxes, flips, cached.canonical)

        return per_image

    offsets = replay_offsets(config.seed, cached.face_id)
    rows = np.arange(len(cached))

    def lesson(epoch: int) -> Lesson:
        view = (offsets + epoch) % cached.views
        return Lesson(
            cached.view_box[rows, view][:, None],
            cached.view_flip[rows, view][:, None],
            cached.view_distribution[rows, view],
        )

    return lesson


def replay_offsets(seed: int, face_ids: np.ndarray) -> np.ndarray:
    """(N,) int64: where in its stored views a student of this seed begins with each face, 32 bits of a hash."""
    digests = (hashlib.blake2b(f"{seed}\0{face_id}".encode(), digest_size=4).digest() for face_id in face_ids)
    return np.frombuffer(b"".join(digests), "<u4").astype(np.int64)
