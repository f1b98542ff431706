"""What a finished model says about the faces in any photograph: the Python API, and `fer predict`."""

import csv
import errno
import fcntl
import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.table import Table
from rich.text import Text
from torch import nn

from efficientface import FerError, untrusted
from efficientface.data.batches import normalise, whole
from efficientface.data.faces import STATUSES, decode_face, hash_image
from efficientface.data.layouts.files import plural
from efficientface.data.layouts.folders import read_folders
from efficientface.data.layouts.listing import Asked
from efficientface.data.photos import PhotoFiles, read_photo
from efficientface.data.video import CAMERA, is_moving
from efficientface.pipeline.align import Aligner, aligner_as, face_id, shown
from efficientface.pipeline.annotate import annotated
from efficientface.pipeline.artifact import digest_of, is_finished, make_folder, read_manifest, replacing
from efficientface.pipeline.checkpoint import load_model
from efficientface.pipeline.config import AlignConfig
from efficientface.pipeline.device import prepare
from efficientface.pipeline.evaluate import kind_of_model
from efficientface.pipeline.photographs import Photo
from efficientface.pipeline.pictures import shortened
from efficientface.pipeline.pools import cores, in_order, threads
from efficientface.pipeline.progress import progress
from efficientface.pipeline.show import flat, harmless
from efficientface.pipeline.status import printable

log = logging.getLogger(__name__)

VERSION = 1  # of the tables
BATCH = 64  # faces in one forward pass, and photographs whose faces go together
COLUMNS = {
    "photo": pa.string(),
    "face": pa.int32(),
    "status": pa.string(),
    "reason": pa.string(),
    "box": pa.list_(pa.float32()),
    "landmarks": pa.list_(pa.float32()),
    "score": pa.float32(),
    "expression": pa.string(),
    "entropy": pa.float32(),
}
SUFFIXES = (".jsonl", ".csv", ".parquet")
PICTURES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}  # of --annotate, by the name's ending


# --- the Python API -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Face:
    """A face in a photograph, in its pixels: 0 is the outer edge of the first one.

    box: (4,) x1, y1, x2, y2, which may reach beyond the photograph; landmarks: (5, 2) x, y of the left eye, right eye,
    nose tip, left and right mouth corner, left and right as in the image; score: the detector's, 0-1. These three are
    None where the model learned from images that were aligned already, and the image is taken as such a one.
    distribution: probabilities by class name, in the model's order, summing to 1; expression: the most probable class;
    entropy: of the distribution, in nats.
    """

    box: tuple[float, ...] | None
    landmarks: tuple[tuple[float, ...], ...] | None
    score: float | None
    distribution: dict[str, float]
    expression: str
    entropy: float


class Recognizer:
    """Finds the faces in a photograph, aligns them as in training, and asks a model about them."""

    def __init__(self, model: nn.Module, config: dict[str, Any], aligner: Aligner, device: str = "cpu") -> None:
        """config: the model's config.json; see `load`, which reads all this from the model's folder."""
        self.classes: tuple[str, ...] = tuple(config["classes"])
        self.aligner = aligner
        self._model = model.to(device).to(memory_format=torch.channels_last).eval()
        self._config = config
        self._device = device

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu", keep: str = "all") -> "Recognizer":
        """The model in a folder that fer teach, distill or import wrote; keep: of several faces `all` or `largest`.

        Faces are aligned with the settings of those that the model learned from if they are still where its manifest
        says, else with the defaults of fer align. FerError where it is no folder of a finished model.
        """
        folder = Path(path)
        if folder.is_file():
            raise FerError(
                f"{folder} is a file; give the model's folder (exported files are asked by examples/onnx_only.py)"
            )
        prepare(device)
        model, config = load_model(folder, kind_of_model(folder))
        return cls(model, config, aligner_as(align_settings(folder), PhotoFiles(Path()), keep=keep), device)

    def __call__(self, image: np.ndarray) -> tuple[Face, ...]:
        """The faces in (H, W, 3) uint8 RGB, the largest first; those below fer align's --min-face are left out."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f"an image is (H, W, 3) uint8 RGB, not {image.shape} {image.dtype}")
        lines = self.lines([self.aligner.rows_of(image, {"source": "", "face_id": ""})])[0]
        return tuple(
            Face(
                tuple(line["box"]) if line["box"] else None,
                tuple(zip(line["landmarks"][::2], line["landmarks"][1::2], strict=True)) if line["landmarks"] else None,
                *(line[name] for name in ("score", "distribution", "expression", "entropy")),
            )
            for line in lines
            if line["distribution"]
        )

    @torch.inference_mode()
    def distributions(self, faces: Sequence[np.ndarray]) -> np.ndarray:
        """(N, C) float32 probabilities about N aligned faces (S, S, 3) uint8 RGB."""
        answers = [np.empty((0, len(self.classes)), np.float32)]
        for start in range(0, len(faces), BATCH):
            images = whole(faces[start : start + BATCH], self._config["size"]).to(self._device)
            logits = self._model(normalise(images, self._config["mean"], self._config["std"]))
            answers.append(torch.softmax(logits.float(), 1).cpu().numpy())
        return np.concatenate(answers)

    def lines(self, photographs: Sequence[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
        """The aligner's rows of some photographs -> those of the result: COLUMNS, and `distribution` by class name."""
        rows = [row for found in photographs for row in found]
        answers = iter(self.distributions([decode_face(row["image"]["bytes"]) for row in rows if "image" in row]))
        return [[self._line(row, next(answers) if "image" in row else None) for row in found] for found in photographs]

    def _line(self, row: dict[str, Any], p: np.ndarray | None) -> dict[str, Any]:
        is_face = p is not None or "box" in row
        line: dict[str, Any] = {name: row.get(name) for name in COLUMNS}
        line |= {"photo": row["source"], "face": int(row["face_id"].partition("#")[2] or 0) if is_face else None}
        return line | ({"distribution": None} if p is None else answer(self.classes, p))


