"""Run folders that lie elsewhere (s3://, gs:// ...): worked on in a copy on this machine, which is kept for next time.

What is there is fetched before a command begins, each file of a finished artifact compared with its manifest's digest.
A file is sent when it is whole, a manifest after all that it names: a reader never finds a manifest without its files.
Nothing is locked there: storages have no locks.
"""

import hashlib
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from efficientface import FerError
from efficientface.data.remote import listing, storage, talking_to
from efficientface.pipeline import artifact
from efficientface.pipeline.artifact import DIGEST, MANIFEST, digest_file
from efficientface.pipeline.progress import progress
from efficientface.pipeline.status import CHECKPOINT

OPENED: list["Mirror"] = []  # by this process


def opened(address: str) -> Path:
    """The folder on this machine that stands for the run at an address, with what is there."""
    mirror = Mirror(address)
    mirror.fetch()
    OPENED.append(mirror)
    artifact.FINISHED.append(mirror.send)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_told_by_address)
    return mirror.folder


def close() -> None:
    """Send what is left to be sent, after a command that has done its work."""
    for mirror in OPENED:
        mirror.settle()


def forget() -> None:
    """Let the copies go."""
    while OPENED:
        mirror = OPENED.pop()
        artifact.FINISHED.remove(mirror.send)
        mirror.lock.release()


def by_address(text: str) -> str:
    """The text with addresses in place of the copies' folders."""
    for mirror in OPENED:
        text = text.replace(str(mirror.folder), mirror.address)
    return text


def _told_by_address(record: logging.LogRecord) -> bool:
    """For a log's handlers: what is told of the copy is told of the run."""
    record.msg, record.args = by_address(record.getMessage()), None
    return True


def of(path: Path) -> "Mirror | None":
    """The copy that a file is in."""
    return next((mirror for mirror in OPENED if mirror.folder in path.parents), None)


def get_whole(address: str, name: str, path: Path) -> None:
    """Fetch a file of a run at an address; it gets its name when it is whole."""
    system, root = storage(address)
    part = path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")  # not by `replacing`, which would have it sent
    with talking_to(address):
        system.get_file(f"{root}/{name}", str(part))
    part.replace(path)


class Mirror:
    """The copy of a run; `sent` has of each file there what it was like when it was the same here."""

    def __init__(self, address: str):
        self.address = address.rstrip("/")
        self.storage, self.root = storage(self.address)
        digest = hashlib.blake2b(self.address.encode(), digest_size=6).hexdigest()
        name = re.sub(r"\W+", "-", self.address.partition("://")[2])[-60:]
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "efficientface" / "runs"
        self.folder = home.absolute() / f"{name}-{digest}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.sent: dict[str, tuple[int, int]] = {}
        self.lock = FileLock(home / f"{self.folder.name}.lock")
        try:
            self.lock.acquire(timeout=0)
        except Timeout as error:
            raise FerError(
                f"another fer works on {self.address} in {self.folder}; wait for it, or set XDG_CACHE_HOME to "
                "another folder"
            ) from error

    def fetch(self) -> None:
        """Make the copy what is there; only the checkpoints of unfinished trainings stay beside it."""
        there = listing(self.address)
        for path in sorted(self.folder.rglob("*"), reverse=True):
            name = path.relative_to(self.folder).as_posix()
            unfinished = f"{name.rpartition('/')[0]}/{MANIFEST}" not in there
            if path.is_dir():
                if not any(path.iterdir()):
                    path.rmdir()
            elif name not in there and not (path.name == CHECKPOINT and unfinished):
                path.unlink()
        stated: dict[str, str] = {}
        manifests = [name for name in there if name.rpartition("/")[2] == MANIFEST]
        for name in manifests:
            self._get(name)
            stated |= self._digests(name)
        others = [name for name in there if name not in manifests]
        with progress(f"fetching {self.address}", len(others), "files") as advance:
            for name in others:
                path = self.folder / name
                same = path.is_file() and path.stat().st_size == there[name] and digest_file(path) == stated.get(name)
                if not same:
                    self._get(name)
                    if name in stated and digest_file(path) != stated[name]:
                        path.unlink()
                        raise FerError(f"{self.address}/{name} is not as its manifest says; restore it there")
                self.sent[name] = self._look(path)
                advance(1)

    def send(self, path: Path) -> None:
        """A file that was just finished here."""
        if self.folder not in path.parents:
            return
        name = path.relative_to(self.folder).as_posix()
        if path.name == CHECKPOINT or any(part.startswith(".") for part in name.split("/")):
            return  # of this machine only; of a folder that is to take another's place, `settle` sends the files
        if path.name == MANIFEST:
            below = name.removesuffix(MANIFEST)
            for other in (*(below + other for other in json.loads(path.read_bytes())["files"]), below + DIGEST):
                self._put(other)
        self._put(name)

    def take(self, path: Path) -> None:
        """A file that another machine has made and sent."""
        name = path.relative_to(self.folder).as_posix()
        if path.is_file():
            self.sent[name] = self._look(path)
        else:
            self._get(name)

    def settle(self) -> None:
        """Make the files there what the copy holds; an artifact that changes has no manifest there meanwhile."""
        here = {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()}
        here = {
            n for n in here if not any(part.startswith(".") for part in n.split("/")) and not n.endswith(CHECKPOINT)
        }
        changed = {name for name in here if self.sent.get(name) != self._look(self.folder / name)}
        gone = self.sent.keys() - here
        last = sorted(name for name in here | gone if name.rpartition("/")[2] == MANIFEST)
        for name in last:
            if name in self.sent and name in changed | gone:
                self._remove(name)
        for name in sorted(gone - set(last)):
            self._remove(name)
        for name in sorted(changed - set(last)):
            self._put(name)
        for name in last:
            if name in here:
                self._put(name)

    def _look(self, path: Path) -> tuple[int, int]:
        told = path.stat()
        return told.st_size, told.st_mtime_ns

    def _digests(self, manifest: str) -> dict[str, str]:
        """What a manifest says of its files, by their names in the run; one that is damaged is for its readers."""
        below = manifest.removesuffix(MANIFEST)
        try:
            files: dict[str, Any] = json.loads((self.folder / manifest).read_bytes())["files"]
            return {below + name: str(entry["blake2b"]) for name, entry in files.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            return {}

    def _get(self, name: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        get_whole(self.address, name, path)
        self.sent[name] = self._look(path)

    def _put(self, name: str) -> None:
        path = self.folder / name
        look = self._look(path)
        if self.sent.get(name) != look:
            with talking_to(self.address):
                # file:// has folders to be made, object storages make nothing of it
                self.storage.makedirs(f"{self.root}/{name}".rpartition("/")[0], exist_ok=True)
                self.storage.put_file(str(path), f"{self.root}/{name}")
            self.sent[name] = look

    def _remove(self, name: str) -> None:
        with talking_to(self.address):
            self.storage.rm_file(f"{self.root}/{name}")
        del self.sent[name]
