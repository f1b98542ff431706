"""Videos and cameras -> frames with their times, and frames -> a video; by OpenCV, with the FFmpeg of its wheel."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from efficientface import FerError

log = logging.getLogger(__name__)

VIDEOS = (".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wmv")
CAMERA = "camera:"
# What is written, by the name's ending, with codecs that every wheel of OpenCV has; H.264 is in none.
CODECS = {".mp4": "mp4v", ".webm": "VP80", ".avi": "MJPG"}
RATE = 25.0  # frames a second where nothing is known: cameras, and files that do not say


@dataclass(frozen=True)
class Frame:
    """number: from 0; time: seconds, of a file as it says, of a camera since its first; image: (H, W, 3) uint8 RGB."""

    number: int
    time: float
    image: np.ndarray


class Video:
    """An open video file or camera; iterating gives its frames, once."""

    def __init__(self, capture: cv2.VideoCapture, name: str, live: bool) -> None:
        self.name = name
        self.live = live
        self.rate = capture.get(cv2.CAP_PROP_FPS)
        if live or not 0 < self.rate < 1000:  # also where it is no number
            self.rate = RATE
        self.expected = 0 if live else max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))  # 0: not known
        self._capture = capture

    def __iter__(self) -> Iterator[Frame]:
        """Frames are upright: OpenCV turns them as the file's orientation says. A file that ends early says so."""
        number, seconds, began = 0, -1 / self.rate, time.monotonic()
        try:
            while True:
                given, image = self._capture.read()
                if not given:
                    break
                if self.live:
                    seconds = time.monotonic() - began
                else:
                    # some files have no times, or the same twice: then by their rate
                    stated = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                    seconds = stated if stated > seconds else seconds + 1 / self.rate
                yield Frame(number, seconds, cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
                number += 1
        finally:
            self._capture.release()
        if self.live:
            log.warning("%s gives no more pictures", self.name)
        elif number == 0:
            raise FerError(f"{self.name} is damaged: not one frame could be decoded; convert it anew, or give another")
        # of a variable rate the number is an estimate, the time is not
        elif number < self.expected and (seconds + 1.5 / self.rate) * self.rate < self.expected:
            log.warning("%s ends early: %s of %s frames could be read", self.name, f"{number:,}", f"{self.expected:,}")


def is_moving(source: str) -> bool:
    """Whether a source is a video, by its name's ending, or a camera."""
    return source.startswith(CAMERA) or (Path(source).suffix.lower() in VIDEOS and not Path(source).is_dir())


def open_video(path: Path) -> Video:
    """A video file; FerError if it is none, or its codec is not known here."""
    quieten()
    # an absolute path, and FFmpeg alone: a name could else be taken for an address or for a series of pictures
    capture = cv2.VideoCapture(os.path.abspath(path), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise FerError(
            f"{path} cannot be read as a video: it is damaged, or of a codec that OpenCV does not know; "
            f"convert it, such as with ffmpeg -i {path.name} -c:v libx264 new.mp4"
        )
    return Video(capture, str(path), live=False)


def open_camera(name: str) -> Video:
    """`camera:0`, or `camera:` and a device's path; FerError if there is none."""
    quieten()
    device = name.removeprefix(CAMERA)
    capture = cv2.VideoCapture(int(device) if device.isdecimal() else device)
    if not capture.isOpened():
        raise FerError(
            f"{name} gives no pictures: there is no such camera, another program has it, or it is not allowed; "
            f"give another, such as {CAMERA}{1 if device == '0' else 0}"
        )
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest picture, not one that has waited
    return Video(capture, name, live=True)


def quieten() -> None:
    """OpenCV and FFmpeg would write pages to stderr about what is one sentence here."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


@contextmanager
def unheard() -> Iterator[None]:
    """Standard error led nowhere: OpenCV prints there that WebM has no tags, whatever its log level."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class VideoWriter:
    """Writes frames to a video of constant rate, by the codec of its name's ending; use it in a `with`."""

    def __init__(self, path: Path, rate: float) -> None:
        self._path = path
        self._rate = rate
        self._file: cv2.VideoWriter | None = None
        self._last: np.ndarray = np.empty(0)
        self._written = 0

    def write(self, image: np.ndarray, seconds: float) -> None:
        """image: (H, W, 3) uint8 RGB, sides even and always the same; seconds: its time, later than the last one's.

        Each is repeated until the next one's time, so that a variable rate keeps its pace.
        """
        if self._file is None:
            quieten()
            code = cv2.VideoWriter.fourcc(*CODECS[self._path.suffix.lower()])
            with unheard():
                file = cv2.VideoWriter(str(self._path), cv2.CAP_FFMPEG, code, self._rate, image.shape[1::-1])
            if not file.isOpened():
                raise FerError(f"OpenCV cannot write {self._path.suffix} here; give another of {', '.join(CODECS)}")
            self._file = file
            self._written = round(seconds * self._rate)  # a file may begin later than 0
        elif self._last.shape != image.shape:
            raise FerError("frames of several sizes cannot be written as one video; leave out --annotate")
        while self._written < round(seconds * self._rate):
            self._file.write(self._last)
            self._written += 1
        self._last = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.write(self._last)
            self._file.release()
