"""RAF-DB (Li, Deng and Du, 2017): one list of names and numbers, photographs and the authors' aligned faces."""

from pathlib import Path

import numpy as np
import pandas as pd

from efficientface import FerError, untrusted
from efficientface.data.labels import COMPOUND, RAF_DB
from efficientface.data.layouts.files import images_below, located, plural
from efficientface.data.layouts.listing import SPLITS, Asked, Listing
from efficientface.data.layouts.published import RAF_DB_BASIC, RAF_DB_COMPOUND, Published
from efficientface.data.layouts.tables import checked_paths
from efficientface.data.words import Words, decoded, gathered

LIST = "EmoLabel/list_patition_label.txt"  # sic
BOXES = "Annotation/boundingbox"
IMAGES = {"aligned": "Image/aligned", "original": "Image/original"}


def is_basic(path: Path) -> bool:
    home = _home(path, "basic")
    return home is not None and not _has_compound_numbers(home / LIST)


def is_compound(path: Path) -> bool:
    home = _home(path, "compound")
    return home is not None and _has_compound_numbers(home / LIST)


def read_basic(path: Path, asked: Asked) -> Listing:
    listing = _read(path, "basic", RAF_DB, RAF_DB_BASIC, asked)
    if (path / "compound" / LIST).is_file():
        listing.notes.append("The compound expressions beside it are read with --layout raf-db-compound.")
    return listing


def read_compound(path: Path, asked: Asked) -> Listing:
    home = _home(path, "compound")
    if home is not None and not _has_compound_numbers(home / LIST):
        raise FerError(
            f"{home / LIST} is the list of the basic expressions: no number in it is above 7; "
            "give the folder of the compound ones"
        )
    return _read(path, "compound", (None, *COMPOUND), RAF_DB_COMPOUND, asked)


def _home(path: Path, part: str) -> Path | None:
    """The folder with EmoLabel/ and Image/: `path`, or its `basic/` or `compound/`."""
    return next((home for home in (path, path / part) if (home / LIST).is_file()), None)


def _has_compound_numbers(path: Path) -> bool:
    rows = _rows(path)
    return bool(rows["label"].isin([str(number) for number in range(len(RAF_DB), len(COMPOUND) + 1)]).any())


def _rows(path: Path) -> pd.DataFrame:
    """The list's names and numbers, as text; FerError for a line with more or less."""
    lines = untrusted.read_bytes(path).decode(errors="replace").splitlines()
    fields = [line.split() for line in lines]
    bad = [number for number, parts in enumerate(fields, 1) if len(parts) not in (0, 2)]
    if bad:
        raise FerError(
            f"{path} is damaged: line {bad[0]} is {lines[bad[0] - 1]!r}, not a name and a number; copy it again"
        )
    return pd.DataFrame([parts for parts in fields if parts], columns=["name", "label"], dtype=object)


def _read(path: Path, part: str, order: tuple[str | None, ...], published: Published, asked: Asked) -> Listing:
    home = _home(path, part)
    if home is None:
        raise FerError(f"{path} is not RAF-DB: there is neither {LIST} nor {part}/{LIST} in it")
    rows = _rows(home / LIST)
    number = pd.to_numeric(rows["label"], errors="coerce")
    known = number.isin(range(1, len(order)))
    if not known.all() or not len(rows):
        first = f"{rows['name'][known.argmin()]} {rows['label'][known.argmin()]}" if len(rows) else "nothing"
        raise FerError(
            f"{home / LIST}: {plural((~known).sum(), 'line')} without a number from 1 to {len(order) - 1} "
            f"(first {first}); copy it again"
        )
    kind = "original" if not asked.aligned and (home / IMAGES["original"]).is_dir() else "aligned"
    folder = home / IMAGES[kind]
    if not folder.is_dir():
        raise FerError(f"{home} has no {IMAGES[kind]}; unpack {IMAGES[kind]}.zip there")
    names = checked_paths(home / LIST, Words(rows["name"]))
    if kind == "aligned":
        names = gathered(name.removesuffix(".jpg") + "_aligned.jpg" for name in names)
    below = (folder.relative_to(path)).as_posix()
    paths = gathered(f"{below}/{name}" for name in names)
    files, notes = located(home / LIST, path, paths, images_below(path, start=below))
    what = "photographs" if kind == "original" else "faces that RAF-DB's authors aligned"
    listing = Listing(
        path,
        home / LIST,
        files,
        decoded(number.to_numpy(int), order),
        gathered(SPLITS.get(name.partition("_")[0]) for name in names),
        notes=[f"Taken from {folder}: the {what}.", *notes],
        published=published,
    )
    if kind == "original" and (home / BOXES).is_dir():
        listing.give_boxes(home / BOXES, np.array([_box(home / BOXES, name) for name in names]))
    return listing


def _box(folder: Path, name: str) -> list[float]:
    """x1, y1, x2, y2 from `train_00001_boundingbox.txt`, four numbers; NaN where there is no such file."""
    path = folder / f"{name.removesuffix('.jpg')}_boundingbox.txt"
    try:
        text = untrusted.read_bytes(path, 4096)
        x1, y1, x2, y2 = map(float, text.split())
    except FileNotFoundError:
        return [np.nan] * 4
    except (OSError, ValueError) as error:
        raise FerError(f"{path} does not hold the four numbers of a box ({error}); copy it again") from error
    return [x1, y1, x2, y2]
