"""Which files are images, and what lies below a folder; nothing is opened."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from efficientface import FerError
from efficientface.data.words import Index, Words, ascending, gathered, in_order

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff")


@dataclass
class Found:
    """The images below a folder, and what was not taken."""

    files: Words  # POSIX paths, sorted
    links_out: set[str] = field(default_factory=set)  # links to files or folders outside
    linked_folders: int = 0  # links to folders inside
    not_files: int = 0  # folders, pipes ... named like images

    def ignored(self) -> str:
        counts = {
            "link that leads out of the source": len(self.links_out),
            "link to a folder of the source": self.linked_folders,
            "non-file named like an image": self.not_files,
        }
        return ", ".join(f"{count:,} x {what}" for what, count in counts.items() if count)

    def notes(self, root: Path) -> list[str]:
        return [f"Ignored below {root}: {self.ignored()}."] if self.ignored() else []


def images_below(root: Path, tops: set[str] | None = None, start: str = "") -> Found:
    """Walk `root`, or its folder `start`; paths count from `root`. Hidden files and folders are passed over.

    tops: of `root`'s own entries only these, if given.
    """
    real = os.path.realpath(root)
    found = Found(Words([]))
    if start and not is_inside(real, root / start):
        found.links_out.add(start)
        return found
    files = gathered(_walk(root, real, tops, start, found))
    found.files = files if in_order(files) else files[ascending(files)]
    return found


def _walk(root: Path, real: str, tops: set[str] | None, start: str, found: Found) -> Iterator[str]:
    """The paths of images_below in any order; what is not taken is noted in `found`."""
    waiting = [f"{start}/" if start else ""]
    while waiting:
        below = waiting.pop()
        for entry in _scanned(root / below):
            file = below + entry.name
            if entry.name.startswith(".") or (not below and tops is not None and entry.name not in tops):
                continue
            is_image = suffix(entry.name) in IMAGE_SUFFIXES
            if entry.is_symlink():
                if not (is_image or entry.is_dir()):
                    continue
                if not is_inside(real, entry.path):
                    found.links_out.add(file)
                    continue
                if entry.is_dir():  # not followed: it would give images a second name, or go round in circles
                    found.linked_folders += 1
                    continue
            elif entry.is_dir() and not is_image:
                waiting.append(file + "/")
            elif is_image and not entry.is_file():
                found.not_files += 1
                continue
            if is_image:
                yield file


def located(table: Path, root: Path, names: Words, found: Found, others: bool = True) -> tuple[Words, list[str]]:
    """The files that a table names, below `images/` if they lie there, and notes. Missing files stay in.

    others: whether a note counts the images found that the table does not name.
    """
    known = Index(found.files)
    at = known.places(names)
    if (at < 0).any():
        below = gathered(f"images/{name}" for name in names)
        at_below = known.places(below)
        if (at_below >= 0).sum() > (at >= 0).sum():
            names, at = below, at_below
    there = at >= 0
    real = os.path.realpath(root)
    missing, outside = [], []
    for name in names[~there]:  # also pictures in formats that the walk does not know
        if not os.path.exists(root / name):
            missing.append(name)
        elif not is_inside(real, root / name):
            outside.append(name)
    if outside:
        raise FerError(
            f"{table} names {images(len(outside))} behind links that lead out of {root} "
            f"(first {shown(outside[0])}); copy them into it"
        )
    if missing and len(missing) == len(names):
        raise FerError(
            f"{table} names {images(len(names))}, and none is there (first {shown(missing[0])}); "
            "put them where it says, relative to its folder"
        )
    notes = []
    if missing:
        notes.append(f"Missing: {images(len(missing))} that {table} names (first {shown(missing[0])}).")
    more = len(found.files) - len(np.unique(at[there]))
    if more and others:
        notes.append(f"Left out: {images(more)} that {table} does not name.")
    return names, notes


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder by name; FerError if it cannot be read."""
    return sorted(_scanned(folder), key=lambda entry: entry.name)


def _scanned(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        raise FerError(f"{folder} cannot be read: {error.strerror}; mend that or give another folder") from error


def is_inside(real_root: str, path: str | Path) -> bool:
    return os.path.realpath(path).startswith(real_root.rstrip("/") + "/")


def suffix(name: str) -> str:
    return name.rpartition(".")[2].casefold()


def shown(name: str) -> str:
    """A file's name fit to print, also if it is not UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def images(count: int) -> str:
    return plural(count, "image")


def listed(names: Iterable[str], last: str = "or") -> str:
    *most, final = names
    return f"{', '.join(most)} {last} {final}" if most else final
