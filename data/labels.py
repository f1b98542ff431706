"""The expressions and their order, stated once, and the spellings of them that data sets use."""

import re

# Everything of ours uses this order (that of AffectNet and of the authors' code). Files carry the names,
# because no two data sets agree on an order.
EXPRESSIONS = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")

_SPELLINGS = {
    "neutral": ("natural", "neural"),  # the latter is FED-RO's folder name, misspelt as distributed
    "happiness": ("happy", "joy"),
    "sadness": ("sad",),
    "surprise": ("surprised",),
    "fear": ("fearful", "afraid"),
    "disgust": ("disgusted",),
    "anger": ("angry",),
    "contempt": ("contemptuous",),
}
_EXPRESSION = {name: name for name in EXPRESSIONS} | {
    spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings
}
_NO_EXPRESSION = {
    name: "unknown" for name in ("unknown", "none", "uncertain", "no expression", "unlabelled", "unlabeled")
} | {name: "not a face" for name in ("nf", "no face", "non face", "nonface", "not a face")}


def plain(name: str) -> str:
    """The name in small letters, with single spaces for runs of space, `_` and `-`; `Non-Face` is `non face`."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def expression(name: str) -> str | None:
    """The member of EXPRESSIONS that `name` spells, in any case; None if it spells none of them."""
    return _EXPRESSION.get(plain(name))


def no_expression(name: str) -> str | None:
    """`unknown` or `not a face` if that is what `name` says, as FER+'s `unknown` and `NF` do; otherwise None."""
    return _NO_EXPRESSION.get(plain(name))
