"""The whole pipeline on drawn faces, whose true mixture of expressions is known."""

import logging
from pathlib import Path
from typing import Any

from rich.table import Table

from efficientface.data.drawn import write_photos
from efficientface.pipeline import align, distill, evaluate, inspect, teach
from efficientface.pipeline.config import AlignConfig, DemoConfig, DistillConfig, TeachConfig
from efficientface.pipeline.progress import progress

log = logging.getLogger(__name__)


def draw(folder: Path, config: DemoConfig) -> str:
    """Leave `config.count` drawn faces in `folder` as labelled photographs; returns what to do with them."""
    with progress("drawing", config.count) as advance:
        written = write_photos(folder, config.count, config.seed, progress=advance, identities=config.identities)
    if config.identities:
        told = f"{config.count} drawn faces of {config.identities} people in {folder}, a folder each"
        return f"{told}; next: fer align {folder} RUN --layout identities"
    return f"{config.count} drawn faces in {folder}, described by {written}; next: fer align {folder} RUN"


def run(run: Path, config: DemoConfig) -> dict[str, Any]:
    """Draw, align, teach, distil twice (from the cache, and from single labels) and evaluate, all under `run`."""
    log.info(
        "%d drawn faces, a %s LDG and %d pixels keep this short; --count, --teacher-arch and --size change that",
        config.count, config.teacher_arch, config.size,
    )  # fmt: skip
    photos = run / "photos"
    draw(photos, config)
    # at 64 pixels brows and lips are a few pixels high: a tight crop makes the most of them
    align.run(photos, run, AlignConfig(eye_distance=0.42, seed=config.seed))
    # One cycle and gentle crops: the paper's schedule and its crops down to 8 % of the face need 100 epochs.
    common: dict[str, Any] = {
        "size": config.size,
        "schedule": "onecycle",
        "min_area": 0.5,
        "device": config.device,
        "seed": config.seed,
    }
    taught: dict[str, Any] = {"teacher_arch": config.teacher_arch, "epochs": config.teacher_epochs, "views": 5}
    teach.run(run, TeachConfig(lr=0.1, batch_size=32, label_smoothing=0.1, **taught, **common))
    students = {}
    for loss in ("ldl", "sll"):
        lesson = DistillConfig(loss=loss, epochs=config.epochs, lr=0.7, batch_size=64, **common)
        students[loss] = distill.run(run, lesson)
    result = evaluate.run(run, "test", device=config.device)
    faces = inspect.some_faces(run / "distributions", count=3)
    artifacts = {
        "photographs": photos,
        "faces": run / "faces",
        "teacher": run / "teacher",
        "distributions": run / "distributions",
        "student (ldl)": students["ldl"]["student"],
        "student (sll)": students["sll"]["student"],
        "evaluation": run / "evaluation",
    }
    return {
        "evaluation": result,
        "artifacts": {name: str(path) for name, path in artifacts.items()},
        "faces": faces,
    }


def tables(result: dict[str, Any]) -> list[Any]:
    """One table of models, where everything lies, and a few faces."""
    where = Table("artifact", "where", title="Artifacts")
    for name, path in result["artifacts"].items():
        where.add_row(name, path)
    return [evaluate.comparison(result["evaluation"], "true mixture"), where, *inspect.face_tables(result["faces"])]
