"""`fer cache issues`: likely label errors and ambiguous faces, from answers of teachers that had not seen the face."""

from pathlib import Path
from typing import Any

import numpy as np

from efficientface import FerError
from efficientface.cache.distributions import SEEN, UNSEEN, Distributions
from efficientface.cache.summary import entropy, most_ambiguous
from efficientface.data.faces import read_table
from efficientface.pipeline.artifact import data_files, read_manifest
from efficientface.pipeline.caches import open_cache
from efficientface.pipeline.progress import working
from efficientface.pipeline.status import sources_of

MEASURED = 100  # of the faces named first: how many did people disagree about?
DISAGREED = "at most half of a face's votes, those for unknown and not-a-face counted, are for its label"


def issues(path: Path, top: int = 20) -> dict[str, Any]:
    """Faces whose label is likely wrong (cleanlab, prune by noise rate, least probable label first) and the faces
    of the largest entropy, `top` of each; where people voted on faces, how many of the first hundred they disagreed
    about, and how many of all.
    """
    if top < 1:
        raise FerError(f"--top {top} is out of range; give a number from 1")
    cache = open_cache(path)
    cached = cache.read(views=False)
    unseen = cached.select(fit_to_judge(cached, cache.manifest, path))
    wrong = label_issues(unseen, path)
    ambiguous = most_ambiguous(unseen, len(unseen))
    votes = label_votes(cache.folder, cache.manifest, unseen)
    return {
        "path": str(path),
        "faces": len(unseen),
        "left_out": len(cached) - len(unseen),
        "named": len(wrong),
        "votes": None
        if votes is None
        else {
            "disagreed_means": DISAGREED,
            "all": _disagreed(votes),
            "named_first": _disagreed(votes[wrong[:MEASURED]]),
            "ambiguous_first": _disagreed(votes[ambiguous[:MEASURED]]),
        },
        "label_errors": [_face(unseen, row, votes) for row in wrong[:top]],
        "ambiguous": [_face(unseen, row, votes) for row in ambiguous[:top]],
    }


def likely_label_errors(cached: Distributions, manifest: dict[str, Any], path: Path) -> np.ndarray:
    """Rows of `cached` whose label is likely wrong, the likeliest first; FerError where that cannot be told."""
    rows = fit_to_judge(cached, manifest, path)
    return rows[label_issues(cached.select(rows), path)]


def fit_to_judge(cached: Distributions, manifest: dict[str, Any], path: Path) -> np.ndarray:
    """Rows of the labelled faces that were answered by teachers that had not trained on them."""
    source = manifest["settings"].get("source", "ldg")
    if source != "ldg":
        raise FerError(
            f"{path} holds {source}, and labels or votes in a distribution say nothing against the label; "
            "give a cache of --source ldg, best one of fer teach --folds 5 --cache oof"
        )
    labelled, training = cached.label >= 0, cached.split == "train"
    unseen = labelled & ((cached.fold >= 0) | (cached.fold == UNSEEN))
    if training.any() and not (unseen & training).any() and (cached.fold[training] == SEEN).any():
        raise FerError(
            f"{path} has answers about its {int(training.sum()):,} training faces only from a teacher that had trained "
            "on them, which say little about their labels; run fer teach RUN --folds 5 --cache oof, and give "
            "RUN/distributions-oof"
        )
    if not unseen.any():
        raise FerError(
            f"{path} has no labelled face that a teacher answered about without having trained on it; "
            "run fer teach RUN --folds 5 --cache oof, and give RUN/distributions-oof"
        )
    return np.flatnonzero(unseen)


