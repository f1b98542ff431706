"""Columns of text, (N,) str and perhaps None: compared, found and numbered without a loop in Python.

As numpy's objects a million face ids and digests take 0.19 GB, in a table of all words more; as Arrow has them 0.07,
and their fingerprints, 8 bytes a word, tell nearly as much.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from efficientface.data.columns import ROWS, Growing, indices, kept


class Words:
    """A column of text as Arrow has it; indexed, compared and iterated as numpy's arrays of objects are.

    What indices take of it is held or mapped as columns of numbers are (data/columns.py). Names of files that are not
    UTF-8 come out as they went in, and are ordered as Python orders them.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, words: "Column") -> None:
        self.arrow = text_array(words)

    def __len__(self) -> int:
        return len(self.arrow)

    def __getitem__(self, rows: Any) -> Any:
        """A word, or the Words at a slice, at (M,) indices or where (N,) booleans are true."""
        if isinstance(rows, int | np.integer):
            return _as_python(self.arrow.slice(range(len(self))[rows], 1))[0]
        if isinstance(rows, slice):
            return Words(self.arrow[rows])
        rows = indices(np.asarray(rows), len(self))
        found = GrowingWords()
        for k in range(0, len(rows), ROWS):
            part = rows[k : k + ROWS]
            found.append(self.arrow.take(pa.array(np.where(part < 0, part + len(self), part))))
        return found.whole()

    def __iter__(self) -> Iterator[Any]:
        for part in self.parts():
            yield from part.tolist()

    def parts(self) -> Iterator["Words"]:
        """The column in order, some at a time: what is made of them in Python does not grow with it."""
        for k in range(0, len(self), ROWS):
            yield self[k : k + ROWS]

    def __eq__(self, other: Any) -> Any:
        """(N,) bool: which words are the same as another, or as those of a column of as many."""
        if other is None:
            return self.missing()
        if isinstance(other, str):
            return pc.equal(self.arrow, text_array([other])[0]).fill_null(False).to_numpy(False)
        theirs = text_array(other)
        neither = pc.and_(self.arrow.is_null(), theirs.is_null())
        return pc.or_(pc.equal(self.arrow, theirs).fill_null(False), neither).to_numpy(zero_copy_only=False)

    def __ne__(self, other: Any) -> Any:
        return ~(self == other)

    def missing(self) -> np.ndarray:
        """(N,) bool: where it has None."""
        return self.arrow.is_null().to_numpy(zero_copy_only=False)

    def tolist(self) -> list[Any]:
        """As Python has them."""
        return _as_python(self.arrow)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """As numpy's objects."""
        return np.array(self.tolist(), object if dtype is None else dtype)

    def __arrow_array__(self, type: pa.DataType | None = None) -> pa.Array:
        return self.arrow if type is None else self.arrow.cast(type)


Column: TypeAlias = Words | np.ndarray | pa.Array | pa.ChunkedArray | Sequence[str | None]


class GrowingWords:
    """A column of text that is put together from its parts."""

    def __init__(self) -> None:
        self._ends, self._text, self._there = Growing(), Growing(), Growing()
        self._ends.append(np.zeros(1, np.int64))
        self._bytes = self._nulls = 0

    def append(self, part: Column) -> None:
        """More of it, copied."""
        array = text_array(part)
        if not len(array):
            return
        _, ends, text = array.buffers()
        offsets = np.frombuffer(ends, np.int64)[array.offset : array.offset + len(array) + 1]
        self._ends.append(offsets[1:] - offsets[0] + self._bytes)
        if text is not None:
            self._text.append(np.frombuffer(text, np.uint8)[offsets[0] : offsets[-1]])
        self._there.append(array.is_valid().to_numpy(zero_copy_only=False))
        self._bytes += int(offsets[-1] - offsets[0])
        self._nulls += array.null_count

    def whole(self) -> Words:
        """All parts, one after the other."""
        ends, text = (pa.py_buffer(column.whole()) for column in (self._ends, self._text))
        there = self._there.whole()
        valid = pa.py_buffer(np.packbits(there, bitorder="little")) if self._nulls else None
        return Words(pa.LargeStringArray.from_buffers(len(there), ends, text, valid, self._nulls))


def text_array(words: Column) -> pa.LargeStringArray:
    """As Arrow has them: there no Python object is asked about each."""
    if isinstance(words, Words):
        return words.arrow
    if isinstance(words, pa.ChunkedArray):
        return words.cast(pa.large_string()).combine_chunks()
    if isinstance(words, pa.Array):
        return words.cast(pa.large_string())
    try:
        return pa.array(words, pa.large_string())
    except UnicodeEncodeError:
        encoded = [word if word is None else word.encode("utf-8", "surrogatepass") for word in words]
        return pa.array(encoded, pa.large_binary()).view(pa.large_string())


def _as_python(array: pa.LargeStringArray) -> list[Any]:
    try:
        return array.to_numpy(zero_copy_only=False).tolist()
    except (UnicodeDecodeError, pa.ArrowException):
        encoded = array.view(pa.large_binary()).to_pylist()
        return [word if word is None else word.decode("utf-8", "surrogatepass") for word in encoded]


def gathered(words: Iterable[str | None]) -> Words:
    """A column of what comes, of which only a part is in Python's memory at a time."""
    found, left = GrowingWords(), iter(words)
    while part := list(islice(left, ROWS)):
        found.append(part)
    return found.whole()


def of_batches(names: Sequence[str], batches: Iterable[Mapping[str, Column] | pa.RecordBatch]) -> dict[str, Words]:
    """The named columns of a table, put together from its rows."""
    columns = {name: GrowingWords() for name in names}
    for batch in batches:
        for name, column in columns.items():
            column.append(batch[name])
    return {name: column.whole() for name, column in columns.items()}


