"""Columns beyond what is held: the same as in memory, and not in the process's own."""

import resource
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from efficientface import FerError
from efficientface.data import columns
from efficientface.data.columns import Growing, kept, taken
from efficientface.data.words import GrowingWords, Index, Words, counted, differ, in_order

TEXT = np.array(["ü/1.jpg", None, "", "b", "b", "a#1", None, "ü/1.jpg"], object)


@pytest.fixture(params=["held", "mapped"])
def way(request, monkeypatch):
    """Both ways to have a column, and more than one portion of rows."""
    monkeypatch.setattr(columns, "HELD", 0 if request.param == "mapped" else columns.HELD)
    monkeypatch.setattr("efficientface.data.words.ROWS", 3)
    monkeypatch.setattr(columns, "ROWS", 3)
    return request.param


@pytest.mark.parametrize(
    "parts",
    [
        [np.arange(5), np.arange(0), np.arange(7)],
        [np.ones((2, 3, 4), np.uint16), np.zeros((4, 3, 4), np.uint16)],
        [np.array([True, False]), np.array([True])],
        [np.zeros((3, 0, 4), np.float32), np.zeros((1, 0, 4), np.float32)],
        [np.empty((0, 2), np.float32)],
        [np.arange(12).reshape(3, 4)[:, ::2], np.arange(2).reshape(1, 2)],
    ],
)
def test_what_grew_is_what_numpy_concatenates(parts, way):
    grown = Growing()
    for part in parts:
        grown.append(part)
    whole, expected = grown.whole(), np.concatenate(parts)
    assert (whole.dtype, whole.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(whole, expected)
    if whole.size:
        whole[0] = whole[-1]  # and can be written to
        np.testing.assert_array_equal(whole[0], expected[-1])


def test_taken_and_kept_are_what_numpy_has(way):
    column, rows = np.arange(40.0).reshape(10, 4), np.array([9, 0, 0, -1, 3, 5, 7])
    np.testing.assert_array_equal(taken(column, rows), column[rows])
    np.testing.assert_array_equal(taken(column, rows[:0]), column[:0])
    np.testing.assert_array_equal(kept(column), column)


@pytest.mark.parametrize(
    "rows",
    [
        slice(2, 6),
        slice(None, None, 2),
        slice(0, 0),
        np.array([7, 0, 0, -1, 3]),
        np.array([], int),
        np.array([True, False, True, False, False, False, True, True]),
    ],
)
def test_words_are_indexed_as_objects_are(rows, way):
    words = grown(TEXT)[rows]
    assert isinstance(words, Words)
    assert words.tolist() == list(words) == TEXT[rows].tolist()
    np.testing.assert_array_equal(np.asarray(words), TEXT[rows])


def test_words_are_compared_as_objects_are(way):
    words, other = grown(TEXT), TEXT[::-1].copy()
    for value in ("b", "", "none of them", None):
        assert (words == value).tolist() == [word == value for word in TEXT]
        assert (words != value).tolist() == [word != value for word in TEXT]
    for column in (other, grown(other), pa.array(other)):
        assert (words == column).tolist() == (other == TEXT).tolist()
        assert (words != column).tolist() == (other != TEXT).tolist()
    assert [words[k] for k in range(-8, 8)] == [TEXT[k] for k in range(-8, 8)]
    rows = np.array([3, 1, 0, 7, 4])
    assert differ(words, rows, grown(TEXT[rows[::-1]])).tolist() == (TEXT[rows] != TEXT[rows[::-1]]).tolist()
    assert counted(words) == {"ü/1.jpg": 2, None: 2, "": 1, "b": 2, "a#1": 1}
    assert [in_order(part) for part in (["a", "b", "c"], ["a", "b", "b"], ["b", "a"], ["a"], [])] == [1, 0, 0, 1, 1]
    index = Index(words)
    assert index.places(TEXT).tolist() == [0, 1, 2, 3, 3, 5, 1, 0]
    assert index.places(["c", "b", None]).tolist() == [-1, 3, 1]


def test_words_go_to_arrow_as_text(way):
    assert pa.array(grown(TEXT), pa.string()).equals(pa.array(TEXT, pa.string()))


def grown(text):
    """The words, put together from parts that are slices of longer ones."""
    column, array = GrowingWords(), pa.array(["x", *text, None], pa.large_string())
    for first, last in ((1, 4), (4, 4), (4, len(text) + 1)):
        column.append(array[first:last])
    return column.whole()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells what is a process's own")
def test_a_long_column_is_not_in_the_process_itself():
    def own():
        return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) * 1024

    before, grown, words, size = own(), Growing(), GrowingWords(), 0
    for k in range(64):
        part = np.full(2**17, k)
        grown.append(part)
        text = [f"{k}/{row:060d}" for row in range(2**12)]
        words.append(text)
        size += part.nbytes + sum(map(len, text))
    whole, all_words = grown.whole(), words.whole()
    assert whole.sum() == 2**17 * sum(range(64))
    assert (all_words == f"63/{4095:060d}").sum() == 1
    assert own() - before < size / 4


def test_a_temporary_folder_without_room_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "HELD", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(FerError, match=rf"{tmp_path} does not take columns that memory.*File too large.*TMPDIR"):
            kept(np.zeros(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "not there"))
    with pytest.raises(FerError, match="not there does not take columns that memory is not to hold"):
        kept(np.zeros(100_000))