def answer(classes: Sequence[str], p: np.ndarray) -> dict[str, Any]:
    """The columns of a face whose distribution is p (C,)."""
    known = p[p > 0].astype(np.float64)
    return {
        "expression": classes[int(p.argmax())],
        "entropy": float(-(known * np.log(known)).sum()),
        "distribution": dict(zip(classes, p.tolist(), strict=True)),
    }


def align_settings(folder: Path) -> dict[str, Any]:
    """How the faces that a model learned from were made; nothing, aloud, where they are not there or are others."""
    faces = faces_learned_from(folder)
    if faces is None:
        log.info("%s: the faces that it learned from are not there; aligning by fer align's defaults", folder)
        return {}
    return read_manifest(faces, "faces")["settings"]


def faces_learned_from(folder: Path) -> Path | None:
    """The faces/ that a finished model's manifest names; None where they are not there or are others."""
    faces = read_manifest(folder, kind_of_model(folder))["made_from"].get("faces")
    where = Path(os.path.normpath(folder / faces["path"])) if faces else folder
    return where if faces and is_finished(where) and digest_of(where) == faces["manifest"] else None


# --- fer predict ----------------------------------------------------------------------------------------------


def run(
    source: str,
    model: Path,
    out: Path | None = None,
    *,
    annotate: Path | None = None,
    keep: str = "all",
    device: str = "cpu",
    workers: int = 0,
    track: bool = False,
    smooth: float = 0.0,
) -> dict[str, Any]:
    """What `model` says of every face in `source`: a photograph, a folder, a list of paths (.txt), `-`, or a video.

    A row a face, and one for every photograph that gave none, are written to `out` (JSON lines, CSV or Parquet by its
    name) whole at the end, or returned as `rows` without it. Interrupted, a call with `out` goes on with the
    photographs that are missing. `annotate` is a folder for the photographs with boxes and bars, or the name of the one
    picture. Of videos and cameras see pipeline/watch.py; `track` and `smooth` are about them.
    """
    began = time.monotonic()
    workers = AlignConfig(workers=workers).workers or cores()
    if out is not None:
        check_table(out)
    if is_moving(source):
        from efficientface.pipeline import watch  # here, because it uses this module

        return watch.run(source, model, out, annotate, keep, device, workers, track, smooth)
    if track or smooth:
        raise FerError(f"--track and --smooth are about videos and cameras, and {source} is none; leave them out")
    root, files = photographs(source)
    one_picture = annotate is not None and annotate.suffix.lower() in PICTURES
    if annotate is not None and one_picture:
        check_parent(annotate)
        if files != [source]:
            raise FerError(f"--annotate {annotate} is one picture; give a folder for those of {source}")
    if annotate is not None and Path(source).is_dir() and annotate.resolve().is_relative_to(root.resolve()):
        raise FerError(f"--annotate {annotate} lies in {source}, whose photographs are read; give another folder")
    recognizer = Recognizer.load(model, device, keep)
    check_classes(model, recognizer.classes, COLUMNS)
    if annotate is not None and not one_picture:
        make_folder(annotate)
    store = PhotoFiles(root)
    aligner = replace(recognizer.aligner, stores={"": store})
    marks = [(shown(file), store.mark(file)) for file in files]
    plan = [VERSION, digest_of(model), asdict(aligner.config), str(annotate), marks]
    journal = Journal(out, hash_image(json.dumps(plan).encode()))
    with journal.alone():
        done = journal.read()
        if done:
            log.info("going on: %s of %s are done", f"{len(done):,}", plural(len(files), "photograph"))
        missing = [number for number in range(len(files)) if number not in done]
        with threads(workers) as pool, progress("predicting", len(missing), unit="images") as advance:
            aligned = in_order(pool, aligner.rows, (Photo("", files[k], None, {}) for k in missing), window=8 * workers)
            numbered = zip(missing, aligned, strict=True)
            while portion := list(islice(numbered, BATCH)):
                numbers = [number for number, _ in portion]
                lines = recognizer.lines([rows for _, (_, rows) in portion])
                if annotate is not None:
                    targets = [
                        annotate if one_picture else annotate / f"{k + 1:06d}-{safe(files[k])}.jpg" for k in numbers
                    ]
                    list(pool.map(draw, [root / files[k] for k in numbers], lines, targets))
                journal.add(numbers, lines)
                done |= zip(numbers, lines, strict=True)
                advance(len(portion))
        rows = [row for number in range(len(files)) for row in done[number]]
        if out is not None:
            write_table(out, rows, recognizer.classes, digest_of(model))
            journal.remove()
    result = {
        "source": source,
        "model": str(model),
        "photographs": len(files),
        **counted(rows, recognizer.classes),
        "seconds": round(time.monotonic() - began, 1),
    }
    if annotate is not None:
        result["annotated"] = str(annotate)
    return {**result, **({"rows": rows} if out is None else {"out": str(out)})}


