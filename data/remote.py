"""Photographs that lie elsewhere: any address that fsspec knows, s3:// and gs:// among them (extra `cluster`)."""

import errno
import logging
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from efficientface import FerError
from efficientface.data.layouts.files import IMAGE_SUFFIXES, suffix
from efficientface.data.photos import PhotoFiles, Unreadable
from efficientface.data.sources import Source, read_source

_KEPT: list[tempfile.TemporaryDirectory[str]] = []  # tables that pictures are read from until the process ends


def is_address(text: object) -> bool:
    """Whether it is no path of this machine: `scheme://...`."""
    return isinstance(text, str) and re.match(r"[a-z][a-z0-9+.-]*://", text) is not None


@contextmanager
def talking_to(address: str) -> Iterator[None]:
    """FerError for whatever a storage's own package raises: each has errors of its own."""
    try:
        yield
    except (FerError, Unreadable, MemoryError):
        raise
    except ImportError as error:
        raise FerError(
            f"{address} needs a package that is missing ({error}); pip install 'efficientface[cluster]'"
        ) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise  # of the local copy
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise FerError(
            f"{address} cannot be used ({reason}); check the address, and the credentials in the environment"
        ) from error


def storage(address: str) -> tuple[Any, str]:
    """fsspec's file system for an address, and the path in it."""
    with talking_to(address):
        from fsspec.core import url_to_fs

        for package in ("aiobotocore", "botocore"):
            logging.getLogger(package).setLevel(logging.WARNING)  # they tell where they found credentials
        system, path = url_to_fs(address)
        return system, path.rstrip("/")


def listing(address: str) -> dict[str, int]:
    """Names below an address and their sizes in bytes; none where there is nothing. FerError for a name that would
    leave a folder.
    """
    system, root = storage(address)
    with talking_to(address):
        system.invalidate_cache()
        found = system.find(root, detail=True)
    sizes = {}
    for path, told in found.items():
        name = path.removeprefix(root).removeprefix("/")
        if not name or told["type"] != "file" or name.endswith("/"):  # an object that stands for a folder
            continue
        if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
            raise FerError(f"{address} holds {name!r}, which is no path below it; rename it or give another folder")
        sizes[name] = int(told["size"])
    return sizes


@dataclass(frozen=True)
class RemotePhotos:
    """Photographs below an address; their mark is the size that was listed."""

    address: str
    sizes: dict[str, int]

    def mark(self, file: str) -> int | None:
        return self.sizes.get(file)

    def read(self, file: str) -> bytes:
        system, root = storage(self.address)
        with talking_to(self.address):
            try:
                data = system.cat_file(f"{root}/{file}")
            except FileNotFoundError as error:
                raise Unreadable("does not exist") from error
        if not data:
            raise Unreadable("empty file")
        return bytes(data)

    def only(self, files: Sequence[str]) -> "RemotePhotos":
        return RemotePhotos(self.address, {file: self.sizes[file] for file in files if file in self.sizes})


def read_remote_source(address: str, *args: Any) -> Source:
    """As read_source, of an address: a folder, or a table in one.

    The layouts read a copy without pictures, in which an image is an empty file; tables are fetched whole.
    """
    address = address.rstrip("/")
    system, root = storage(address)
    with talking_to(address):
        is_file = system.isfile(root)
    top, _, table = address.rpartition("/") if is_file else (address, "", "")
    sizes = listing(top)
    if not sizes:
        raise FerError(f"{address} does not exist or is empty; give a folder of photographs or a table that names them")
    kept = tempfile.TemporaryDirectory(prefix="fer-source-")
    _KEPT.append(kept)
    folder = Path(kept.name).resolve()
    _, top_root = storage(top)
    for name in sizes:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix(name) in IMAGE_SUFFIXES:
            path.touch()
        else:
            with talking_to(top):
                system.get_file(f"{top_root}/{name}", str(path))
    try:
        read = read_source(folder / table, *args)
    except FerError as error:
        raise FerError(str(error).replace(str(folder), top)) from error
    below = read.root.resolve().relative_to(folder).as_posix() if read.root.is_dir() else "."
    where = top if below == "." else f"{top}/{below}"
    photos = read.photos
    if isinstance(photos, PhotoFiles):
        prefix = "" if below == "." else f"{below}/"
        photos = RemotePhotos(
            where, {n.removeprefix(prefix): size for n, size in sizes.items() if n.startswith(prefix)}
        )
    notes = tuple(note.replace(str(folder), top) for note in read.notes)
    return replace(read, photos=photos, notes=notes, address=where)
