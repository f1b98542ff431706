"""Artifacts: what one stage leaves for the next, a folder with data files and a manifest written last.

A folder without a manifest is unfinished, whatever else it holds. The manifest names every file of the
artifact with its size and blake2b digest, the classes in order, the settings, and what it was made from.
"""

import glob
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from efficientface import FerError

VERSION = 1
MANIFEST = "manifest.json"
DIGEST = "manifest.blake2b"
SEAL = "blake2b"  # the last key of a JSON file that vouches for itself
STAGE_OF = {
    "faces": "fer align",
    "teacher": "fer teach",
    "distributions": "fer teach",
    "student": "fer distill",
    "identities": "fer pretrain",
}
MODELS = ("teacher", "student", "identities")  # kinds that are a network with its weights


@contextmanager
def replacing(path: Path, ending: str = "") -> Iterator[Path]:
    """Give a temporary sibling to write to; it becomes `path` in one rename, or vanishes if the body fails.

    `ending` is of the sibling's name, for a writer that goes by it.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part{ending}")
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part{glob.escape(ending)}"):
        if not _is_alive(left.with_name(left.name.removesuffix(ending))):  # of a process that was killed
            left.unlink(missing_ok=True)
    try:
        yield part
        with open(part, "rb") as written:
            os.fsync(written.fileno())
        os.replace(part, path)
        _sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def alone(folder: Path, lock: Path, stage: str, otherwise: str) -> Iterator[None]:
    """Hold the lock file by which only one process at a time writes to `folder`; FerError if another holds it.

    The system frees the lock of a process that is gone, however it went; the file stays and means nothing.
    """
    from filelock import FileLock, Timeout  # here, because --help imports this module

    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout as error:
        raise FerError(f"another {stage} is writing {folder}; wait for it, or {otherwise}") from error
    try:
        yield
    finally:
        held.release()


def is_part(path: Path) -> bool:
    """Whether a file is one that `replacing` had not finished."""
    return path.name.startswith(".") and path.name.endswith(".part")


def _is_alive(part: Path) -> bool:
    """Whether the process whose number a temporary file's name holds is there; the file of another user's is."""
    number = part.name.split(".")[-2]
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def make_folder(folder: Path) -> None:
    """The folder and those above it; FerError where a file has one of these names, or text could not name it."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        shown = str(folder).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        raise FerError(f"{shown} is no UTF-8, the tables' text; give another folder") from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise FerError(f"{folder} cannot be made: a file is in the way; choose another folder") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def as_json(value: Any) -> str:
    """What our JSON files hold. NaN is refused: it is no JSON and other readers stumble over it."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, as_json(value))


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file that no manifest covers: its last key, `blake2b`, is the digest of the file without that."""
    write_json(path, {**value, SEAL: hashlib.blake2b(as_json(value).encode(), digest_size=32).hexdigest()})


def read_sealed(path: Path) -> dict[str, Any]:
    """What write_sealed was given; FerError if a byte of the file is another now."""
    try:
        text = path.read_bytes()
        value = json.loads(text)
        stated = value.pop(SEAL)
        same = as_json({**value, SEAL: stated}).encode() == text
        same = same and hashlib.blake2b(as_json(value).encode(), digest_size=32).hexdigest() == stated
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        same = False
    if not same:
        raise FerError(f"{path.name} is not as the digest at its end says, or has none; make it again")
    return value


def digest_file(path: Path) -> str:
    """blake2b of a file's bytes, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def describe(
    kind: str, *, classes: Sequence[str], made_from: dict[str, Any], settings: dict[str, Any], facts: dict[str, Any]
) -> dict[str, Any]:
    """What a manifest says besides the artifact's files."""
    return {
        "format": "efficientface",
        "version": VERSION,
        "kind": kind,
        "classes": list(classes),
        "made_from": made_from,
        "settings": settings,
        "facts": facts,
    }


