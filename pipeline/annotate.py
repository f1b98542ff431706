"""A photograph with a box around each face, and below it their distributions as bars."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from efficientface.pipeline.pictures import shortened

SIDES = 800, 1600  # pixels of the longer side: less is enlarged so that text can be read, more is shrunk
LINE, BAR, GAP = 18, 90, 6  # pixels: height of a bar with its name, length of a full bar, space around
COLOURS = ("#4c9be8", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#edc948")
TOO_SMALL = "#999999"


def annotated(image: np.ndarray, faces: Sequence[dict[str, Any]], classes: Sequence[str] | None = None) -> Image.Image:
    """image: (H, W, 3) uint8 RGB; faces: rows of fer predict. Bars stand below it, numbered as the boxes are.

    A face without a distribution, one that is too small, has a grey box and no bars. With `classes` there is one row of
    bars, whatever the faces, so that all frames of a video become pages of one size; their sides are even.
    """
    height, width = image.shape[:2]
    longer = max(height, width)
    scale = min(max(longer, SIDES[0]), SIDES[1]) / longer
    picture = Image.fromarray(image).resize((max(1, round(scale * width)), max(1, round(scale * height))))
    asked = sorted((face for face in faces if face["distribution"]), key=number)
    names = {name: shortened(name, 16) for name in classes or (asked[0]["distribution"] if asked else ())}
    column = max((font().getlength(name) for name in names.values()), default=0)
    panel = round(column + BAR + font().getlength("100 %") + 5 * GAP), LINE * (len(names) + 1) + 2 * GAP
    in_row = max(1, picture.width // panel[0])
    below = picture.height
    width = max(picture.width, panel[0])
    height = below + (panel[1] if classes else -(-len(asked) // in_row) * panel[1])
    if classes:  # as codecs want it
        width, height = width + width % 2, height + height % 2
    page = Image.new("RGB", (width, height), "white")
    paint = ImageDraw.Draw(picture)
    write = ImageDraw.Draw(page)
    for face in faces:
        if face["box"] and not face["distribution"]:
            paint.rectangle([scale * edge for edge in face["box"]], outline=TOO_SMALL, width=2)
    for place, face in enumerate(asked):
        colour = COLOURS[number(face) % len(COLOURS)]
        left, top = (
            panel[0] * (place % in_row) + GAP,
            below + panel[1] * (place // in_row) + GAP,
        )  # perhaps off the page
        tags = [(write, left, top)]
        if face["box"]:
            box = [scale * edge for edge in face["box"]]
            paint.rectangle(box, outline=colour, width=3)
            tags.append((paint, max(box[0], 0), max(box[1], 0)))
        for where, x, y in tags:
            tag = f" {number(face)} "
            where.rectangle([x, y, x + font().getlength(tag), y + LINE - 2], fill=colour)
            where.text((x, y), tag, "white", font())
        for name, share in face["distribution"].items():
            top += LINE
            ink = "black" if name == face["expression"] else "#777777"
            write.text((left, top), names[name], ink, font())
            start = left + column + GAP
            write.rectangle([start, top + 2, start + BAR * share, top + LINE - 4], fill=colour)
            write.text((start + BAR + GAP, top), f"{100 * share:.0f} %", ink, font())
    page.paste(picture)
    return page


def number(face: dict[str, Any]) -> int:
    """What a face is called: its track's number, or else its own in the picture."""
    return face["face"] if face.get("track") is None else face["track"]


@lru_cache(maxsize=1)
def font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along: Latin, Greek, Cyrillic and more."""
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), 13)
