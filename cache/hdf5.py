"""Distributions as HDF5: one file, the names of the Parquet columns, the same content to the last bit.

The format is described in docs/files.md. Text has a fixed length and floats are stored as they are, so that nothing
but whole arrays is in the file: a face's row is one read at a known place, and a reader needs no more than HDF5 1.8.
"""

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from efficientface import FerError, untrusted
from efficientface.cache.distributions import TEXT, Distributions, join
from efficientface.cache.parquet import VIEWS, check_class_names
from efficientface.data.columns import ROWS
from efficientface.data.words import Words

VERSION = 1
FORMAT = "efficientface distributions"
USER_BLOCK = 512  # bytes before the HDF5 proper, the smallest that the format allows
CHUNK = 4096  # rows that are compressed together
DEEPEST_ZIP = 1100  # deflate cannot do better than about 1,030 to 1
MEANING = {
    "face_id": "key of the face, as in faces/",
    "image_hash": "blake2b-128 of the stored picture, hexadecimal, as in faces/",
    "split": "train, val, test or the source's own word; the attribute `none`, if there is one, stands for no split",
    "label": "index into the attribute `classes` of the file; the attribute `none` (-1) stands for no label",
    "fold": "k >= 0: answered by the k-th out-of-fold teacher; -1: the teacher had trained on this face; "
    "-2: no teacher had; -3: not from a teacher",
    "view_box": "of each stored view top, left, height, width in pixels of the stored face",
    "view_flip": "of each stored view whether the cut is mirrored (0 no, 1 yes)",
    "view_distribution": "of each stored view the probabilities of the classes in their order; they sum to 1",
}
OF_A_CLASS = "probability of this class for the whole, unmirrored face; over all classes they sum to 1"
SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\.parquet")
# What h5py raises about files that are not as they should be.
DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, OverflowError, MemoryError)

ReadShard = Callable[[str, bool], Distributions]  # a shard by name, with its views or without


def check_hdf5_names(classes: Sequence[str]) -> None:
    """A class becomes a dataset: besides what Parquet refuses, its name may not be a path."""
    check_class_names(classes)
    for name in classes:
        if name in ("", ".") or "/" in name or "\0" in name:
            raise FerError(
                f"class {name!r} cannot be a dataset's name in HDF5 (empty, '.', or with '/' or NUL); "
                "rename the class, or use Parquet"
            )


def write_hdf5(path: Path, manifest: dict[str, Any], shards: Sequence[str], read: ReadShard) -> None:
    """Assemble a file from shards, one of them in memory at a time.

    `manifest` is the artifact's without its `files`; names and sizes of the shards are kept, so that a conversion back
    gives the same ones. Writes to `path` as it is: the caller gives a temporary name and renames.
    """
    rows: dict[str, int] = {}

    def keys_of(name: str) -> Distributions:
        part = read(name, False)
        rows[name] = len(part)
        return part

    keys = join(map(keys_of, shards))
    classes, count = keys.classes, len(keys)
    check_hdf5_names(classes)
    none = _word_for_none(keys.split)
    text = {name: getattr(keys, name).arrow for name in TEXT}
    text["split"] = text["split"].fill_null(none) if none else text["split"]
    views = read(shards[0], True).views
    with _new_file(path) as file:
        file.attrs["format"] = FORMAT
        file.attrs["version"] = VERSION
        file.attrs["classes"] = np.array(classes, h5py.string_dtype("utf-8"))
        file.attrs["views"] = views
        file.attrs["manifest"] = json.dumps(manifest, ensure_ascii=False, allow_nan=False)
        file.attrs["shards"] = json.dumps(rows)
        packed: dict[str, Any] = {"compression": "gzip", "compression_opts": 4, "shuffle": True} if count else {}
        # of the file: one row a face, floats as they are and the rest in compressed chunks
        for name in TEXT:
            _check_text(name, text[name], path)
            fixed = h5py.string_dtype("utf-8", max(pc.max(pc.binary_length(text[name])).as_py() or 0, 1))
            chunks = {"chunks": (min(CHUNK, count),)} if count else {}
            file.create_dataset(name, (count,), fixed, **chunks, **packed)
            for k in range(0, count, ROWS):
                piece = text[name][k : k + ROWS].cast(pa.large_binary()).to_numpy(zero_copy_only=False)
                file[name][k : k + len(piece)] = piece.astype(fixed)
        for name, (shape, dtype) in _numbers(classes, views).items():
            more = {} if dtype == "<f4" or not count else {"chunks": (min(CHUNK, count), *shape), **packed}
            file.create_dataset(name, (count, *shape), dtype, **more)
        for name in file:
            file[name].attrs["meaning"] = MEANING.get(name, OF_A_CLASS)
        file["label"].attrs["none"] = -1
        if none:
            file["split"].attrs["none"] = none
        start = 0
        for name, length in rows.items():
            part, place = read(name, True), slice(start, start + length)
            for key in ("label", "fold", *(VIEWS if views else ())):
                file[key][place] = getattr(part, key)
            for k, key in enumerate(classes):
                file[key][place] = part.canonical[:, k]
            start += length
    with open(path, "r+b") as written:
        block = user_block(written)
        written.seek(0)
        written.write(block)


