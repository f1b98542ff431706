"""Draws the figures of docs/method.md: python docs/figures.py. Faces are drawn ones; boxes are those of fer teach."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from efficientface.data.drawn import draw_face, mixture
from efficientface.data.labels import BASIC
from efficientface.data.views import draw_views, render

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

OUT = Path(__file__).parent / "pictures"
INK, GREY, BLUE, ORANGE = "#1f2933", "#8592a0", "#2f6fb0", "#c8641b"
SHORT = [name[:2] for name in BASIC]
COLOURS = ("#2f6fb0", "#c8641b", "#3a8a4d", "#8a4fa0")


def canvas(width: float, height: float):
    """A white card, for light pages and dark ones, whose unit is an inch."""
    figure = plt.figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def arrow(axes, start, end, **style) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, color=INK, lw=1.4, **style))


def picture(axes, image, left: float, bottom: float, side: float, edge=INK) -> None:
    axes.imshow(image, extent=(left, left + side, bottom, bottom + side), zorder=2, interpolation="antialiased")
    axes.add_patch(Rectangle((left, bottom), side, side, fill=False, ec=edge, lw=1.4, zorder=3))


def bars(axes, values, left: float, bottom: float, width: float, height: float, colour=BLUE, names=False) -> None:
    """Values 0 to 1 as bars in a row."""
    step = width / len(values)
    axes.plot([left, left + width], [bottom, bottom], color=GREY, lw=0.8)
    for k, value in enumerate(values):
        axes.add_patch(Rectangle((left + (k + 0.15) * step, bottom), 0.7 * step, value * height, color=colour, lw=0))
        if names:
            axes.text(left + (k + 0.5) * step, bottom - 0.13, SHORT[k], ha="center", fontsize=7, color=GREY)


def box(axes, text: str, left: float, bottom: float, width: float, height: float, colour: str) -> None:
    patch = FancyBboxPatch((left, bottom), width, height, "round,pad=0,rounding_size=0.08", fc=colour, ec="none")
    axes.add_patch(patch)
    axes.text(left + width / 2, bottom + height / 2, text, ha="center", va="center", color="white", fontsize=9)


def some_face(k: int, size: int = 224) -> np.ndarray:
    return draw_face(mixture(0, k), np.random.default_rng([0, k, 1]), size)


def opinion(k: int, view: int) -> np.ndarray:
    """(7,) what a teacher might answer about a view: the drawn mixture, softened and a little different each time."""
    logits = np.log(mixture(0, k) + 0.03) + np.random.default_rng([k, view]).normal(0, 0.35, len(BASIC))
    return np.exp(logits) / np.exp(logits).sum()


def pipeline() -> None:
    figure, axes = canvas(10, 3.1)
    heights = (2.05, 1.2, 0.35)
    for k, bottom in enumerate(heights):
        face = some_face(k + 3)
        turned = plt.matplotlib.transforms.Affine2D().rotate_deg_around(0.85, bottom + 0.35, (12, -9, 6)[k])
        shown = axes.imshow(face, extent=(0.5, 1.2, bottom, bottom + 0.7), interpolation="antialiased")
        shown.set_transform(turned + axes.transData)
        picture(axes, face, 3.0, bottom, 0.7)
        bars(axes, opinion(k + 3, 0), 5.5, bottom + 0.02, 1.25, 0.62, names=k == 2)
    for left, text in ((0.85, "photographs"), (3.35, "faces/"), (6.1, "distributions/"), (9.1, "students/ldl/")):
        axes.text(left, 2.9, text, ha="center", fontsize=10, color=INK, family="monospace" if "/" in text else None)
    arrow(axes, (1.45, 1.55), (2.85, 1.55))
    box(axes, "fer align", 1.72, 1.7, 0.85, 0.32, INK)
    axes.text(2.15, 1.35, "RetinaFace,\nfive landmarks", ha="center", va="top", fontsize=8, color=GREY)
    arrow(axes, (3.85, 1.55), (5.35, 1.55))
    box(axes, "fer teach", 4.17, 1.7, 0.85, 0.32, BLUE)
    axes.text(4.6, 1.35, "LDG, ResNet-50\nasked once", ha="center", va="top", fontsize=8, color=GREY)
    arrow(axes, (6.9, 1.55), (8.35, 1.55))
    box(axes, "fer distill", 7.2, 1.7, 0.85, 0.32, ORANGE)
    axes.text(7.62, 1.35, "equation (5),\nno teacher", ha="center", va="top", fontsize=8, color=GREY)
    for depth, side in enumerate((1.0, 0.72, 0.5, 0.34)):
        left = 8.5 + depth * 0.33
        axes.add_patch(Rectangle((left, 1.55 - side / 2), 0.2, side, fc=ORANGE, ec="white", alpha=0.9))
    axes.text(9.1, 0.8, "EfficientFace\n1.28 M parameters", ha="center", va="top", fontsize=8, color=GREY)
    save(figure, "method-pipeline")


def cache() -> None:
    figure, axes = canvas(10, 3.4)
    face, k = some_face(3), 3
    picture(axes, face, 0.3, 0.75, 2.2)
    boxes, flips = draw_views(0, ["images/face-000003.jpg"], range(4), 224, 0.3)
    axes.text(1.4, 0.5, "one face of faces/", ha="center", fontsize=9, color=INK)
    axes.text(1.4, 0.27, "boxes: its views, by hash of (seed, face, view)", ha="center", fontsize=7.5, color=GREY)
    shown = [("whole face", (0, 0, 224, 224), False, INK)]
    for view in range(4):
        top, left, height, width = (int(edge) for edge in boxes[0, view])
        scale = 2.2 / 224
        corner = (0.3 + left * scale, 0.75 + (224 - top - height) * scale)
        patch = Rectangle(corner, width * scale, height * scale, fill=False, ec=COLOURS[view], lw=2, zorder=4)
        axes.add_patch(patch)
        name = f"view {view + 1}" + (", mirrored" if flips[0, view] else "")
        shown.append((name, (top, left, height, width), bool(flips[0, view]), COLOURS[view]))
    arrow(axes, (2.65, 1.85), (3.25, 1.85))
    for j, (name, cut, flip, colour) in enumerate(shown):
        left = 3.4 + j * 1.32
        picture(axes, render(face, cut, flip, 96), left, 1.95, 0.95, colour)
        axes.text(left + 0.475, 3.02, name, ha="center", fontsize=8, color=colour)
        arrow(axes, (left + 0.475, 1.9), (left + 0.475, 1.55))
        bars(axes, opinion(k, j), left - 0.05, 0.75, 1.05, 0.72, colour, names=True)
    axes.text(6.5, 0.27, "what distributions/ keeps of it: box, flip and distribution of each view", ha="center",
              fontsize=9, color=INK)  # fmt: skip
    save(figure, "method-cache")


def equation5() -> None:
    figure, axes = canvas(10, 3.2)
    stored, answer = opinion(5, 0), opinion(5, 9)
    terms = -stored * np.log(answer)
    most = terms.max()
    columns = (
        (0.4, stored, 1, BLUE, "d, stored", "the target"),
        (3.6, answer, 1, ORANGE, "p, the student's answer", "softmax of its logits"),
        (6.9, terms / most, most, INK, "− d log p", "a class counts as far as the target has it"),
    )
    for left, values, scale, colour, title, note in columns:
        bars(axes, values, left, 0.75, 2.7, 1.6, colour, names=True)
        for j, value in enumerate(values):
            text = f"{value * scale:.2f}".lstrip("0")
            axes.text(left + (j + 0.5) * 2.7 / 7, 0.79 + value * 1.6, text, ha="center", fontsize=7.5, color=colour)
        axes.text(left + 1.35, 2.85, title, ha="center", fontsize=11, color=colour)
        axes.text(left + 1.35, 2.63, note, ha="center", fontsize=8, color=GREY)
    loss, least = terms.sum() / len(BASIC), -(stored * np.log(stored)).sum() / len(BASIC)
    axes.text(5, 0.2, f"L = sum / 7 = {loss:.3f} nats; with p = d it would be {least:.3f}, the least it can be",
              ha="center", fontsize=9.5, color=INK)  # fmt: skip
    save(figure, "method-equation5")


def save(figure, name: str) -> None:
    figure.savefig(OUT / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    matplotlib.rcParams.update({"svg.fonttype": "path", "svg.hashsalt": "efficientface", "font.family": "DejaVu Sans"})
    pipeline()
    cache()
    equation5()
