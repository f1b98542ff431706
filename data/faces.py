"""The table of faces/: one row a face, and one for every photograph that gave none.

The format is described in docs/files.md. The schema also carries Hugging Face's metadata, so that its
`datasets` library opens the folder unaided.
"""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from efficientface import FerError, untrusted
from efficientface.data.columns import ROWS, Growing, indices, kept, taken
from efficientface.data.words import GrowingWords, Words, all_differ

VERSION = 1
NEEDED = ("face_id", "image", "image_hash", "split", "label", "votes", "group", "status")
HELD = 2 * 1024**3  # bytes of pictures that are held in memory; further ones are mapped from a file
TEXT = ("face_id", "image_hash", "split", "group", "status")  # columns of it in NEEDED
STATUSES = ("found", "several faces", "as given", "no face", "too small", "unreadable")


def schema(classes: Sequence[str]) -> pa.Schema:
    """The columns of faces/ in order; `classes` are named in the metadata, ours and Hugging Face's."""
    floats = pa.list_(pa.float32())
    fields = [
        ("face_id", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("image_hash", pa.string()),
        ("split", pa.string()),
        ("label", pa.int64()),
        ("votes", floats),
        ("votes_other", floats),
        ("group", pa.string()),
        ("source", pa.string()),
        ("source_hash", pa.string()),
        ("source_dhash", pa.string()),
        ("box", floats),
        ("landmarks", floats),
        ("score", pa.float32()),
        ("matrix", floats),
        ("yaw", pa.float32()),
        ("pitch", pa.float32()),
        ("roll", pa.float32()),
        ("n_faces", pa.int32()),
        ("status", pa.string()),
        ("reason", pa.string()),
    ]
    huggingface: dict[str, Any] = {name: _feature(kind) for name, kind in fields}
    huggingface["image"] = {"_type": "Image"}
    huggingface["label"] = {"_type": "ClassLabel", "names": list(classes)}
    ours = {"format": "efficientface faces", "version": VERSION, "classes": list(classes)}
    metadata = {
        b"efficientface": json.dumps(ours).encode(),
        b"huggingface": json.dumps({"info": {"features": huggingface}}).encode(),
    }
    return pa.schema(fields, metadata=metadata)


def _feature(kind: pa.DataType) -> dict[str, Any]:
    """Hugging Face's name of a column type."""
    if pa.types.is_list(kind):
        return {"_type": "List", "feature": _feature(kind.value_type)}
    return {"_type": "Value", "dtype": {"float": "float32", "binary": "binary"}.get(str(kind), str(kind))}


def face_table(rows: Sequence[dict[str, Any]], classes: Sequence[str]) -> pa.Table:
    """Rows as the align stage makes them (keys are column names, absent ones null) as one table."""
    columns = schema(classes)
    return pa.Table.from_pylist([{name: row.get(name) for name in columns.names} for row in rows], columns)


def hash_image(data: bytes) -> str:
    """blake2b-128 of stored bytes, 32 hexadecimal digits: ties a distribution to the picture it is about."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def decode_face(data: bytes | pa.Buffer) -> np.ndarray:
    """A stored face (JPEG or PNG) as (H, W, 3) uint8 RGB."""
    import cv2  # here, because those who only read tables need none

    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:  # nothing at all, or more pixels than it takes
        if "Insufficient memory" in str(error):
            raise
        image = None
    if image is None:
        raise FerError("a stored face cannot be decoded; run fer verify, then fer align again")
    return image


@dataclass(frozen=True)
class Faces:
    """Faces, N rows, images still encoded.

    face_id, image_hash, split, status: (N,) text; label: (N,) int64, index into classes, -1 where unknown;
    votes: (N, C) float32 raw counts, NaN where there are none; group: (N,) text, the person shown, None where unknown;
    images: encoded pictures as Arrow binary, null where the photograph gave no face (empty when not read), of which
    face k has number place[k]: a selection shares the pictures, which would not fit twice, nor beyond 2 GiB into one
    Arrow array.
    """

    classes: tuple[str, ...]
    face_id: Words
    image_hash: Words
    split: Words
    label: np.ndarray
    votes: np.ndarray
    group: Words
    status: Words
    usable: np.ndarray
    place: np.ndarray
    images: pa.ChunkedArray

    def __len__(self) -> int:
        return len(self.face_id)

    def select(self, rows: np.ndarray) -> "Faces":
        """The faces at `rows`: (M,) indices or (N,) booleans."""
        if rows.dtype == bool and rows.all() and len(rows) == len(self):
            return self
        rows = indices(rows, len(self))
        columns: dict[str, Any] = {name: getattr(self, name)[rows] for name in TEXT}
        columns |= {name: taken(getattr(self, name), rows) for name in ("label", "usable", "place")}
        none = is_no_votes(self.votes)
        columns["votes"] = no_votes(len(rows), len(self.classes)) if none else taken(self.votes, rows)
        return replace(self, **columns)

    def vote_distributions(self) -> np.ndarray:
        """(N, C) float64: votes as shares of all votes for the classes, NaN where a face has none.

        Votes for `unknown` and `not a face` are left out, and the rest renormalised.
        """
        votes = self.votes.astype(np.float64)
        total = votes.sum(1, keepdims=True)
        return np.divide(votes, total, out=np.full_like(votes, np.nan), where=total > 0)

    def image(self, row: int) -> np.ndarray:
        """Face `row` decoded, (H, W, 3) uint8 RGB."""
        return decode_face(self.encoded(row))

    def encoded(self, row: int) -> pa.Buffer:
        """Face `row` as it is stored, JPEG or PNG."""
        return self.images[int(self.place[row])].as_buffer()


def no_votes(faces: int, classes: int) -> np.ndarray:
    """(faces, classes) NaN that take no memory: of 12,666 people a real table would be gigabytes."""
    return np.broadcast_to(np.float32(np.nan), (faces, classes))


def is_no_votes(votes: np.ndarray) -> bool:
    """Whether it is what no_votes made."""
    return votes.strides == (0, 0)


def read_faces(files: Sequence[Path], images: bool = True) -> Faces:
    """Read shards of faces/; a duplicate face id or shards of different classes are errors.

    Pictures beyond HELD bytes are not in this process's memory: the system reads them from a temporary file, as needed.
    Nor are long columns (data/columns.py).
    """
    classes: tuple[str, ...] = ()
    text, label, usable, votes = {name: GrowingWords() for name in TEXT}, Growing(), Growing(), Growing()
    pictures, held, count, voted = list[pa.Array](), 0, 0, False
    wrong = Counter[str]()
    for path in files:
        table = read_table(path, images, NEEDED)
        names = classes_of(table.schema, path)
        if path != files[0] and names != classes:
            raise FerError(f"{path} has other classes than {files[0]}; run fer align into a new folder")
        classes = names
        if images:
            held += table["image"].nbytes
            shown = table.select(["image"]) if held <= HELD else _mapped(table.select(["image"]))
            pictures += [chunk.field("bytes") for chunk in shown["image"].chunks]
        count += len(table)
        wrong.update(_wrong_content(table, classes))
        if wrong.total():
            continue
        for name, column in text.items():
            column.append(table[name])
        label.append(table["label"].fill_null(-1).to_numpy(zero_copy_only=False))
        usable.append(table["image_hash"].is_valid().to_numpy(zero_copy_only=False))
        if not voted and table["votes"].null_count < len(table):
            voted = True
            for k in range(0, count - len(table), ROWS):
                votes.append(no_votes(min(ROWS, count - len(table) - k), len(classes)))
        if voted:
            votes.append(_votes(table["votes"], len(classes)))
    folder = files[0].parent
    for kind, found in wrong.items():
        if found:
            raise FerError(f"{folder} has {found} of {count} rows {kind}; restore it, or run fer align again")
    ids = text["face_id"].whole()
    if not all_differ(ids):
        unique, counts = np.unique(ids, return_counts=True)
        first, repeated = unique[counts > 1][0], int((counts > 1).sum())
        raise FerError(
            f"{folder} has {repeated} face ids more than once, first {first}; run fer align into a new folder"
        )
    return Faces(
        classes=classes,
        face_id=ids,
        image_hash=text["image_hash"].whole(),
        split=text["split"].whole(),
        label=label.whole(),
        votes=votes.whole() if voted else no_votes(count, len(classes)),
        group=text["group"].whole(),
        status=text["status"].whole(),
        usable=usable.whole(),
        place=kept(np.arange(count)),
        images=pa.chunked_array(pictures, pa.binary()),
    )


def _votes(column: pa.ChunkedArray, classes: int) -> np.ndarray:
    """(N, classes) float32 of lists of as many votes, NaN for each that is null."""
    found = no_votes(len(column), classes).copy()
    flat = pa.concat_arrays([chunk.flatten() for chunk in column.chunks])
    found[column.is_valid().to_numpy(zero_copy_only=False)] = flat.to_numpy(zero_copy_only=False).reshape(-1, classes)
    return found


def _mapped(table: pa.Table) -> pa.Table:
    """The same table in a file without a name, in the system's temporary folder (TMPDIR)."""
    try:
        with tempfile.NamedTemporaryFile(prefix="fer-faces-") as file:
            with pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
            file.flush()
            return pa.ipc.open_file(pa.memory_map(file.name)).read_all()
    except OSError as error:
        folder = tempfile.tempdir or "the system's temporary folder"
        raise FerError(
            f"{folder} does not take {table.nbytes:,} bytes of pictures, of which memory holds no more than {HELD:,} "
            f"({error.strerror or error}); make room there, or set TMPDIR to a folder on a larger disk"
        ) from error


def _wrong_content(table: pa.Table, classes: Sequence[str]) -> dict[str, int]:
    """How many rows have no id, a label of no class, votes for other classes, or a hash without a picture."""
    label, votes = table["label"].fill_null(-1).to_numpy(), table["votes"]
    wrong = {
        "without a face_id": table["face_id"].null_count,
        "with a label of no class": int(((label < -1) | (label >= len(classes))).sum()),
        "with votes for other classes": pc.sum(pc.not_equal(pc.list_value_length(votes), len(classes))).as_py() or 0,
    }
    if "image" in table.column_names:
        there = [chunk.field("bytes").is_valid() for chunk in table["image"].chunks]
        differ = pc.not_equal(pa.chunked_array(there, pa.bool_()), table["image_hash"].is_valid())
        wrong["with a picture or its hash alone"] = pc.sum(differ).as_py() or 0
    return wrong


def read_table(path: Path, images: bool = True, columns: Sequence[str] = ()) -> pa.Table:
    """One shard, or `columns` of it, as an Arrow table with the types of `schema`; without the pictures if unwanted."""
    types = {field.name: field.type for field in schema(())}
    try:
        with untrusted.parquet_file(path) as file:
            names = [name for name in file.schema_arrow.names if images or name != "image"]
            names = [name for name in names if name in columns] if columns else names
            table = file.read(columns=names)
        table.validate(full=True)
        other = [field for field in table.schema if field.type != types.get(field.name, field.type)]
    except (OSError, ValueError, KeyError) as error:
        raise FerError(f"{path} cannot be read as Parquet ({error}); restore it, or run fer align again") from error
    missing = [name for name in NEEDED if name not in table.column_names and (images or name != "image")]
    if missing:
        raise FerError(
            f"{path} does not have the columns of docs/files.md (it lacks {', '.join(missing)}); restore it, or run "
            "fer align again"
        )
    if other or len(set(table.column_names)) < len(table.column_names):
        what = f"the column {other[0].name} as {other[0].type}" if other else "two columns of one name"
        raise FerError(f"{path} has {what}, not as docs/files.md says; restore it, or run fer align again")
    return table


def classes_of(found: pa.Schema, path: Path) -> tuple[str, ...]:
    """The class names in a shard's metadata."""
    try:
        ours = untrusted.parse_json(found.metadata[b"efficientface"])
        version, classes = int(ours["version"]), tuple(ours["classes"])
        if not all(isinstance(name, str) for name in classes):
            raise TypeError("classes are no names")
    except (TypeError, KeyError, ValueError) as error:
        raise FerError(f"{path} is not a table that fer align wrote (no efficientface metadata)") from error
    if version > VERSION:
        raise FerError(f"{path} has format version {version}, this program reads up to {VERSION}; update efficientface")
    return classes
