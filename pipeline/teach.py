"""Stage 2 of 3: train the label distribution generator on single labels, then cache its answer about every face."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from efficientface import FerError
from efficientface.cache.hdf5 import check_hdf5_names
from efficientface.cache.parquet import check_class_names
from efficientface.pipeline.artifact import (
    among,
    is_finished,
    read_manifest,
    replacing,
)
from efficientface.pipeline.checkpoint import finish_model, fresh_model, init_reference, network_options, trained_before
from efficientface.pipeline.cluster import connected
from efficientface.pipeline.config import MACHINE, DistillConfig, Job, TeachConfig, parse_source
from efficientface.pipeline.device import prepare
from efficientface.pipeline.folds import assign_folds
from efficientface.pipeline.inputs import Inputs, check_classes, read_inputs
from efficientface.pipeline.label import TRAINED_ON, add_views, cache_distributions, check_source
from efficientface.pipeline.launch import numbers
from efficientface.pipeline.ranks import agree, joined, leads, lock_of, meet, writing
from efficientface.pipeline.train import fit, label_lessons, label_objective

log = logging.getLogger(__name__)

OTHERWISE = "give --cache NAME to write beside it"
AS_IT_IS = "give --checkpoint to use it as it is, or remove it to train anew"
# TeachConfig's fields that shape distributions/ and not the teacher
LABELLING = (
    *("views", "label_batch", "label_precision", "shard_faces", "cache", "format", "source", "folds", "calibrate"),
    "covers",
)


def run(
    run: Path,
    config: TeachConfig,
    checkpoints: Sequence[Path] = (),
    more_views: int = 0,
    train_only: bool = False,
    job: Job | None = None,
    cluster: str = "",
) -> dict[str, Any]:
    """Write RUN/teacher and RUN/distributions; with `checkpoints`, finished teachers, these are asked (their mean).

    With folds RUN/teacher/fold-K are trained, and each answers for the faces it has not seen. `more_views` only adds
    views to a finished cache, `train_only` leaves the cache for later, and `job` makes a job's shards of it with
    teachers that are there. `cluster`, see cluster.py, is where labelling is done, if not here. Returns the teacher's
    accuracy on validation, the faces and views cached, and where.
    """
    if (job is not None or cluster) and numbers()[1] > 1:
        raise FerError("torchrun and srun divide the shards among their processes; leave out --shard and --cluster")
    with (
        connected(cluster, config.workers) if cluster else nullcontext() as client,
        joined(config.device) as device,
    ):
        config = replace(config, device=device)
        prepare(device)
        inputs = read_inputs(run)
        check_source(inputs, config.source, config.covers)
        (check_hdf5_names if config.format == "hdf5" else check_class_names)(inputs.faces.classes)
        agree(run, {**asdict(config), "add_views": more_views}, checkpoints)
        out = run / (f"distributions-{config.cache}" if config.cache else "distributions")
        if job is not None:
            with among(out, lock_of(out, run), job, "fer teach", OTHERWISE):
                return write_cache(inputs, run, out, config, checkpoints, False, job, client)
        with writing(out, run, "fer teach", OTHERWISE):
            if more_views:
                return add_views(inputs, out, more_views, config)
            return write_cache(inputs, run, out, config, checkpoints, train_only, None, client)


def write_cache(
    inputs: Inputs,
    run: Path,
    out: Path,
    config: TeachConfig,
    checkpoints: Sequence[Path],
    train_only: bool,
    job: Job | None,
    client: Any,
) -> dict[str, Any]:
    """Train the teachers that are missing and let them answer, or find what is wanted done already."""
    if checkpoints and (config.folds or "ldg" not in parse_source(config.source)):
        other = f"--folds {config.folds}" if config.folds else f"--source {config.source}"
        raise FerError(f"--checkpoint gives a teacher to ask, {other} has no use for it; leave one of them out")
    fold = None
    teachers = list(checkpoints)
    for teacher in teachers:
        read_manifest(teacher, "teacher")
    if config.folds:
        fold = assign_folds(inputs.faces, config.folds, config.seed)
        teachers = [run / "teacher" / f"fold-{k}" for k in range(config.folds)]
    elif not teachers and "ldg" in parse_source(config.source):
        teachers = [run / "teacher"]
    if not checkpoints:
        for number, teacher in enumerate(teachers):
            if is_finished(out) and not is_finished(teacher):
                raise FerError(
                    f"{out} is finished and {teacher} is not, so another teacher made it; "
                    "give --cache NAME to write beside it, or remove it"
                )
            # one that is finished may be asked by many at once
            done, otherwise = is_finished(teacher), "give --checkpoint with a finished one"
            if job is not None and not done:
                raise FerError(
                    f"{teacher} is not trained yet, and --shard only asks teachers; run fer teach --train-only first"
                )
            with nullcontext() if done else writing(teacher, run, "fer teach", otherwise):
                train_teacher(inputs, teacher, config, None if fold is None else fold == number)
    if train_only:
        if checkpoints or not teachers:
            raise FerError("--train-only trains a teacher, and nothing else was left to do here; leave it out")
        return {"teachers": ", ".join(map(str, teachers)), "next": "the same command without --train-only"}
    return cache_distributions(inputs, teachers, fold, out, config, job, client)


def train_teacher(inputs: Inputs, folder: Path, config: TeachConfig, without: np.ndarray | None = None) -> None:
    """Train the LDG on the labelled training faces, or find it trained already; `without` (N,) marks faces left out."""
    made_from = {"faces": inputs.reference(folder), **init_reference(config.init, folder)}
    init, config = config.init, replace(config, init=made_from.get("init", {}).get("path", ""))
    settings = {name: value for name, value in asdict(config).items() if name not in (*LABELLING, *MACHINE)}
    if without is not None:
        settings |= {"folds": config.folds, "fold": folder.name}
    if trained_before(folder, "teacher", made_from, settings, config, AS_IT_IS):
        return
    train, judge = inputs.labelled("train", without), inputs.labelled(config.choose_on)
    check_classes(train, inputs.folder)
    classes = train.classes
    torch.manual_seed(config.seed)
    options = network_options(config.teacher_arch, DistillConfig.modulation)
    model, asked = fresh_model(config.teacher_arch, classes, config.size, options, init)
    lessons = label_lessons(train, inputs.facts["crop"], config)
    loss = label_objective(train, config, scale=1 / len(classes))
    log.info("%s: %s on %d faces at %d pixels", folder.name, config.teacher_arch, len(train), config.size)
    # views, shards and the cache's name are the labelling's: they do not part a checkpoint from its training
    begun = replace(config, **{name: getattr(TeachConfig, name) for name in LABELLING})
    facts = {**inputs.facts_by(config.normalisation), **{name: made["manifest"] for name, made in made_from.items()}}
    if without is not None:
        facts |= {"folds": config.folds}
    weights, best = fit(model, train, lessons, loss, judge, begun, facts, folder)
    if leads():
        with replacing(folder / TRAINED_ON) as part:
            columns = {name: pa.array(getattr(train, name), pa.string()) for name in ("face_id", "image_hash")}
            pq.write_table(pa.table(columns), part)
        finish_model(
            folder,
            "teacher",
            weights,
            {**asked, "mean": facts["mean"], "std": facts["std"]},
            files=[TRAINED_ON],
            made_from=made_from,
            settings=settings,
            facts={"train_faces": len(train), "chosen_on": config.choose_on, "best": best, **config.origin},
        )
    meet()
