"""`fer inspect --html`: a cache as one page for a browser, with everything in it.

The page is put together from web/: page.html with page.css and the scripts inlined, and the data as JSON. It asks
nothing of any network, and text from files is never markup: the scripts set it as text, and a content security policy
lets no other script run than the one that was written here.
"""

import base64
import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.text import Text

from efficientface import FerError
from efficientface.cache.distributions import Distributions
from efficientface.cache.summary import entropy
from efficientface.data.faces import Faces, read_faces, read_table
from efficientface.data.words import Words, places
from efficientface.pipeline.artifact import data_files, digest_file, digest_of, is_finished, read_manifest, write_text
from efficientface.pipeline.caches import default_cache, home_of, is_file, open_cache
from efficientface.pipeline.inspect import fold_meaning, in_order, kind_of, read_cached
from efficientface.pipeline.inspect_tables import bytes_text
from efficientface.pipeline.issues import likely_label_errors
from efficientface.pipeline.metrics import BINS
from efficientface.pipeline.progress import progress
from efficientface.pipeline.status import printable, sources_of, subfolders

log = logging.getLogger(__name__)

WEB = Path(__file__).parent / "web"
SCRIPTS = ("data.js", "parts.js", "gallery.js", "face.js", "overview.js", "main.js")  # one after the other
SAMPLE = 1200  # faces with a picture
SIDES = (224, 160, 112)  # pixels of an embedded picture, the largest that keeps within PICTURES
PICTURES = 8_000_000  # bytes of all pictures; base64 makes that 10.7 MB
QUALITY = 82  # JPEG
PROBE = 24  # pictures encoded to find out how large all will be
MARGIN = 0.2  # a face whose most probable class leads by less is doubtful, whatever its label


def run(
    path: Path, html: Path, sample: int = SAMPLE, students: Sequence[str] | None = None, device: str = "cpu"
) -> dict[str, Any]:
    """Write the page about a cache, or about the default cache of a run, to `html`.

    The numbers of all faces are in it, pictures and views of `sample` of them (0: of none), chosen by `sample_rows`.
    `students` of the run are asked about those, by default every finished one.
    """
    check_target(html, "--html", "faces.html")
    if sample < 0:
        raise FerError(f"--sample {sample} is out of range; give a number from 0")
    kind = kind_of(path)
    folder = default_cache(path) if kind == "run" else path
    if kind not in ("run", "distributions"):
        raise FerError(f"{printable(path)} holds {kind}, the page shows distributions; give the folder of fer teach")
    manifest = open_cache(folder).manifest
    cached = read_cached(folder, manifest, views=True)
    named = likely_errors(cached, manifest, folder)
    rows = sample_rows(cached, sample, named)
    data = numbers(folder, manifest, cached)
    home = faces_home(home_of(folder), manifest)
    votes, side, answers = None, 0, {}
    pictures: list[str] = []
    crop = extent(cached)
    if home is not None:
        crop = int(read_manifest(home, "faces")["settings"]["crop"])
        faces = faces_about(home, cached, rows)
        votes = faces.votes if np.isfinite(faces.votes).any() else None
        rows = rows[faces.usable[rows]]
        faces = faces.select(rows)
        side, pictures = encode(faces)
        answers = student_answers(folder.parent, home, faces, crop, students, device)
    elif students:
        raise FerError(f"the faces that {printable(folder)} was made from are not there to ask about; omit --student")
    boxed = cached.select(rows)
    data |= {
        "crop": crop,
        "rows": packed(rows.astype(np.int32)),
        "pictures": pictures,
        "view_box": packed(boxed.view_box),
        "view_flip": packed(boxed.view_flip.astype(np.uint8)),
        "view_distribution": packed(shares(boxed.view_distribution)),
        "named": None if named is None else packed(np.array(named, np.int32)),
        "votes": packed(smallest(votes)) if votes is not None else None,
        "students": [{"name": name, "distribution": packed(shares(p))} for name, p in answers.items()],
    }
    text = page(data)
    write_text(html, text)
    return {
        "kind": "page",
        "path": str(folder),
        "html": str(html),
        "faces": len(cached),
        "pictures": len(pictures),
        "side": side,
        "students": list(answers),
        "bytes": len(text.encode()),
    }


