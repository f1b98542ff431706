"""Pictures of results, PNG or SVG by the file's name, written whole or not at all.

Text from files is never interpreted: neither matplotlib's mathematics between `$` signs nor TeX.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from efficientface import FerError
from efficientface.pipeline.artifact import replacing
from efficientface.pipeline.status import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")
DPI = 130  # of a PNG, and of the pictures in an SVG
PLAIN: dict[Any, Any] = {"text.parse_math": False, "text.usetex": False, "svg.hashsalt": "efficientface"}
FACE = 1.5  # inches a face


def check_target(path: Path, option: str) -> None:
    """FerError where `path` cannot become a picture; asked before the work begins."""
    if path.suffix.lower() not in SUFFIXES:
        raise FerError(f"{option} {printable(path)} does not end in .png or .svg; give a picture's name")
    if not path.parent.is_dir():
        raise FerError(
            f"{printable(path.parent)} does not exist; make that folder first, or write the picture elsewhere"
        )


@contextmanager
def drawing(path: Path, width: float, height: float) -> Iterator["Figure"]:
    """Give an empty figure of so many inches; it becomes `path` when the body is done."""
    # no pyplot: it keeps global state and picks a window system
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(PLAIN):
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        yield figure
        kind = path.suffix[1:].lower()
        with replacing(path) as part:
            figure.savefig(part, format=kind, metadata={"Date": None} if kind == "svg" else None)


def confusion(path: Path, matrix: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> None:
    """Draw (C, C) counts, rows true: each cell with its count and its share of the row, darker for more."""
    counts = np.asarray(matrix)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [printable(name) for name in classes]
    side = 1.8 + 0.78 * len(names)
    with drawing(path, side + 0.8, side) as figure:
        axes = figure.add_subplot()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        labels = [f"{name}\n{count:,}" for name, count in zip(names, counts.sum(1), strict=True)]
        axes.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), labels)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true (faces)")
        axes.set_title(printable(title), fontsize=11)
        for (row, column), count in np.ndenumerate(counts):
            share = shares[row, column]
            text = f"{count:,}\n{share:.0%}" if count else "0"
            shade = "white" if share > 0.55 else "0.15" if count else "0.6"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=shade)
        axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="0.85", linewidth=0.8)
        axes.tick_params(which="both", length=0)
        figure.colorbar(image, shrink=0.8, label="share of the true class", format="{x:.0%}")


def curves(path: Path, trainings: Mapping[str, list[dict[str, Any]]]) -> None:
    """Training loss and validation accuracy by epoch; `trainings` are the lines of metrics.jsonl by model.

    A dot marks the epoch whose weights were kept.
    """
    from efficientface.pipeline.train import best_line

    colours = palette(len(trainings))
    with drawing(path, 10, 4 + 0.18 * (len(trainings) // 3)) as figure:
        loss, accuracy = figure.subplots(1, 2)
        for colour, lines in zip(colours, trainings.values(), strict=True):
            epochs = [line["epoch"] for line in lines]
            best = best_line(lines)
            loss.plot(epochs, [line["loss"] for line in lines], color=colour, linewidth=1.4)
            shares = [100 * line["val_accuracy"] for line in lines]
            accuracy.plot(epochs, shares, color=colour, linewidth=1.4)
            accuracy.plot(best["epoch"], 100 * best["val_accuracy"], "o", color=colour, markersize=5)
        loss.set_ylabel("training loss, equation (5), nats")
        accuracy.set_ylabel("validation accuracy, % (dot: the epoch kept)")
        for axes in (loss, accuracy):
            axes.set_xlabel("epoch")
            axes.grid(color="0.9")
            axes.spines[["top", "right"]].set_visible(False)
            axes.xaxis.get_major_locator().set_params(integer=True)
        legend(figure, list(trainings), colours)


def sheet(path: Path, pictures: Sequence[np.ndarray], captions: Sequence[str], title: str, columns: int = 5) -> None:
    """A contact sheet: (S, S, 3) uint8 faces with a caption each."""
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    most = max(caption.count("\n") + 1 for caption in captions)
    width = max(FACE * columns, 5.0)
    with drawing(path, width, 0.5 + rows * (FACE + 0.14 * most + 0.08)) as figure:
        figure.suptitle(shortened(title, int(13 * width)), fontsize=10)
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, picture, caption in zip(grid.flat, pictures, captions, strict=False):
            axes.imshow(picture)
            axes.set_title(in_lines(caption, 28), fontsize=6.5, y=-0.03, va="top", pad=0)


def maps(
    path: Path,
    pictures: Sequence[np.ndarray],
    heads: Sequence[str],
    layers: Mapping[str, Sequence[tuple[np.ndarray, str]]],
    columns: int = 8,
) -> None:
    """Figure 1: faces in a row, below them each model's map over them, with what it says.

    pictures: N faces (S, S, 3) uint8, `heads` above them; layers: by model, of each face (h, w) weights 0-1 and what to
    say below.
    """
    columns = min(columns, len(pictures))
    blocks = -(-len(pictures) // columns)
    rows = 1 + len(layers)
    with drawing(path, 0.6 + FACE * columns, blocks * (0.3 + rows * (FACE + 0.16))) as figure:
        grid = figure.subplots(blocks * rows, columns, squeeze=False)
        for axes in grid.flat:
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        for k, picture in enumerate(pictures):
            top, column = k // columns * rows, k % columns
            axes = grid[top, column]
            axes.imshow(picture)
            axes.set_title(in_lines(heads[k], 24), fontsize=7, pad=3)
            for place, (name, drawn) in enumerate(layers.items(), start=1):
                axes = grid[top + place, column]
                weights, caption = drawn[k]
                axes.imshow(overlaid(picture, weights))
                axes.set_xlabel(shortened(caption, 22), fontsize=7, labelpad=2)
                if column == 0:
                    axes.set_ylabel(in_lines(name, 26), fontsize=8)


def overlaid(picture: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """A map (h, w) of weights 0-1 as a heat over a face (S, S, 3) uint8, the face in grey: blue is 0, red is 1."""
    import cv2
    from matplotlib import colormaps

    side = picture.shape[:2][::-1]
    smooth = cv2.resize(weights.astype(np.float32), side, interpolation=cv2.INTER_CUBIC).clip(0, 1)
    heat = 255 * colormaps["jet"](smooth)[..., :3]
    grey = picture @ np.array([0.299, 0.587, 0.114])
    return (0.55 * grey[..., None] + 0.45 * heat).astype(np.uint8)


def distributions(
    path: Path,
    pictures: Sequence[np.ndarray],
    heads: Sequence[str],
    classes: Sequence[str],
    answers: Mapping[str, np.ndarray],
    labels: Sequence[int],
    votes: np.ndarray | None = None,
    columns: int = 3,
) -> None:
    """Figure 2: each face with the distributions that models, and people, give it, as bars.

    answers: by model (N, C) probabilities; labels: N indices into classes, -1 unknown, whose class is set in bold;
    votes: (N, C) shares of people's, NaN rows where nobody was asked.
    """
    series = [*zip(answers, palette(len(answers)), answers.values(), strict=True)]
    if votes is not None:
        series.append(("people's votes", "0.45", votes))
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    bars = max(len(classes) * max(len(series), 2) * 0.075, 1.2)
    names = [shortened(name, 16) for name in classes]
    with drawing(path, 3.5 * columns, 0.45 + rows * (bars + 0.45)) as figure:
        grid = figure.subplots(rows, 2 * columns, squeeze=False, width_ratios=[1.15, 1] * columns)
        for axes in grid.flat:
            axes.set_axis_off()
        thickness = 0.8 / len(series)
        for k, picture in enumerate(pictures):
            left, right = grid[k // columns, 2 * (k % columns) : 2 * (k % columns) + 2]
            left.imshow(picture)
            left.set_title(in_lines(heads[k], 26), fontsize=7)
            right.set_axis_on()
            for place, (_, colour, p) in enumerate(series):
                at = np.arange(len(classes)) - 0.4 + (place + 0.5) * thickness
                right.barh(at, np.nan_to_num(100 * p[k]), thickness, color=colour)
            right.set_yticks(range(len(classes)), names, fontsize=7)
            for name, tick in enumerate(right.get_yticklabels()):
                tick.set_fontweight("bold" if name == labels[k] else "normal")
            right.invert_yaxis()
            right.set_xlim(0, 100)
            right.set_xticks([0, 50, 100], ["0", "50", "100 %"], fontsize=6)
            right.tick_params(length=2)
            right.spines[["top", "right"]].set_visible(False)
        legend(figure, [name for name, _, _ in series], [colour for _, colour, _ in series])


def legend(figure: "Figure", names: Sequence[str], colours: Sequence[Any]) -> None:
    """Names with their colours, below everything."""
    from matplotlib.patches import Patch

    handles = [Patch(color=colour) for colour in colours]
    labels = [shortened(name, 40) for name in names]
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)


def palette(count: int) -> list[Any]:
    """So many colours, told apart as well as may be."""
    from matplotlib import colormaps

    if count <= 10:
        return [colormaps["tab10"](k) for k in range(count)]
    return [colormaps["turbo"]((k + 0.5) / count) for k in range(count)]


def in_lines(text: str, most: int) -> str:
    """Each line shortened."""
    return "\n".join(shortened(line, most) for line in text.split("\n"))


def shortened(text: str, most: int) -> str:
    """Printable text of at most so many characters: of a long one its end, which tells file names apart."""
    text = printable(text)
    return text if len(text) <= most else "…" + text[1 - most :]
