"""`fer merge`: what independent jobs (--shard I/N) have made becomes one artifact, the one of a single process."""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from efficientface import FerError, untrusted
from efficientface.data.layouts.files import listed, plural
from efficientface.pipeline import align, label, show
from efficientface.pipeline.artifact import alone, digest_of, is_finished, read_manifest, replacing
from efficientface.pipeline.jobs import JOBS, refuse_other_plan
from efficientface.pipeline.ranks import lock_of

MOST_NAMED = 20  # jobs in a sentence


def run(run: Path, others: Sequence[Path] = ()) -> dict[str, Any]:
    """Finish every artifact of `run` that jobs have begun, there or in the run folders `others`, copies of it.

    Returns by artifact what `fer align` and `fer teach` return.
    """
    roots = [run, *others]
    for root in roots:
        if not any(is_begun(path) or is_finished(path) for path in artifacts(root)):
            raise FerError(
                f"{root} holds nothing that jobs have made; run fer align or fer teach with --shard I/N first"
            )
    names = sorted({path.name for root in roots for path in artifacts(root) if is_begun(path)}, key=in_order)
    names = names or sorted((path.name for path in artifacts(run) if is_finished(path)), key=in_order)
    return {name: (faces if name == "faces" else distributions)(roots, name) for name in names}


def artifacts(root: Path) -> list[Path]:
    """The folders in which jobs may have begun something."""
    return [root / "faces", *root.glob("distributions"), *root.glob("distributions-*")]


def in_order(name: str) -> tuple[bool, str]:
    """Faces first: distributions are about them."""
    return name != "faces", name


def is_begun(folder: Path) -> bool:
    """Whether jobs have begun it, and it is not finished."""
    return not is_finished(folder) and JOBS in (plan_in(folder) or {})


def faces(roots: Sequence[Path], name: str) -> dict[str, Any]:
    """Finish faces/."""
    began, folder = time.monotonic(), roots[0] / name
    align.make_folder(folder)
    with alone(folder, roots[0] / align.LOCK, "fer align", "choose another run folder"):
        if is_finished(folder):
            facts = read_manifest(folder, "faces")["facts"]
        else:
            plan, folders = common_plan(roots, name)
            gather(
                folders, align.shard_names(plan), plan, "fer align", lambda path: align.is_done(path, plan["digest"])
            )
            facts = align.finish(folder, roots[0], plan)
    return align.summary(folder, facts, began)


def distributions(roots: Sequence[Path], name: str) -> dict[str, Any]:
    """Finish a cache."""
    folder = roots[0] / name
    with alone(folder, lock_of(folder, roots[0]), "fer teach", "give --cache NAME to write beside it"):
        if not is_finished(folder):
            plan, folders = common_plan(roots, name)
            about = roots[0] / "faces"
            if not is_finished(about) or digest_of(about) != plan["made_from"]["faces"]:
                raise FerError(f"{folders[-1]} is about other faces than {about} holds; merge those of the same run")
            gather(folders, label.shard_names(plan), plan, "fer teach", label.is_whole)
            label.finish(folder, plan)
    return label.summary(read_manifest(folder, "distributions"), folder)


def plan_in(folder: Path) -> dict[str, Any] | None:
    """The plan that is noted in a folder, None where there is none."""
    path = folder / align.PLAN
    try:
        plan = untrusted.read_json(path)
        counts = plan["settings"]["shard_faces"], plan.get("images", plan.get("rows", 0)) + 1, plan.get(JOBS, 1)
        if all(type(count) is int and count > 0 for count in counts):
            return dict(plan)
        raise ValueError
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise FerError(f"{path} is damaged; remove {folder} and run its jobs again") from error


def common_plan(roots: Sequence[Path], name: str) -> tuple[dict[str, Any], list[Path]]:
    """The plan of all folders of that name that jobs have begun, and these folders, that of the first root in front."""
    plans = {root / name: plan for root in roots if (plan := plan_in(root / name)) is not None}
    first = next(iter(plans.values()))
    for folder, plan in plans.items():
        refuse_other_plan(folder, plan, first)
    return first, list(dict.fromkeys([roots[0] / name, *plans]))


def gather(
    folders: Sequence[Path], names: Sequence[str], plan: dict[str, Any], stage: str, is_done: Callable[[Path], bool]
) -> None:
    """Copy the shards that the first folder lacks into it; FerError, and nothing copied, if one is nowhere."""
    target = folders[0]
    found = {name: next(filter(is_done, (folder / name for folder in folders)), None) for name in names}
    missing = [number for number, name in enumerate(names) if found[name] is None]
    if missing:
        jobs = sorted({number % plan[JOBS] + 1 for number in missing})
        told = [f"{job}/{plan[JOBS]}" for job in jobs[:MOST_NAMED]]
        told += [f"{len(jobs) - MOST_NAMED} others"] if len(jobs) > MOST_NAMED else []
        raise FerError(
            f"{target} lacks {len(missing):,} of {plural(len(names), 'shard')} (first {names[missing[0]]}), the work "
            f"of --shard {listed(told, 'and')}; run {stage} so again, or name the run folder that has them"
        )
    target.mkdir(parents=True, exist_ok=True)
    for name, path in found.items():
        if path is not None and path != target / name:
            with replacing(target / name) as part:
                shutil.copyfile(path, part)


def tables(result: dict[str, Any]) -> list[Any]:
    """What `fer align` and `fer teach` show."""
    return [
        table
        for name, told in result.items()
        for table in (show.alignment(told) if name == "faces" else show.facts(told))
    ]
