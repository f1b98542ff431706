"""Stage 2 of 3: train the label distribution generator on single labels, then cache its answer about every face."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from scipy.optimize import linear_sum_assignment

from efficientface import FerError
from efficientface.cache.distributions import SEEN, UNSEEN, Distributions
from efficientface.cache.hdf5 import check_hdf5_names
from efficientface.cache.parquet import check_class_names, read_shards, write_shard
from efficientface.data.batches import canonical
from efficientface.data.faces import Faces
from efficientface.data.views import draw_views
from efficientface.models import build
from efficientface.pipeline.artifact import (
    describe,
    is_finished,
    read_manifest,
    reference_to,
    refuse_other,
    replacing,
    write_json,
    write_manifest,
)
from efficientface.pipeline.caches import ONE_FILE, assemble
from efficientface.pipeline.checkpoint import CONFIG, finish_model, load_model
from efficientface.pipeline.config import TeachConfig
from efficientface.pipeline.device import prepare
from efficientface.pipeline.inputs import Inputs, check_classes, read_inputs
from efficientface.pipeline.predict import predict
from efficientface.pipeline.progress import progress
from efficientface.pipeline.train import MACHINE, Lesson, fit, join_ranks, leads, meet, rank_and_world

log = logging.getLogger(__name__)

TRAINED_ON = "trained_on.parquet"
PLAN = "plan.json"
Advance = Callable[[int], None]  # told the number of faces just done

# TeachConfig's fields that shape distributions/ and not the teacher
LABELLING = ("views", "label_batch", "shard_faces", "cache", "format")


def run(run: Path, config: TeachConfig, checkpoint: Path | None = None) -> dict[str, Any]:
    """Write RUN/teacher and RUN/distributions; `checkpoint`, a finished teacher, skips the training.

    Returns the teacher's accuracy on validation, the faces and views cached, and where.
    """
    prepare(config.device)
    join_ranks(config.device)
    inputs = read_inputs(run)
    (check_hdf5_names if config.format == "hdf5" else check_class_names)(inputs.faces.classes)
    teacher = checkpoint or run / "teacher"
    out = run / (f"distributions-{config.cache}" if config.cache else "distributions")
    if checkpoint is None:
        if is_finished(out) and not is_finished(teacher):
            raise FerError(
                f"{out} is finished and {teacher} is not, so another teacher made it; "
                "give --cache NAME to write beside it, or remove it"
            )
        train_teacher(inputs, teacher, config)
    else:
        read_manifest(teacher, "teacher")
    return cache_distributions(inputs, teacher, out, config)


def train_teacher(inputs: Inputs, folder: Path, config: TeachConfig) -> None:
    """Train the LDG on the labelled training faces, or find it trained already."""
    settings = {name: value for name, value in asdict(config).items() if name not in (*LABELLING, *MACHINE)}
    made_from = {"faces": reference_to(inputs.folder, folder)}
    if is_finished(folder):
        remedy = "give --checkpoint to use it as it is, or remove it to train anew"
        refuse_other(folder, read_manifest(folder, "teacher"), made_from, settings, remedy)
        log.info("teacher: already trained, %s", folder)
        return
    train, judge = inputs.labelled("train"), inputs.labelled(config.choose_on)
    check_classes(train, inputs.folder)
    classes = train.classes
    torch.manual_seed(config.seed)
    model = build(config.teacher_arch, len(classes))
    onehot = np.eye(len(classes), dtype=np.float32)[train.label]
    targets = onehot * (1 - config.label_smoothing) + config.label_smoothing / len(classes)

    def lesson(epoch: int) -> Lesson:
        boxes, flips = draw_views(config.seed, train.face_id, [epoch], inputs.facts["crop"], config.min_area)
        return Lesson(boxes, flips, targets)

    log.info("teacher: %s on %d faces at %d pixels", config.teacher_arch, len(train), config.size)
    # views, shards and the cache's name are the labelling's: they do not part a checkpoint from its training
    begun = replace(config, **{name: getattr(TeachConfig, name) for name in LABELLING})
    facts = {**inputs.facts, "faces": made_from["faces"]["manifest"]}
    weights, best = fit(model, train, lesson, judge, begun, facts, folder)
    if leads():
        with replacing(folder / TRAINED_ON) as part:
            pq.write_table(pa.table({"face_id": train.face_id, "image_hash": train.image_hash}), part)
        asked = {"arch": config.teacher_arch, "options": {}, "classes": list(classes), "size": config.size}
        finish_model(
            folder,
            "teacher",
            weights,
            {**asked, "mean": inputs.facts["mean"], "std": inputs.facts["std"]},
            files=[TRAINED_ON],
            made_from=made_from,
            settings=settings,
            facts={"train_faces": len(train), "chosen_on": config.choose_on, "best": best},
        )
    meet()


def cache_distributions(inputs: Inputs, teacher: Path, folder: Path, config: TeachConfig) -> dict[str, Any]:
    """Ask the teacher about the canonical and V replay views of every usable face, a shard at a time.

    A shard that exists is not asked about again; the manifest comes last.
    """
    faces, model, described = inputs.faces, *load_model(teacher, "teacher")
    order = _class_order(described["classes"], faces.classes, teacher)

    def ask(part: Faces, boxes: np.ndarray, flips: np.ndarray, advance: Advance = lambda count: None) -> np.ndarray:
        """(N, K, C) answers about K views of N faces, the classes in the order of faces/."""
        return predict(
            model, part, boxes, flips, size=described["size"], mean=described["mean"], std=described["std"],
            device=config.device, batch=config.label_batch, workers=config.workers, advance=advance,
        )[..., order]  # fmt: skip

    settings = {
        "views": config.views,
        "seed": config.seed,
        "min_area": config.min_area,
        "label_batch": config.label_batch,
        "shard_faces": config.shard_faces,
    }
    made_from = {"faces": reference_to(inputs.folder, folder), "teacher": reference_to(teacher, folder)}
    if is_finished(folder):
        manifest = read_manifest(folder, "distributions")
        form = "hdf5" if ONE_FILE in manifest["files"] else "parquet"
        was, now = manifest["settings"] | {"format": form}, settings | {"format": config.format}
        remedy = "give --cache NAME to write beside it, or remove it"
        refuse_other(folder, {**manifest, "settings": was}, made_from, now, remedy)
        if leads():
            _clear(folder, manifest)
        log.info("distributions: already cached, %s", folder)
        return _summary(manifest, folder)

    sanity = check_teacher(ask, inputs, config.choose_on)
    plan = {"settings": settings, "made_from": _digests(made_from), "format": config.format}
    if leads():
        _begin(folder, plan)
    meet()
    rank, world = rank_and_world()
    trained_on = set(pq.read_table(teacher / TRAINED_ON)["image_hash"].to_pylist())
    shards = [f"part-{k:05d}.parquet" for k in range(-(-len(faces) // config.shard_faces))]
    total = len(faces) * (1 + config.views)
    log.info("distributions: %s views of %s faces", f"{total:,}", f"{len(faces):,}")
    with progress("labelling", len(faces)) as advance:
        for k, name in enumerate(shards):
            rows = np.arange(k * config.shard_faces, min((k + 1) * config.shard_faces, len(faces)))
            if (folder / name).exists() or k % world != rank:
                advance(len(rows))
                continue
            part = faces.select(rows)
            boxes, flips = draw_views(
                config.seed, part.face_id, range(config.views), inputs.facts["crop"], config.min_area
            )
            whole_box, whole_flip = canonical(len(part), inputs.facts["crop"])
            answers = ask(part, np.concatenate([whole_box, boxes], 1), np.concatenate([whole_flip, flips], 1), advance)
            seen = np.array([digest in trained_on for digest in part.image_hash])
            shard = Distributions(
                classes=part.classes,
                face_id=part.face_id,
                image_hash=part.image_hash,
                split=part.split,
                label=part.label,
                fold=np.where(seen, SEEN, UNSEEN).astype(np.int8),
                canonical=answers[:, 0],
                view_box=boxes,
                view_flip=flips,
                view_distribution=answers[:, 1:],
            )
            shard.check(name)
            with replacing(folder / name) as part_file:
                write_shard(shard, part_file)
    meet()
    if leads():
        asked = {"arch": described["arch"], "size": described["size"], **sanity}
        _finish(folder, shards, made_from, settings, asked, config.format)
    meet()
    return _summary(read_manifest(folder, "distributions"), folder)


def _finish(
    folder: Path,
    shards: list[str],
    made_from: dict[str, Any],
    settings: dict[str, Any],
    teacher: dict[str, Any],
    form: str,
) -> None:
    """Read all shards back, for HDF5 assemble them, then write the manifest; what it does not name is removed last."""
    written = read_shards([folder / name for name in shards])
    facts = {
        "faces": len(written),
        "views": written.views,
        "source": "teacher",
        "min_area": settings["min_area"],
        "teacher": teacher,
        "fold_faces": {str(k): int((written.fold == k).sum()) for k in np.unique(written.fold)},
    }
    about: dict[str, Any] = {
        "classes": written.classes, "made_from": made_from, "settings": settings, "facts": facts
    }  # fmt: skip
    if form == "hdf5":
        assemble(folder, shards, describe("distributions", **about))
    files = [ONE_FILE] if form == "hdf5" else shards
    _clear(folder, write_manifest(folder, "distributions", files=files, **about))


def _clear(folder: Path, manifest: dict[str, Any]) -> None:
    """Remove what the labelling needed while it went on; killed in between, the next call does it."""
    for path in (*folder.glob("part-*.parquet"), folder / ONE_FILE, folder / PLAN):
        if path.name not in manifest["files"]:
            path.unlink(missing_ok=True)


def check_teacher(ask: Callable[..., np.ndarray], inputs: Inputs, split: str) -> dict[str, Any]:
    """The teacher's accuracy on a split; FerError if it is no better than guessing.

    A permuted class order is the field's most common silent failure, so the permutation that would mend the answers,
    if one would, is named.
    """
    judge = inputs.labelled(split)
    answers = ask(judge, *canonical(len(judge), inputs.facts["crop"]))[:, 0]
    count, classes = len(judge), judge.classes
    accuracy = float((answers.argmax(1) == judge.label).mean())
    chance = 1 / len(classes)
    if accuracy > chance:
        return {"accuracy": accuracy, "accuracy_on": split, "faces": count}
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (judge.label, answers.argmax(1)), 1)
    truth, answered = linear_sum_assignment(-confusion)
    mended = confusion[truth, answered].sum() / count
    message = (
        f"the teacher is right about {accuracy:.1%} of {count} {split} faces, "
        f"no better than guessing among {len(classes)} classes ({chance:.1%})"
    )
    # three standard errors: the best of all permutations is above chance by luck alone
    if mended > chance + 3 * np.sqrt(chance * (1 - chance) / count) and mended > 2 * accuracy:
        meant = {classes[a]: classes[t] for t, a in zip(truth, answered, strict=True)}
        named = ", ".join(meant[name] for name in (classes[k] for k in range(len(classes))))
        raise FerError(
            f"{message}; its answers would be {mended:.1%} right if its classes, now read as {', '.join(classes)}, "
            f"were {named}: correct `classes` in its {CONFIG}, or the labels"
        )
    raise FerError(f"{message}; train it longer (--epochs), at a larger --size or with another --lr")


def _class_order(answered: list[str], wanted: tuple[str, ...], teacher: Path) -> list[int]:
    if set(answered) != set(wanted):
        raise FerError(
            f"{teacher} answers for the classes {', '.join(answered)}, faces/ has {', '.join(wanted)}; "
            "give a teacher of the same classes, or fer align --classes"
        )
    return [answered.index(name) for name in wanted]


def _begin(folder: Path, plan: dict[str, Any]) -> None:
    """Start labelling, or go on with the same plan; shards of another plan are never mixed in."""
    path = folder / PLAN
    if path.exists():
        begun = {**json.loads(path.read_text()), "format": plan["format"]}  # the shards are the same for both
        if begun != json.loads(json.dumps(plan)):
            log.info("distributions: begun with another teacher or other settings; starting again")
            shutil.rmtree(folder)
    elif folder.exists() and any(folder.iterdir()):
        raise FerError(f"{folder} has files but neither {PLAN} nor a manifest; move them away and run fer teach again")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, plan)


def _digests(made_from: dict[str, Any]) -> dict[str, str]:
    return {name: reference["manifest"] for name, reference in made_from.items()}


def _summary(manifest: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {
        "distributions": str(folder),
        "faces": manifest["facts"]["faces"],
        "views": manifest["facts"]["views"],
        "teacher": manifest["facts"]["teacher"],
    }
