"""Small trees of labelled photographs, empty files for the most part, and what is read from them."""

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
    return source.rows[name].tolist()


def refusal(*args, **options):
    with pytest.raises(FerError) as error:
        read_source(*args, **options)
    return str(error.value)
