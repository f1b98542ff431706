"""`fer cache diff`: how two caches of the same faces differ, two teachers, two seeds, or a teacher and people."""

from pathlib import Path
from typing import Any

import numpy as np

from efficientface import FerError
from efficientface.cache.comparison import js, kl
from efficientface.cache.summary import quantiles
from efficientface.data.words import places
from efficientface.pipeline.caches import open_cache


def diff(a: Path, b: Path, top: int = 10) -> dict[str, Any]:
    """Faces matched by id, classes by name; canonical distributions alone.

    Divergences are in nats. The `top` faces are those of the largest Jensen-Shannon divergence: unlike
    KL it is not ruled by probabilities that one of the two rounds to zero.
    """
    if top < 0:
        raise FerError(f"--top {top} is out of range; give a number from 0")
    first = open_cache(a).read(views=False)
    second = open_cache(b).read(views=False)
    if set(first.classes) != set(second.classes):
        raise FerError(
            f"{a} has the classes {', '.join(first.classes)}, {b} has {', '.join(second.classes)}; "
            "only caches of the same classes can be compared"
        )
    second = second.in_order_of(first.classes, str(b))
    place = places(first.face_id, second.face_id)
    rows = np.flatnonzero(place >= 0)
    if not len(rows):
        raise FerError(f"{a} and {b} have no face in common ({len(first):,} and {len(second):,} faces)")
    only = {"a": len(first) - len(rows), "b": len(second) - len(rows)}
    first, second = first.select(rows), second.select(place[rows])
    p, q = first.canonical, second.canonical
    figures = {"kl_a_b": kl(p, q), "kl_b_a": kl(q, p), "js": js(p, q)}
    tops = p.argmax(1), q.argmax(1)
    same = tops[0] == tops[1]
    classes = first.classes
    moved = np.argsort(-figures["js"], kind="stable")[:top]
    return {
        "a": str(a),
        "b": str(b),
        "classes": list(classes),
        "faces": len(first),
        "only_in_a": only["a"],
        "only_in_b": only["b"],
        "other_picture": int((first.image_hash != second.image_hash).sum()),
        "other_label": int((first.label != second.label).sum()),
        "agree": int(same.sum()),
        "share": float(same.mean()),
        **{name: {"mean": float(values.mean()), **quantiles(values)} for name, values in figures.items()},
        "by_class": [_of_class(k, name, first.label == k, p, q, tops) for k, name in enumerate(classes)],
        "moved": [
            {
                "face_id": first.face_id[row],
                "split": first.split[row],
                "label": classes[first.label[row]] if first.label[row] >= 0 else None,
                "top_a": classes[tops[0][row]],
                "p_a": float(p[row].max()),
                "top_b": classes[tops[1][row]],
                "p_b": float(q[row].max()),
                **{name: float(values[row]) for name, values in figures.items()},
            }
            for row in moved
        ],
    }


def _of_class(
    k: int, name: str, labelled: np.ndarray, p: np.ndarray, q: np.ndarray, tops: tuple[np.ndarray, np.ndarray]
) -> dict[str, Any]:
    """Class k: its mean probability over all faces, and over the faces labelled so what the two say of them."""
    count = int(labelled.sum())
    return {
        "class": name,
        "mean_a": float(p[:, k].mean(dtype=np.float64)),
        "mean_b": float(q[:, k].mean(dtype=np.float64)),
        "labelled": count,
        "agree": float((tops[0] == tops[1])[labelled].mean()) if count else None,
        "right_a": float((tops[0] == k)[labelled].mean()) if count else None,
        "right_b": float((tops[1] == k)[labelled].mean()) if count else None,
    }


def tables(result: dict[str, Any]) -> list[Any]:
    """Counts, divergences, a row a class, and the faces that moved most."""
    from rich.text import Text

    from efficientface.pipeline.inspect_tables import grid, label_text, listing, text

    facts = grid()
    facts.add_row("A", text(result["a"]))
    facts.add_row("B", text(result["b"]))
    others = f"; only in A {result['only_in_a']:,}, only in B {result['only_in_b']:,}"
    facts.add_row("faces", f"{result['faces']:,} in both{others}")
    for key, what in (("other_picture", "another picture (image_hash)"), ("other_label", "another label")):
        if result[key]:
            facts.add_row("", f"{result[key]:,} of them with {what} in B")
    facts.add_row("agreement", f"the same most probable class for {result['agree']:,}, {result['share']:.1%}")
    spreads = listing("nats a face", "mean", "median", "p95", "max", right=range(1, 5))
    for key, name in (("kl_a_b", "KL(A || B)"), ("kl_b_a", "KL(B || A)"), ("js", "Jensen-Shannon")):
        spreads.add_row(name, *[f"{result[key][part]:.4f}" for part in ("mean", "median", "p95", "max")])
    head = ("class", "mean p in A", "in B", "labelled so", "agree", "right in A", "in B")
    classes = listing(*head, right=range(1, len(head)))
    for row in result["by_class"]:
        shares = [f"{row[key]:.1%}" if row[key] is not None else "" for key in ("agree", "right_a", "right_b")]
        means = [f"{100 * row[key]:.2f}%" for key in ("mean_a", "mean_b")]
        classes.add_row(label_text(row["class"]), *means, f"{row['labelled']:,}", *shares)
    shown = [facts, Text(), spreads, Text(), classes]
    if result["moved"]:
        columns = ("label", "top in A", "", "top in B", "", "JS", "KL(A||B)", "KL(B||A)")
        moved = listing("moved most, by Jensen-Shannon", *columns, right=(3, 5, 6, 7, 8))
        for row in result["moved"]:
            tops: list[Any] = [text(row["top_a"]), f"{row['p_a']:.0%}", text(row["top_b"]), f"{row['p_b']:.0%}"]
            divergences = [f"{row[key]:.3f}" for key in ("js", "kl_a_b", "kl_b_a")]
            moved.add_row(text(row["face_id"]), label_text(row["label"]), *tops, *divergences)
        shown += [Text(), moved]
    return shown
