"""Artifacts: what one stage leaves for the next, a folder with data files and a manifest written last.

A folder without a manifest is unfinished, whatever else it holds. The manifest names every file of the
artifact with its size and blake2b digest, the classes in order, the settings, and what it was made from.
"""

import errno
import glob
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from efficientface import FerError, untrusted
from efficientface.data.ahead import ahead
from efficientface.pipeline.config import Job

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
FINISHED: list[Callable[[Path], None]] = []  # told of every file that `replacing` has finished; see mirror.py
HOST = re.sub(r"\W", "-", socket.gethostname()) or "-"
CONFIG = "config.json"
METRICS = "metrics.jsonl"
METRICS_KEYS = ("epoch", "loss", "val_accuracy", "val_cross_entropy")  # of its lines, those that are read again
NUMBER, THREE = (int, float), ()
TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("crop", "size", "seed", "views", "folds", "label_batch", "faces", "images", "left_out"), (int,)),
    **dict.fromkeys(("epochs", "train_faces"), (int,)),
    **dict.fromkeys(("min_area", "eye_distance", "lr", "temperature"), NUMBER),
    **dict.fromkeys(("source", "chosen_on", "init", "cache", "name", "loss", "arch", "teacher_arch"), (str,)),
    **dict.fromkeys(("label_precision", "covers"), (str,)),
    **dict.fromkeys(("best", "labels", "splits", "statuses", "unreadable", "decoders", "calibration"), (dict,)),
    **dict.fromkeys(("mean", "std"), THREE),
    **dict.fromkeys(("notes", "duplicates"), (list,)),
}  # of settings and facts in a manifest
HERE, NO_REPLACE = -100, 1  # AT_FDCWD and RENAME_NOREPLACE, fcntl.h and stdio.h
LARGEST_SIZE = 2048  # pixels a side that a network sees; the memory that it takes grows with its square


@contextmanager
def replacing(path: Path, ending: str = "", new: bool = False) -> Iterator[Path]:
    """Give a temporary sibling to write to, as a file or as a folder.

    It becomes `path` in one rename, or vanishes if the body fails. Its name is nobody else's: on a cluster several
    machines, or threads of a process, may make the same file at once. `ending` is of the sibling's name, for a writer
    that goes by it. FerError with `new`, if another process has made `path` meanwhile.
    """
    part = path.with_name(f".{path.name}.{os.urandom(4).hex()}.{HOST}.{os.getpid()}.part{ending}")
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part{glob.escape(ending)}"):
        if not _is_alive(left.with_name(left.name.removesuffix(ending))):  # of a process that was killed
            _remove(left)
    try:
        yield part
        _sync(part)
        (_name_new if new else os.replace)(part, path)
        _sync(path.parent)
    except OSError as error:
        if error.filename is None or str(error.filename) == str(part):  # say what was to be written
            raise OSError(error.errno or 0, error.strerror or str(error), str(path)) from error
        raise
    finally:
        _remove(part)
    for told in FINISHED:
        told(path)


@contextmanager
def alone(folder: Path, lock: Path, stage: str, otherwise: str) -> Iterator[None]:
    """Hold the lock file by which only one process at a time writes to `folder`; FerError if another holds it.

    The system frees the lock of a process that is gone, however it went; the file stays and means nothing. Where
    nothing can be written there is no lock either: what is finished may be asked for again, of a read-only disk too.
    """
    from filelock import FileLock, Timeout  # here, because --help imports this module

    if not _is_writable(folder) and not _is_writable(lock.parent):
        yield
        return
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout as error:
        raise FerError(f"another {stage} is writing {folder}; wait for it, or {otherwise}") from error
    try:
        yield
    finally:
        held.release()