@contextmanager
def _new_file(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file to fill. OSError where the disk did not take it: seen at the latest when the file is closed."""
    with _Forgiving(path, "w+") as raw:
        try:
            with h5py.File(raw, "w", userblock_size=USER_BLOCK) as file:
                yield file
        finally:
            if raw.refused is not None:
                raise raw.refused


class _Forgiving(io.FileIO):
    """A file that remembers the first write that the system refused, and takes all others for written.

    Of a write that fails while a file is closed the HDF5 library dies (seen: a segmentation fault on a full disk).
    """

    refused: OSError | None = None

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        written = 0
        try:
            while written < size and self.refused is None:  # a file may take a part
                written += super().write(memoryview(data)[written:])
        except OSError as error:
            self.refused = error
        return size

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.refused = self.refused or error
            return self.tell() if size is None else size


def _numbers(classes: Sequence[str], views: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """The datasets that are not text: of each its shape beyond the faces, and its type."""
    shapes: dict[str, tuple[tuple[int, ...], str]] = {"label": ((), "<i8"), "fold": ((), "i1")}
    shapes |= {name: ((), "<f4") for name in classes}
    if views:
        shapes["view_box"] = ((views, 4), "<u2")
        shapes["view_flip"] = ((views,), "?")
        shapes["view_distribution"] = ((views, len(classes)), "<f4")
    return shapes


def _word_for_none(splits: Words) -> str:
    """HDF5 text cannot be null: a word that no split has, or nothing if every face has a split."""
    words = set(splits.arrow.unique().to_pylist())
    if None not in words:
        return ""
    none = "none"
    while none in words:
        none += "-"
    return none


def _check_text(name: str, text: pa.Array, path: Path) -> None:
    """FerError if text has a NUL, where HDF5 would end it."""
    wrong = text.filter(pc.match_substring(text, "\0"))
    if len(wrong):
        raise FerError(
            f"{path.name} cannot hold the {name} of {len(wrong)} of {len(text)} faces, first {wrong[0].as_py()!r}: "
            "text in HDF5 ends at a NUL; use Parquet"
        )


# --- the digest ------------------------------------------------------------------------------------------------


def user_block(file: BinaryIO) -> bytes:
    """The 512 bytes before the HDF5 proper: what the file is, and the digest of all that follows them."""
    file.seek(USER_BLOCK)
    digest = hashlib.blake2b(digest_size=32)
    while piece := file.read(1 << 20):
        digest.update(piece)
    return f"{FORMAT}\nblake2b-256 of all after byte {USER_BLOCK}: {digest.hexdigest()}\n".encode().ljust(
        USER_BLOCK, b"\0"
    )


def check_digest(path: Path) -> None:
    """FerError if the file is not ours, or if any of its bytes is not what was written."""
    try:
        with untrusted.open_file(path) as file:
            found = file.read(USER_BLOCK)
            ours = found.startswith(FORMAT.encode())
            whole = ours and found == user_block(file)
    except (OSError, ValueError) as error:
        raise FerError(f"{path} cannot be read ({getattr(error, 'strerror', error)})") from error
    if not ours:
        raise FerError(f"{path} is not an HDF5 file of cached distributions (it does not begin with {FORMAT!r})")
    if not whole:
        raise FerError(
            f"{path} is damaged, or was changed after it was written (see the digest in its first {USER_BLOCK} bytes); "
            "restore it, or make it again"
        )


# --- reading ---------------------------------------------------------------------------------------------------


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The artifact's manifest without its files, and of each shard that the file was made of its number of rows."""
    with _opened(path) as file:
        manifest, shards = (untrusted.parse_json(file.attrs[name]) for name in ("manifest", "shards"))
        if not isinstance(manifest, dict) or not isinstance(shards, dict) or not shards:
            raise ValueError("manifest or shards are not what they should be")
        wrong = [name for name in shards if not SHARD_NAME.fullmatch(name)]
        if wrong:
            raise ValueError(f"{wrong[0]!r} cannot be a shard's name")
        if sum(rows for rows in shards.values() if type(rows) is int) != _count(file, path):
            raise ValueError("the shards' rows do not add up to the file's")
        if any(type(rows) is not int or rows < 0 for rows in shards.values()):
            raise ValueError("a shard's number of rows is not a number of rows")
    return manifest, shards


def read_hdf5(path: Path, views: bool = True, rows: slice = slice(None)) -> Distributions:
    """The distributions in a file, or those of some rows; without `views` the stored views are left on disk (V = 0).

    Names, types and shapes are checked; what the numbers say is for `Distributions.check`, bytes for `check_digest`.
    """
    with _opened(path) as file:
        classes = _classes(file)
        stored = int(file.attrs["views"])
        count = _count(file, path)
        shapes = _numbers(classes, stored)
        missing = [name for name in (*TEXT, *shapes) if name not in file]
        if missing:
            raise FerError(f"{path} lacks the datasets {', '.join(missing)}; restore it, or make it again")
        for name in (*TEXT, *shapes):
            _check_dataset(file, name, count, shapes.get(name), path)
        none = file["split"].attrs.get("none")
        if none is not None and not isinstance(none, str):
            raise ValueError("the word for no split is no text")
        first, last, _ = rows.indices(count)
        views = bool(stored) and views
        pieces = (slice(k, min(k + ROWS, last)) for k in range(first, max(last, first + 1), ROWS))
        return join(_read_rows(file, classes, views, none, piece) for piece in pieces)


def _read_rows(file: h5py.File, classes: tuple[str, ...], views: bool, none: str | None, rows: slice) -> Distributions:
    """Some rows of a file whose datasets are seen to be right; `none` is the word that stands for no split."""
    text = {name: _decoded(file[name][rows]) for name in TEXT}
    if none is not None:
        splits = text["split"].arrow
        text["split"] = Words(pc.if_else(pc.equal(splits, none), None, splits))
    n = len(text["face_id"])
    return Distributions(
        classes=classes,
        **text,
        label=file["label"][rows],
        fold=file["fold"][rows],
        canonical=np.stack([file[name][rows] for name in classes], 1),
        view_box=file["view_box"][rows] if views else np.empty((n, 0, 4), np.uint16),
        view_flip=_booleans(file["view_flip"][rows]) if views else np.empty((n, 0), bool),
        view_distribution=file["view_distribution"][rows] if views else np.empty((n, 0, len(classes)), np.float32),
    )


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """The file, seen to be ours and not newer; whatever h5py stumbles over in it is damage."""
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != FORMAT:
                raise FerError(f"{path} is not an HDF5 file of cached distributions (no attribute format {FORMAT!r})")
            version = int(file.attrs["version"])
            if version > VERSION:
                raise FerError(
                    f"{path} has format version {version}, this program reads up to {VERSION}; update efficientface"
                )
            yield file
    except DAMAGE as error:
        untrusted.refuse_shortage(error)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FerError(f"{path} cannot be read as HDF5 ({reason}); restore it, or make it again") from error


def _classes(file: h5py.File) -> tuple[str, ...]:
    classes = tuple(file.attrs["classes"].tolist())
    if not classes or not all(isinstance(name, str) for name in classes):
        raise ValueError("its classes are no names")
    check_hdf5_names(classes)
    return classes


def _count(file: h5py.File, path: Path) -> int:
    """N, the rows of the first dataset."""
    if "face_id" not in file:
        raise FerError(f"{path} lacks the dataset face_id; restore it, or make it again")
    _check_dataset(file, "face_id", None, None, path)
    return len(file["face_id"])


def _check_dataset(
    file: h5py.File, name: str, count: int | None, expected: tuple[tuple[int, ...], str] | None, path: Path
) -> None:
    """A dataset in this very file, of the wanted type and shape, not longer than the file can hold.

    `count` is the number of faces, None where this dataset tells it; `expected` is None for text.
    """
    here = isinstance(file.get(name, getlink=True), h5py.HardLink)  # asked first: a link would open another file
    data = file[name] if here else None
    if not isinstance(data, h5py.Dataset):
        raise FerError(f"{path}: {name} is not a dataset of the file itself; make the file again")
    if data.external or data.is_virtual:
        raise FerError(f"{path}: {name} takes its numbers from another file; make the file again")
    if expected is None:
        kind = h5py.check_string_dtype(data.dtype)
        right = kind is not None and kind.encoding == "utf-8" and kind.length is not None
        right = right and (len(data.shape) == 1 if count is None else data.shape == (count,))
    else:
        shape, dtype = expected
        right = data.dtype == np.dtype(dtype) and data.shape == (count, *shape)
    if not right:
        raise FerError(f"{path}: {name} is {data.dtype} {data.shape}, not as docs/files.md says; make the file again")
    if data.nbytes > DEEPEST_ZIP * path.stat().st_size:
        raise FerError(f"{path}: {name} says to have {data.nbytes} bytes, more than the file can hold")


def _decoded(encoded: np.ndarray) -> Words:
    """(N,) bytes of one length as text; ValueError where they are no UTF-8."""
    return Words(pa.array(encoded.tolist(), pa.large_binary()))


def _booleans(values: np.ndarray) -> np.ndarray:
    """What HDF5 calls an enumeration of 0 and 1; other values are not cut to fit."""
    if (values.view(np.uint8) > 1).any():
        raise ValueError("view_flip has values that are neither 0 nor 1")
    return values
