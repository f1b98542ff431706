"""Drawn faces: pictures with a known true mixture of expressions, and nobody's photograph needed.

An expression is a row of numbers (how far the brows rise, the lips part ...), roughly the facial actions
of Ekman and Friesen's coding system; a blend is the weighted sum of the rows, so its weights are the
face's true distribution. The numbers move curves in *face units*: half the width of the face is 1, x grows
to the image's right, y downwards, the origin lies between the eyes and the nose's tip. Curves are filled
in flat colours at sub-pixel places, then one light map, computed from a height field of the head in face
units, shades everything.

Face k depends on (seed, k) and the size alone, never on how many faces are drawn or by how many processes; with
`identities` also on how many there are: face k then shows person k modulo that number.
"""

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import ArrayLike

from efficientface import FerError

log = logging.getLogger(__name__)

EXPRESSIONS_DRAWN = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger")


@dataclass(frozen=True)
class Expression:
    """How far each part of the face has moved. 0 is at rest, 1 about as far as people go."""

    brow_height: float = 0.0  # whole brow up; negative: down
    brow_inner: float = 0.0  # inner ends up, so that the brows slope down outwards
    brow_furrow: float = 0.0  # brows drawn together, inner ends down
    eye_opening: float = 0.0  # upper lid up, white above the iris; negative: drooping
    lid_tension: float = 0.0  # lower lid up
    cheek_raise: float = 0.0
    nose_wrinkle: float = 0.0  # lines across the bridge, nostrils up
    nostril_flare: float = 0.0
    lip_raise: float = 0.0  # upper lip up, upper teeth bared
    lip_drop: float = 0.0  # lower lip down, lower teeth bared
    lip_press: float = 0.0  # lips thin
    mouth_corners: float = 0.0  # up; negative: down
    mouth_width: float = 0.0  # corners apart; negative: together
    mouth_opening: float = 0.0  # jaw down
    chin_raise: float = 0.0  # chin pushes the lower lip up


BASIC: dict[str, Expression] = {
    "neutral": Expression(),
    "happiness": Expression(
        brow_height=0.1, eye_opening=-0.15, lid_tension=0.6, cheek_raise=1.0, lip_raise=0.25,
        mouth_corners=1.0, mouth_width=0.8, mouth_opening=0.3,
    ),
    "sadness": Expression(
        brow_height=-0.05, brow_inner=1.0, brow_furrow=0.4, eye_opening=-0.5, lid_tension=0.15,
        mouth_corners=-1.0, mouth_width=-0.1, chin_raise=0.8,
    ),
    "surprise": Expression(
        brow_height=1.0, brow_inner=0.2, eye_opening=0.9, mouth_width=-0.55, mouth_opening=0.95,
    ),
    "fear": Expression(
        brow_height=0.45, brow_inner=0.85, brow_furrow=0.5, eye_opening=1.0, lid_tension=0.35,
        lip_drop=0.8, mouth_corners=-0.5, mouth_width=0.9, mouth_opening=0.4,
    ),
    "disgust": Expression(
        brow_height=-0.25, brow_furrow=0.2, eye_opening=-0.5, lid_tension=0.8, cheek_raise=0.6,
        nose_wrinkle=1.0, nostril_flare=0.3, lip_raise=1.1, mouth_corners=-0.5, mouth_opening=0.1,
        chin_raise=0.5,
    ),
    "anger": Expression(
        brow_height=-0.75, brow_furrow=1.0, eye_opening=0.35, lid_tension=0.75, nostril_flare=1.0,
        lip_press=1.0, mouth_corners=-0.3, mouth_width=-0.15, chin_raise=0.35,
    ),
}  # fmt: skip
_NUMBERS = np.array([astuple(BASIC[name]) for name in EXPRESSIONS_DRAWN])  # (7, numbers)

# People differ in how they show the same feeling: this is the standard deviation of every number. Reading the
# numbers without error one would still mistake the main expression of every 15th face. At 0.13 a small network is
# right 19 times of 20 after 4,000 faces, too often to tell one way of training from another; here 9 times of 10.
JITTER = 0.26


def blend(mixture: np.ndarray) -> Expression:
    """The expression whose numbers are the sum of the basic ones weighted by mixture (7,)."""
    return Expression(*(np.asarray(mixture, np.float64) @ _NUMBERS).tolist())


def mixture(seed: int, k: int) -> np.ndarray:
    """True distribution of face k over EXPRESSIONS_DRAWN: (7,) float32 in steps of 0.0001, summing to 1.

    The main expression is uniform over the seven; 15 % of the faces are pure, 15 % a blend of three, the
    others of two. The main weight of a blend lies between 0.55 and 0.95, so the label is never in doubt.
    """
    rng = np.random.default_rng([seed, k, 0])
    order = rng.permutation(len(EXPRESSIONS_DRAWN))
    parts = rng.choice([1, 2, 3], p=[0.15, 0.7, 0.15])
    weights = np.zeros(len(EXPRESSIONS_DRAWN), np.int64)  # ten-thousandths, so that a table holds them exactly
    if parts > 1:
        rest = 10_000 - round(10_000 * rng.uniform(0.55, 0.95))
        third = round(rest * rng.uniform(0.2, 0.5)) if parts == 3 else 0
        weights[order[1:3]] = rest - third, third
    weights[order[0]] = 10_000 - weights.sum()
    return (weights / 10_000).astype(np.float32)


def split_of(k: int) -> str:
    """70 % train, 10 % val, 20 % test, each spread evenly over k."""
    return ("train", "train", "test", "train", "train", "val", "train", "test", "train", "train")[k % 10]


def write_photos(
    folder: Path,
    count: int,
    seed: int,
    size: int = 224,
    progress: Callable[[int], None] | None = None,
    identities: int = 0,
) -> Path:
    """Draw faces 0 .. count - 1 into folder as a labelled photo folder; return its table.

    Leaves images/face-000000.jpg ... and, last, labels.csv: image, label, split and one column a class with
    the true mixture. progress is called with the number of faces just finished. The same arguments write
    the same bytes again; a folder that holds anything else is refused.

    With `identities` the faces are of so many people, a folder each (person-0000/face-000000.jpg ...), and there is no
    table; returns `folder`. A person keeps head, features, skin, hair and eyes, all else changes from face to face.
    """
    import pandas as pd  # here, because the processes that draw do without it

    if count < 1:
        raise FerError(f"cannot draw {count} faces; ask for at least 1")
    names = [_file_of(k, identities) for k in range(count)]
    _refuse_foreign(folder, set(names))
    for name in names[: identities or 1]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)

    # A killed run leaves no table, so nobody takes half the faces for all of them.
    (folder / "labels.csv").unlink(missing_ok=True)
    mixtures = np.stack([mixture(seed, k) for k in range(count)])
    chunks = [range(start, min(start + 50, count)) for start in range(0, count, 50)]
    for finished in _in_processes(_write_images, [(folder, chunk, seed, size, identities) for chunk in chunks]):
        if progress:
            progress(finished)
    if identities:
        return folder

    table = pd.DataFrame({"image": names, "label": [EXPRESSIONS_DRAWN[c] for c in mixtures.argmax(axis=1)]})
    table["split"] = [split_of(k) for k in range(count)]
    table[list(EXPRESSIONS_DRAWN)] = mixtures
    table.to_csv(folder / "labels.csv.part", index=False, float_format="%.4f", lineterminator="\n")
    os.replace(folder / "labels.csv.part", folder / "labels.csv")
    return folder / "labels.csv"


