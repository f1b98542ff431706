"""Photographs as people have them -> (H, W, 3) uint8 RGB, the right way up.

Colour profiles are ignored: what the file's numbers say is taken as sRGB.
"""

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from PIL import Image

from efficientface import untrusted

# Decoding costs memory in proportion to this; it is also where Pillow begins to suspect a decompression bomb.
MAX_PIXELS = 89_478_485
_AT_ONCE = 2**20  # pixels that are converted together: four times as many take a third longer

# Not all that Pillow knows: it hands PostScript to another program, which runs it.
Image.init()
_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "TIFF", "GIF", "PPM", "TGA", "JPEG2000", "AVIF")
# What Pillow's decoders raise on damaged files.
_DAMAGED = (*untrusted.DAMAGE, SyntaxError, EOFError, AssertionError, struct.error, zlib.error)

_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda image: image[::-1, ::-1],
    4: np.flipud,
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


class Unreadable(Exception):
    """A file that gives no picture; the message is a short reason such as `truncated` or `does not exist`."""


class Photos(Protocol):
    """The photographs of a source, by the names that its listing has. Many threads may read at once."""

    def mark(self, file: str) -> int | None:
        """A number that is likely another one when the photograph has changed; None where there is none."""

    def read(self, file: str) -> bytes:
        """The photograph's bytes, in a format that decode_photo knows; Unreadable if there are none."""

    def only(self, files: Sequence[str]) -> "Photos":
        """What is needed to read these, fit to be sent to another process."""


@dataclass(frozen=True)
class PhotoFiles:
    """Photographs in files below a folder; their mark is the size."""

    root: Path

    def mark(self, file: str) -> int | None:
        try:
            return (self.root / file).stat().st_size
        except (OSError, ValueError):
            return None  # reading it will tell why

    def read(self, file: str) -> bytes:
        return read_bytes(self.root / file)

    def only(self, files: Sequence[str]) -> "PhotoFiles":
        return PhotoFiles(self.root.absolute())


def read_photo(path: Path) -> np.ndarray:
    """The photograph in a file as (H, W, 3) uint8 RGB; Unreadable says why there is none."""
    return decode_photo(read_bytes(path))


def read_bytes(path: Path) -> bytes:
    """A file's bytes; Unreadable if there are none."""
    try:
        data = untrusted.read_bytes(Path(path), untrusted.LARGEST_PHOTO)
    except FileNotFoundError as error:
        raise Unreadable("does not exist") from error
    except IsADirectoryError as error:
        raise Unreadable("is a folder") from error
    except (OSError, ValueError) as error:
        raise Unreadable(f"cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not data:
        raise Unreadable("empty file")
    return data


def decode_photo(data: bytes) -> np.ndarray:
    """A picture in a usual format as (H, W, 3) uint8 RGB; of several frames the first.

    EXIF orientation is obeyed, 16 bits a channel become 8 by the full range, transparency is laid over white, as
    it is where such pictures are shown.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _refuse_too_large(image.size)
            image.load()
            turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
            pixels = _pixels(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Unreadable(f"too large (more than {MAX_PIXELS:,} pixels)") from error
    except Image.UnidentifiedImageError as error:
        raise Unreadable("not an image") from error
    except OSError as error:
        truncated = "truncated" in str(error).lower()
        raise Unreadable("truncated" if truncated else f"damaged ({error})") from error
    except _DAMAGED as error:
        untrusted.refuse_shortage(error)
        raise Unreadable(f"damaged ({error})") from error
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def is_grey(image: np.ndarray) -> bool:
    """Whether the three channels of (H, W, 3) agree in every pixel, as they do in grey JPEGs stored as colour."""
    for part in (image[:: 1 + len(image) // 16], image):  # a few rows tell of nearly all that are not
        red, green, blue = cv2.split(part)
        if cv2.norm(red, green, cv2.NORM_INF) or cv2.norm(red, blue, cv2.NORM_INF):
            return False
    return True


def thinned(image: np.ndarray, factor: float) -> tuple[np.ndarray, int]:
    """(H, W[, 3]) uint8 that is to be `factor` times smaller -> means of its squares of S x S pixels, and S.

    OpenCV takes a third of the time for them that it takes for areas which are no whole pixels. At least 2 of the
    factor are left to do, so that those decide how the result looks. Rows and columns that fill no square are left
    out. S is 1, and the image as it was, where little would be gained.
    """
    side = int(min(factor / 2, *image.shape[:2]))
    if side < 3:  # of 2 x 2 pixels OpenCV always rounds halves up
        return image, 1
    height, width = (length // side for length in image.shape[:2])
    whole = image[: height * side, : width * side]
    return cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA), side


def _refuse_too_large(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise Unreadable(f"too large ({width} x {height} pixels, more than {MAX_PIXELS:,})")


def _pixels(image: Image.Image) -> np.ndarray:
    """A loaded image of any mode as (H, W, 3) uint8 RGB, some rows at a time: the largest would take gigabytes."""
    width, height = image.size
    if width * height <= _AT_ONCE:
        return np.require(_rgb_pixels(image), requirements="W")
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(1, _AT_ONCE // width)
    for top in range(0, height, rows):
        below = min(height, top + rows)
        pixels[top:below] = _rgb_pixels(image.crop((0, top, width, below)))
    return pixels


def _rgb_pixels(image: Image.Image) -> np.ndarray:
    """A loaded image of any mode as (H, W, 3) uint8 RGB, which may be read-only."""
    if image.mode == "L" and not image.has_transparency_data:
        return cv2.cvtColor(np.asarray(image), cv2.COLOR_GRAY2RGB)  # a fifth of Pillow's time
    return np.asarray(_to_rgb(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    """A loaded image of any mode in mode RGB."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_16_bits(image).convert("RGB")
    if image.mode == "F":
        raise Unreadable("floating-point pixels, whose range is unknown")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits to 8 by the full range: Pillow's own conversion would clip everything above 255."""
    grey = np.asarray(image).astype(np.int64)
    if grey.min() < 0 or grey.max() > 65535:
        raise Unreadable("32-bit pixels, whose range is unknown")
    return Image.fromarray(((grey + 128) // 257).astype(np.uint8))
