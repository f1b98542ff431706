"""Offline distillation for facial-expression recognition: align, teach, cache, distill."""

__version__ = "0.1.0"


class FerError(Exception):
    """Something the user can mend; the message is one sentence that says what, where, how many and what next."""