def _refuse_foreign(folder: Path, ours: set[str]) -> None:
    """FerError if folder holds a file that write_photos would neither write nor replace."""
    if folder.exists() and not folder.is_dir():
        raise FerError(f"{folder} is a file; name a folder for the drawn faces")
    header = ",".join(["image", "label", "split", *EXPRESSIONS_DRAWN])
    foreign = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or name in ours or name == "labels.csv.part":
            continue
        if name == "labels.csv":
            with open(path, encoding="utf-8", errors="replace") as lines:
                if lines.readline().rstrip("\n") == header:
                    continue
        foreign.append(name)
    if foreign:
        raise FerError(
            f"{folder} holds {len(foreign)} files that are not among the drawn faces asked for, "
            f"first {foreign[0]}; choose an empty folder"
        )


def _file_of(k: int, identities: int) -> str:
    parent = f"person-{k % identities:04d}" if identities else "images"
    return f"{parent}/face-{k:06d}.jpg"


_Task = tuple[Path, range, int, int, int]  # folder, faces, seed, size, identities


def _write_images(task: _Task) -> int:
    folder, faces, seed, size, identities = task
    for k in faces:
        who = np.random.default_rng([seed, k % identities, 2]) if identities else None
        image = draw_face(mixture(seed, k), np.random.default_rng([seed, k, 1]), size, who)
        data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
        (folder / _file_of(k, identities)).write_bytes(data.tobytes())
    return len(faces)


def _in_processes(work: Callable[[_Task], int], tasks: list[_Task]) -> Iterator[int]:
    workers = min(os.cpu_count() or 1, len(tasks))
    if workers == 1:
        yield from map(work, tasks)
        return
    # Each process draws with one thread: together they already use every core. Spawned, because the caller may
    # have started threads, which a fork would copy in the middle of whatever they do.
    try:
        processes = ProcessPoolExecutor(workers, get_context("spawn"), cv2.setNumThreads, (1,))
    except OSError as error:  # they share locks in /dev/shm
        log.warning("drawing in one process, as others cannot be had (%s)", error.strerror or error)
        yield from map(work, tasks)
        return
    with processes as pool:
        yield from pool.map(work, tasks)


# ---- who is drawn, and under what light


@dataclass(frozen=True)
class _Person:
    """What stays when the expression changes. Lengths in face units."""

    skin: np.ndarray  # (3,) RGB albedo, 0-255
    hair: np.ndarray  # (3,)
    iris: np.ndarray  # (3,)
    lips: np.ndarray  # (3,)
    style: str  # key of _HAIR
    parting: float  # -1 .. 1, where the hair parts
    beard: float  # 0 .. 1
    glasses: bool
    jaw: float  # half width at the jaw's angle
    chin: float  # y of the chin
    chin_width: float
    crown: float  # y of the top of the head
    eye_x: float
    eye_width: float  # half
    eye_open: float  # height of the upper lid over the eye's centre line, at rest
    eye_tilt: float  # outer corner up
    iris_size: float  # radius
    brow_y: float
    brow_thick: float
    brow_arch: float
    nose_y: float  # of the tip
    nose_width: float
    mouth_y: float
    mouth_width: float  # half
    lip_thick: float
    neck: float  # half width


_SKINS = np.array(
    [[246, 208, 182], [238, 194, 160], [224, 174, 136], [204, 154, 116], [168, 116, 82], [128, 84, 58], [92, 60, 44]]
)  # fmt: skip
_HAIRS = np.array(
    [[26, 22, 22], [44, 32, 26], [70, 46, 32], [104, 68, 42], [150, 106, 62], [206, 170, 112], [128, 60, 34], [160] * 3]
)
_IRISES = np.array([[62, 38, 24], [84, 54, 32], [104, 84, 48], [74, 100, 80], [84, 122, 156], [110, 124, 132]])


def _draw_person(rng: np.random.Generator) -> _Person:
    tone = rng.uniform(0, len(_SKINS) - 1)
    skin = np.array([np.interp(tone, range(len(_SKINS)), _SKINS[:, c]) for c in range(3)])
    skin = np.clip(skin * rng.normal(1, 0.03) * rng.normal(1, 0.01, 3), 0, 255)
    # Dark skins rarely come with pale hair and eyes.
    darkness = tone / (len(_SKINS) - 1)
    hair = _HAIRS[rng.integers(3 if darkness > 0.6 else len(_HAIRS))] * rng.uniform(0.85, 1.2)
    iris = _IRISES[rng.integers(2 if darkness > 0.6 else len(_IRISES))] * rng.uniform(0.85, 1.15)
    lips = skin * rng.uniform([0.80, 0.56, 0.56], [0.92, 0.72, 0.74])
    style = str(rng.choice(list(_HAIR)))
    beard = rng.uniform(0.25, 0.9) if style in ("bald", "buzz", "short", "side") and rng.random() < 0.35 else 0.0

    def around(mean: float, spread: float) -> float:
        return mean + spread * min(max(rng.standard_normal(), -2.2), 2.2)

    return _Person(
        skin=skin,
        hair=hair,
        iris=iris,
        lips=lips,
        style=style,
        parting=rng.uniform(-1, 1),
        beard=beard,
        glasses=rng.random() < 0.08,
        jaw=around(0.76, 0.045),
        chin=around(1.36, 0.06),
        chin_width=around(0.36, 0.05),
        crown=around(-1.38, 0.05),
        eye_x=around(0.42, 0.022),
        eye_width=around(0.225, 0.014),
        eye_open=around(0.105, 0.010),
        eye_tilt=around(0.015, 0.015),
        iris_size=around(0.108, 0.005),
        brow_y=around(-0.40, 0.022),
        brow_thick=around(0.062, 0.014),
        brow_arch=around(0.055, 0.018),
        nose_y=around(0.36, 0.035),
        nose_width=around(0.19, 0.022),
        mouth_y=around(0.76, 0.03),
        mouth_width=around(0.35, 0.022),
        lip_thick=around(0.085, 0.016),
        neck=around(0.58, 0.06),
    )


@dataclass(frozen=True)
class _Scene:
    """Where the head is, how it is lit, and how the camera blurs it."""

    head: np.ndarray  # (2, 3) face units -> pixels
    body: np.ndarray  # (2, 3) the same for neck and shoulders, which lean less than the head
    turn: np.ndarray  # (2,) shift of the nearest point of the face by small yaw and pitch, face units
    light: np.ndarray  # (3,) towards the light, unit length, in face axes (z towards the camera)
    strength: float  # share of the light that comes from there
    tint: np.ndarray  # (3,) exposure and colour of the light
    blur: float  # sigma in pixels of a 224-pixel picture
    noise: float  # sigma in grey levels


