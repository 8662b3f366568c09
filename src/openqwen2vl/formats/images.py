"""Pictures: from bytes to a square of pixels, or a plain word on why not."""

import io
import warnings
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from openqwen2vl.formats.errors import ImageError

MAX_PIXELS = 178_000_000
"""A picture of more is refused from its header: decoding it would exhaust the memory."""

PIXELS_VERSION = 1
"""Of what `decode_image` makes of a file; one more when that changes. Runs record it."""

_MOST_16_BIT = 65_535
_EXIF_ORIENTATION = 0x0112
# What each EXIF orientation asks for, on an upright (height, width, channels) array.
_TRANSPOSED = {5, 6, 7, 8}
_FLIPPED_ROWS = {3, 4, 7, 8}
_FLIPPED_COLUMNS = {2, 3, 6, 7}


JpegReader = Callable[[bytes, tuple[int, int], int], NDArray[np.uint8] | None]
"""Turns a JPEG's bytes, the width and height wanted, and the scale that gives them (1, 2, 4 or 8)
into uint8 (height, width, 3), RGB, which its next call may overwrite; None where it does not know
how or finds fault."""


def decode_image(
    data: bytes,
    side: int,
    draft: bool = False,
    read_jpeg: JpegReader | None = None,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Decode a picture and squash it to a square, bicubic with antialiasing.

    The aspect is not kept [paper 3.1; official `resize-naive`]. Of an animation the first frame
    counts. Transparency is laid over white and the EXIF orientation is applied; the official
    loaders call `convert("RGB")` alone, which shows what lies beneath transparent pixels and leaves
    pictures lying on their side. 16 bits a channel are scaled to 8. PIL's own bicubic, rows first,
    differs by at most 2 of 255 for pictures of 16 pixels and more a side; columns first, as PIL now
    takes tall ones, clips differently.

    Args:
        data: a JPEG, PNG or WebP file, or another that PIL reads.
        side: pixels of the result's sides.
        draft: whether a JPEG is read at a ``draft_scale``-th of its size, which computes less and
            gives other pixels. What is not twice the side both ways stays as it is.
        read_jpeg: reads JPEGs of gray or RGB in place of PIL; where it gives None, PIL does.
        out: takes the result, which is faster than new memory.

    Returns:
        uint8 (side, side, 3), RGB, contiguous; ``out`` where it is given.

    Raises:
        ImageError: the bytes cannot be decoded or are cut off, a side is 1 pixel, or there are
            more than ``MAX_PIXELS`` pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data))
        _check_size(*picture.size)
        orientation = picture.getexif().get(_EXIF_ORIENTATION, 1)
        pixels = _pixels(picture, data, side if draft else None, read_jpeg)
    except (ImageError, MemoryError):  # the machine's want is no fault of the picture
        raise
    except UnidentifiedImageError as error:  # whose words hold an address of this process
        raise ImageError("cannot be decoded (of no format that is known)") from error
    except Exception as error:  # PIL's decoders raise whatever they trip over
        raise ImageError(f"cannot be decoded ({type(error).__name__}: {error})") from error
    square = np.empty((side, side, 3), np.uint8) if out is None else out
    _resize(pixels, square)
    return _turn(square, orientation)


def draft_scale(size: tuple[int, int], side: int) -> int:
    """Give by how much a JPEG of this width and height is reduced as it is read: 1, 2, 4 or 8.

    The most that leaves both sides at ``side`` or more.
    """
    times = min(size) // side
    return next((scale for scale in (8, 4, 2) if times >= scale), 1)


def _pixels(
    picture: Image.Image, data: bytes, side: int | None, read_jpeg: JpegReader | None
) -> NDArray[np.uint8]:
    """Give uint8 (height, width, 3): the picture's own, or a JPEG's for a draft of ``side``."""
    if isinstance(picture, JpegImageFile):
        scale = 1 if side is None else draft_scale(picture.size, side)
        if scale > 1:
            width, height = picture.size
            picture.draft(None, (width // scale, height // scale))
        if read_jpeg is not None and picture.mode in ("L", "RGB"):
            pixels = read_jpeg(data, picture.size, scale)
            if pixels is not None:
                return pixels
    return _rgb(picture)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width} x {height} pixels; at most {MAX_PIXELS} are decoded")
    if min(width, height) <= 1:
        raise ImageError(f"{width} x {height} pixels; both sides need at least 2")


def _rgb(picture: Image.Image) -> NDArray[np.uint8]:
    """Give uint8 (height, width, 3), whatever the picture's mode."""
    if picture.mode.startswith("I"):  # 16 bits a pixel; PIL's own conversion cuts off at 255
        deep = np.asarray(picture).astype(np.int64).clip(0, _MOST_16_BIT)
        gray = ((deep * 255 + _MOST_16_BIT // 2) // _MOST_16_BIT).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))


def _resize(pixels: NDArray[np.uint8], square: NDArray[np.uint8]) -> None:
    """Fill the square."""
    if pixels.shape == square.shape:
        np.copyto(square, pixels)
        return
    # Channels last, as torch sees them in this order only; otherwise they are copied around. What
    # `functional.interpolate` calls, into memory that is there.
    torch.ops.aten._upsample_bicubic2d_aa.out(
        torch.from_numpy(pixels).unsqueeze(0).permute(0, 3, 1, 2),
        list(square.shape[:2]),
        align_corners=False,
        out=torch.from_numpy(square).unsqueeze(0).permute(0, 3, 1, 2),
    )


def _turn(square: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Apply an EXIF orientation in place; on a square this is cheap and commutes with resizing."""
    turned = square
    if orientation in _TRANSPOSED:
        turned = turned.transpose(1, 0, 2)
    if orientation in _FLIPPED_ROWS:
        turned = turned[::-1]
    if orientation in _FLIPPED_COLUMNS:
        turned = turned[:, ::-1]
    if turned is not square:
        square[:] = turned.copy()
    return square