def counted(rows: Sequence[dict[str, Any]], classes: Sequence[str]) -> dict[str, Any]:
    """How many faces, and of which status and expression, are in the rows."""
    statuses = Counter(row["status"] for row in rows)
    expressions = Counter(row["expression"] for row in rows)
    return {
        "faces": sum(row["distribution"] is not None for row in rows),
        "statuses": {status: statuses[status] for status in STATUSES if status in statuses},
        "expressions": {name: expressions[name] for name in classes},
    }


def photographs(source: str) -> tuple[Path, list[str]]:
    """The folder that names count from, and the names."""
    if source == "-":
        return Path(), listed(sys.stdin.buffer.read(), "standard input")
    path = Path(source)
    if path.is_dir():
        found = read_folders(path, Asked())
        for note in found.notes:
            log.info("%s", note)
        return path, found.files.tolist()
    if not path.exists():
        raise FerError(
            f"{source} does not exist; give a photograph, a folder of them, a list (.txt), - for paths, a video, or "
            f"{CAMERA}0"
        )
    if path.suffix.lower() == ".txt":
        return path.parent, listed(list_in(path), source)
    return Path(), [source]


def list_in(path: Path) -> bytes:
    """A list's bytes."""
    try:
        return untrusted.read_bytes(path)
    except ValueError as error:
        raise FerError(f"{path} is {error}; give a list of photographs, or - for paths on standard input") from None


