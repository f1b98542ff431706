"""Distributions as Parquet: one row a face, one float column a class, views as fixed-size lists.

The format is described in docs/files.md.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from efficientface import FerError, untrusted
from efficientface.cache.distributions import TEXT, Distributions, join
from efficientface.data.ahead import ahead
from efficientface.data.words import Words

VERSION = 1
KEYS = ("face_id", "image_hash", "split", "label", "fold")
VIEWS = ("view_box", "view_flip", "view_distribution")


def check_class_names(classes: Sequence[str]) -> None:
    """A class becomes a column: it may not equal another or one of ours, upper and lower case being the same."""
    seen = {name.lower() for name in KEYS + VIEWS}
    for name in classes:
        if name.lower() in seen:
            raise FerError(f"class {name!r} has the name of another column of distributions/; rename the class")
        seen.add(name.lower())


def distributions_table(part: Distributions) -> pa.Table:
    """As an Arrow table that explains itself: format version and class names in the schema's metadata."""
    check_class_names(part.classes)
    views, classes = part.views, len(part.classes)
    columns = {
        **{name: pa.array(getattr(part, name), pa.string()) for name in TEXT},
        "label": pa.array(part.label, pa.int64(), mask=part.label < 0),
        "fold": pa.array(part.fold, pa.int8()),
    }
    columns |= {name: pa.array(part.canonical[:, k], pa.float32()) for k, name in enumerate(part.classes)}
    if views:
        columns |= {
            "view_box": _lists(part.view_box.reshape(-1), 4, views),
            "view_flip": pa.FixedSizeListArray.from_arrays(pa.array(part.view_flip.reshape(-1)), views),
            "view_distribution": _lists(part.view_distribution.reshape(-1), classes, views),
        }
    ours = {
        "format": "efficientface distributions",
        "version": VERSION,
        "classes": part.classes,
        "views": views,
    }
    return pa.table(columns).replace_schema_metadata({"efficientface": json.dumps(ours)})


def _lists(flat: np.ndarray, inner: int, outer: int) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(pa.array(flat), inner), outer)


def write_shard(part: Distributions, path: Path) -> None:
    """One Parquet file; floats are stored as they are (dictionaries do not pay for probabilities)."""
    repeating = ["split", "fold", "label"]
    pq.write_table(
        distributions_table(part), path, compression="zstd", use_dictionary=repeating, write_page_checksum=True
    )


def read_shards(files: Sequence[Path], views: bool = True) -> Distributions:
    """Shards as one; each is checked to be ours, whole, of the same classes and the same number of views.

    Without `views` the stored views are left on disk, and the result has none (V = 0).
    """
    whole = join(checked_shards(files, views))
    whole.check_unique(str(files[0].parent))
    return whole


def checked_shards(files: Sequence[Path], views: bool = True) -> Iterator[Distributions]:
    """The same one by one; only whether an id is in two of them is left to be checked."""

    def read(path: Path) -> Distributions:
        part = read_shard(path, views)
        part.check(str(path))
        return part

    first = None
    for path, part in zip(files, ahead(read, files), strict=True):
        first = first or (part.classes, part.views)
        if (part.classes, part.views) != first:
            raise FerError(f"{path} has other classes or another number of views than {files[0]}; run fer teach again")
        yield part


def read_shard(path: Path, with_views: bool = True) -> Distributions:
    """One shard: columns and their types are checked; what the numbers say is for `Distributions.check`."""
    try:
        with untrusted.parquet_file(path) as file:
            names = [name for name in file.schema_arrow.names if with_views or name not in VIEWS]
            table = file.read(columns=names)
        table.validate(full=True)
    except (OSError, ValueError) as error:
        raise FerError(f"{path} cannot be read as Parquet ({error}); restore it, or run fer teach again") from error
    try:
        ours = untrusted.parse_json(table.schema.metadata[b"efficientface"])
        version, classes, views = int(ours["version"]), tuple(ours["classes"]), int(ours["views"]) * with_views
        if not all(isinstance(name, str) for name in classes):
            raise TypeError("classes are no names")
    except (TypeError, KeyError, ValueError) as error:
        raise FerError(f"{path} is not a table that fer teach wrote (no efficientface metadata)") from error
    if version > VERSION:
        raise FerError(f"{path} has format version {version}, this program reads up to {VERSION}; update efficientface")
    wanted = KEYS + classes + (VIEWS if views else ())
    missing = [name for name in wanted if name not in table.column_names]
    if missing:
        raise FerError(f"{path} lacks the columns {', '.join(missing)}; restore it, or run fer teach again")
    types = dict(zip(wanted, _types(classes, views), strict=True))
    for name in wanted:
        if table.schema.field(name).type != types[name]:
            raise FerError(
                f"{path} has the column {name} as {table.schema.field(name).type} instead of {types[name]}; "
                "restore it, or run fer teach again"
            )
        if table[name].null_count and name not in ("split", "label"):
            raise FerError(
                f"{path} has no {name} for {table[name].null_count} of {len(table)} faces; "
                "restore it, or run fer teach again"
            )
    rows = len(table)
    return Distributions(
        classes=classes,
        face_id=Words(table["face_id"]),
        image_hash=Words(table["image_hash"]),
        split=Words(table["split"]),
        label=table["label"].fill_null(-1).to_numpy(zero_copy_only=False),
        fold=table["fold"].to_numpy(zero_copy_only=False),
        canonical=np.stack([table[name].to_numpy(zero_copy_only=False) for name in classes], 1),
        view_box=_flat(table, "view_box", views, np.uint16, path).reshape(rows, views, 4),
        view_flip=_flat(table, "view_flip", views, np.bool_, path).reshape(rows, views),
        view_distribution=_flat(table, "view_distribution", views, np.float32, path).reshape(rows, views, len(classes)),
    )


def _types(classes: Sequence[str], views: int) -> list[pa.DataType]:
    """Of the columns in their order, those of the views if there are any."""
    keys = [pa.string(), pa.string(), pa.string(), pa.int64(), pa.int8(), *[pa.float32() for _ in classes]]
    if not views:
        return keys
    boxes = pa.list_(pa.list_(pa.uint16(), 4), views)
    return [*keys, boxes, pa.list_(pa.bool_(), views), pa.list_(pa.list_(pa.float32(), len(classes)), views)]


def _flat(table: pa.Table, name: str, views: int, dtype: type, path: Path) -> np.ndarray:
    """The numbers of a list column without their nesting."""
    if not views:
        return np.empty(0, dtype)
    values = table[name].combine_chunks()
    while pa.types.is_fixed_size_list(values.type):
        values = values.flatten()
        if values.null_count:
            raise FerError(f"{path} has {values.null_count} nulls in {name}; restore it, or run fer teach again")
    return values.to_numpy(zero_copy_only=False)
