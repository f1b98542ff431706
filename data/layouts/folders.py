"""Class folders, with or without split folders above them; CAER-S and FED-RO, which are such folders."""

import re
from pathlib import Path

from efficientface import FerError
from efficientface.data.layouts.files import IMAGE_SUFFIXES, entries, images_below
from efficientface.data.layouts.listing import SPLITS, Asked, Listing
from efficientface.data.layouts.published import CAER_S, FED_RO
from efficientface.data.words import GrowingWords, repeated

CAER_S_FOLDERS = {"Anger", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise"}
FED_RO_FOLDERS = {"anger", "disgust", "fear", "happy", "neural", "sad", "surprise"}  # sic


def read_folders(path: Path, asked: Asked, layout: str = "folders") -> Listing:
    """`happy/1.jpg`, `train/happy/1.jpg`, and any depth below the class folder."""
    if not path.is_dir():
        raise FerError(f"{path} is a file; layout {layout} reads a folder of class folders")
    found = images_below(path)
    if not len(found.files):
        ignored = f" ({found.ignored()})" if found.ignored() else ""
        raise FerError(
            f"{path} holds no images ({', '.join(IMAGE_SUFFIXES)}){ignored}; give the folder that holds them"
        )
    splits, labels = GrowingWords(), GrowingWords()
    for part in found.files.parts():
        told = [_told_by(file) for file in part]
        splits.append([split for split, _ in told])
        labels.append([label for _, label in told])
    return Listing(path, path, found.files, labels.whole(), splits.whole(), notes=found.notes(path))


def _told_by(file: str) -> tuple[str | None, str | None]:
    """Split and label by a path's folders."""
    folders = file.split("/")[:-1]
    split = SPLITS.get(folders[0].casefold()) if folders else None
    below = folders[1:] if split else folders
    return split, below[0] if below else None


def is_caer_s(path: Path) -> bool:
    """`train` and `test` with class folders spelt as in the release, and numbered PNG frames."""
    return all(
        folders_in(path / split) >= CAER_S_FOLDERS and holds(path / split / "Anger", r"\d+\.png")
        for split in ("train", "test")
    )


def read_caer_s(path: Path, asked: Asked) -> Listing:
    listing = read_folders(path, asked, "caer-s")
    listing.published = CAER_S
    listing.notes.append("CAER-S has whole film frames, and its authors do not say whose face is meant in a group.")
    return listing


def is_fed_ro(path: Path) -> bool:
    """Images called `occ_img_1.jpg` ... in class folders; copies differ in how many they have."""
    return any(holds(path / folder, r"occ_img_\d+\.\w+") for folder in FED_RO_FOLDERS)


def read_fed_ro(path: Path, asked: Asked) -> Listing:
    listing = read_folders(path, asked, "fed-ro")
    listing.splits = repeated("test", len(listing.files))
    listing.published = FED_RO
    listing.notes.append("FED-RO is for testing: all of it is test; give a source to train on beside it.")
    return listing


def folders_in(path: Path) -> set[str]:
    return {entry.name for entry in entries(path) if entry.is_dir()} if path.is_dir() else set()


def holds(path: Path, pattern: str) -> bool:
    """Whether the folder has a file whose whole name fits the pattern; the first few tell."""
    names = [entry.name for entry in entries(path)[:20]] if path.is_dir() else []
    return any(re.fullmatch(pattern, name) for name in names)
