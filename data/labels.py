"""The expressions and their order, stated once; the spellings and the numbers of them that data sets use."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from efficientface import FerError

# Everything of ours uses this order (that of AffectNet and of the authors' code). Files carry the names,
# because no two data sets agree on an order.
EXPRESSIONS = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")

# RAF-DB's compound expressions, in the order of its numbers 1 to 11.
COMPOUND = (
    "happily surprised", "happily disgusted", "sadly fearful", "sadly angry", "sadly surprised", "sadly disgusted",
    "fearfully angry", "fearfully surprised", "angrily surprised", "angrily disgusted", "disgustedly surprised",
)  # fmt: skip

_SPELLINGS = {
    "neutral": ("natural", "neural"),  # the latter is FED-RO's folder name, misspelt as distributed
    "happiness": ("happy", "joy", "joyful"),
    "sadness": ("sad",),
    "surprise": ("surprised",),
    "fear": ("fearful", "afraid", "scared"),
    "disgust": ("disgusted",),
    "anger": ("angry",),
    "contempt": ("contemptuous",),
}
_EXPRESSION = {name: name for name in (*EXPRESSIONS, *COMPOUND)} | {
    spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings
}
_NO_EXPRESSION = {
    name: "unknown" for name in ("unknown", "none", "uncertain", "no expression", "unlabelled", "unlabeled")
} | {name: "not a face" for name in ("nf", "no face", "non face", "nonface", "not a face")}


def plain(name: str) -> str:
    """The name in small letters, with single spaces for runs of space, `_` and `-`; `Non-Face` is `non face`."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def expression(name: str) -> str | None:
    """The member of EXPRESSIONS or COMPOUND that `name` spells, in any case; None if it spells none of them."""
    return _EXPRESSION.get(plain(name))


def no_expression(name: str) -> str | None:
    """`unknown` or `not a face` if that is what `name` says, as FER+'s `unknown` and `NF` do; otherwise None."""
    return _NO_EXPRESSION.get(plain(name))


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """The names in the order of EXPRESSIONS and COMPOUND, others behind as they come."""
    names, ours = list(names), (*EXPRESSIONS, *COMPOUND)
    return (*(n for n in ours if n in names), *(n for n in names if n not in ours))


@dataclass(frozen=True)
class Wanted:
    """The classes that the user asks for."""

    order: tuple[str | None, ...]  # what integer labels count through from 0; None where a number means nothing
    classes: tuple[str, ...]  # without the names for no expression, in our order

    @classmethod
    def read(cls, names: Sequence[str]) -> "Wanted":
        """Names in the order of integer labels, or a single key of CLASS_SETS."""
        if len(names) == 1:
            if known := CLASS_SETS.get(names[0].strip().casefold()):
                return known
            raise FerError(
                f"--classes {names[0]} names no known classes; give names with commas, or one of "
                f"{', '.join(CLASS_SETS)}"
            )
        order = tuple(expression(name) or name.strip() for name in names)
        real = [name for name in order if not no_expression(name)]
        if len({plain(name) for name in real}) < len(real):
            raise FerError(f"--classes names a class twice: {', '.join(names)}")
        if len(real) < 2:
            raise FerError(f"--classes must name two classes or more, not {len(real)}")
        return cls(order, ordered(real))

    def find(self, name: str) -> str | None:
        """The wanted class that `name` spells, or None."""
        same = plain(expression(name) or name)
        return next((known for known in self.classes if plain(known) == same), None)


def class_of(name: str, wanted: Wanted | None) -> str | None:
    """What the label `name` is called here: a wanted class, or an expression where nothing is wanted; or None."""
    return wanted.find(name) if wanted else expression(name)


BASIC = EXPRESSIONS[:7]
AFFECTNET = (*EXPRESSIONS, "none", "uncertain", "non-face")
RAF_DB = (None, "surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
FER2013 = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
FERPLUS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")

# The numbers that data sets use for their classes, by the name that --classes takes.
CLASS_SETS = {
    "raf-db": Wanted(RAF_DB, BASIC),
    "raf-db-compound": Wanted((None, *COMPOUND), COMPOUND),
    "raf-db-from-0": Wanted(RAF_DB[1:], BASIC),
    "efficientface": Wanted(BASIC, BASIC),  # the class folders 0 to 6 of the authors' README
    "affectnet-7": Wanted(AFFECTNET, BASIC),
    "affectnet-8": Wanted(AFFECTNET, EXPRESSIONS),
    "caer-s": Wanted(tuple(sorted(BASIC)), BASIC),
    "fer2013": Wanted(FER2013, BASIC),
    "ferplus": Wanted(FERPLUS, EXPRESSIONS),
    # orders of other programs
    "emotiefflib-8": Wanted(tuple(sorted(EXPRESSIONS)), EXPRESSIONS),
    "py-feat": Wanted(("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"), BASIC),
    "apvit": Wanted(("anger", "disgust", "fear", "sadness", "happiness", "surprise", "neutral"), BASIC),
}