def _draw_scene(rng: np.random.Generator, size: int) -> _Scene:
    roll = np.radians(np.clip(rng.normal(0, 9), -22, 22))
    scale = size * rng.uniform(0.175, 0.255)  # half a face's width in pixels
    centre = size * (np.array([0.5, 0.5]) + rng.uniform(-0.06, 0.06, 2))

    def placed(angle: float, pivot_face: np.ndarray, pivot: np.ndarray) -> np.ndarray:
        turned = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        return np.column_stack([turned, pivot - turned @ pivot_face])

    head = placed(roll, np.array([0.0, 0.1]), centre)
    nape = np.array([0.0, 0.95])
    body = placed(0.4 * roll, nape, head[:, :2] @ nape + head[:, 2])
    side, up = rng.uniform(-0.85, 0.85), rng.uniform(-0.9, 0.15)
    light = np.array([np.cos(roll) * side + np.sin(roll) * up, np.cos(roll) * up - np.sin(roll) * side, 0.75])
    warmth = rng.normal(0.03, 0.025)
    return _Scene(
        head=head,
        body=body,
        turn=np.clip(rng.normal(0, [0.07, 0.04]), -0.16, 0.16),
        light=light / np.linalg.norm(light),
        strength=rng.uniform(0.3, 0.8),
        tint=rng.uniform(0.78, 1.18) * np.array([1 + warmth, 1.0, 1 - warmth]),
        blur=rng.uniform(0.0, 1.1),
        noise=rng.uniform(0.5, 7.0),
    )


# ---- curves in face units


@lru_cache
def _spline_basis(steps: int) -> np.ndarray:
    """Catmull-Rom weights (steps, 4) of the four points around a piece, at its start and onwards."""
    t = np.arange(steps) / steps
    return np.stack([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2], 1) / 2


def _curve(points: ArrayLike, closed: bool = False, steps: int = 6) -> np.ndarray:
    """A smooth curve (M, 2) through points (N, 2)."""
    points = np.asarray(points, np.float64)
    if closed:
        padded = np.concatenate([points[-1:], points, points[:2]])
    else:
        padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    windows = np.stack([padded[:-3], padded[1:-2], padded[2:-1], padded[3:]], 1)  # (pieces, 4, 2)
    smooth = (_spline_basis(steps) @ windows).reshape(-1, 2)
    return smooth if closed else np.concatenate([smooth, points[-1:]])


def _mirrored(half: ArrayLike) -> np.ndarray:
    """Points from left to right, given those from the middle line (x = 0) to the right."""
    half = np.asarray(half, np.float64)
    return np.concatenate([half[:0:-1] * [-1, 1], half])


@dataclass(frozen=True)
class _Eye:
    centre: np.ndarray  # (2,)
    upper: np.ndarray  # (M, 2) lid's edge, inner corner first
    lower: np.ndarray  # (M, 2)
    crease: np.ndarray  # (M, 2)
    brow: np.ndarray  # (M, 2) outline
    opening: float  # upper lid over the centre line, face units


@dataclass(frozen=True)
class _Mouth:
    outer_upper: np.ndarray  # (M, 2) edges from the left corner to the right one
    inner_upper: np.ndarray
    inner_lower: np.ndarray
    outer_lower: np.ndarray
    gap: float  # between the lips in the middle


