"""Columns of numbers that need not fit into memory.

One that is longer than HELD bytes lies in a file without a name, in the system's temporary folder (TMPDIR), and is
mapped: the system, not the process, decides how much of it stays in memory. Where that folder takes no file, or no
more, the column is held in memory whatever its length, and that is told once.
"""

import io
import logging
import mmap
import tempfile
from collections.abc import Callable
from functools import lru_cache
from typing import BinaryIO

import numpy as np

log = logging.getLogger(__name__)

HELD = 4 * 1024**2  # bytes of a column that are held in memory
ROWS = 1 << 16  # taken, hashed or compared at a time, so that what that needs does not grow either


class Growing:
    """A column that is put together from its parts, arrays of one dtype that differ in their length alone."""

    def __init__(self) -> None:
        self._held = io.BytesIO()
        self._file: BinaryIO | None = None  # in place of _held
        self._refused = False
        self._count = self._size = 0
        self._like = np.empty(0)

    def append(self, part: np.ndarray) -> None:
        """More of it, copied."""
        if not self._count:
            self._like = np.empty((0, *part.shape[1:]), part.dtype)
        elif (part.shape[1:], part.dtype) != (self._like.shape[1:], self._like.dtype):
            raise ValueError(f"{part.dtype} {part.shape} does not go on {self._like.dtype} {self._like.shape}")
        data = np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
        if self._size + len(data) > HELD and not self._refused:
            try:
                if self._file is None:
                    self._file = tempfile.TemporaryFile(prefix="fer-", buffering=0)  # noqa: SIM115
                    _write(self._file, self._held.getbuffer())
                    self._held = io.BytesIO()
                _write(self._file, data)
            except OSError as error:
                self._hold(error)
        if self._file is None:
            self._held.write(data)
        self._count += len(part)
        self._size += len(data)

    def _hold(self, error: OSError) -> None:
        """Go on in memory, with what was appended until now."""
        _tell(error.strerror or str(error))
        self._refused = True
        if self._file is not None:
            with io.BufferedReader(self._file) as file:  # type: ignore[type-var]
                if not self._held.tell():
                    file.seek(0)
                    self._held.write(file.read(self._size))
            self._file = None

    def whole(self) -> np.ndarray:
        """All parts, one after the other; not to be written to."""
        if self._file is not None:
            try:
                pages = mmap.mmap(self._file.fileno(), self._size, access=mmap.ACCESS_READ)
            except OSError as error:
                self._hold(error)
            else:
                self._file.close()
                return self._as_array(pages)
        return self._as_array(self._held.getbuffer())

    def _as_array(self, data: mmap.mmap | memoryview) -> np.ndarray:
        found = np.ndarray((self._count, *self._like.shape[1:]), self._like.dtype, data)
        found.flags.writeable = False
        return found


def _write(file: BinaryIO, data: memoryview) -> None:
    """All of it: an unbuffered file may take a part."""
    while len(data):
        data = data[file.write(data) :]


@lru_cache(maxsize=1)
def _tell(reason: str) -> None:
    log.warning("columns are held in memory, however long: the temporary folder takes no file of them (%s)", reason)


def indices(rows: np.ndarray, count: int) -> np.ndarray:
    """(M,) rows of `count`, also where they are told by as many booleans."""
    if rows.dtype != bool:
        return rows
    if len(rows) != count:
        raise IndexError(f"{len(rows)} booleans for {count} rows")
    return np.flatnonzero(rows)


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


def computed(count: int, part: Callable[[slice], np.ndarray]) -> np.ndarray:
    """A column of `count` rows of which `part` computes some at a time, mapped if it is more than is held."""
    found = Growing()
    for k in range(0, max(count, 1), ROWS):
        found.append(part(slice(k, k + ROWS)))
    return found.whole()


def reordered(column: np.ndarray, order: list[int]) -> np.ndarray:
    """column[..., order], mapped if that is more than is held."""
    return computed(len(column), lambda rows: column[rows][..., order])
