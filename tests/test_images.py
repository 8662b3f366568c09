import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from openqwen2vl.formats.errors import ImageError
from openqwen2vl.formats.images import decode_image


def pixels(height, width, seed=0):
    """Smooth noise, so that resizing has something to do."""
    shape = (max(2, height // 8), max(2, width // 8), 3)
    small = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(picture, format="PNG", **options):
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def png(width, height, depth, color, rows):
    """A PNG by hand, for depths that PIL does not write."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def by_pil(picture, side):
    """PIL's bicubic, rows first: recent versions take columns first in tall pictures."""
    picture = picture.convert("RGB")
    for size in ((side, picture.height), (side, side)):
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(picture)


def distance(a, b):
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@settings(deadline=None, max_examples=40)
@given(
    st.integers(16, 300), st.integers(16, 300), st.sampled_from([14, 84, 200]), st.integers(0, 99)
)
def test_resizing_is_pils_bicubic_within_two(height, width, side, seed):
    picture = pixels(height, width, seed=seed)
    ours = decode_image(encoded(picture), side)
    assert ours.dtype == np.uint8
    assert ours.flags.c_contiguous
    assert distance(ours, by_pil(picture, side)) <= 2


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_every_format_of_raw_shards_is_decoded(format):
    data = encoded(pixels(60, 90), format)
    theirs = by_pil(Image.open(io.BytesIO(data)), 84)
    assert distance(decode_image(data, 84), theirs) <= 2


def test_a_picture_of_the_right_size_is_not_touched():
    picture = pixels(84, 84)
    assert distance(decode_image(encoded(picture), 84), np.asarray(picture)) == 0


def test_transparency_is_laid_over_white():
    picture = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    picture.paste((0, 0, 255, 255), (0, 0, 20, 10))
    ours = decode_image(encoded(picture), 20)
    assert (ours[15, 5] == 255).all()
    assert ours[3, 5].tolist() == [0, 0, 255]


def test_a_transparent_palette_is_laid_over_white():
    picture = Image.new("P", (10, 10), 0)
    picture.putpalette([9, 9, 9, 0, 255, 0])
    picture.paste(1, (0, 0, 10, 5))
    ours = decode_image(encoded(picture, transparency=0), 10)
    assert ours[2, 2].tolist() == [0, 255, 0]
    assert ours[8, 2].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA"])
def test_grays_and_palettes_become_rgb(mode):
    picture = pixels(40, 40).convert("L").convert(mode)
    theirs = by_pil(picture.convert("RGB"), 40)
    assert distance(decode_image(encoded(picture), 40), theirs) <= 2


def test_cmyk_becomes_rgb():
    data = encoded(pixels(40, 40).convert("CMYK"), "JPEG")
    theirs = by_pil(Image.open(io.BytesIO(data)), 40)
    assert distance(decode_image(data, 40), theirs) <= 2


def test_sixteen_bits_a_pixel_are_scaled_not_cut_off():
    deep = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    ours = decode_image(encoded(Image.fromarray(deep)), 32)
    assert distance(ours[:, :, 0], (deep >> 8).astype(np.uint8)) <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(orientation):
    picture = pixels(40, 70)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture, "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    ours = decode_image(data, 32)
    assert ours.flags.c_contiguous
    assert distance(ours, by_pil(upright, 32)) <= 2


@pytest.mark.parametrize("size", [(1, 50), (50, 1), (1, 1)])
def test_a_side_of_one_pixel_is_refused(size):
    with pytest.raises(ImageError, match="both sides need at least 2"):
        decode_image(encoded(Image.new("RGB", size)), 84)


@pytest.mark.parametrize("side", [14_143, 20_000])
def test_two_hundred_megapixels_are_refused_from_the_header(side):
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    png += struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 10**6) + b"IDAT"
    with pytest.raises(ImageError, match=r"pixels"):
        decode_image(png, 84)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.95])
def test_a_cut_off_picture_is_refused(format, share):
    data = encoded(pixels(200, 200), format)
    with pytest.raises(ImageError):
        decode_image(data[: int(len(data) * share)], 84)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_bytes_that_are_no_picture_are_refused(data):
    with pytest.raises(ImageError, match="cannot be decoded"):
        decode_image(data, 84)


def test_a_dark_picture_of_sixteen_bits_stays_dark():
    deep = np.full((16, 16), 200, np.uint16)  # 200 of 65,535 is black, 200 of 255 is not
    assert (decode_image(encoded(Image.fromarray(deep)), 16) <= 1).all()


def test_white_of_sixteen_bits_is_white():
    deep = np.full((16, 16), 65_535, np.uint16)
    assert (decode_image(encoded(Image.fromarray(deep)), 16) == 255).all()


def test_sixteen_bits_a_channel_in_color_are_scaled():
    rows = b"".join(b"\0" + struct.pack(">HHH", 65_535, 32_768, 200) * 4 for _ in range(4))
    ours = decode_image(png(4, 4, 16, 2, rows), 4)
    assert (np.abs(ours.astype(int) - [255, 128, 0]) <= 1).all()


@pytest.mark.parametrize("format", ["WEBP", "PNG", "GIF"])
def test_an_animation_gives_its_first_frame(format):
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue", "lime")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert (decode_image(data, 20) == [255, 0, 0]).all()


@pytest.mark.parametrize("format", ["WEBP", "PNG"])
@pytest.mark.parametrize("alpha", [0, 128, 255])
def test_half_transparent_colors_are_mixed_with_white(format, alpha):
    picture = Image.new("RGBA", (16, 16), (0, 100, 200, alpha))
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    ours = decode_image(encoded(picture, format, **options), 16)
    expected = np.array([0, 100, 200]) * alpha / 255 + 255 * (1 - alpha / 255)
    assert (np.abs(ours - expected) <= 1).all()


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "RGB", "YCbCr", "I;16"])
def test_every_mode_becomes_rgb_of_uint8(mode):
    if mode == "I;16":
        picture = Image.fromarray(np.full((24, 24), 1000, np.uint16))
    else:
        picture = pixels(24, 24).convert(mode)
    format = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    ours = decode_image(encoded(picture, format), 14)
    assert (ours.dtype, ours.shape) == (np.uint8, (14, 14, 3))
    assert ours.flags.c_contiguous
