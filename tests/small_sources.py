"""Small trees of labelled photographs, empty files for the most part, and what is read from them."""

import numpy as np
import pytest

from efficientface import FerError
from efficientface.data.sources import read_source


def put(root, *files):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def column(source, name):
    """A column of the source's rows as a list, with None for what it does not have."""
    values = getattr(source.rows, name)
    if values is None:
        return [None] * len(source.rows)
    if name == "box":
        return [None if np.isnan(box).any() else tuple(box) for box in values]
    return list(values)


def refusal(*args, **options):
    with pytest.raises(FerError) as error:
        read_source(*args, **options)
    return str(error.value)