def repeated(word: str | None, count: int) -> Words:
    """A column of one word."""
    return decoded(np.zeros(count, np.int8), [word])


def joined(parts: Iterable[Column]) -> Words:
    """One column of several, one after the other."""
    found = GrowingWords()
    for part in parts:
        found.append(part)
    return found.whole()


def changed(words: Words, change: Callable[[str], str | None]) -> Words:
    """Every word as `change` has it, which is asked about few of them more than once; None stays None."""
    found = GrowingWords()
    for part in words.parts():
        known = part.arrow.dictionary_encode()
        found.append(text_array(list(map(change, _as_python(known.dictionary)))).take(known.indices))
    return found.whole()


def filled(words: Words, others: Words) -> Words:
    """The column with the others' words where it has None."""
    parts = zip(words.parts(), others.parts(), strict=True)
    return joined(pc.coalesce(part.arrow, other.arrow) for part, other in parts)


def coded(words: Column) -> tuple[np.ndarray, list[str]]:
    """(N,) int32: the place of each word among those that occur, -1 for None; and those, as they come first."""
    found = text_array(words).dictionary_encode()
    return found.indices.fill_null(-1).to_numpy(), _as_python(found.dictionary)


def decoded(codes: np.ndarray, words: Sequence[str | None]) -> Words:
    """The column (N,) of the words that have these places, None for -1."""
    found, known = GrowingWords(), text_array(words)
    for k in range(0, len(codes), ROWS):
        part = codes[k : k + ROWS]
        found.append(known.take(pa.array(part, mask=part < 0)))
    return found.whole()


def within(words: Column, known: Sequence[str | None]) -> np.ndarray:
    """(N,) bool: which words are one of a few."""
    return pc.is_in(text_array(words), value_set=text_array(known)).to_numpy(zero_copy_only=False)


def ascending(words: Words) -> np.ndarray:
    """(N,) indices that sort the column."""
    return pc.sort_indices(words.arrow).to_numpy().astype(np.int64)


def fingerprints(words: Column) -> np.ndarray:
    """(N,) uint64: the same for equal words, and hardly ever for others."""
    from pandas.util import hash_array  # here, because --help imports this

    array, found = text_array(words), np.empty(len(words), np.uint64)
    for k in range(0, len(array), ROWS):
        # bytes have the same fingerprint as their text, which may not be UTF-8
        part = array[k : k + ROWS].view(pa.large_binary()).to_numpy(zero_copy_only=False)
        found[k : k + ROWS] = hash_array(part, categorize=False)
    return found


def all_differ(words: Column) -> bool:
    """Whether no word comes twice."""
    found = fingerprints(words)
    found.sort()
    return not (found[1:] == found[:-1]).any() or len(text_array(words).unique()) == len(words)


def counted(words: Column) -> Counter[Any]:
    """How often each word comes, in the order of their first."""
    found = text_array(words).value_counts()
    return Counter(dict(zip(_as_python(found.field("values")), found.field("counts").tolist(), strict=True)))


def in_order(words: Column) -> bool:
    """Whether each word is greater than the one before."""
    array = text_array(words)
    return len(array) < 2 or bool(pc.all(pc.less(array[:-1], array[1:])).as_py())


def differ(column: Words | np.ndarray, rows: np.ndarray, others: Words | np.ndarray) -> np.ndarray:
    """(M,) bool: where column[rows] is not what `others` (M,) have, without a copy of either."""
    found = np.empty(len(rows), bool)
    for k in range(0, len(rows), ROWS):
        found[k : k + ROWS] = column[rows[k : k + ROWS]] != others[k : k + ROWS]
    return found


class Index:
    """Where words stand in a column."""

    def __init__(self, known: Column) -> None:
        self.known = known if isinstance(known, Words) else Words(known)
        theirs = fingerprints(known)
        self._order = kept(np.argsort(theirs, kind="stable"))
        self._theirs = kept(theirs[self._order])

    def places(self, wanted: Column) -> np.ndarray:
        """(M,) int64: of each of M words the place in the column (N,), the first of several, -1 where it is not."""
        words, found = wanted if isinstance(wanted, Words) else Words(wanted), np.full(len(wanted), -1)
        for k in range(0, len(found) if len(self.known) else 0, ROWS):
            found[k : k + ROWS] = self._places(words[k : k + ROWS])
        return found

    def _places(self, wanted: Words) -> np.ndarray:
        ours = fingerprints(wanted)
        at = np.searchsorted(self._theirs, ours).clip(max=len(self.known) - 1)
        there = self._theirs[at] == ours
        rows = np.where(there, self._order[at], -1)
        if (self.known[rows[there]] != wanted[there]).any():  # two words have one fingerprint
            found = pc.index_in(wanted.arrow, value_set=self.known.arrow)
            return found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        return rows


def places(wanted: Column, known: Column) -> np.ndarray:
    """(M,) int64: where each of M words stands in `known` (N,), the first of several, -1 where it does not."""
    return Index(known).places(wanted)


def numbered(words: Column) -> np.ndarray:
    """(N,) int64: a number for each of N words, the same for equal ones; from 0, none left out."""
    return text_array(words).dictionary_encode(null_encoding="encode").indices.to_numpy().astype(np.int64)


def leads_out(face_id: Column) -> np.ndarray:
    """(N,) bool: whether an id is no relative path, or climbs."""
    return pc.match_substring_regex(text_array(face_id), r"^/|(^|/)\.\.(/|$)").to_numpy(zero_copy_only=False)
