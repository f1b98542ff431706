"""Every kind of picture file gives RGB the right way up, or a short reason why not."""

import io
import os
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from efficientface.data.photos import Unreadable, decode_photo, is_grey, read_photo, thinned

# red, green over blue, white: every turn and mirroring looks different
CORNERS = np.array([[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 255)]], np.uint8)
BLOCKS = CORNERS.repeat(16, 0).repeat(24, 1)  # (32, 48, 3)


def encoded(image: Image.Image, kind: str = "png", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def photo(seed: int = 0, side: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8))


@pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "webp"])
def test_lossless_files_come_back_as_they_were(kind, tmp_path):
    path = tmp_path / f"photo.{kind}"
    photo().save(path, kind, **({"lossless": True} if kind == "webp" else {}))
    image = read_photo(path)
    assert image.dtype == np.uint8
    assert np.array_equal(image, np.asarray(photo()))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_exif_orientation_is_obeyed(orientation, kind):
    # how a camera stores an upright scene, by the EXIF standard: the row and column of the scene's 0th row and column
    stored = {
        1: BLOCKS,
        2: BLOCKS[:, ::-1],
        3: BLOCKS[::-1, ::-1],
        4: BLOCKS[::-1],
        5: BLOCKS.transpose(1, 0, 2),
        6: np.rot90(BLOCKS),
        7: BLOCKS[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(BLOCKS, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if kind == "jpeg" else {}
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
    image = decode_photo(data)
    assert image.shape == BLOCKS.shape
    assert np.abs(image.astype(int) - BLOCKS).mean() < 6


def test_grey_becomes_three_equal_channels():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = decode_photo(encoded(Image.fromarray(ramp)))
    assert image.shape == (16, 16, 3)
    assert is_grey(image)
    assert np.array_equal(image[..., 0], ramp)
    assert not is_grey(BLOCKS)


def test_a_grey_jpeg_stored_in_colour_counts_as_grey():
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    assert is_grey(decode_photo(encoded(ramp, "jpeg")))


def test_one_coloured_pixel_in_a_row_that_is_no_sample_is_seen():
    image = np.full((100, 40, 3), 7, np.uint8)
    image[50, 3, 1] = 8
    assert not is_grey(image)


@pytest.mark.parametrize("shape", [(63, 85, 3), (63, 85)])
def test_thinned_pixels_are_means_of_whole_squares(shape):
    image = np.random.default_rng(2).integers(0, 256, shape, np.uint8)
    found, side = thinned(image, 9.9)
    assert side == 4  # so that 2.475 is left
    means = image[:60, :84].reshape(15, 4, 21, 4, -1).mean((1, 3))
    assert np.abs(found.reshape(means.shape) - means).max() <= 0.5


@pytest.mark.parametrize(("shape", "factor"), [((90, 90), 5.9), ((90, 90), 0.3), ((2, 500), 80.0), ((500, 1), 80.0)])
def test_little_and_narrow_pictures_are_not_thinned(shape, factor):
    image = np.zeros(shape, np.uint8)
    assert thinned(image, factor) == (image, 1)


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_16_bits_are_scaled_by_the_full_range_and_not_clipped(kind):
    deep = np.array([[0, 257, 32896, 65535]], np.uint16)
    image = decode_photo(encoded(Image.fromarray(deep), kind))
    assert image[0, :, 0].tolist() == [0, 1, 128, 255]


def test_32_bit_and_floating_point_pixels_are_refused():
    with pytest.raises(Unreadable, match="32-bit"):
        decode_photo(encoded(Image.fromarray(np.array([[-5, 70000]], np.int32)), "tiff"))
    with pytest.raises(Unreadable, match="floating-point"):
        decode_photo(encoded(Image.fromarray(np.array([[0.5, 1.0]], np.float32)), "tiff"))


def test_palettes_bilevel_and_cmyk():
    palette = Image.fromarray(BLOCKS).quantize(4)
    assert np.array_equal(decode_photo(encoded(palette, "gif")), BLOCKS)
    bilevel = decode_photo(encoded(Image.fromarray(BLOCKS[..., 0] > 127)))
    assert sorted(np.unique(bilevel)) == [0, 255]
    cmyk = decode_photo(encoded(Image.fromarray(BLOCKS).convert("CMYK"), "jpeg", quality=95, subsampling=0))
    assert np.abs(cmyk.astype(int) - BLOCKS).mean() < 6


def test_transparency_is_laid_over_white():
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 3] = 0, 128, 255
    image = decode_photo(encoded(Image.fromarray(pixels)))
    assert image[0, :, 0].tolist() == [255, 127, 0]
    grey = decode_photo(encoded(Image.fromarray(pixels[..., 2:]).convert("LA")))
    assert grey[0, :, 0].tolist() == [255, 127, 0]


def test_a_transparent_colour_of_a_palette_is_white():
    palette = Image.fromarray(BLOCKS).quantize(4)
    first = palette.getpixel((0, 0))
    image = decode_photo(encoded(palette, "png", transparency=first))
    assert image[0, 0].tolist() == [255, 255, 255]
    assert image[0, -1].tolist() == [0, 255, 0]


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "gif", "bmp", "tiff"])
@pytest.mark.parametrize("share", [0.98, 0.5, 0.03])
def test_a_cut_file_is_never_half_a_picture(kind, share):
    data = encoded(photo(side=128), kind)
    with pytest.raises(Unreadable):
        decode_photo(data[: int(len(data) * share)])


def test_reasons_are_short_and_say_what_is_wrong(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("<html>404 not found</html>")
    (tmp_path / "cut.jpg").write_bytes(encoded(photo(), "jpeg")[:-500])
    for name, reason in {
        "empty.jpg": "empty file",
        "text.jpg": "not an image",
        "cut.jpg": "truncated",
        "gone.jpg": "does not exist",
        ".": "is a folder",
        "nul\0.jpg": "cannot be read (embedded null byte)",
    }.items():
        with pytest.raises(Unreadable) as caught:
            read_photo(tmp_path / name)
        assert str(caught.value) == reason


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission(tmp_path):
    path = tmp_path / "secret.png"
    path.write_bytes(encoded(photo()))
    path.chmod(0)
    with pytest.raises(Unreadable, match="Permission denied"):
        read_photo(path)


@pytest.mark.parametrize("side", [9_500, 40_000])
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(side):
    data = bytearray(encoded(photo()))
    data[16:24] = struct.pack(">II", side, side)  # width and height in a PNG's first chunk, then its checksum
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Unreadable, match="too large"):
            decode_photo(bytes(data))


def picture_or_reason(data: bytes) -> np.ndarray | Unreadable:
    try:
        return decode_photo(data)
    except Unreadable as error:
        return error


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "gif", "bmp", "tiff"])
def test_damaged_bytes_raise_nothing_else(kind):
    data = encoded(photo(), kind)
    chance = random.Random(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about odd tags
        for _ in range(150):
            damaged = bytearray(data)
            for _ in range(chance.randint(1, 8)):
                damaged[chance.randrange(min(len(data), 400))] = chance.randrange(256)
            result = picture_or_reason(bytes(damaged))
            assert str(result)
            assert isinstance(result, Unreadable) or (result.dtype == np.uint8 and result.shape[2] == 3)
