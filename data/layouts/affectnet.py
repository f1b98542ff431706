"""AffectNet (Mollahosseini, Hasani and Mahoor, 2017): the first release with tables, and the numbered one of 2021.

The two name the same photographs differently, and no table between the names was published.
"""

import io
import tokenize
from functools import cache
from pathlib import Path

import numpy as np

from efficientface import FerError, untrusted
from efficientface.data.labels import AFFECTNET
from efficientface.data.layouts import published
from efficientface.data.layouts.files import Found, images, images_below, located, plural, shown
from efficientface.data.layouts.listing import Asked, Listing
from efficientface.data.layouts.tables import checked_paths, header_of, numbers, read_csv
from efficientface.data.words import Words, changed, gathered, repeated, within

COLUMNS = (
    "subDirectory_filePath", "face_x", "face_y", "face_width", "face_height", "facial_landmarks", "expression",
    "valence", "arousal",
)  # fmt: skip
BOX = COLUMNS[1:5]
TABLES = {"training.csv": "train", "validation.csv": "val"}
SETS = {"train_set": "train", "val_set": "val"}
INDEX = "{}_annotation_without_lnd.csv"  # of the 2021 release, beside the sets: number, exp, valence, arousal
VAL_IS_TEST = "AffectNet's validation set is what papers test on; --val-from-train 0.05 names it test."


# --- the first release ----------------------------------------------------------------------------------------


def is_2017(path: Path) -> bool:
    return any(_begins_with_a_photograph(table) for table in _tables(path))


def _tables(path: Path) -> list[Path]:
    """training.csv and validation.csv, in the folder itself or in that of the distributed archive."""
    homes = (path, path / "Manually_Annotated_file_lists")
    found = [[home / name for name in TABLES if (home / name).is_file()] for home in homes]
    return max(found, key=len)


def _begins_with_a_photograph(table: Path) -> bool:
    """Whether the first line is that of the release, or of a copy without its header."""
    try:
        first = header_of(table, ",")  # landmarks are divided by semicolons
    except FerError:
        return False
    return len(first) == len(COLUMNS) and (first[0] == COLUMNS[0] or "/" in first[0])


def read_2017(path: Path, asked: Asked) -> Listing:
    """training.csv and validation.csv; photographs below Manually_Annotated_Images/, wherever that lies."""
    tables = _tables(path)
    if not tables:
        raise FerError(f"{path} is not AffectNet's first release: it has neither training.csv nor validation.csv")
    below = "Manually_Annotated_Images"
    for folder in (below, f"Manually_Annotated/{below}", "Manually_Annotated"):
        if (path / folder).is_dir():
            below = folder
            break
    else:
        below = ""
    found = images_below(path, start=below)
    listing = Listing(path, path, notes=[VAL_IS_TEST], published=published.AFFECTNET)
    for table in tables:
        header = header_of(table, ",")
        if len(header) != len(COLUMNS):
            raise FerError(f"{table} has {len(header)} columns; AffectNet's have {len(COLUMNS)}: {', '.join(COLUMNS)}")
        named = header[0] == COLUMNS[0]
        rows = read_csv(table, COLUMNS, [COLUMNS[0], *BOX, "expression"], ",", skip_rows=int(named))
        names = gathered(f"{below}/{name}".lstrip("/") for name in checked_paths(table, rows[COLUMNS[0]]))
        files, notes = located(table, path, names, found, others=False)
        listing.add(files, _names_of(table, rows["expression"], files), repeated(TABLES[table.name], len(files)))
        x, y, width, height = numbers({name: rows[name] for name in BOX}).T
        listing.give_boxes(table, np.stack([x, y, x + width, y + height], 1))
        listing.notes += notes if named else [f"{table.name} has no header; read as the release's.", *notes]
    listing.notes += found.notes(path)
    return listing


def _names_of(where: Path, codes: Words, files: Words) -> Words:
    """AffectNet's numbers 0 to 10, as text, as names; FerError for another. None stays None."""
    known = {str(code): name for code, name in enumerate(AFFECTNET)}
    bad = ~within(codes, [*known, None])
    if bad.any():
        raise FerError(
            f"{where}: {plural(bad.sum(), 'expression')} that AffectNet does not have "
            f"(first {codes[bad.argmax()]!r} of {shown(files[bad.argmax()])}); they are 0 to {len(AFFECTNET) - 1}"
        )
    return changed(codes, known.get)


# --- the release of 2021 --------------------------------------------------------------------------------------


def is_2021(path: Path) -> bool:
    return any(
        (path / folder / "images").is_dir()
        and ((path / folder / "annotations").is_dir() or (path / INDEX.format(folder)).is_file())
        for folder in SETS
    )


def read_2021(path: Path, asked: Asked) -> Listing:
    """`train_set/images/0.jpg` with `train_set/annotations/0_exp.npy`, or a table beside the sets with all numbers."""
    if not is_2021(path):
        raise FerError(
            f"{path} is not AffectNet's release of 2021: train_set/ or val_set/ with images/ and annotations/ is needed"
        )
    listing = Listing(path, path, notes=[VAL_IS_TEST], published=published.AFFECTNET)
    for folder, split in SETS.items():
        if not (path / folder / "images").is_dir():
            listing.notes.append(f"{folder} is absent.")
            continue
        found = images_below(path, start=f"{folder}/images")
        index = path / INDEX.format(folder)
        if index.is_file():
            files, labels, notes = _by_index(path, folder, index, found)
        else:
            files = found.files
            labels, notes = _by_annotations(path / folder / "annotations", files)
        listing.add(files, labels, repeated(split, len(files)))
        listing.notes += notes + found.notes(path / folder)
    if not len(listing.files):
        raise FerError(f"{path} has no images in train_set/images and val_set/images; unpack the sets there")
    return listing


def _by_index(path: Path, folder: str, index: Path, found: Found) -> tuple[Words, Words, list[str]]:
    header = header_of(index)
    if not {"number", "exp"} <= set(header):
        raise FerError(f"{index} has the columns {', '.join(header)}; number and exp are needed")
    rows = read_csv(index, header, ["number", "exp"], ",", skip_rows=1)
    names = gathered(f"{folder}/images/{name}.jpg" for name in checked_paths(index, rows["number"]))
    files, notes = located(index, path, names, found)
    return files, _names_of(index, rows["exp"], files), [f"{folder} is labelled by {index.name}.", *notes]


@cache
def _number(npy: bytes) -> str:
    """The number in an annotation, as text; 290,000 files hold some ten different ones."""
    return str(int(np.load(io.BytesIO(npy), allow_pickle=False)))


def _by_annotations(folder: Path, files: Words) -> tuple[Words, list[str]]:
    """The label of each image by its `_exp.npy`, a number or a number as text; None where there is none."""
    codes = gathered(_annotation(folder / f"{Path(file).stem}_exp.npy") for file in files)
    missing = int(codes.missing().sum())
    notes = [f"Without an annotation in {folder}: {images(missing)}."] if missing else []
    return _names_of(folder, codes, files), notes


def _annotation(path: Path) -> str | None:
    try:
        return _number(untrusted.read_bytes(path, 4096))
    except FileNotFoundError:
        return None
    except (*untrusted.DAMAGE, EOFError, SyntaxError, tokenize.TokenError) as error:
        raise FerError(f"{path} holds no number ({error}); copy it again") from error