def check_target(html: Path, option: str, example: str) -> None:
    """FerError where `html` cannot become a page; asked before the work begins."""
    if html.suffix.lower() not in (".html", ".htm"):
        raise FerError(f"{option} {printable(html)} does not end in .html; give the page's name, such as {example}")
    if html.is_dir():
        raise FerError(f"{printable(html)} is a folder; give the page another name")
    if not html.parent.is_dir():
        raise FerError(f"{printable(html.parent)} does not exist; make that folder first, or write the page elsewhere")


def tables(result: dict[str, Any]) -> list[Any]:
    """What was written, for a terminal; with a word about the pictures, before the page is passed on."""
    inside = f"{result['faces']:,} faces, {result['pictures']:,} of them with a picture"
    if result["students"]:
        inside += f"; students asked: {', '.join(map(printable, result['students']))}"
    lines = [Text(f"{printable(result['html'])}  {bytes_text(result['bytes'])}: {inside}")]
    if result["pictures"]:
        lines.append(
            Text("the pictures are in the file: whoever gets it sees them (--sample 0 leaves them out)", "dim")
        )
    return lines


# --- which faces get a picture ----------------------------------------------------------------------------------


def likely_errors(cached: Distributions, manifest: dict[str, Any], folder: Path) -> np.ndarray | None:
    """Rows whose label is likely wrong, the likeliest first, as `fer cache issues` names them; None if it cannot."""
    try:
        return likely_label_errors(cached, manifest, folder)
    except FerError as error:
        log.info("likely label errors are not marked in the page: %s", error)
        return None


def sample_rows(cached: Distributions, count: int, named: np.ndarray | None = None) -> np.ndarray:
    """(M,) ascending rows of up to `count` faces: both ends of every order that the page can sort by, and some of all.

    The heads of all orders are taken in turns, those that are looked at most going deeper. `named` are rows of likely
    label errors, the likeliest first.
    """
    if count >= len(cached):
        return np.arange(len(cached))
    taken: dict[int, None] = {}
    orders = chain(rankings(cached), [] if named is None else [(named, 8.0)])
    heads = [(ranked[:count], weight) for ranked, weight in orders]
    depth = np.concatenate([(np.arange(len(head)) + 0.5) / weight for head, weight in heads])
    faces = np.concatenate([head for head, _ in heads])
    for row in faces[np.argsort(depth, kind="stable")].tolist():
        if len(taken) == count:
            break
        taken[row] = None
    return np.array(sorted(taken), np.int64)


def rankings(cached: Distributions) -> Iterator[tuple[np.ndarray, float]]:
    """Rows in the orders of the page (of equals the earlier first), each with how deep it goes beside the others."""
    p, label = cached.canonical, cached.label
    nats, labelled = entropy(p), np.flatnonzero(label >= 0)
    doubt = np.zeros(len(cached))
    doubt[labelled] = 1 - p[labelled, label[labelled]].astype(np.float64)
    pairs = [np.minimum(p[:, a], p[:, b]) for a, b in combinations(range(p.shape[1]), 2)]
    for values, high, low in (
        (nats, 8.0, 4.0),
        (lead(p), 1.0, 4.0),
        *((column, 4.0, 0.5) for column in p.T),
        *((pair, 2.0, 0.5) for pair in pairs),
    ):
        yield np.argsort(-values, kind="stable"), high
        yield np.argsort(values, kind="stable"), low
    yield labelled[np.argsort(-doubt[labelled], kind="stable")], 8.0
    yield labelled[np.argsort(doubt[labelled], kind="stable")], 2.0
    yield np.arange(len(cached)), 4.0
    yield np.arange(len(cached))[::-1], 1.0
    split = np.array(["" if name is None else name for name in cached.split], object)
    for keys in (split, label, cached.fold):  # what a filter leaves has ends too
        for key in sorted(set(keys.tolist())):
            rows = np.flatnonzero(keys == key)
            yield rows[np.argsort(-nats[rows], kind="stable")], 1.0
            yield rows[np.argsort(-doubt[rows], kind="stable")], 1.0
    # every kind of agreement and disagreement in every split, by chance: image hashes are as good as random
    by_chance = np.argsort(cached.image_hash, kind="stable")
    kinds = list(zip(split[by_chance], label[by_chance].tolist(), p.argmax(1)[by_chance].tolist(), strict=True))
    places: dict[Any, list[int]] = {}
    for row, key in zip(by_chance.tolist(), kinds, strict=True):
        places.setdefault(key, []).append(row)
    for key in sorted(places):
        yield np.array(places[key]), 0.5


