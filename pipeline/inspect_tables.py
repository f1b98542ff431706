"""What `fer inspect` found, for a terminal; plain enough to be read in a pipe without colours."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.bar import Bar
from rich.cells import set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from efficientface.pipeline.status import amount, printable, status_tables

MOST_COLUMNS = 10  # with more classes, distributions are told in words
MOST_NAMES = 50  # with more classes, people's names, only their number is told
BAR = 40  # cells
WIDE = 100  # cells that a line about a face needs, with an id of some length
# Settings of a training that tell most about its result.
TOLD = ("loss", "cache", "sampling", "label_smoothing", "batch_size", "lr", "schedule", "min_area", "precision", "seed")


def tables(result: dict[str, Any]) -> list[Any]:
    """Whatever `run` returned, for a terminal."""
    shown = {
        "run": status_tables,
        "faces": faces_tables,
        "distributions": distributions_tables,
        "top": top_tables,
        "face": one_face_tables,
    }
    return shown.get(result["kind"], model_tables)(result)


def faces_tables(result: dict[str, Any]) -> list[Any]:
    settings = result["settings"]
    facts = grid()
    facts.add_row("made from", sources_text(result["made_from"]))
    facts.add_row("rows", f"{result['rows']:,}, {result['faces']:,} of them with a face")
    labels = f"{result['labelled']:,} with a label, {result['faces'] - result['labelled']:,} without"
    facts.add_row("labels", labels + (f", {result['with_votes']:,} with votes" if result["with_votes"] else ""))
    if result["groups"]:
        facts.add_row("groups", f"{result['groups']:,}")
    if "crop" in settings:
        encoded = f", {settings['encode']}" if "encode" in settings else ""
        facts.add_row("pictures", text(f"{settings['crop']} x {settings['crop']} pixels{encoded}"))
    for name in ("mean", "std"):
        if result[name]:
            facts.add_row(name, "  ".join(f"{value:.4f}" for value in result[name]) + "  (red, green, blue; 0 to 1)")
    if result["decoders"]:
        decoders = [f"{version} for {what}" for what, version in result["decoders"].items()]
        facts.add_row("decoders", text(", ".join(decoders)))
    if result["detector"]:
        facts.add_row("detector", text(result["detector"]))
    for k, note in enumerate(result["notes"] or []):
        facts.add_row("notes" if k == 0 else "", text(note))
    facts.add_row("size", bytes_text(result["bytes"]))

    outcome = listing("status", "rows", "share", "without a face: why, and which first", right=(1, 2))
    for part in result["statuses"]:
        why = Text(overflow="fold")
        reasons = [f"{reason['reason']} ({reason['rows']:,})" for reason in part["reasons"]]
        reasons += [f"{part['further_reasons']:,} further reasons"] * bool(part["further_reasons"])
        first = [row["face_id"] for row in part["first"]]
        why.append(printable("; ".join(reasons)))
        if first:
            why.append(("\n" if reasons else "") + "first: ", "dim").append(printable(", ".join(first)))
        share = part["rows"] / result["rows"]
        outcome.add_row(text(part["status"]), f"{part['rows']:,}", f"{share:.2%}", why)

    splits = list(result["splits"])
    counts = listing("label", *[split or "no split" for split in splits], "all", right=range(1, len(splits) + 2))
    for row in result["labels"]:
        cells = [f"{row['splits'].get(split, 0):,}" for split in splits]
        counts.add_row(label_text(row["label"]), *cells, f"{row['faces']:,}")
    counts.add_row("all", *[f"{result['splits'][split]:,}" for split in splits], f"{result['faces']:,}")
    return [heading(result), facts, Text(), outcome, Text(), counts]


def distributions_tables(result: dict[str, Any]) -> list[Any]:
    facts, teacher = grid(), result["teacher"]
    facts.add_row("made from", sources_text(result["made_from"]))
    left_out = f"; {result['left_out']:,} left out, {result['left_out_because']}" if result["left_out"] else ""
    facts.add_row("faces", f"{result['faces']:,}, {result['all']['labelled']:,} with a label{left_out}")
    views = f"{amount(result['views'])} a face, beside the whole one" if result["views"] else "none, for per-image use"
    facts.add_row("stored views", text(views))
    if isinstance(teacher, dict):
        words = [str(teacher["arch"])] if "arch" in teacher else []
        words += [f"{teacher['size']} pixels"] if "size" in teacher else []
        words += [f"{teacher['accuracy']:.1%} right on {teacher['accuracy_on']}"] if "accuracy" in teacher else []
        facts.add_row(text(result["source"] or "source"), text(", ".join(words)))
    elif result["source"]:
        facts.add_row("source", text(result["source"]))
    for k, fold in enumerate(result["folds"]):
        facts.add_row("fold" if k == 0 else "", f"{fold['fold']:>2}  {fold['faces']:,} faces: {fold['meaning']}")
    spread = result["entropy"]
    mean = f"{spread['mean']:.3f} nats, {spread['share_of_maximum']:.1%} of the possible {spread['maximum']:.3f}"
    facts.add_row("mean entropy", mean)
    names = ("min", "p5", "p25", "median", "p75", "p95", "max")
    facts.add_row("", "   ".join(f"{name} {spread[name]:.3f}" for name in names))
    facts.add_row("mean largest p", f"{result['largest_probability']['mean']:.1%}")
    facts.add_row("size", bytes_text(result["bytes"]))

    splits = listing("split", "faces", "with label", "agree", "share", "entropy", right=range(1, 6))
    for row in [*result["splits"], {"split": "all", **result["all"]}]:
        agreed = (f"{row['agree']:,}", f"{row['share']:.1%}") if row["labelled"] else ("", "")
        name = text(row["split"] or "no split")
        splits.add_row(name, f"{row['faces']:,}", f"{row['labelled']:,}", *agreed, f"{row['entropy']:.3f}")
    return [heading(result), facts, Text(), splits, Text(), means_table(result)]


def means_table(result: dict[str, Any]) -> Table:
    """Rows are labels, columns the mean probability of every class in percent."""
    classes = result["classes"]
    columns = len(classes) <= MOST_COLUMNS
    told = classes if columns else ["mean distribution, the most probable classes"]
    right = range(1, 4 + len(classes) if columns else 4)
    table = listing("label", "faces", "agree", "entropy", *told, right=right)
    for column in table.columns[:4]:
        column.no_wrap = True  # of what is too wide, the classes' names are shortened, not the numbers
    if columns:
        table.padding = (0, 1, 0, 0)
        table.title = Text("mean distribution of the faces of a label, in %", style="dim")
        table.title_justify = "left"
    for row in [*result["labels"], result["all"]]:
        first = label_text(row["label"]) if "label" in row else Text("all")
        share = f"{row['share']:.1%}" if row["share"] is not None else ""
        nats = f"{row['entropy']:.3f}" if row["entropy"] is not None else ""
        if not row["faces"]:
            cells = [Text()] * len(told)
        elif columns:
            cells = [percent(p, name == row.get("label")) for name, p in zip(classes, row["mean"], strict=True)]
        else:
            cells = [text(in_words(dict(zip(classes, row["mean"], strict=True)), most=4))]
        table.add_row(first, f"{row['faces']:,}", share, nats, *cells)
    return table


def top_tables(result: dict[str, Any]) -> list[Any]:
    """The faces in their order, each with its distribution as a line of bars."""
    what = "by entropy, largest first" if result["top"] == "ambiguous" else "by their label's probability, least first"
    title = Text.assemble((f"most {result['top']}", "bold cyan"), "  ", (printable(result["path"]), "bold"))
    title.append(f"  {len(result['faces'])} of {result['of']:,} faces {what}", "dim")
    return [title, *face_tables(result["faces"])]


def face_tables(faces: list[dict[str, Any]]) -> list[Any]:
    """A line a face: its label, its distribution as small upright bars, and what they say."""
    return [FaceLines(faces)] if faces else [Text("no faces", style="dim")]


@dataclass(frozen=True)
class FaceLines:
    """The table of face_tables; a narrow terminal gets thinner bars and fewer columns, so that ids stay whole."""

    faces: list[dict[str, Any]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = options.max_width >= WIDE
        classes = list(self.faces[0]["distribution"])
        heads = ["face", *(["split"] if wide else []), "label", initials(classes) if wide else "bars", "says", ""]
        heads += ["label's p", *(["entropy"] if wide else [])]
        table = listing(*heads, right=[k for k, head in enumerate(heads) if head in ("", "label's p", "entropy")])
        table.columns[0].overflow = "fold"
        for column in table.columns[1:]:
            column.no_wrap = True
        for face in self.faces:
            own, agrees = face["label_probability"], face["top"] == face["label"]
            table.add_row(
                text(face["face_id"]),
                *([text(face["split"] or "")] if wide else []),
                label_text(face["label"]),
                upright(face["distribution"], face["label"], wide),
                text(face["top"], style="green" if agrees else "yellow" if own is not None else ""),
                f"{face['top_probability']:.1%}",
                f"{own:.1%}" if own is not None else "",
                *([f"{face['entropy']:.2f}"] if wide else []),
            )
        yield table


def one_face_tables(result: dict[str, Any]) -> list[Any]:
    """Bars a class; beside them the votes, below the stored views."""
    facts = grid()
    facts.add_row("label", label_text(result["label"]))
    facts.add_row("split", text(result["split"] or "no split"))
    shown = [heading({**result, "kind": "face", "path": result["face_id"]}), facts]
    if "distribution" in result:
        facts.add_row("fold", f"{result['fold']}: {result['fold_meaning']}")
        facts.add_row("entropy", f"{result['entropy']:.3f} nats, {result['share_of_maximum']:.1%} of the possible")
        shown += [Text(), bars(result)]
    else:
        found = f"{result['status']}" + (f" ({result['reason']})" if result["reason"] else "")
        facts.add_row("status", text(found))
        facts.add_row("source", text(result["source"]))
        for name in ("group", "image_hash", "n_faces"):
            if result[name] is not None:
                facts.add_row(name.replace("_", " "), text(result[name]))
        if result["box"]:
            x1, y1, x2, y2 = result["box"]
            facts.add_row("box", f"{x1:.0f}, {y1:.0f} to {x2:.0f}, {y2:.0f} pixels of the source")
        if result["score"] is not None:
            facts.add_row("score", f"{result['score']:.3f}")
        if result["yaw"] is not None:
            angles = f"yaw {result['yaw']:.0f}, pitch {result['pitch']:.0f}, roll {result['roll']:.0f} degrees"
            facts.add_row("pose", angles)
        if result["votes_other"]:
            unknown, no_face = result["votes_other"]
            facts.add_row("other votes", f"{unknown:g} unknown, {no_face:g} not a face")
        if result["votes"]:
            shown += [Text(), bars(result)]
    if result.get("views"):
        shown += [Text(), views_table(result)]
    return shown


def bars(result: dict[str, Any]) -> Table:
    """A row a class: distribution and votes, each as a lying bar and a number."""
    distribution, votes = result.get("distribution"), result.get("votes")
    width = BAR if not (distribution and votes) else BAR // 2
    total = sum(votes.values()) if votes else 0
    heads: list[str] = []
    if distribution:
        heads += ["distribution", ""]
    if votes:
        heads += [f"{total:g} votes" if total > 1.001 else "votes", ""]  # shares have no count
    table = listing("", *heads, right=[k for k in range(1, len(heads) + 1) if k % 2 == 0])
    for name in result["classes"]:
        own = name == result["label"]
        first = Text.assemble(printable(name), " ◂ label" if own else "", style="bold green" if own else "")
        cells: list[Any] = []
        if distribution:
            p = distribution[name]
            cells += [Bar(1.0, 0, p, width=width, color="green" if own else "cyan"), f"{p:.1%}"]
        if votes:
            cells += [Bar(total or 1.0, 0, votes[name], width=width, color="magenta"), f"{votes[name]:g}"]
        table.add_row(first, *cells)
    return table


def views_table(result: dict[str, Any]) -> Table:
    """The stored views: where they lie in the face, and what the teacher said of them."""
    heads = ("view", "top", "left", "height", "width", "flip", initials(result["classes"]), "says", "")
    table = listing(*heads, right=(0, 1, 2, 3, 4, 8))
    table.columns[6].no_wrap = True
    for k, view in enumerate(result["views"], 1):
        table.add_row(
            str(k),
            *map(str, view["box"]),
            "flip" if view["flip"] else "",
            upright(view["distribution"], result["label"], wide=True),
            text(view["top"], style="" if view["top"] == result["top"] else "yellow"),
            f"{view['top_probability']:.1%}",
        )
    return table


def model_tables(result: dict[str, Any]) -> list[Any]:
    facts, settings = grid(), result["settings"]
    facts.add_row("made from", sources_text(result["made_from"]))
    options = "".join(f", {name} {value}" for name, value in (result["options"] or {}).items())
    facts.add_row("network", text(f"{result['arch']}{options}, {result['parameters']:,} parameters"))
    facts.add_row("input", text(f"{result['size']} x {result['size']} pixels"))
    classes = result["classes"]
    many = f"{len(classes):,}{' identities' if result['kind'] == 'identities' else ''}, first {classes[0]}"
    facts.add_row("classes", text(", ".join(classes) if len(classes) <= MOST_NAMES else many))
    if not result["epochs"]:
        facts.add_row("trained", text("elsewhere, and imported"))
        facts.add_row("size", bytes_text(result["bytes"]))
        return [heading(result), facts]
    words = [f"{name.replace('_', ' ')} {settings[name]}" for name in TOLD if settings.get(name) not in (None, "")]
    facts.add_row("trained", text(f"on {amount(result['train_faces'])} faces: {', '.join(words)}"))
    best = result["best"] or {}
    if {"epoch", "val_accuracy", "val_cross_entropy"} <= best.keys():
        line = f"{best['epoch']} of {result['epochs']}: {best['val_accuracy']:.2%} right on {result['chosen_on']}"
        facts.add_row("best epoch", text(f"{line}, cross-entropy {best['val_cross_entropy']:.3f} nats"))
    facts.add_row("accuracy", curve(result["val_accuracy"]))
    facts.add_row("size", bytes_text(result["bytes"]))
    last = listing("epoch", "loss", "accuracy", "cross-entropy", "lr", "seconds", "faces/s", right=range(7))
    for line in result["last"]:
        last.add_row(
            str(line["epoch"]),
            f"{line['loss']:.4f}",
            f"{line['val_accuracy']:.2%}",
            f"{line['val_cross_entropy']:.3f}",
            f"{line['lr']:.3g}",
            f"{line['seconds']:.1f}",
            f"{line['faces_per_second']:,.0f}",
        )
    return [heading(result), facts, Text(), last]


# --- parts ----------------------------------------------------------------------------------------------------


def text(value: Any, style: str = "") -> Text:
    """A value from a file, never read as rich's markup."""
    return Text(printable(value), style=style)


