"""Files from outside, which may be anything: the one way to each kind of them.

Nothing here waits for a pipe, runs what a file holds, or takes memory that the file's size does not justify. Whatever
is wrong with a file is an OSError or a ValueError; the caller says in a FerError what it was to be, and what to do.
"""

import errno
import io
import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from efficientface import FerError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

LARGEST_JSON = 16 * 1024**2  # bytes; in memory it may be thirty times as much
LARGEST_HEADER = 16 * 1024**2  # of safetensors; a ResNet-50's has 30 kB
LARGEST_LIST = 512 * 1024**2  # of text: ten million paths
LARGEST_PHOTO = 512 * 1024**2  # the pixels of the largest photograph that is decoded, with transparency
VALUES_A_BYTE, BYTES_A_BYTE = 16, 256  # what a byte of a Parquet file may stand for at most
SMALL = 64 * 1024**2  # bytes that a file may unfold to, whatever its size
# What libraries in C and Rust raise about files that are not as they should be, beside their own exceptions.
DAMAGE = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError),
    *(MemoryError, RuntimeError, SystemError),
)
TENSORS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor|tensor_v2|sparse_tensor|parameter)|torch \w+Storage"
    r"|torch\.serialization _get_layout|torch Size"
)
# What the authors' training script keeps beside the weights: its recorder, of NumPy arrays. Never made, passed over.
PASSED_OVER = re.compile(
    r"__main__ RecorderMeter|numpy (ndarray|dtype)|numpy\.(_core|core)\.multiarray (_reconstruct|scalar)|_codecs encode"
)


def printable(text: Any) -> str:
    """Text from outside as it may be shown: control characters, and what else does not print, are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def open_file(path: Path) -> BinaryIO:
    """An ordinary file, open to be read; ValueError for a pipe or a device, which might never end."""
    kind = os.stat(path).st_mode
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(kind):
        raise ValueError("no ordinary file")
    # it may have been exchanged since: O_NONBLOCK opens a pipe without waiting for somebody who writes into it
    file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")  # noqa: SIM115 (the caller closes it)
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise ValueError("no ordinary file")


def read_bytes(path: Path, most: int = LARGEST_LIST) -> bytes:
    """All of an ordinary file of at most `most` bytes."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ValueError(f"too large, {size:,} bytes, more than {most:,}")
        return file.read(size)


# --- JSON ------------------------------------------------------------------------------------------------------


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    return parse_json(read_bytes(path, LARGEST_JSON))


def parse_json(text: bytes | str, nan: bool = False) -> Any:
    """JSON in UTF-8, no deeper than Python's calls, without halves of surrogate pairs; NaN only where it may be."""
    try:
        value = json.loads(text.decode() if isinstance(text, bytes) else text)
        json.dumps(value, ensure_ascii=False, allow_nan=nan).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def are_numbers(value: Any, count: int) -> bool:
    """Whether it is a list of so many finite numbers."""
    return isinstance(value, list) and len(value) == count and all(type(v) in (int, float) for v in value)