def lead(p: np.ndarray) -> np.ndarray:
    """(N, C) probabilities to (N,): by how much the most probable class leads the second."""
    if p.shape[1] < 2:
        return p[:, 0].astype(np.float64)
    top = np.partition(p, -2, axis=1)[:, -2:].astype(np.float64)
    return top[:, 1] - top[:, 0]


# --- what goes into the page ------------------------------------------------------------------------------------


def numbers(folder: Path, manifest: dict[str, Any], cached: Distributions) -> dict[str, Any]:
    """Of all faces: ids, splits, labels, folds and canonical distributions; and what the cache is."""
    names = ["" if name is None else name for name in cached.split.tolist()]
    splits = in_order(Counter(names))
    place = {name: k for k, name in enumerate(splits)}
    folds = sorted(set(cached.fold.tolist()))
    return {
        # no more of the path: the page is made to be passed on
        "folder": "/".join(folder.resolve().parts[-2:]),
        "digest": (digest_file(folder) if is_file(folder) else digest_of(folder))[:12],
        "source": str(manifest["facts"].get("source", "")),
        "classes": list(cached.classes),
        "views": cached.views,
        "margin": MARGIN,
        "bins": BINS,
        "ids": cached.face_id.tolist(),
        "splits": splits,
        "split": packed(smallest(np.array([place[name] for name in names]))),
        "label": packed(cached.label.astype(np.int16)),
        "fold": packed(cached.fold),
        "folds": [{"fold": fold, "meaning": fold_meaning(fold)} for fold in folds],
        # as they are: rounded to 16 bits, the orders of what is nearly certain would not be those of fer inspect --top
        "canonical": packed(cached.canonical),
    }


def faces_home(folder: Path, manifest: dict[str, Any]) -> Path | None:
    """The folder of the faces that a cache was made from, None if it is not there."""
    source = {entry["name"]: entry for entry in sources_of(folder, manifest)}.get("faces")
    if source is None or source["state"] == "not there":
        log.warning("no pictures and no votes: the faces that %s was made from are not there", printable(folder))
        return None
    return Path(source["path"])


def faces_about(home: Path, cached: Distributions, rows: np.ndarray) -> Faces:
    """All cached faces with the votes about them, and the pictures of those at `rows`.

    A face of which faces/ has another picture than the one that was asked about, or none, is not usable.
    """
    made = read_manifest(home, "faces")
    files = data_files(home, made)
    known = read_faces(files, images=False)
    place = places(cached.face_id, known.face_id)
    same = (place >= 0) & (known.image_hash[place] == cached.image_hash)
    if not same.all():
        log.warning(
            "%d of %d faces have another picture in %s now, or none; they are shown without",
            int((~same).sum()), len(same), printable(home),
        )  # fmt: skip
    order = [known.classes.index(name) for name in cached.classes] if set(known.classes) == set(cached.classes) else []
    votes = known.votes[place][:, order] if order else np.full((len(cached), 0), np.nan, np.float32)
    wanted = set(cached.face_id[rows[same[rows]]].tolist())
    found: dict[str, bytes] = {}
    for file in files if wanted else ():
        ids = read_table(file, images=False)["face_id"]
        here = pc.is_in(ids, pa.array(sorted(wanted), pa.string()))
        if pc.any(here).as_py():
            part = read_table(file).select(["face_id", "image"]).filter(here)
            found |= {row["face_id"]: row["image"]["bytes"] for row in part.to_pylist()}
    images = [found.get(name) for name in cached.face_id.tolist()]
    return Faces(
        classes=cached.classes,
        face_id=cached.face_id,
        image_hash=cached.image_hash,
        split=cached.split,
        label=cached.label,
        votes=np.where(same[:, None], votes, np.nan),
        group=known.group[place],
        status=Words(["found"] * len(cached)),
        usable=same,
        place=np.arange(len(cached)),
        images=pa.chunked_array([pa.array(images, pa.binary())]),
    )