def label_text(label: str | None) -> Text:
    return Text("no label", style="dim") if label is None else text(label)


def heading(result: dict[str, Any]) -> Text:
    return Text.assemble((result["kind"], "bold cyan"), "  ", (printable(result["path"]), "bold"))


def grid() -> Table:
    """Names and values."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def listing(*heads: str | Text, right: Sequence[int] = ()) -> Table:
    """A table without lines; the columns at `right` are set to the right."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for k, head in enumerate(heads):
        table.add_column(head if isinstance(head, Text) else text(head), justify="right" if k in right else "left")
    return table


def sources_text(sources: list[dict[str, Any]]) -> Text:
    """What an artifact was made from, one a line, with a warning where it is not the same any more."""
    lines = []
    width = max((len(source["name"]) for source in sources), default=0)
    for source in sources:
        line = text(f"{source['name']:{width}}  {source['path']}")
        if source["state"] == "changed":
            line.append("  changed since: this artifact is stale", "yellow")
        elif source["state"] != "unchanged":
            line.append(f"  {source['state']}", "dim")
        lines.append(line)
    return Text("\n").join(lines) if lines else Text("not said", style="dim")


def percent(p: float, own: bool) -> Text:
    """A cell of the table of means: the label's own class stands out, and so does what it is taken for."""
    style = "bold green" if own else "yellow" if p >= 0.2 else "" if p >= 0.05 else "dim"
    return Text(f"{100 * p:.1f}", style=style)