def refuse_shortage(error: Exception) -> None:
    """A MemoryError again, if it is memory that is short and not the file that claims too much."""
    if isinstance(error, MemoryError):
        bytearray(LARGEST_PHOTO // 2)  # raises it


# --- Parquet ---------------------------------------------------------------------------------------------------


@contextmanager
def parquet_file(path: Path) -> Iterator["pq.ParquetFile"]:
    """A Parquet file that does not claim to hold more than it can; what is wrong with it is a ValueError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        open_file(path).close()
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            _refuse_bomb(file.metadata, path.stat().st_size)
            yield file
    except FerError:
        raise
    except (*DAMAGE, pa.ArrowException) as error:
        refuse_shortage(error)
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise ValueError(str(error).partition("\n")[0] or type(error).__name__) from error


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> "pa.Table":
    """Columns of a Parquet file as a table, each seen to be well-formed down to its text."""
    with parquet_file(path) as file:
        table = file.read(columns=None if columns is None else list(columns))
        table.validate(full=True)
        return table


def parquet_batches(path: Path, columns: Sequence[str], rows: int = 1 << 12) -> Iterator["pa.RecordBatch"]:
    """The same table, at most so many rows at a time; no more of it than BYTES_A_BYTE allows."""
    import pyarrow as pa

    with parquet_file(path) as file:
        if missing := [name for name in columns if name not in file.schema_arrow.names]:
            raise ValueError(f"no column {missing[0]}")
        unfolded, most = 0, max(SMALL, BYTES_A_BYTE * path.stat().st_size)
        for batch in file.iter_batches(rows, columns=list(columns)):
            batch.validate(full=True)
            # a word that a dictionary holds once counts, as it takes room, in every row
            known = [column.dictionary_decode() if pa.types.is_dictionary(column.type) else column for column in batch]
            batch = pa.RecordBatch.from_arrays(known, batch.schema.names)
            unfolded += batch.nbytes
            if unfolded > most:
                raise ValueError(f"it unfolds to more than {most:,} bytes, which its size does not justify")
            yield batch


def _refuse_bomb(claims: Any, size: int) -> None:
    groups = [claims.row_group(number) for number in range(claims.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    values = max([claims.num_rows, *(chunk.num_values for chunk in chunks)])
    unfolded = sum(max(0, chunk.total_uncompressed_size) for chunk in chunks)
    if values > max(SMALL // 8, VALUES_A_BYTE * size) or unfolded > max(SMALL, BYTES_A_BYTE * size):
        raise ValueError(
            f"it claims {claims.num_rows:,} rows and {unfolded:,} bytes, more than {size:,} bytes can hold"
        )


# --- weights ---------------------------------------------------------------------------------------------------


@contextmanager
def safetensors_file(path: Path, framework: str) -> Iterator[Any]:
    """Opened by the safetensors library for `framework` (numpy or pt); what is wrong with it is a ValueError."""
    from safetensors import SafetensorError, safe_open

    try:
        with open_file(path) as raw:
            header = int.from_bytes(raw.read(8), "little")
        if header > min(LARGEST_HEADER, path.stat().st_size):
            raise ValueError(f"it claims a header of {header:,} bytes")
        with safe_open(path, framework=framework) as file:
            yield file
    except SafetensorError as error:
        raise ValueError(str(error).partition("\n")[0]) from error


def read_safetensors(path: Path) -> dict[str, Any]:
    """All tensors of a safetensors file, torch's, by name."""
    with safetensors_file(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def read_pickled_tensors(path: Path) -> Any:
    """What torch.save wrote, if that is nothing but tensors and plain values in lists and dicts; CPU.

    In place of what is PASSED_OVER there is a `PassedOver`. The pickle is looked through before torch sees it: by
    itself its `weights_only` makes a bytearray of any size.
    """
    import torch

    try:
        passed: list[Any] = [(PassedOver, name) for name in sorted(_look_through(path))]
        with torch.serialization.safe_globals(passed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except ValueError:
        raise
    except Exception as error:  # whatever zipfile, pickletools and torch make of a file that is none, or a hostile one
        raise ValueError(str(error).partition("\n")[0] or type(error).__name__) from error


class PassedOver:
    """Stands in for an object that is not read: takes whatever it would be made from, and keeps nothing."""

    def __new__(cls, *_: Any) -> "PassedOver":
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def _look_through(path: Path) -> set[str]:
    """The names of what is to be passed over in a file of torch.save.

    ValueError if it is compressed, or names anything else besides what tensors are made of.
    """
    import zipfile

    passed: set[str] = set()
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
                # torch stores tensors as they are; a compressed archive could unfold to any size
                compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
                if compressed or sum(entry.file_size for entry in entries) > size:
                    raise Compressed("a compressed archive")
                if archive.testzip() is not None:
                    raise ValueError("damaged")
                for entry in entries:
                    if entry.filename.rpartition("/")[2] == "data.pkl":
                        passed |= _refuse_objects(io.BytesIO(archive.read(entry)))
        else:
            file.seek(0)
            for _ in range(5):  # before torch 1.6: magic number, version, system, content, names of the tensors
                passed |= _refuse_objects(file)
    return passed


def _refuse_objects(pickled: Any) -> set[str]:
    """The names of what is to be passed over in a pickle; ValueError for any other but what tensors are made of."""
    import pickletools

    passed = set()
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name == "GLOBAL" and not TENSORS.fullmatch(str(argument)):
            if not PASSED_OVER.fullmatch(str(argument)):
                raise ForeignObject(str(argument).replace(" ", "."))
            passed.add(str(argument).replace(" ", "."))
        if opcode.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            raise ForeignObject(str(argument or opcode.name))
    return passed


class Compressed(ValueError):
    """An archive that may unfold to any size."""


class ForeignObject(ValueError):
    """A pickle holds something besides tensors; the message is its name."""
