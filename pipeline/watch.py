"""`fer predict` on videos, and on a camera in a window that shows the bars live."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from matplotlib import get_data_path

from efficientface import FerError
from efficientface.data.video import CAMERA, CODECS, Frame, Video, VideoWriter, open_camera, open_video
from efficientface.pipeline.align import shown
from efficientface.pipeline.annotate import annotated
from efficientface.pipeline.artifact import digest_of, replacing
from efficientface.pipeline.pools import in_order, threads
from efficientface.pipeline.progress import progress
from efficientface.pipeline.recognise import (
    COLUMNS,
    Recognizer,
    check_classes,
    check_parent,
    counted,
    write_table,
)
from efficientface.pipeline.tracks import Tracks

log = logging.getLogger(__name__)

BATCH = 16  # frames whose faces go together: large ones are 25 MB each
VIDEO_COLUMNS = {
    "video": pa.string(),
    "frame": pa.int32(),
    "time": pa.float64(),
    "track": pa.int32(),
    **{name: kind for name, kind in COLUMNS.items() if name != "photo"},
}
LONGEST = 3600  # seconds of --smooth
QUIT = (ord("q"), 27)  # 27: Escape
Rows = list[dict[str, Any]]


def run(
    source: str,
    model: Path,
    out: Path | None,
    annotate: Path | None,
    keep: str,
    device: str,
    workers: int,
    track: bool,
    smooth: float,
) -> dict[str, Any]:
    """What `model` says of every face in the frames of a video, or of a camera until its window is closed.

    A row a face, and one for every frame that gave none, are written to `out` or returned as `rows`; those of a camera
    are only counted without `out`. `annotate` is a video to be written, with boxes and bars. `track` numbers the faces
    that are the same from frame to frame; `smooth` does too, and averages their distributions over so many seconds.
    """
    began = time.monotonic()
    if not 0 <= smooth <= LONGEST:
        raise FerError(f"--smooth {smooth:g} is out of range; give seconds from 0 to {LONGEST}")
    if annotate is not None:
        check_video(annotate, source)
    live = source.startswith(CAMERA)
    if not live and not Path(source).exists():
        raise FerError(f"{source} does not exist; give a video, or {CAMERA}0")
    video = open_camera(source) if live else open_video(Path(source))
    recognizer = Recognizer.load(model, device, keep)
    check_classes(model, recognizer.classes, VIDEO_COLUMNS)
    tracks = Tracks(smooth) if track or smooth else None
    rows: Rows = []
    started = time.monotonic()
    with ExitStack() as stack:
        write = stack.enter_context(writing(annotate, video.rate)) if annotate is not None else None
        frames = watched(video, recognizer, tracks, write) if live else read(video, recognizer, tracks, write, workers)
        stack.callback(frames.close)
        count = 0
        try:
            for found in frames:
                rows += found
                count += 1
        except KeyboardInterrupt:
            if not live:
                raise
            log.info("stopped")  # a way to end: what was seen until then counts
        if not count:
            raise FerError(f"{source} gave no picture; nothing was written")
    took = time.monotonic() - started
    result = {
        "source": source,
        "model": str(model),
        "frames": count,
        **counted(rows, recognizer.classes),
        "seconds": round(time.monotonic() - began, 1),
        "frames_per_second": round(count / took, 1),
    }
    if not result["faces"]:
        log.warning("%s: no face was found in any of its %s frames", source, f"{count:,}")
    if annotate is not None:
        result["annotated"] = str(annotate)
    if out is None:
        return result if live else {**result, "rows": rows}
    write_table(out, rows, recognizer.classes, digest_of(model), VIDEO_COLUMNS)
    return {**result, "out": str(out)}


def check_video(annotate: Path, source: str) -> None:
    """FerError where `annotate` cannot become a video; asked before the work begins."""
    if annotate.suffix.lower() not in CODECS:
        raise FerError(f"--annotate {annotate} does not end in {', '.join(CODECS)}; give a video's name for {source}")
    check_parent(annotate, "the video")
    if annotate.exists() and Path(source).exists() and annotate.samefile(source):
        raise FerError(f"--annotate {annotate} is the video that is read; give another name")


@contextmanager
def writing(path: Path, rate: float) -> Iterator[Callable[[np.ndarray, float], None]]:
    """A function that adds a frame (H, W, 3) uint8 RGB and its seconds to a video, whole or not at all."""
    with replacing(path, path.suffix) as part, VideoWriter(part, rate) as writer:
        yield writer.write


def rows_of(recognizer: Recognizer, frame: Frame) -> Rows:
    return recognizer.aligner.rows_of(frame.image, {"source": "", "face_id": ""})


def noted(video: Video, frame: Frame, faces: Rows, tracks: Tracks | None) -> Rows:
    """A frame's rows with its own columns, in the order of VIDEO_COLUMNS."""
    place = {"video": shown(video.name), "frame": frame.number, "time": round(frame.time, 6), "track": None}
    rows = [{**place, **{name: cell for name, cell in face.items() if name != "photo"}} for face in faces]
    if tracks is not None:
        tracks.follow(rows, frame.time)
    return rows


