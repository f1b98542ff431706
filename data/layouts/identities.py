"""Photographs by who is shown: a folder a person, or a table whose `label` is a person; for `fer pretrain`."""

from pathlib import Path

from efficientface import FerError
from efficientface.data.layouts.files import plural
from efficientface.data.layouts.folders import read_folders
from efficientface.data.layouts.listing import Asked, Listing
from efficientface.data.layouts.tables import holds_table, read_table
from efficientface.data.words import changed, coded, repeated


def read_identities(path: Path, asked: Asked) -> Listing:
    """Names are taken as they are, whatever they mean.

    Without splits all is train: validation is then carved from every person's pictures, and nobody is held out.
    """
    if asked.wanted is not None:
        raise FerError("--classes names expressions; layout identities takes people's names as they are")
    listing = (read_table if holds_table(path) else read_folders)(path, asked)
    # names that are not UTF-8 could not be written down
    listing.labels = changed(
        listing.labels, lambda name: name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    )
    people = len(coded(listing.labels)[1])
    if people < 2:
        raise FerError(f"{path} shows {plural(people, 'person')}; give a folder a person, two or more of them")
    if listing.splits.missing().all():
        listing.splits = repeated("train", len(listing.files))
    # the person is the label; carving validation by person would leave nothing to judge by
    listing.groups, listing.votes, listing.vote_names = None, None, ()
    return listing