def listed(data: bytes, where: str) -> list[str]:
    """The paths in a list, one a line."""
    if b"\0" in data:
        raise FerError(
            f"{where} is no list: it holds bytes that no path has; write the path of a photograph on each line"
        )
    lines = [line.rstrip(b"\r") for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    files = [os.fsdecode(line) for line in lines if line.strip()]
    if not files:
        raise FerError(f"{where} names no photographs; write the path of one on each line")
    return files


@dataclass(frozen=True)
class Journal:
    """The rows of the photographs that are done, in a file beside `out` until that is written; nothing without `out`.

    Its first line is a digest of what is to be done, each of the others [number, rows] of a photograph after its own.
    """

    out: Path | None
    plan: str

    @property
    def path(self) -> Path | None:
        return self.out and self.out.with_name(f".{self.out.name}.begun")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold it while `out` is made; FerError if another process does, or is just done."""
        if self.path is None:
            yield
            return
        # for reading too, since a pipe would else wait for its reader
        with open(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666), "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = os.fstat(file.fileno()).st_nlink > 0
            except BlockingIOError:
                held = False
            except OSError as error:
                if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                    raise
                held = True  # a network's disk without locks
            if not held:
                raise FerError(f"another fer predict is writing {self.out}; wait for it, or give another --out")
            yield

    def read(self) -> dict[int, list[dict[str, Any]]]:
        """What an interrupted run has done; what was begun with other settings or photographs is forgotten."""
        if self.path is None:
            return {}
        try:
            plan, *lines = untrusted.read_bytes(self.path, sys.maxsize).split(b"\n")
        except FileNotFoundError:
            plan, lines = b"", []
        except ValueError as error:
            raise FerError(f"{self.path} is {error}; remove it") from error
        if plan != self.plan.encode():
            self.path.write_text(self.plan, encoding="utf-8")
            return {}
        done = {}
        for line in lines:
            digest, _, text = line.partition(b" ")
            if hash_image(text).encode() == digest:  # else cut off when the run was killed: it is looked at again
                number, rows = json.loads(text)
                done[number] = rows
        return done

    def add(self, numbers: Sequence[int], lines: Sequence[list[dict[str, Any]]]) -> None:
        """Note some photographs; each line begins on its own, whatever a killed run left of the one before."""
        if self.path is None:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                for entry in zip(numbers, lines, strict=True):
                    text = json.dumps(entry)
                    file.write(f"\n{hash_image(text.encode())} {text}")
        except OSError as error:
            raise OSError(error.errno or 0, error.strerror or str(error), str(self.path)) from error

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)


# --- what it leaves -------------------------------------------------------------------------------------------


def check_table(out: Path) -> None:
    """FerError where `out` cannot become a table; asked before the work begins."""
    if out.suffix.lower() not in SUFFIXES:
        raise FerError(f"--out {printable(out)} does not end in .jsonl, .csv or .parquet; give a table's name")
    check_parent(out, "the table")


def check_parent(out: Path, what: str = "the picture") -> None:
    if not out.parent.is_dir():
        raise FerError(f"{printable(out.parent)} does not exist; make that folder first, or write {what} elsewhere")


def check_classes(model: Path, classes: Sequence[str], columns: Iterable[str]) -> None:
    """FerError where a class has the name of another column."""
    taken = sorted(set(classes) & set(columns))
    if taken:
        raise FerError(f"{model} has a class called {taken[0]}, as a column of the table is; rename it and train again")


def write_table(
    out: Path,
    rows: Sequence[dict[str, Any]],
    classes: Sequence[str],
    model: str,
    columns: Mapping[str, pa.DataType] = COLUMNS,
) -> None:
    """JSON lines with `distribution` by class name, or CSV or Parquet with a column a class; whole or not at all."""
    kind = out.suffix.lower()
    with replacing(out) as part:
        if kind == ".parquet":
            about = {"format": "efficientface predictions", "version": VERSION, "classes": classes, "model": model}
            fields = {**columns, **dict.fromkeys(classes, pa.float32())}
            schema = pa.schema(fields, metadata={"efficientface": json.dumps(about)})
            table = [row | (row["distribution"] or {}) for row in rows]
            pq.write_table(pa.Table.from_pylist(table, schema), part)
            return
        with part.open("w", encoding="utf-8", newline="") as file:
            if kind == ".jsonl":
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                return
            writer = csv.DictWriter(file, [*columns, *map(harmless, classes)], lineterminator="\n")
            writer.writeheader()
            writer.writerows(map(flat, csv_rows(rows)))


def csv_rows(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows with a column a class, and no text that a spreadsheet would take for a formula."""
    for row in rows:
        cells = {name: cell for name, cell in row.items() if name != "distribution"} | (row["distribution"] or {})
        yield {harmless(name): harmless(cell) for name, cell in cells.items()}


def safe(file: str) -> str:
    """A file's name without its ending, fit for another file's."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in face_id(Path(file).stem))[:40]


def draw(path: Path, lines: Sequence[dict[str, Any]], target: Path) -> None:
    """The photograph with its faces' boxes and bars; nothing of one that cannot be read."""
    if lines[0]["status"] != "unreadable":
        with replacing(target) as part:
            annotated(read_photo(path), lines).save(part, PICTURES[target.suffix.lower()], quality=90)


def tables(result: dict[str, Any]) -> list[Any]:
    """The faces, or how many there are if they were written to a file."""
    counts = ", ".join(f"{count:,} {status}" for status, count in result["statuses"].items())
    is_video = "frames" in result
    looked_at = plural(result["frames"], "frame") if is_video else plural(result["photographs"], "photograph")
    title = Text(f"{looked_at}, {plural(result['faces'], 'face')} ({counts})")
    if is_video:
        title.append(f", {result['frames_per_second']:g} frames a second")
    written = [Text(f"written to {printable(result[name])}") for name in ("out", "annotated") if name in result]
    if "rows" not in result:
        table = Table("expression", "faces")
        for name, count in result["expressions"].items():
            table.add_row(Text(printable(name)), f"{count:,}")
        return [title, table, *written]
    places = ("frame", "seconds", "track") if is_video else ("photograph",)
    table = Table(*places, "face", "box", "expression", "then", "entropy")
    for row in result["rows"]:
        if row["distribution"] is None:
            cells = ["", "", f"{row['status']}: {row['reason']}", "", ""]
        else:
            shares = sorted(row["distribution"].items(), key=lambda share: -share[1])
            first, *others = (f"{name} {share:.1%}" for name, share in shares)
            box = " ".join(f"{edge:.0f}" for edge in row["box"] or ())
            cells = [str(row["face"]), box, first, ", ".join(others[:2]), f"{row['entropy']:.2f}"]
        if is_video:
            track = "" if row["track"] is None else str(row["track"])
            cells = [f"{row['frame']:,}", f"{row['time']:.2f}", track, *cells]
        else:
            cells = [shortened(row["photo"], 40), *cells]
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return [title, table, *written]