def read(
    video: Video,
    recognizer: Recognizer,
    tracks: Tracks | None,
    write: Callable[[np.ndarray, float], None] | None,
    workers: int,
) -> Generator[Rows, None, None]:
    """The rows of each frame of a file: decoded by one thread, its faces found by many, asked about in batches."""

    def page(frame: Frame, rows: Rows) -> np.ndarray:
        return np.asarray(annotated(frame.image, rows, recognizer.classes))

    with threads(workers) as pool, progress("predicting", video.expected, unit="images") as advance:
        aligned = in_order(pool, partial(rows_of, recognizer), video, window=2 * workers)
        while portion := list(islice(aligned, BATCH)):
            frames = [frame for frame, _ in portion]
            asked = recognizer.lines([rows for _, rows in portion])
            found = [noted(video, frame, faces, tracks) for frame, faces in zip(frames, asked, strict=True)]
            if write is not None:
                for frame, picture in zip(frames, pool.map(page, frames, found), strict=True):
                    write(picture, frame.time)
            yield from found
            advance(len(portion))


def watched(
    video: Video,
    recognizer: Recognizer,
    tracks: Tracks | None,
    write: Callable[[np.ndarray, float], None] | None,
) -> Generator[Rows, None, None]:
    """The rows of each picture of a camera, shown in a window until that is closed, or q or Escape are pressed."""
    with window(f"fer predict {video.name}") as show:
        for frame in video:
            rows = noted(video, frame, recognizer.lines([rows_of(recognizer, frame)])[0], tracks)
            page = np.asarray(annotated(frame.image, rows, recognizer.classes))
            if write is not None:
                write(page, frame.time)
            yield rows
            if not show(page):
                break


@contextmanager
def window(title: str) -> Iterator[Callable[[np.ndarray], bool]]:
    """A function that shows (H, W, 3) uint8 RGB and says whether to go on; FerError where no window can be opened."""
    # Qt ends the process where it finds no screen, so that another one has to try
    attempt = f"import cv2; cv2.namedWindow({title!r}); cv2.waitKey(1)"
    if subprocess.run([sys.executable, "-c", attempt], capture_output=True).returncode:
        raise FerError(
            "no window can be opened here: there is no screen (DISPLAY is not set, or leads nowhere), or OpenCV is "
            "the one without windows (opencv-python-headless); run this on a desktop, or give a video"
        )
    os.environ["QT_QPA_FONTDIR"] = os.path.join(get_data_path(), "fonts", "ttf")  # Qt brings none and complains
    cv2.namedWindow(title, cv2.WINDOW_AUTOSIZE | cv2.WINDOW_GUI_NORMAL)  # without buttons

    def show(image: np.ndarray) -> bool:
        cv2.imshow(title, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        key = cv2.waitKey(1)
        return key not in QUIT and cv2.getWindowProperty(title, cv2.WND_PROP_VISIBLE) >= 1

    try:
        yield show
    finally:
        cv2.destroyAllWindows()
        cv2.waitKey(1)  # only then are they gone