@contextmanager
def among(folder: Path, lock: Path, job: Job, stage: str, otherwise: str) -> Iterator[None]:
    """Hold the lock file together with the other jobs that write to `folder`, each with shards of its own.

    FerError if a process that writes all of it holds the lock, or another one the same job.
    """
    import fcntl

    if not _is_writable(folder) and not _is_writable(lock.parent):
        yield
        return
    own = lock.with_name(f"{lock.stem}-{job.number}-of-{job.of}.lock")
    with alone(folder, own, f"{stage} --shard {job}", otherwise), open(lock, "a+") as shared:
        try:
            fcntl.flock(shared, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FerError(f"another {stage} is writing {folder}; wait for it, or {otherwise}") from error
        yield


def remove_file(path: Path) -> None:
    """Remove a file if it is there; a read-only disk refuses this even where there is none."""
    if os.path.lexists(path):
        path.unlink(missing_ok=True)


def is_part(path: Path) -> bool:
    """Whether a file is one that `replacing` had not finished."""
    return path.name.startswith(".") and path.name.endswith(".part")


def _is_alive(part: Path) -> bool:
    """Whether the process that a temporary file's name holds is there; another user's and another machine's are."""
    host, number = part.name.split(".")[-3:-1]
    if host != HOST:
        return True
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _is_writable(folder: Path) -> bool:
    """Whether something could be written there, or the folder be made."""
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK)


def _name_new(part: Path, path: Path) -> None:
    """Give a finished file or folder its name; FerError if something but an empty folder has that name by now."""
    import ctypes

    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # of Linux
    try:
        if part.is_dir():
            os.rename(part, path)  # to replace a folder with something in it is refused
        elif rename is None or rename(HERE, os.fsencode(part), HERE, os.fsencode(path), NO_REPLACE):
            number = ctypes.get_errno() if rename is not None else errno.ENOSYS
            if path.exists():
                number = errno.EEXIST
            if number not in (errno.ENOSYS, errno.EINVAL):  # else file system or system cannot tell: all but sure
                raise OSError(number, os.strerror(number))
            os.rename(part, path)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise
        raise FerError(f"{path} exists now, another process has made it; give another name, or remove it") from None


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
        text = untrusted.read_bytes(path, untrusted.LARGEST_JSON)
        value = untrusted.parse_json(text)
        stated = value.pop(SEAL)
        same = as_json({**value, SEAL: stated}).encode() == text
        same = same and hashlib.blake2b(as_json(value).encode(), digest_size=32).hexdigest() == stated
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
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
        text = untrusted.read_bytes(path, untrusted.LARGEST_JSON)
        manifest = untrusted.parse_json(text)
        fits = manifest["format"] == "efficientface" and type(manifest["version"]) is int
        fits = fits and manifest["kind"] in STAGE_OF
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
    stated = untrusted.read_bytes(folder / DIGEST).split(b"\n")
    if hashlib.blake2b(text, digest_size=32).hexdigest().encode() not in stated[:2]:
        raise FerError(
            f"{path} was changed after it was written (see {DIGEST}); "
            f"restore it, or remove {folder} and run {stage} again"
        )
    if not (is_description(manifest) and is_listing(manifest.get("files"))):
        raise FerError(f"{path} does not say what docs/files.md asks of it; restore it, or run {stage} again")
    return manifest


def is_description(manifest: dict[str, Any]) -> bool:
    """Whether classes are different names, and what it was made from are relative paths; settings and facts are there.

    Relative ones may lead anywhere, as another run's teacher does: what lies there counts only with the stated digest.
    """
    classes, made_from = manifest.get("classes"), manifest.get("made_from")
    return (
        isinstance(classes, list)
        and all(isinstance(name, str) for name in classes)
        and len(set(classes)) == len(classes)
        and isinstance(made_from, dict)
        and all(_is_reference(reference) for reference in made_from.values())
        and all(_fits(manifest.get(part)) for part in ("settings", "facts"))
    )


def _fits(told: Any) -> bool:
    """Whether settings or facts have the types that they are computed and shown with; unknown ones may be anything."""
    return isinstance(told, dict) and all(
        (type(told[name]) in kinds or kinds is THREE and untrusted.are_numbers(told[name], 3))
        and (name != "best" or all(type(told[name].get(key, 0)) in NUMBER for key in METRICS_KEYS))
        for name, kinds in TYPES.items()
        if name in told
    )


def _is_reference(reference: Any) -> bool:
    if isinstance(reference, str):  # words, which are never followed
        return True
    path = reference.get("path") if isinstance(reference, dict) else None
    return isinstance(path, str) and "\0" not in path and not os.path.isabs(path)


