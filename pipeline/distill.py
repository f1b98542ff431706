"""Stage 3 of 3: train a student from the cached label distributions. The teacher is not loaded."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from efficientface.cache.distributions import Distributions
from efficientface.data.faces import Faces
from efficientface.data.views import draw_views
from efficientface.models import build
from efficientface.pipeline.artifact import (
    check_files,
    is_finished,
    read_manifest,
    reference_to,
    refuse_other,
)
from efficientface.pipeline.caches import open_cache
from efficientface.pipeline.checkpoint import finish_model
from efficientface.pipeline.config import DistillConfig
from efficientface.pipeline.device import prepare
from efficientface.pipeline.inputs import Inputs, check_classes, read_inputs
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
    cached = None
    if config.loss == "ldl":
        cache = run / (f"distributions-{config.cache}" if config.cache else "distributions")
        cached = read_distributions(cache, inputs)
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
    if cached is None:
        lesson = label_lessons(train, crop, config)
    else:
        rows = cached.rows_of(train.face_id, train.image_hash, str(run))
        lesson = replay(cached.select(rows), crop, config)
    torch.manual_seed(config.seed)
    options = {"modulation": config.modulation} if config.arch == "efficientface" else {}
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
            facts={"train_faces": len(train), "chosen_on": config.choose_on, "best": best},
        )
    meet()
    return {"student": str(folder), **best}


def read_distributions(cache: Path, inputs: Inputs) -> Distributions:
    """A run's cache, refused if it disagrees with faces/ in classes, faces or pictures."""
    cached = open_cache(cache).read().in_order_of(inputs.faces.classes, str(cache))
    cached.rows_of(inputs.faces.face_id, inputs.faces.image_hash, str(cache))
    return cached


def training_faces(inputs: Inputs, cached: Distributions | None, config: DistillConfig) -> Faces:
    """Labelled training faces, or with --unlabelled every training face that has a distribution."""
    if config.unlabelled and cached is not None:
        return inputs.faces.select(inputs.faces.split == "train")
    train = inputs.labelled("train")
    if cached is None:
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

    offsets = np.array([_offset(config.seed, face_id) for face_id in cached.face_id])
    rows = np.arange(len(cached))

    def lesson(epoch: int) -> Lesson:
        view = ((offsets + epoch) % cached.views).astype(np.int64)
        return Lesson(
            cached.view_box[rows, view][:, None],
            cached.view_flip[rows, view][:, None],
            cached.view_distribution[rows, view],
        )

    return lesson


def _offset(seed: int, face_id: str) -> int:
    """32 bits of blake2b(seed, face id): small enough that adding an epoch cannot overflow."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{face_id}".encode(), digest_size=4).digest(), "little")