def label_issues(unseen: Distributions, path: Path) -> np.ndarray:
    """Rows whose label is likely wrong, the likeliest first."""
    try:
        from cleanlab.filter import find_label_issues
    except ImportError as error:
        raise FerError("fer cache issues needs cleanlab; pip install 'efficientface[issues]'") from error
    # exact sums: cleanlab refuses what softmax in float32 leaves
    probabilities = unseen.canonical.astype(np.float64)
    probabilities /= probabilities.sum(1, keepdims=True)
    try:
        # one process: on tens of thousands of faces others would take longer to start than to work
        with working("looking for labels that are likely wrong"):
            return find_label_issues(unseen.label, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    except ValueError as error:
        raise FerError(f"{path} is nothing that cleanlab can judge ({str(error).splitlines()[0]})") from error


def label_votes(folder: Path, manifest: dict[str, Any], unseen: Distributions) -> np.ndarray | None:
    """(N,) share of a face's votes that are for its label, NaN where nobody voted; None without any votes.

    The votes are those of the faces/ that the cache was made from, for the same picture.
    """
    source = {source["name"]: source for source in sources_of(folder, manifest)}.get("faces")
    if source is None or source["state"] in ("not there", "not checked"):
        return None
    faces = Path(source["path"])
    made = read_manifest(faces, "faces")
    if not set(unseen.classes) <= set(made["classes"]):
        return None
    known: dict[tuple[str, str], tuple[list[float], list[float] | None]] = {}
    for file in data_files(faces, made):
        table = read_table(file, images=False)
        columns = [table[name].to_pylist() for name in ("face_id", "image_hash", "votes", "votes_other")]
        known |= {(key, picture): (votes, other) for key, picture, votes, other in zip(*columns, strict=True) if votes}
    shares = np.full(len(unseen), np.nan)
    for row, key in enumerate(zip(unseen.face_id, unseen.image_hash, strict=True)):
        if key in known:
            votes, other = known[key]
            total = sum(votes) + sum(other or [])
            label = made["classes"].index(unseen.classes[unseen.label[row]])
            shares[row] = votes[label] / total if total else np.nan
    return None if np.isnan(shares).all() else shares


def _disagreed(shares: np.ndarray) -> dict[str, Any]:
    """Of faces that people voted on: how many, and about how many of them they disagreed."""
    voted = shares[~np.isnan(shares)]
    count = int((voted <= 0.5).sum())
    return {"faces": len(voted), "disagreed": count, "share": count / len(voted) if len(voted) else None}


def _face(unseen: Distributions, row: int, votes: np.ndarray | None) -> dict[str, Any]:
    p, label = unseen.canonical[row], unseen.label[row]
    share = None if votes is None or np.isnan(votes[row]) else float(votes[row])
    return {
        "face_id": unseen.face_id[row],
        "split": unseen.split[row],
        "label": unseen.classes[label],
        "label_probability": float(p[label]),
        "top": unseen.classes[p.argmax()],
        "top_probability": float(p.max()),
        "entropy": float(entropy(p)),
        "votes_for_label": share,
    }


def tables(result: dict[str, Any]) -> list[Any]:
    """What was named, what people say about it, and the faces."""
    from rich.text import Text

    from efficientface.pipeline.inspect_tables import grid, label_text, listing, text

    facts = grid()
    facts.add_row("cache", text(result["path"]))
    left = f"; {result['left_out']:,} left out, without a label or seen in training" if result["left_out"] else ""
    facts.add_row("faces judged", f"{result['faces']:,}{left}")
    facts.add_row("likely errors", f"{result['named']:,}, {result['named'] / result['faces']:.1%}")
    if result["votes"]:
        facts.add_row("people disagreed", Text(f"{result['votes']['disagreed_means']}:", style="dim"))
        told = {"named_first": "of the errors named first", "ambiguous_first": "of the most ambiguous", "all": "of all"}
        for key, what in told.items():
            part = result["votes"][key]
            if part["faces"]:
                facts.add_row("", f"{part['disagreed']:,} of {part['faces']:,} ({part['share']:.1%}) {what}")
    shown: list[Any] = [facts]
    voted = result["votes"] is not None
    heads = {"label_errors": "likely label errors, likeliest first", "ambiguous": "most ambiguous, by entropy"}
    for key, head in heads.items():
        columns = (head, "split", "label", "its p", "teacher", "p", "entropy", *(["votes for label"] * voted))
        table = listing(*columns, right=(3, 5, 6, 7)[: 4 if voted else 3])
        for row in result[key]:
            cells: list[Any] = [text(row["face_id"]), text(row["split"] or ""), label_text(row["label"])]
            cells += [f"{row['label_probability']:.1%}", text(row["top"]), f"{row['top_probability']:.1%}"]
            share = "" if row["votes_for_label"] is None else f"{row['votes_for_label']:.0%}"
            table.add_row(*cells, f"{row['entropy']:.2f}", *([share] * voted))
        shown += [Text(), table]
    return shown
