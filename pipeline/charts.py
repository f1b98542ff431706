"""Line charts for a page: places in an SVG, which a template draws in the colours of light and dark."""

from collections.abc import Sequence
from typing import Any, NamedTuple

WIDTH, HEIGHT = 560, 320
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 44  # around the axes


class Line(NamedTuple):
    """A line of a chart; `dots` are (x, y, radius in pixels)."""

    name: str
    points: Sequence[tuple[float, float]]
    dots: Sequence[tuple[float, float, float]] = ()


def line_chart(
    lines: Sequence[Line], title: str, x: str, y: str, limits: tuple[float, float, float, float] | None = None
) -> dict[str, Any]:
    """What web/report.html's macro `chart` draws. `limits` are least and greatest x and y, by the points if not given.

    x and y name the axes, with their units; x is in whole numbers unless limits are given.
    """
    from matplotlib.ticker import MaxNLocator

    def ticks(low: float, high: float, whole: bool) -> list[float]:
        places = MaxNLocator(6, integer=whole, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        span = 1e-9 * (high - low)
        return [float(place) for place in places if low - span <= place <= high + span]

    if limits is None:
        xs = [point[0] for line in lines for point in line.points]
        ys = [point[1] for line in lines for point in line.points]
        room = 0.04 * (max(ys) - min(ys)) or 0.5
        left, right = min(xs), max(xs) + (min(xs) == max(xs))
        low, high = min(ys) - room, max(ys) + room
    else:
        left, right, low, high = limits

    def across(value: float) -> float:
        return round(LEFT + (value - left) / (right - left) * (WIDTH - LEFT - RIGHT), 1)

    def down(value: float) -> float:
        return round(TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    return {
        "title": title,
        "x": x,
        "y": y,
        "x_ticks": [(across(place), f"{place:g}") for place in ticks(left, right, limits is None)],
        "y_ticks": [(down(place), f"{place:g}") for place in ticks(low, high, False)],
        "lines": [
            {
                "name": line.name,
                "points": " ".join(f"{across(a)},{down(b)}" for a, b in line.points),
                "dots": [(across(a), down(b), round(radius, 1)) for a, b, radius in line.dots],
            }
            for line in lines
        ],
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "top": TOP,
        "bottom": HEIGHT - BOTTOM,
    }