def encode(faces: Faces) -> tuple[int, list[str]]:
    """Pixels a side, and every picture as base64 of a JPEG of that side, or of its own where that is smaller.

    Decoded and encoded anew: what a browser decodes was written here.
    """

    some = np.unique(np.linspace(0, len(faces) - 1, min(PROBE, len(faces))).astype(int))
    side = SIDES[-1]
    for candidate in SIDES[:-1]:
        if sum(len(jpeg(faces.image(row), candidate)) for row in some) / max(len(some), 1) * len(faces) <= PICTURES:
            side = candidate
            break
    pictures = []
    with ThreadPoolExecutor() as pool, progress("pictures", len(faces)) as advance:
        for data in pool.map(lambda row: jpeg(faces.image(row), side), range(len(faces))):
            pictures.append(base64.b64encode(data).decode())
            advance(1)
    return side, pictures


def jpeg(image: np.ndarray, side: int) -> bytes:
    """(H, W, 3) uint8 RGB as a JPEG whose longer side is at most `side` pixels."""
    height, width = image.shape[:2]
    if max(height, width) > side:
        scale = side / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


def student_answers(
    run: Path, home: Path, faces: Faces, crop: int, names: Sequence[str] | None, device: str
) -> dict[str, np.ndarray]:
    """What students of the run say about whole faces of `home`: (M, C) by name. Imports torch if there are any."""
    there = [name for name in subfolders(run / "students") if is_finished(run / "students" / name)]
    for name in names or ():
        if name not in there:
            known = f"it has {', '.join(map(printable, there))}" if there else "it has none"
            raise FerError(f"{printable(run)} has no finished student {printable(name)}; {known}")
    wanted = list(there if names is None else dict.fromkeys(names))
    if not wanted or not len(faces):
        return {}
    from efficientface.pipeline.device import prepare
    from efficientface.pipeline.evaluate import ask

    prepare(device)
    answers = {}
    for name in wanted:
        folder = run / "students" / name
        try:
            made_from = read_manifest(folder, "student")["made_from"].get("faces")
            if made_from and made_from["manifest"] != digest_of(home):
                raise FerError(f"{printable(folder)} was made from other faces than {printable(home)} holds now")
            answers[name], _ = ask(folder, "student", faces, crop, device, 64)
        except FerError as error:
            if names is not None:
                raise
            log.warning("student %s is left out: %s", printable(name), error)
    return answers


def extent(cached: Distributions) -> int:
    """The smallest square that all views lie in, for want of the faces."""
    box = cached.view_box.reshape(-1, 4).astype(np.int64)
    return int(max((box[:, :2] + box[:, 2:]).max(), 1)) if len(box) else 1


def shares(p: np.ndarray) -> np.ndarray:
    """Probabilities as uint16, 65535 for 1: they are read as percent, not sorted by."""
    return np.rint(np.clip(p, 0, 1) * 65535).astype(np.uint16)


def smallest(values: np.ndarray) -> np.ndarray:
    """The same numbers in the smallest type that holds them exactly; NaN keeps them floats."""
    for kind in (np.uint8, np.uint16, np.int32):
        if np.isfinite(values).all() and (values >= np.iinfo(kind).min).all() and (values <= np.iinfo(kind).max).all():
            narrow = values.astype(kind)
            if (narrow == values).all():
                return narrow
    return values.astype(np.float32)


def packed(values: np.ndarray) -> dict[str, Any]:
    """An array for web/data.js: type, shape, and its little-endian bytes in base64."""
    plain = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return {"type": values.dtype.name, "shape": list(values.shape), "data": base64.b64encode(plain.tobytes()).decode()}


# --- the page ---------------------------------------------------------------------------------------------------


def page(data: dict[str, Any]) -> str:
    """One HTML document of the files in web/ and the data, ASCII."""
    script = "(() => {\n'use strict';\n" + "\n".join(read(name) for name in SCRIPTS) + "})();\n"
    style = read("page.css")
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {source(script)}",
            f"style-src {source(style)}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    # < would end the element or open a comment inside it; all else that is not ASCII is escaped as well
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    parts = {"POLICY": policy, "STYLE": style, "SCRIPT": script, "DATA": text}
    return re.sub("<!--([A-Z]+)-->", lambda found: parts[found[1]], read("page.html"))


def read(name: str) -> str:
    """A file of web/."""
    return (WEB / name).read_text(encoding="utf-8")


def source(inline: str) -> str:
    """What a content security policy calls an inline script or style: its digest."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()}'"