def write_manifest(
    folder: Path,
    kind: str,
    *,
    files: Sequence[str],
    classes: Sequence[str],
    made_from: dict[str, Any],
    settings: dict[str, Any],
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Finish an artifact: hash its `files` (names relative to `folder`) and write the manifest last.

    Over an older manifest too: killed at any moment, the folder is the old artifact or the new one, both whole as long
    as the files of both are there.
    """
    manifest = describe(kind, classes=classes, made_from=made_from, settings=settings, facts=facts)
    manifest["files"] = {
        name: {"bytes": (folder / name).stat().st_size, "blake2b": digest_file(folder / name)} for name in sorted(files)
    }
    # The digest goes first: the manifest's presence is what says that the artifact is whole. While one manifest takes
    # another's place both digests stand there, a line each.
    text = as_json(manifest)
    digest = hashlib.blake2b(text.encode(), digest_size=32).hexdigest() + "\n"
    replaced = digest_of(folder) + "\n" if is_finished(folder) else ""
    write_text(folder / DIGEST, digest + replaced)
    write_text(folder / MANIFEST, text)
    if replaced:
        write_text(folder / DIGEST, digest)
    return manifest


def read_manifest(folder: Path, kind: str) -> dict[str, Any]:
    """The manifest of a finished artifact of the given kind; FerError says why there is none."""
    stage = STAGE_OF[kind]
    if not folder.is_dir():
        raise FerError(f"{folder} does not exist; run {stage} first")
    path = folder / MANIFEST
    if not path.is_file():
        raise FerError(f"{folder} is unfinished (it has no {MANIFEST}); run {stage} again to complete it")
    try:
        text = path.read_bytes()
        manifest = json.loads(text)
        fits = manifest["format"] == "efficientface" and isinstance(manifest["version"], int)
    except (ValueError, KeyError, TypeError):
        fits = False
    if not fits:
        raise FerError(f"{path} is not a manifest of efficientface; restore it, or run {stage} again")
    if manifest["version"] > VERSION:
        raise FerError(
            f"{path} has format version {manifest['version']}, this program reads up to {VERSION}; update efficientface"
        )
    if manifest["kind"] != kind:
        raise FerError(f"{folder} holds {manifest['kind']}, not {kind}; give the folder that {stage} wrote")
    if not (folder / DIGEST).is_file():
        raise FerError(f"{folder / DIGEST} is missing; restore it, or remove {folder} and run {stage} again")
    stated = (folder / DIGEST).read_bytes().split(b"\n")
    if hashlib.blake2b(text, digest_size=32).hexdigest().encode() not in stated[:2]:
        raise FerError(
            f"{path} was changed after it was written (see {DIGEST}); "
            f"restore it, or remove {folder} and run {stage} again"
        )
    return manifest


def is_finished(folder: Path) -> bool:
    """Whether the folder has a manifest, the last file that a stage writes."""
    return (folder / MANIFEST).is_file()


def is_begun(folder: Path) -> bool:
    """Whether a stage has left a file in the folder; teacher/ may hold nothing but the folders of fold teachers."""
    return folder.is_dir() and any(path.is_file() for path in folder.iterdir())


def refuse_other(
    folder: Path, manifest: dict[str, Any], made_from: dict[str, Any], settings: dict[str, Any], remedy: str
) -> None:
    """A finished artifact is taken for the wanted one only if it was made from the same things by the same settings.

    A setting that an older program did not know is not compared.
    """
    for name, reference in made_from.items():
        if manifest["made_from"].get(name, {}).get("manifest") != reference["manifest"]:
            raise FerError(f"{folder} was made from other {name} than there are now; {remedy}")
    for name, now in settings.items():
        was = manifest["settings"].get(name, now)
        if was != now:
            raise FerError(f"{folder} is finished with other settings ({name} {was}, now {now}); {remedy}")
    for name in manifest["made_from"]:
        if name not in made_from:
            raise FerError(f"{folder} was also made from {name} {manifest['made_from'][name]['path']}; {remedy}")


def check_files(folder: Path, manifest: dict[str, Any], digests: bool = False) -> None:
    """Every file of the artifact is there with its size, and with `digests` byte for byte what was written."""
    for name, entry in manifest["files"].items():
        path = folder / name
        stage = STAGE_OF[manifest["kind"]]
        if not path.is_file():
            raise FerError(f"{path} is missing; restore it, or remove {folder} and run {stage} again")
        if path.stat().st_size != entry["bytes"]:
            raise FerError(
                f"{path} has {path.stat().st_size} bytes instead of {entry['bytes']}; "
                f"restore it, or remove {folder} and run {stage} again"
            )
        if digests and digest_file(path) != entry["blake2b"]:
            raise FerError(
                f"{path} is damaged, or was changed after it was written; "
                f"restore it, or remove {folder} and run {stage} again"
            )


def data_files(folder: Path, manifest: dict[str, Any], suffix: str = ".parquet") -> list[Path]:
    """The artifact's data files in order, checked to be there whole."""
    check_files(folder, manifest)
    return [folder / name for name in sorted(manifest["files"]) if name.endswith(suffix)]


def reference_to(artifact: Path, from_folder: Path) -> dict[str, str]:
    """How one artifact's manifest refers to another: relative path (a run may be moved) and manifest digest."""
    return {
        "path": os.path.relpath(artifact, from_folder).replace(os.sep, "/"),
        "manifest": digest_of(artifact),
    }


def digest_of(artifact: Path) -> str:
    """The digest of a finished artifact's manifest, by which others refer to it."""
    return hashlib.blake2b((artifact / MANIFEST).read_bytes(), digest_size=32).hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; a folder cannot be opened on every system, where it can it is synced."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
