"""Columns beyond what is held: the same as in memory, and not in the process's own."""

import resource
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from efficientface.data import columns
from efficientface.data.columns import Growing, kept, taken
from efficientface.data.words import (
    GrowingWords,
    Index,
    Words,
    ascending,
    changed,
    coded,
    counted,
    decoded,
    differ,
    filled,
    gathered,
    in_order,
    joined,
    repeated,
    within,
)

TEXT = np.array(["ü/1.jpg", None, "", "b", "b", "a#1", None, "ü/1.jpg"], object)


@pytest.fixture(params=["held", "mapped"])
def way(request, monkeypatch):
    """Both ways to have a column, in more than one portion of rows."""
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
    assert not whole.flags.writeable


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


@pytest.mark.parametrize("text", [TEXT, np.array(["b\udcff", None, "ü\udc80", "\ue000", "𝄞", "a", "b\udcff"], object)])
def test_words_are_made_of_words_as_lists_are(text, way):
    """Among them names of files that are not UTF-8, as Python has them."""
    words, names = gathered(iter(text)), [word for word in text if word is not None]
    assert words.tolist() == list(words) == list(np.asarray(words)) == text.tolist()
    assert [words[k] for k in range(len(text))] == text.tolist()
    for name in names:
        assert (words == name).tolist() == [word == name for word in text]
    assert joined([words, [], text[2:]]).tolist() == [*text, *text[2:]]
    assert changed(words, lambda word: None if word == "b" else word + "!").tolist() == [
        None if word in (None, "b") else word + "!" for word in text
    ]
    codes, known = coded(words)
    assert known == list(dict.fromkeys(names))
    assert [known[code] if code >= 0 else None for code in codes] == text.tolist()
    assert decoded(codes, known).tolist() == text.tolist()
    assert filled(words, gathered(reversed(text))).tolist() == [
        other if word is None else word for word, other in zip(text, text[::-1], strict=True)
    ]
    assert within(words, [names[0], None]).tolist() == [word in (names[0], None) for word in text]
    assert counted(words) == Counter(text)
    assert Index(names).places(text).tolist() == [names.index(word) if word in names else -1 for word in text]
    there = gathered(names)
    assert there[ascending(there)].tolist() == sorted(names)
    assert repeated("ü", 7).tolist() == ["ü"] * 7
    assert repeated(None, 2).missing().all()


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


@pytest.mark.parametrize("room", [0, 5000, 12_000])
def test_without_room_a_column_is_held_and_that_is_told_once(room, tmp_path, monkeypatch, caplog):
    """Refused at its first byte, or at a later one."""
    monkeypatch.setattr(columns, "HELD", 4000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    columns._tell.cache_clear()
    parts, grown = np.arange(20_000).reshape(20, 1000), [Growing(), Growing()]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        for column in grown:
            for part in parts:
                column.append(part)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    for column in grown:
        np.testing.assert_array_equal(column.whole(), np.arange(20_000))
    assert [record.message for record in caplog.records] == [
        "columns are held in memory, however long: the temporary folder takes no file of them (File too large)"
    ]
    assert not list(tmp_path.iterdir())


def test_without_a_temporary_folder_a_column_is_held(monkeypatch, caplog):
    def nowhere(**about):
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "TemporaryFile", nowhere)
    columns._tell.cache_clear()
    np.testing.assert_array_equal(kept(np.arange(2**20)), np.arange(2**20))
    assert "No usable temporary directory found" in caplog.text


def test_parts_of_other_kinds_and_masks_of_other_lengths_are_refused():
    column = Growing()
    column.append(np.zeros((2, 3)))
    for part in (np.zeros((2, 2)), np.zeros((2, 3), np.float32)):
        with pytest.raises(ValueError, match="does not go on"):
            column.append(part)
    with pytest.raises(IndexError, match="3 booleans for 8 rows"):
        grown(TEXT)[np.array([True] * 3)]
