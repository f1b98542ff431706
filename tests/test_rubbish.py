"""A hundred cases of tests/rubbish.py, of every kind some; `make rubbish` runs all."""

import contextlib
import json
import random
import warnings

import pytest
import rubbish
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientface import untrusted
from efficientface.cli import LONGEST, sentence
from efficientface.data.photos import Unreadable, decode_photo


def hundred() -> list[rubbish.Case]:
    """Two of every kind, drawn with a fixed seed, and more of the one that asks whole commands."""
    cases, few = [], random.Random(2)
    for kind in rubbish.KINDS:
        of_kind = [case for case in rubbish.all_cases() if case.kind == kind and "fits" not in case.name]
        cases += few.sample(of_kind, 2)
    rest = [case for case in rubbish.all_cases() if case.kind in ("table", "photograph", "odd argument")]
    return cases + few.sample([case for case in rest if case not in cases], 100 - len(cases))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return rubbish.prepared(tmp_path_factory.mktemp("rubbish"))


@pytest.mark.parametrize("case", hundred(), ids=lambda case: f"{case.kind}, {case.name}, {case.seed}")
def test_rubbish_is_refused_or_has_a_row(case, base):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow about damaged files
        outcome, detail = rubbish.run_case(case, base)
    assert outcome in rubbish.GOOD, detail


def test_there_are_thousands_of_cases_all_different():
    cases = rubbish.all_cases()
    assert len(set(cases)) == len(cases) > 2000


def test_what_a_reader_lets_through_or_raises_is_noticed(base, monkeypatch):
    """The harness itself: a reader that looks at nothing, and one that fails in another way."""
    case = rubbish.Case("damaged journal", "flip in the body", 0)
    assert rubbish.run_case(case, base)[0] == rubbish.HARMLESS
    monkeypatch.setattr(rubbish.Journal, "read", lambda self: {k: [] for k in range(8 + ("good" not in str(self.out)))})
    assert rubbish.run_case(case, base)[0] == rubbish.SWALLOWED
    monkeypatch.setattr(rubbish.Journal, "read", lambda self: 1 / 0)
    outcome, detail = rubbish.run_case(case, base)
    assert outcome == rubbish.CRASHED
    assert "ZeroDivisionError" in detail


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode) | st.just(b"[" * 100_000))
@settings(max_examples=60, deadline=None)
def test_json_is_read_or_a_value_error(data):
    with contextlib.suppress(ValueError):
        json.dumps(untrusted.parse_json(data), ensure_ascii=False).encode()


@given(
    st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"P5 "]),
    st.binary(max_size=200),
)
@settings(max_examples=60, deadline=None)
def test_bytes_are_a_picture_or_unreadable(head, rest):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(Unreadable):
            assert decode_photo(head + rest).shape[2] == 3


def test_a_sentence_is_one_line_of_a_length_that_can_be_read():
    assert sentence("a\x1b[2J\nb\ud800") == "a\\x1b[2J\\nb\\ud800"
    long = sentence("begin " + "x" * 10**6 + " end")
    assert len(long) < LONGEST + 10
    assert long.startswith("begin x")
    assert long.endswith("x end")
