"""The names of expressions: one order, and the spellings that data sets use."""

import pytest

from efficientface.data.labels import EXPRESSIONS, expression, no_expression, plain


def test_the_order_is_that_of_the_authors_code():
    assert EXPRESSIONS == ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_every_expression_spells_itself_in_any_case(name):
    assert [expression(name), expression(name.title()), expression(f" {name.upper()} ")] == [name] * 3


@pytest.mark.parametrize(
    ("spelt", "name"),
    [
        ("happy", "happiness"),
        ("Happy", "happiness"),
        ("sad", "sadness"),
        ("angry", "anger"),
        ("surprised", "surprise"),
        ("disgusted", "disgust"),
        ("fearful", "fear"),
        ("natural", "neutral"),
        ("neural", "neutral"),
    ],
)
def test_spellings_of_data_sets_are_folded(spelt, name):
    assert expression(spelt) == name


@pytest.mark.parametrize(
    ("spelt", "meaning"),
    [
        ("unknown", "unknown"),
        ("None", "unknown"),
        ("Uncertain", "unknown"),
        ("NF", "not a face"),
        ("non-face", "not a face"),
        ("Non_Face", "not a face"),
        ("Nonface", "not a face"),
    ],
)
def test_names_for_no_expression_are_known_and_are_no_expression(spelt, meaning):
    assert no_expression(spelt) == meaning
    assert expression(spelt) is None


@pytest.mark.parametrize("name", ["boredom", "", "0", "happy face"])
def test_other_names_mean_nothing(name):
    assert expression(name) is None
    assert no_expression(name) is None


def test_plain_names_compare_equal_however_they_are_written():
    assert plain("Not_A  Face") == plain(" not-a-face ") == "not a face"
