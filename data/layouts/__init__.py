"""What data sets look like on disk: one module a data set, or a kind of them.

To read another layout, write a function that recognises it and one that reads it into a `Listing`, and add both to
LAYOUTS. Names of classes, missing labels, the order of classes and published counts are then dealt with in
data/sources.py.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from efficientface.data.layouts import (
    affectnet,
    fer2013,
    ferplus,
    folders,
    huggingface,
    identities,
    imagefolder,
    rafdb,
    tables,
)
from efficientface.data.layouts.listing import Asked, Listing


class Layout(NamedTuple):
    recognises: Callable[[Path], bool]
    reads: Callable[[Path, Asked], Listing]


# Asked in this order: any folder of images can pass for class folders.
LAYOUTS = {
    "raf-db": Layout(rafdb.is_basic, rafdb.read_basic),
    "raf-db-compound": Layout(rafdb.is_compound, rafdb.read_compound),
    "affectnet": Layout(affectnet.is_2017, affectnet.read_2017),
    "affectnet-2021": Layout(affectnet.is_2021, affectnet.read_2021),
    "ferplus": Layout(ferplus.is_ferplus, ferplus.read_ferplus),
    "fer2013": Layout(fer2013.is_fer2013, fer2013.read_fer2013),
    "caer-s": Layout(folders.is_caer_s, folders.read_caer_s),
    "fed-ro": Layout(folders.is_fed_ro, folders.read_fed_ro),
    "huggingface": Layout(huggingface.is_huggingface, huggingface.read_huggingface),
    "imagefolder": Layout(imagefolder.is_imagefolder, imagefolder.read_imagefolder),
    "table": Layout(tables.is_table, tables.read_table),
    "folders": Layout(Path.is_dir, folders.read_folders),
    # never recognised: names of people look like any others
    "identities": Layout(lambda path: False, identities.read_identities),
}