def _eye(person: _Person, e: Expression, side: int, lift: float) -> _Eye:
    """side is -1 for the image's left, 1 for its right; lift is this brow's own extra height."""
    u = np.linspace(-1, 1, 13)  # inner corner to outer corner
    width = person.eye_width
    opening = max(person.eye_open * (1 + 0.75 * e.eye_opening - 0.12 * e.cheek_raise), 0.02)
    below = 0.062 * (1 - 0.75 * e.lid_tension) + 0.012 * e.eye_opening
    bow = np.sqrt(1 - u**2) * 0.55 + (1 - u**2) * 0.45
    corners = -person.eye_tilt * u + 0.012 * (1 - u)
    # Sad and frightened brows pull the inner half of the lid up; a furrow presses it down.
    skew = 1 - u * (0.22 * e.brow_inner - 0.28 * max(e.brow_furrow - e.brow_inner, 0))
    y_upper = corners - opening * bow * skew
    y_lower = corners + np.maximum(below, 0.008 - opening) * (1 - u**2)
    centre = np.array([side * person.eye_x, -0.08])

    def at(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.stack([side * (person.eye_x + width * x), centre[1] + y], 1)

    fold = 0.05 * min(max(1 + 0.5 * e.brow_height - 0.6 * e.brow_furrow + 0.3 * e.eye_opening, 0.25), 2)
    s = np.array([-1.0, -0.5, 0.0, 0.45, 1.0])  # inner to outer end of the brow
    inner = np.array([1.0, 0.62, 0.25, 0.05, 0.0])
    arch = person.brow_arch + 0.03 * max(e.brow_height, 0)
    y = person.brow_y - lift - 0.17 * e.brow_height - arch * (1 - (s - 0.3) ** 2)
    y = y - inner * (0.17 * e.brow_inner - 0.13 * e.brow_furrow - 0.03) + (1 - inner) * 0.07 * e.brow_inner
    x = person.eye_x + 0.02 + 0.29 * s - inner * 0.055 * e.brow_furrow
    thick = person.brow_thick * np.array([0.75, 1.0, 0.95, 0.7, 0.12]) * (1 + 0.1 * e.brow_furrow)
    middle = _curve(np.stack([x, y], 1), steps=4)
    half = np.interp(np.linspace(0, 1, len(middle)), np.linspace(0, 1, 5), thick)[:, None] / 2
    brow = np.concatenate([middle - half * [0, 1], (middle + half * [0, 1])[::-1]])
    return _Eye(
        centre=centre,
        upper=at(u, y_upper),
        lower=at(u, y_lower),
        crease=at(u[1:], (y_upper - fold * (0.35 + 0.65 * (1 - u**2)))[1:]),
        brow=brow * [side, 1],
        opening=opening,
    )


def _mouth(person: _Person, e: Expression, tilt: float) -> _Mouth:
    """tilt raises the right corner and lowers the left one."""
    half = person.mouth_width * (1 + 0.32 * e.mouth_width)
    thin = min(max(1 - 0.75 * e.lip_press, 0.15), 1.3)
    upper = person.lip_thick * thin * (1 - 0.25 * max(e.mouth_corners, 0) * max(e.mouth_width, 0))
    lower = person.lip_thick * 1.3 * thin * (1 + 0.15 * e.chin_raise)
    opening = max(e.mouth_opening, 0.0)
    corner = person.mouth_y - 0.15 * e.mouth_corners + 0.10 * opening
    middle = person.mouth_y + 0.03 * e.mouth_corners - 0.05 * e.chin_raise * (1 - min(opening, 1))
    top = middle - 0.03 * opening - 0.09 * e.lip_raise
    bottom = max(middle + 0.40 * opening + 0.10 * e.lip_drop, top)
    square = 0.35 * min(max(e.lip_raise + 0.8 * e.lip_drop, 0), 1)  # bared teeth square the mouth

    def edge(y: float, flat: float, bow: float = 0.0, out: float = 0.0) -> np.ndarray:
        # flat: how far towards the corner the edge keeps the middle's height
        u = np.array([0.0, 0.22, 0.5, 0.78, 1.0])
        fall = u ** (2 + 4 * flat)
        heights = y + (corner - y) * fall + np.array([bow, 0.0, 0.0, 0.0, 0.0])
        points = _mirrored(np.stack([u * (half + out), heights], 1))
        points[:, 1] -= tilt * points[:, 0]
        return _curve(points, steps=4)

    return _Mouth(
        outer_upper=edge(top - upper, 0.05 + square, 0.22 * upper, 0.015),
        inner_upper=edge(top, 0.1 + square, 0.02 * thin),
        inner_lower=edge(bottom, 0.1 + 0.5 * square),
        outer_lower=edge(bottom + lower, 0.0 + 0.5 * square, 0.0, 0.015),
        gap=bottom - top,
    )


def _face_outline(person: _Person, drop: float) -> np.ndarray:
    """Closed outline of face and skull; drop: how far the jaw opened, face units."""
    half = [
        (0, person.crown), (0.5, person.crown + 0.10), (0.85, person.crown + 0.46), (0.96, -0.45), (0.97, -0.05),
        (0.91, 0.35), (person.jaw, 0.72 + 0.5 * drop), (person.chin_width + 0.20, 1.08 + 0.8 * drop),
        (person.chin_width * 0.62, person.chin - 0.03 + drop), (0, person.chin + drop),
    ]  # fmt: skip
    right = np.array(half)
    return _curve(np.concatenate([right, right[-2:0:-1] * [-1, 1]]), closed=True)


@dataclass(frozen=True)
class _Style:
    """A hair style, in face units."""

    volume: float = 0.0  # over the skull
    hairline: float = -0.92  # y on the forehead's middle line
    temple: float = -0.2  # y down to which the hair before the ears reaches
    back: float | None = None  # y down to which it falls behind the neck
    spread: float = 1.1  # half width down there
    curls: bool = False
    bun: bool = False


_HAIR = {
    "bald": _Style(),
    "buzz": _Style(volume=0.02, hairline=-0.95, temple=-0.28),
    "short": _Style(volume=0.12, hairline=-0.92, temple=-0.12),
    "side": _Style(volume=0.20, hairline=-0.88, temple=-0.18),
    "curly": _Style(volume=0.34, hairline=-0.86, temple=0.0, back=0.35, spread=1.18, curls=True),
    "fringe": _Style(volume=0.16, hairline=-0.72, temple=0.25, back=0.85, spread=1.12),
    "bob": _Style(volume=0.16, hairline=-0.90, temple=0.45, back=1.15, spread=1.2),
    "long": _Style(volume=0.14, hairline=-0.94, temple=0.55, back=2.3, spread=1.3),
    "waves": _Style(volume=0.22, hairline=-0.92, temple=0.5, back=1.9, spread=1.42, curls=True),
    "bun": _Style(volume=0.06, hairline=-0.94, temple=-0.25, bun=True),
}


def _hair_front(person: _Person, style: _Style, rng: np.random.Generator) -> np.ndarray:
    """Outline of the hair over the forehead and the temples."""
    v, top = style.volume, person.crown
    side = 1.0 + 0.55 * v + (0.06 if style.temple > 0.1 else 0.0)
    outer = [(0, top - v), (0.52, top + 0.06 - 0.9 * v), (0.88 + 0.4 * v, top + 0.42 - 0.6 * v), (side, -0.5)]
    if style.temple > -0.1:
        outer.append((side, 0.5 * style.temple - 0.1))
    right = np.array([*outer, (0.97, style.temple)])
    outline = np.concatenate([right[:0:-1] * [-1, 1], right])
    if style.curls:
        outline[1:-1] *= 1 + rng.uniform(-0.035, 0.035, (len(outline) - 2, 1))
    # The hairline back from right to left; the parting bares one side of the forehead more.
    p, h = person.parting, style.hairline
    line = [
        (0.90, min(style.temple, -0.1) - 0.25), (0.80, -0.62), (0.55, h + 0.05 + 0.10 * p), (0.22, h + 0.05 * p),
        (-0.22, h - 0.05 * p), (-0.55, h + 0.05 - 0.10 * p), (-0.80, -0.62), (-0.90, min(style.temple, -0.1) - 0.25),
    ]  # fmt: skip
    return np.concatenate([_curve(outline), _curve(line)])


def _hair_back(person: _Person, style: _Style, end: float, rng: np.random.Generator) -> np.ndarray:
    """Outline of the hair that falls behind the neck down to y = end."""
    v, top, spread = style.volume, person.crown, style.spread
    half = [
        (0, top - v), (0.6, top + 0.08 - 0.8 * v), (1.0 + 0.5 * v, -0.6), (0.5 * (1.05 + v + spread), 0.2),
        (spread, 0.65 * end + 0.1), (spread - 0.1, end), (0, end + 0.02),
    ]  # fmt: skip
    right = np.array(half)
    outline = np.concatenate([right, right[-2:0:-1] * [-1, 1]])
    if style.curls:
        outline *= 1 + rng.uniform(-0.05, 0.05, (len(outline), 1))
    return _curve(outline, closed=True)


# ---- light

_GRID = 40  # pixels of the light map in one face unit: finer than the blur of what is in it
_LEFT, _TOP, _RIGHT, _BOTTOM = -1.6, -1.9, 1.6, 2.3  # what it covers, face units
_WIDTH, _HEIGHT = round((_RIGHT - _LEFT) * _GRID), round((_BOTTOM - _TOP) * _GRID)
_GX = (_LEFT + np.arange(_WIDTH) / _GRID).astype(np.float32)
_GY = (_TOP + np.arange(_HEIGHT) / _GRID).astype(np.float32)
_NECK = slice(round((0.6 - _TOP) * _GRID), None)  # rows that may show neck or shoulders


def _turned(points: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Points (..., 2) of the frontal face where a small turn of the head puts them."""
    squared = points * points
    depth = np.sqrt(np.maximum(1 - squared[..., :1] - squared[..., 1:] / 2.25, 0))
    return points + turn * depth


def _on_grid(points: np.ndarray) -> np.ndarray:
    return np.round((points - [_LEFT, _TOP]) * (_GRID * 16)).astype(np.int32)


def _bumps(person: _Person, e: Expression, mouth: _Mouth) -> np.ndarray:
    """Gaussian hills and hollows of the face: (K, 5) x, y, their two widths, height."""
    lip = person.mouth_y - 0.03
    low = mouth.outer_lower[len(mouth.outer_lower) // 2, 1]
    nose = person.nose_y - 0.06 * e.nose_wrinkle
    wide = person.nose_width * (1 + 0.16 * e.nostril_flare)
    cheek = 0.30 - 0.10 * e.cheek_raise
    middle = [
        (0, -0.82, 0.45, 0.28, 0.06),  # forehead
        (0, -0.02, 0.075, 0.20, 0.13),  # bridge of the nose
        (0, nose - 0.10, 0.085, 0.14, 0.14),
        (0, nose + 0.01, 0.095, 0.075, 0.13),  # tip
        (0, lip - 0.10, 0.28, 0.09, 0.05),  # upper lip
        (0, low - 0.06, 0.20, 0.05, 0.06),  # lower lip
        (0, low + 0.07, 0.18, 0.055, -0.06 - 0.03 * e.chin_raise),
        (0, person.chin - 0.15 + 0.1 * e.mouth_opening, 0.20, 0.13, 0.10 + 0.05 * e.chin_raise),
    ]
    right = [
        (wide * 0.8, nose + 0.06, 0.055, 0.055, 0.11),  # wings of the nose
        (0.34, person.brow_y + 0.06 - 0.1 * e.brow_height, 0.24, 0.08, 0.06),
        (person.eye_x, -0.08, 0.21, 0.13, -0.13),  # socket
        (person.eye_x, -0.08, 0.12, 0.08, 0.06),  # ball
        (0.15, -0.10, 0.06, 0.10, -0.07),  # between eye and bridge
        (0.52, cheek, 0.20, 0.16, 0.08 + 0.10 * e.cheek_raise),
        (0.50, 0.80, 0.15, 0.20, -0.05 * (1 - e.cheek_raise)),  # hollow below
        (0.95, -0.40, 0.15, 0.30, -0.05),  # temple
        (0.10, -0.34, 0.06, 0.07, 0.07 * e.brow_furrow),
    ]
    return np.concatenate([middle, right, np.multiply(right, [-1, 1, 1, 1, 1])])


def _folds(person: _Person, e: Expression, mouth: _Mouth) -> list[tuple[list, float, int]]:
    """Lines of the skin on the right half of the face: points, darkness 0 to 1, width in grid pixels."""
    corner_x, corner_y = mouth.inner_upper[-1]
    low = mouth.outer_lower[len(mouth.outer_lower) // 2, 1]
    nose = person.nose_y - 0.06 * e.nose_wrinkle
    wide = person.nose_width * (1 + 0.16 * e.nostril_flare)
    eye, outer = person.eye_x, person.eye_x + person.eye_width
    brow = person.brow_y - 0.17 * e.brow_height
    laugh = max(e.cheek_raise, 0) * max(e.mouth_corners, 0)
    down = max(-e.mouth_corners, 0)
    raised = max(e.brow_height, 0)
    beside_nose = [(wide, nose - 0.05), (wide + 0.10, nose + 0.06)]
    beside_mouth = [(corner_x + 0.09, corner_y - 0.08), (corner_x + 0.08, corner_y + 0.04)]
    laughing = 0.14 + 0.40 * max(e.cheek_raise, 0) + 0.4 * e.nose_wrinkle + 0.12 * e.mouth_width
    folds = [
        ([(0.055, brow + 0.10), (0.065, brow), (0.05, brow - 0.10)], 0.8 * e.brow_furrow, 1),
        ([(0.0, -0.20), (0.09, -0.23)], 0.8 * e.nose_wrinkle, 1),
        ([(0.0, -0.11), (0.10, -0.14), (0.15, -0.08)], 1.0 * e.nose_wrinkle, 1),
        ([(0.0, -0.03), (0.09, -0.05), (0.14, 0.02)], 1.0 * e.nose_wrinkle, 1),
        (beside_nose + beside_mouth, laughing, 2),
        ([(corner_x, corner_y), (corner_x + 0.04, corner_y + 0.05), (corner_x + 0.05, corner_y + 0.12)], 0.5 * down, 1),
        ([(corner_x - 0.01, corner_y), (corner_x + 0.03, corner_y)], 0.5, 2),
        ([(eye - 0.17, 0.02), (eye, 0.07), (eye + 0.16, 0.02)], 0.22 + 0.5 * e.lid_tension, 2),
        ([(outer + 0.05, -0.09), (outer + 0.15, -0.14)], 0.7 * laugh, 1),
        ([(outer + 0.05, -0.06), (outer + 0.17, -0.05)], 0.7 * laugh, 1),
        ([(outer + 0.04, -0.02), (outer + 0.14, 0.04)], 0.6 * laugh, 1),
        ([(0.0, low + 0.06), (0.15, low + 0.08)], 0.2 + 0.5 * max(e.chin_raise, 0), 2),
        ([(wide * 0.85, nose - 0.04), (wide, nose + 0.05), (wide * 0.8, nose + 0.115)], 0.5, 2),
    ]
    for i, above in enumerate((0.16, 0.27, 0.38)):
        reach = 0.52 - 0.06 * i
        arch = 0.05 * raised - 0.06 * e.brow_inner
        line = [(0.0, brow - above + 0.02 * raised), (reach / 2, brow - above - arch / 2), (reach, brow - above + 0.03)]
        folds.append((line, 0.6 * raised + 0.45 * e.brow_inner * (1 - 0.25 * i), 1))
    return folds


def _light_map(
    person: _Person, e: Expression, scene: _Scene, mouth: _Mouth, outline: np.ndarray, hair: np.ndarray | None
) -> np.ndarray:
    """What the flat colours are multiplied by, 1 for a surface in full light: (_HEIGHT, _WIDTH, 3) float32."""
    bumps = _bumps(person, e, mouth).astype(np.float32)
    centre = _turned(bumps[:, :2], scene.turn).astype(np.float32)
    dx = (_GX - centre[:, :1]) / bumps[:, 2:3]  # (K, W)
    dy = (_GY - centre[:, 1:]) / bumps[:, 3:4]  # (K, H)
    across = np.exp(-dx * dx / 2) * bumps[:, 4:]
    down = np.exp(-dy * dy / 2)
    # The head is an ellipsoid; its slope at the rim would be infinite, hence the floor under the root.
    root = np.sqrt(np.maximum(1 - (_GX / 1.15) ** 2 - ((_GY[:, None] + 0.05) / 1.65) ** 2, 0.10))
    slope_x = down.T @ (-dx / bumps[:, 2:3] * across) - 0.72 / 1.15**2 * _GX / root
    slope_y = (-dy / bumps[:, 3:4] * down).T @ across - 0.72 / 1.65**2 * (_GY[:, None] + 0.05) / root

    face = np.zeros((_HEIGHT, _WIDTH), np.uint8)
    cv2.fillPoly(face, [_on_grid(outline)], (255,), cv2.LINE_AA, 4)
    # Below the ears and beside the jaw lie neck and shoulders, lit as upright cylinders, in the chin's shadow.
    shift = np.array([[1, 0, -0.12 * _GRID * scene.light[0]], [0, 1, 0.16 * _GRID]])
    chin = cv2.warpAffine(cv2.blur(face, (9, 9)), shift, (_WIDTH, _HEIGHT))[_NECK]
    neck = 1 - face[_NECK] / np.float32(255)
    slope_x[_NECK] += neck * (_cylinder_slopes() - slope_x[_NECK])
    slope_y[_NECK] *= 1 - neck

    length = 1 / np.sqrt(slope_x * slope_x + slope_y * slope_y + 1)
    lx, ly, lz = scene.light.astype(np.float32)
    shade = np.maximum((lz - slope_x * lx - slope_y * ly) * length, 0)
    half = scene.light + [0, 0, 1]
    hx, hy, hz = (half / np.linalg.norm(half)).astype(np.float32)
    gloss = np.maximum((hz - slope_x * hx - slope_y * hy) * length, 0)
    for _ in range(5):  # to the 32nd power: four times as fast as **
        gloss *= gloss
    strength = np.float32(scene.strength)
    shade = 1.05 * (1 - strength) + strength * (1.15 * shade + 0.16 * gloss)
    shade[_NECK] *= 1 - neck * chin * np.float32(0.45 / 255)

    lines = np.zeros((_HEIGHT, _WIDTH), np.uint8)
    folds = [(_curve(points, steps=4), amount, thick) for points, amount, thick in _folds(person, e, mouth)]
    right = np.concatenate([curve for curve, _, _ in folds])
    places = _on_grid(_turned(np.stack([right, right * [-1, 1]]), scene.turn))
    start = 0
    for curve, amount, thick in folds:
        end = start + len(curve)
        if amount > 0.04:
            both = [places[0, start:end], places[1, start:end]]
            cv2.polylines(lines, both, False, int(255 * min(amount, 1)), thick, cv2.LINE_AA, 4)
        start = end
    if hair is not None:
        cv2.polylines(lines, [_on_grid(hair)], True, 110, 3, cv2.LINE_AA, 4)
    shade *= 1 - cv2.GaussianBlur(lines, (0, 0), 1.0) * np.float32(0.5 / 255)

    # The nose's own shadow, away from the light, and the sockets', which no light quite fills.
    blots = np.array([
        (-0.16 * np.sign(lx), person.nose_y + 0.06, 0.07, 0.09, 0.30 * abs(lx) * strength),
        (0.0, person.nose_y + 0.15, 0.13, 0.05, 0.26),
        (0.24, -0.14, 0.09, 0.08, 0.16), (-0.24, -0.14, 0.09, 0.08, 0.16),
        (0.44, -0.19, 0.20, 0.05, 0.14), (-0.44, -0.19, 0.20, 0.05, 0.14),
        (0.12, -0.30, 0.09, 0.09, 0.14 * e.brow_furrow), (-0.12, -0.30, 0.09, 0.09, 0.14 * e.brow_furrow),
    ], np.float32)  # fmt: skip
    shade *= 1 - _sum_of_gaussians(blots, scene.turn)

    # Blood under the skin of cheeks and nose: less green and blue comes back.
    red = _sum_of_gaussians(
        np.array([(0.55, 0.28, 0.2, 0.16, 0.1), (-0.55, 0.28, 0.2, 0.16, 0.1), (0, 0.36, 0.12, 0.1, 0.1)], np.float32),
        scene.turn,
    )
    light = np.empty((_HEIGHT, _WIDTH, 3), np.float32)
    for channel, share in enumerate((0.15, 1.0, 0.9)):
        np.multiply(shade, (1 - share * red) * np.float32(scene.tint[channel]), out=light[..., channel])
    return light


@lru_cache
def _cylinder_slopes() -> np.ndarray:
    neck = -0.9 * _GX / np.sqrt(np.maximum(0.62 - _GX**2, 0.12))
    shoulders = -0.25 * _GX
    share = 1 / (1 + np.exp(-14 * (_GY[_NECK, None] - 1.5)))
    return neck * (1 - share) + shoulders * share


def _sum_of_gaussians(blots: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """blots (K, 5): x, y, two widths, height; the sum of their Gaussians on the grid."""
    centre = _turned(blots[:, :2], turn).astype(np.float32)
    dx = (_GX - centre[:, :1]) / blots[:, 2:3]
    dy = (_GY - centre[:, 1:]) / blots[:, 3:4]
    return np.exp(-dy * dy / 2).T @ (np.exp(-dx * dx / 2) * blots[:, 4:])


# ---- drawing


class _Pen:
    """Fills curves of the face into a picture (size, size, 3) uint8, with sub-pixel places."""

    def __init__(self, image: np.ndarray, scene: _Scene):
        self.image = image
        self.subject = np.zeros(image.shape[:2], np.uint8)  # mask: drawn over the background so far
        self.haired = np.zeros(image.shape[:2], np.uint8)  # mask: hair, where nothing covers it
        self.scene = scene
        self.scale = float(np.hypot(*scene.head[:, 0]))  # pixels in a face unit

    def pixels(self, points: np.ndarray, turned: bool = True, body: bool = False) -> np.ndarray:
        """Fixed-point pixel places, 4 bits after the point, of points in face units."""
        if turned and not body:
            points = _turned(points, self.scene.turn)
        matrix = self.scene.body if body else self.scene.head
        return np.round((points @ matrix[:, :2].T + matrix[:, 2]) * 16).astype(np.int32)

    def fill(self, points: np.ndarray, colour: ArrayLike, on: np.ndarray | None = None) -> None:
        cv2.fillPoly(self.image if on is None else on, [self.pixels(points)], _rgb(colour), cv2.LINE_AA, 4)

    def part(self, points: np.ndarray, colour: ArrayLike, hair: bool = False, body: bool = False) -> None:
        """Fill a part of the subject that does not shift with small turns of the head."""
        places = [self.pixels(points, turned=False, body=body)]
        for on, value in ((self.image, colour), (self.subject, 255), (self.haired, 255 if hair else 0)):
            cv2.fillPoly(on, places, _rgb(value), cv2.LINE_AA, 4)

    def line(self, points: np.ndarray, colour: ArrayLike, width: float) -> None:
        """width in face units."""
        thick = max(1, round(width * self.scale))
        cv2.polylines(self.image, [self.pixels(points)], False, _rgb(colour), thick, cv2.LINE_AA, 4)

    def disc(self, centre: ArrayLike, radius: float, colour: ArrayLike, on: np.ndarray | None = None) -> None:
        x, y = self.pixels(np.asarray(centre, np.float64)[None])[0].tolist()
        radius = round(radius * self.scale * 16)
        cv2.circle(self.image if on is None else on, (x, y), radius, _rgb(colour), -1, cv2.LINE_AA, 4)

    def soft(self, points: np.ndarray, colour: ArrayLike, alpha: float, blur: float) -> None:
        """A patch of colour with an edge blurred by blur face units."""
        places = self.pixels(points)
        sigma = max(blur * self.scale, 0.3)
        margin = int(3 * sigma) + 2
        size = self.image.shape[0]
        left, top = np.clip(places.min(0) // 16 - margin, 0, size).tolist()
        right, bottom = np.clip(places.max(0) // 16 + margin, 0, size).tolist()
        if left >= right or top >= bottom:
            return
        mask = np.zeros((bottom - top, right - left), np.uint8)
        cv2.fillPoly(mask, [places - [16 * left, 16 * top]], 255, cv2.LINE_AA, 4)
        mask = cv2.GaussianBlur(mask, (0, 0), sigma)
        part = self.image[top:bottom, left:right]
        _mix(part, np.asarray(colour, np.float32), mask * np.float32(alpha / 255))


def _rgb(colour: ArrayLike) -> tuple[float, ...]:
    return tuple(np.atleast_1d(np.asarray(colour, np.float64)).tolist())


def _mix(part: np.ndarray, other: np.ndarray, share: np.ndarray) -> None:
    """Replace share (H, W) of part (H, W, 3) uint8, in place, by other."""
    share = share[..., None]
    part[:] = part + share * (other - part) + np.float32(0.5)


def draw_face(
    mixture: np.ndarray, rng: np.random.Generator, size: int = 224, who: np.random.Generator | None = None
) -> np.ndarray:
    """One face showing mixture (7,), everything else about it drawn from rng: (size, size, 3) uint8 RGB.

    With `who` the person shown is drawn from that.
    """
    return draw_face_and_landmarks(mixture, rng, size, who)[0]


def draw_face_and_landmarks(
    mixture: np.ndarray, rng: np.random.Generator, size: int = 224, who: np.random.Generator | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """draw_face, and where its eyes, nose's tip and mouth's corners lie: (5, 2) x, y in pixels.

    In RetinaFace's order: left eye, right eye, nose, left and right corner, as the picture shows them; 0 is the
    outer edge of the first pixel.
    """
    numbers = np.asarray(astuple(blend(mixture)))
    e = Expression(*(numbers + JITTER * np.clip(rng.standard_normal(len(numbers)), -2.5, 2.5)).tolist())
    person = _draw_person(rng if who is None else who)
    scene = _draw_scene(rng, size)
    style = _HAIR[person.style]
    mouth = _mouth(person, e, rng.normal(0, 0.02))
    lifts = rng.normal(0, 0.012, 2)
    eyes = [_eye(person, e, side, lift) for side, lift in zip((-1, 1), lifts, strict=True)]
    outline = _face_outline(person, 0.17 * max(e.mouth_opening, 0))
    front = None if person.style == "bald" else _hair_front(person, style, rng)
    back = None if style.back is None else _hair_back(person, style, style.back, rng)
    strands = rng.random((12, 12) if style.curls else (3, 96), np.float32)
    gaze = np.clip(rng.normal(0, [0.022, 0.010]), -0.05, 0.05)

    pen = _Pen(_background(rng, size), scene)
    _draw_behind(pen, person, style, back, rng)
    _draw_head(pen, person, outline)
    _draw_nose(pen, person, e)
    _draw_mouth(pen, person, e, mouth)
    _draw_eyes(pen, person, e, eyes, gaze)
    if front is not None:
        pen.part(front, person.hair, hair=True)
    if person.glasses:
        _draw_glasses(pen, person)

    _shine(pen, _light_map(person, e, scene, mouth, outline, front), _strand_map(strands, style))
    for eye in eyes:
        glint = eye.centre + gaze + person.iris_size * np.array([0.35 * np.sign(scene.light[0]), -0.35])
        if eye.opening > 0.06:  # else the lid covers it
            pen.disc(glint, 0.022, (235, 238, 240))
    points = np.array([eyes[0].centre, eyes[1].centre, [0, person.nose_y], *mouth.inner_upper[[0, -1]]])
    return _photographed(pen.image, scene, rng), pen.pixels(points) / 16 + 0.5


def _draw_behind(pen: _Pen, person: _Person, style: _Style, back: np.ndarray | None, rng: np.random.Generator) -> None:
    """Hair behind the neck, neck, clothes and ears."""
    if style.bun:
        angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        bun = np.stack([0.34 * np.cos(angle), person.crown - 0.16 + 0.28 * np.sin(angle)], 1)
        pen.part(bun, person.hair * 0.9, hair=True)
    if back is not None:
        pen.part(back, person.hair * 0.85, hair=True)
    n = person.neck
    neck = [(0, 0.5), (n, 0.5), (n * 0.98, 1.35), (n + 0.12, 1.62), (1.6, 1.95), (1.9, 3.5), (0, 3.5)]
    pen.part(_curve(_mirrored(neck)), person.skin * 0.94, body=True)
    hsv = rng.uniform([0, 0.05, 0.15], [360, 0.6, 0.9]).astype(np.float32)[None, None]
    low = rng.uniform(1.62, 2.05)
    shirt = [(0, low), (n * 0.7, low - 0.1), (n + 0.14, 1.60), (1.62, 1.88), (2.1, 2.4), (2.6, 6), (0, 6)]
    pen.part(_curve(_mirrored(shirt)), 255 * cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0], body=True)
    ear = np.array([(0.93, -0.20), (1.05, -0.24), (1.12, -0.08), (1.08, 0.15), (1.0, 0.32), (0.92, 0.30)])
    for side in (-1, 1):
        pen.part(_curve(ear * [side, 1], closed=True), person.skin * [0.97, 0.9, 0.88])
        pen.line(_curve([(side * 1.0, -0.12), (side * 1.06, -0.08), (side * 1.03, 0.10)]), person.skin * 0.7, 0.02)


def _draw_head(pen: _Pen, person: _Person, outline: np.ndarray) -> None:
    pen.part(outline, person.skin)
    if person.beard:
        moustache = [(0, 0.62), (0.3, 0.60), (0.52, 0.72), (0.80, 0.30), (0.92, 0.30)]
        half = [*moustache, (person.jaw, 0.75), (0.5, 1.15), (0, person.chin)]
        pen.soft(_curve(_mirrored(half)), 0.5 * person.hair + 0.2 * person.skin, 0.8 * person.beard, 0.05)


def _draw_nose(pen: _Pen, person: _Person, e: Expression) -> None:
    y = person.nose_y - 0.06 * e.nose_wrinkle
    wide = person.nose_width * (1 + 0.16 * e.nostril_flare)
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    for side in (-1, 1):
        centre = [side * wide * 0.48, y + 0.085 - 0.01 * e.nose_wrinkle]
        across, down = 0.052 + 0.010 * e.nostril_flare, 0.022 + 0.012 * e.nostril_flare
        hole = np.stack([across * np.cos(angle), down * np.sin(angle)], 1)
        hole[:, 1] += side * 0.25 * hole[:, 0]
        pen.soft(centre + hole, person.skin * [0.30, 0.22, 0.20], 0.85, 0.012)


def _draw_mouth(pen: _Pen, person: _Person, e: Expression, mouth: _Mouth) -> None:
    lips = np.concatenate([mouth.outer_upper, mouth.outer_lower[::-1]])
    pen.soft(lips, person.lips, 0.92, 0.012)
    upper = np.concatenate([mouth.outer_upper, mouth.inner_upper[::-1]])
    pen.soft(upper, person.lips * 0.86, 0.9, 0.008)
    dark = person.lips * [0.42, 0.34, 0.34]
    if mouth.gap * pen.scale > 1:
        cavity = np.concatenate([mouth.inner_upper, mouth.inner_lower[::-1]])
        inside, mask = pen.image.copy(), np.zeros(pen.image.shape[:2], np.uint8)
        pen.fill(cavity, 255, mask)
        pen.fill(cavity, (58, 22, 24), inside)
        angle = np.linspace(0, 2 * np.pi, 16, endpoint=False)
        low = mouth.inner_lower[len(mouth.inner_lower) // 2]
        tongue = low + [0, 0.02] + np.stack([0.2 * np.cos(angle), 0.10 * np.sin(angle)], 1)
        pen.fill(tongue, (150, 74, 74), inside)
        bared = min(max(0.045 + 0.07 * e.mouth_corners + 0.10 * e.lip_raise, 0.02), 0.14)
        teeth = np.concatenate([mouth.inner_upper - [0, 0.05], (mouth.inner_upper + [0, bared])[::-1]])
        pen.fill(teeth, (232, 226, 214), inside)
        bared = min(0.075 * e.lip_drop, 0.09)
        if bared > 0.015:
            teeth = np.concatenate([mouth.inner_lower + [0, 0.05], (mouth.inner_lower - [0, bared])[::-1]])
            pen.fill(teeth, (196, 186, 172), inside)
        _paste(pen.image, inside, mask)
        pen.line(mouth.inner_upper, dark, 0.018)
        pen.line(mouth.inner_lower, dark, 0.012)
    else:
        pen.line((mouth.inner_upper + mouth.inner_lower) / 2, dark, 0.02 + 0.01 * max(e.lip_press, 0))


def _draw_eyes(pen: _Pen, person: _Person, e: Expression, eyes: list[_Eye], gaze: np.ndarray) -> None:
    inside, mask = pen.image.copy(), np.zeros(pen.image.shape[:2], np.uint8)
    for eye in eyes:
        opening = np.concatenate([eye.upper, eye.lower[::-1]])
        pen.fill(opening, 255, mask)
        pen.fill(opening, (226, 222, 216), inside)
        pen.disc(eye.centre + gaze - [0, 0.012], person.iris_size * 1.06, person.iris * 0.45, inside)
        pen.disc(eye.centre + gaze - [0, 0.012], person.iris_size * 0.90, person.iris, inside)
        pen.disc(eye.centre + gaze - [0, 0.012], person.iris_size * 0.45, (14, 12, 12), inside)
        # the lid's shadow on the ball
        band = np.concatenate([eye.upper - [0, 0.05], (eye.upper + [0, 0.022])[::-1]])
        cv2.fillPoly(inside, [pen.pixels(band)], _rgb(person.skin * 0.42), cv2.LINE_AA, 4)
    _paste(pen.image, inside, mask)
    lash = person.skin * 0.18
    for eye in eyes:
        swell = 0.030 * np.sin(np.linspace(0.15, np.pi * 0.9, len(eye.upper)))[:, None]
        pen.fill(np.concatenate([eye.upper - swell * [0, 1], (eye.upper + [0, 0.006])[::-1]]), lash)
        pen.line(eye.lower, person.skin * [0.62, 0.5, 0.48], 0.012)
        pen.line(_curve(eye.crease[::2], steps=3), person.skin * [0.66, 0.58, 0.56], 0.014)
        shade = person.hair * 0.75 if person.hair.mean() < 120 else person.hair * 0.55
        pen.soft(eye.brow, shade, 0.92, 0.012)


def _draw_glasses(pen: _Pen, person: _Person) -> None:
    angle = np.linspace(0, 2 * np.pi, 33)
    for side in (-1, 1):
        rim = np.stack([side * person.eye_x + 0.30 * np.cos(angle), -0.05 + 0.22 * np.sin(angle)], 1)
        pen.line(rim, person.hair * 0.5, 0.022)
        pen.line(np.array([(side * (person.eye_x + 0.30), -0.09), (side * 0.97, -0.14)]), person.hair * 0.5, 0.022)
    bridge = person.eye_x - 0.30
    pen.line(_curve([(-bridge, -0.10), (0, -0.13), (bridge, -0.10)]), person.hair * 0.5, 0.022)


def _paste(image: np.ndarray, other: np.ndarray, mask: np.ndarray) -> None:
    """Put other into image where mask (uint8) says, in place, working only on the mask's box."""
    x, y, width, height = cv2.boundingRect(mask)
    box = np.s_[y : y + height, x : x + width]
    if width and height:
        _mix(image[box], other[box].astype(np.float32), mask[box] / np.float32(255))


@lru_cache
def _strand_angles() -> tuple[np.ndarray, np.ndarray]:
    """Where on a strip of strands (row: from root to end, column: round the crown) each grid point lies."""
    x, y = np.broadcast_arrays(_GX, _GY[:, None] + 0.75)
    turn = (np.arctan2(x, -y) / (2 * np.pi) + 0.5) * 95
    return turn.astype(np.float32), np.minimum(np.hypot(x, y), 1.9).astype(np.float32)


def _strand_map(noise: np.ndarray, style: _Style) -> np.ndarray:
    """Light and dark of hair, (_HEIGHT, _WIDTH) float32 around 1, from noise between 0 and 1."""
    if style.curls:
        fine = cv2.resize(noise, (_WIDTH // 8, _HEIGHT // 8), interpolation=cv2.INTER_NEAREST)
        return 0.7 + 0.6 * cv2.resize(fine, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_CUBIC)
    return 0.75 + 0.5 * cv2.remap(noise, *_strand_angles(), cv2.INTER_LINEAR)


def _shine(pen: _Pen, light: np.ndarray, strands: np.ndarray) -> None:
    """Multiply the subject by the light, and its hair by the strands too."""
    size = pen.image.shape[0]
    grid_to_face = np.array([[1 / _GRID, 0, _LEFT], [0, 1 / _GRID, _TOP], [0, 0, 1]])
    matrix = pen.scene.head @ grid_to_face

    def warped(values: np.ndarray) -> np.ndarray:
        return cv2.warpAffine(values, matrix, (size, size), borderMode=cv2.BORDER_REPLICATE)

    amount = warped(light)
    hair = warped(strands)
    hair -= 1
    hair *= pen.haired / np.float32(255)
    hair += 1
    amount *= hair[..., None]
    amount -= 1
    amount *= (pen.subject / np.float32(255))[..., None]
    amount += 1
    cv2.multiply(pen.image, amount, dst=pen.image, dtype=cv2.CV_8U)


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Flat, a gradient, blobs, a coarse texture or upright bands: (size, size, 3) uint8."""
    hsv = np.stack([rng.uniform(0, 360, 6), rng.uniform(0.02, 0.6, 6), rng.uniform(0.12, 0.95, 6)], 1)
    colours = 255 * cv2.cvtColor(hsv[None].astype(np.float32), cv2.COLOR_HSV2RGB)[0]
    kind = rng.choice(["flat", "gradient", "blobs", "texture", "bands"])
    if kind == "gradient":
        small = np.stack([colours[:2], colours[:2] * 0.5 + colours[2:4] * 0.5])
    elif kind == "texture":
        small = colours[0] * rng.uniform(0.6, 1.3, (rng.integers(5, 40), rng.integers(5, 40), 1))
    elif kind == "bands":
        small = colours[rng.integers(6, size=(1, 7))] * 0.6 + colours[0] * 0.4
    else:
        small = np.broadcast_to(colours[0], (2, 2, 3))
    small = np.ascontiguousarray(np.clip(small, 0, 255), np.float32)
    smooth = cv2.INTER_AREA if kind == "bands" else cv2.INTER_LINEAR
    image = np.asarray(cv2.resize(small, (size, size), interpolation=smooth)).astype(np.uint8)
    if kind == "blobs":
        for colour in colours[1:]:
            x, y, radius = (size * rng.uniform([0, 0, 0.05], [1, 1, 0.28])).astype(int).tolist()
            cv2.circle(image, (x, y), radius, _rgb(colour), -1, cv2.LINE_AA)
        return np.asarray(cv2.blur(image, (size // 16, size // 16)))
    return image


def _photographed(image: np.ndarray, scene: _Scene, rng: np.random.Generator) -> np.ndarray:
    size = image.shape[0]
    sigma = scene.blur * size / 224
    if sigma > 0.25:
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    grain = rng.standard_normal((size, size), np.float32)
    grain *= np.float32(scene.noise)
    return cv2.add(image, cv2.merge([grain, grain, grain]), dtype=cv2.CV_8U)