def is_listing(files: Any) -> bool:
    """Whether a manifest's `files` are names in its own folder, with sizes and digests."""
    return isinstance(files, dict) and all(
        isinstance(entry, dict) and type(entry.get("bytes")) is int and isinstance(entry.get("blake2b"), str)
        and Path(name).name == name and name not in ("", "..") and "\0" not in name
        for name, entry in files.items()
    )  # fmt: skip


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
    stage = STAGE_OF[manifest["kind"]]
    for name, entry in manifest["files"].items():
        path = folder / name
        if path.is_symlink() and path.resolve().parent != folder.resolve():
            raise FerError(f"{path} is a link that leads out of {folder}; put the file itself there")
        if not path.is_file():
            raise FerError(f"{path} is missing; restore it, or remove {folder} and run {stage} again")
        if path.stat().st_size != entry["bytes"]:
            raise FerError(
                f"{path} has {path.stat().st_size} bytes instead of {entry['bytes']}; "
                f"restore it, or remove {folder} and run {stage} again"
            )
    if digests:
        paths = [folder / name for name in manifest["files"]]
        for path, entry, digest in zip(paths, manifest["files"].values(), ahead(digest_file, paths), strict=True):
            if digest != entry["blake2b"]:
                raise FerError(
                    f"{path} is damaged, or was changed after it was written; "
                    f"restore it, or remove {folder} and run {stage} again"
                )


def read_config(folder: Path) -> dict[str, Any]:
    """A model's config.json: all that is needed to ask it. OSError or ValueError if that is not in it."""
    config = untrusted.read_json(folder / CONFIG)
    types = {"arch": str, "options": dict, "classes": list, "size": int}
    wrong = [
        name for name, known in types.items() if not isinstance(config, dict) or type(config.get(name)) is not known
    ]
    if wrong or not all(isinstance(name, str) for name in config["classes"]):
        raise ValueError(f"{wrong[0] if wrong else 'classes'} is not what it should be")
    if not 1 <= config["size"] <= LARGEST_SIZE:
        raise ValueError(f"size {config['size']} is not 1 to {LARGEST_SIZE}")
    mean, std = config.get("mean"), config.get("std")
    if (mean, std) != (None, None) and not (untrusted.are_numbers(mean, 3) and untrusted.are_numbers(std, 3)):
        raise ValueError("mean and std are not three numbers each")
    return config


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a model's metrics.jsonl, an epoch each; none where it was not trained here."""
    path = folder / METRICS
    if not path.is_file():
        return []
    try:
        lines = [untrusted.parse_json(line, nan=True) for line in untrusted.read_bytes(path).splitlines()]
        fits = all(isinstance(line[name], int | float) for line in lines for name in METRICS_KEYS)
    except (ValueError, KeyError, TypeError):
        fits = False
    if not fits:
        raise FerError(f"{path} does not hold the metrics of a training, a line an epoch; restore it")
    return lines


def data_files(folder: Path, manifest: dict[str, Any], suffix: str = ".parquet") -> list[Path]:
    """The artifact's data files in order, checked byte for byte: who reads them relies on every one."""
    check_files(folder, manifest, digests=True)
    found = [folder / name for name in sorted(manifest["files"]) if name.endswith(suffix)]
    if not found:
        raise FerError(f"{folder} has no {suffix} files; remove it and run {STAGE_OF[manifest['kind']]} again")
    return found


def reference_to(artifact: Path, from_folder: Path) -> dict[str, str]:
    """How one artifact's manifest refers to another: relative path (a run may be moved) and manifest digest."""
    return {
        "path": os.path.relpath(artifact, from_folder).replace(os.sep, "/"),
        "manifest": digest_of(artifact),
    }


def place_of(folder: Path, path: str) -> str:
    """Where something lies that the manifest in `folder` names: an address, or a path beginning at the folder."""
    return path if "://" in path else os.path.normpath(folder / path)


def digest_of(artifact: Path) -> str:
    """The digest of a finished artifact's manifest, by which others refer to it."""
    return hashlib.blake2b((artifact / MANIFEST).read_bytes(), digest_size=32).hexdigest()


def _remove(path: Path) -> None:
    """A file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        remove_file(path)


def _sync(path: Path) -> None:
    """Make what a file holds, or what a folder names, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
