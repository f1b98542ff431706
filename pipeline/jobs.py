"""Independent jobs, `--shard I/N`, that each make some shards of one artifact.

The first of them notes the plan and how many they are, the others compare; the manifest is for merge.py to write.
"""

from pathlib import Path
from typing import Any

from efficientface import FerError
from efficientface.pipeline.config import Job

JOBS = "jobs"  # in a plan that jobs carry out: how many
SHARED = (
    "settings",
    "source",
    "made_from",
    "format",
    "calibrate",
    "versions",
)  # of a plan, what all jobs must agree on


def refuse_other_job(folder: Path, begun: dict[str, Any], plan: dict[str, Any], job: Job | None) -> None:
    """FerError if the jobs that began the plan in `folder` are of another number, or make something else."""
    if job is None or JOBS not in begun:
        return
    if begun[JOBS] != job.of:
        raise FerError(f"{folder} was begun by {begun[JOBS]} jobs, not {job.of}; give --shard I/{begun[JOBS]}")
    refuse_other_plan(folder, begun, plan)


def refuse_other_plan(folder: Path, begun: dict[str, Any], plan: dict[str, Any]) -> None:
    """FerError if two plans do not make the same, or not by the same versions of what they use."""
    for part in SHARED:
        was, now = begun.get(part), plan.get(part)
        if was == now:
            continue
        if part in ("source", "made_from"):
            raise FerError(
                f"{folder} was begun from other photographs, labels, faces or teachers; give all jobs the same"
            )
        name = part
        if isinstance(was, dict) and isinstance(now, dict):
            name = next(name for name in sorted(was.keys() | now.keys()) if was.get(name) != now.get(name))
            was, now = was.get(name), now.get(name)
        raise FerError(f"{folder} was begun with {name} {was}, not {now}; give all jobs the same")