def in_words(distribution: dict[str, float], most: int) -> str:
    """The most probable classes with their shares."""
    ranked = sorted(distribution.items(), key=lambda item: -item[1])[:most]
    return ", ".join(f"{name} {p:.0%}" for name, p in ranked)


def upright(distribution: dict[str, float], label: str | None, wide: bool) -> Text:
    """A bar a class, filled from below in eighths, a point for nearly nothing; `wide` ones have two cells and a gap."""
    line = Text()
    for name, p in distribution.items():
        bar = block(p) if p >= 0.01 else "·"
        own = "green" if name == label else "cyan"
        line.append(f"{bar}{bar if p >= 0.01 else ' '} " if wide else bar, own)
    return line


def initials(classes: Sequence[str]) -> Text:
    """The head above upright bars: two letters a class."""
    return text(" ".join(set_cell_size(printable(name), 2) for name in classes))


def curve(values: list[float]) -> str:
    """First and last of a series, and between them its course in at most sixty blocks."""
    if not values:
        return ""
    chosen = np.unique(np.linspace(0, len(values) - 1, min(60, len(values))).astype(int))
    low, high = min(values), max(values)
    course = "".join(block((values[k] - low) / (high - low) if high > low else 1.0) for k in chosen)
    return f"{values[0]:.1%} {course} {values[-1]:.1%}"


def block(share: float) -> str:
    """A block as high as a share of the line, 0 to 1."""
    return "▁▂▃▄▅▆▇█"[min(7, int(8 * share))]


def bytes_text(count: int) -> str:
    """A size on disk in the unit that suits it."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count} bytes"
