"""Columns of numbers that need not fit into memory.

One that is longer than HELD bytes lies in a file without a name, in the system's temporary folder (TMPDIR), and is
mapped: the system, not the process, decides how much of it stays in memory.
"""

import io
import mmap
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np

from efficientface import FerError

HELD = 4 * 1024**2  # bytes of a column that are held in memory
ROWS = 1 << 16  # taken, hashed or compared at a time, so that what that needs does not grow either


@contextmanager
def unnamed_file(what: str) -> Iterator[BinaryIO]:
    """A file without a name; FerError if the temporary folder takes no more of `what`."""
    try:
        with tempfile.TemporaryFile(prefix="fer-") as file:
            yield file
    except OSError as error:
        raise no_room(what, error) from error


def no_room(what: str, error: OSError) -> FerError:
    """What is said where the temporary folder does not take more."""
    return FerError(
        f"{tempfile.gettempdir()} does not take {what} that memory is not to hold ({error.strerror or error}); make "
        "room there, or set TMPDIR to a folder on a larger disk"
    )


def mapped(file: BinaryIO) -> mmap.mmap:
    """What was written to a file; changes stay in memory."""
    file.flush()
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


class Growing:
    """A column that is put together from its parts, arrays of one dtype that differ in their length alone."""

    def __init__(self) -> None:
        self._file: BinaryIO = io.BytesIO()
        self._count = 0
        self._like = np.empty(0)

    def append(self, part: np.ndarray) -> None:
        """More of it, copied."""
        self._like = np.empty((0, *part.shape[1:]), part.dtype)
        self._count += len(part)
        try:
            if isinstance(self._file, io.BytesIO) and self._file.tell() + part.nbytes > HELD:
                held, self._file = self._file, tempfile.TemporaryFile(prefix="fer-")  # noqa: SIM115
                self._file.write(held.getbuffer())
            self._file.write(np.ascontiguousarray(part).data)
        except OSError as error:
            raise no_room("columns", error) from error

    def whole(self) -> np.ndarray:
        """All parts, one after the other."""
        shape = (self._count, *self._like.shape[1:])
        if isinstance(self._file, io.BytesIO):
            return np.ndarray(shape, self._like.dtype, self._file.getbuffer())
        with self._file:
            return np.ndarray(shape, self._like.dtype, mapped(self._file))


def taken(column: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """column[rows], (M,) indices: as long a column as it is held or mapped."""
    if len(rows) * column[:1].nbytes <= HELD:
        return column[rows]
    found = Growing()
    for k in range(0, len(rows), ROWS):
        found.append(column[rows[k : k + ROWS]])
    return found.whole()


def kept(column: np.ndarray) -> np.ndarray:
    """The same numbers, mapped if they are more than is held."""
    if column.nbytes <= HELD:
        return column
    found = Growing()
    found.append(column)
    return found.whole()
