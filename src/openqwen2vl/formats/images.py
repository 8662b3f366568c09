"""Pictures: from bytes to a square of pixels, or a plain word on why not."""

import io
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from openqwen2vl.formats.errors import ImageError

MAX_PIXELS = 178_000_000
"""A picture of more is refused from its header: decoding it would exhaust the memory."""

_MOST_16_BIT = 65_535
_EXIF_ORIENTATION = 0x0112
# What each EXIF orientation asks for, on an upright (height, width, channels) array.
_TRANSPOSED = {5, 6, 7, 8}
_FLIPPED_ROWS = {3, 4, 7, 8}
_FLIPPED_COLUMNS = {2, 3, 6, 7}


def decode_image(data: bytes, side: int) -> NDArray[np.uint8]:
    """Decode a picture and squash it to a square, bicubic with antialiasing.

    The aspect is not kept [paper 3.1; official `resize-naive`]. Of an animation the first frame
    counts. Transparency is laid over white and the EXIF orientation is applied; the official
    loaders call `convert("RGB")` alone, which shows what lies beneath transparent pixels and leaves
    pictures lying on their side. 16 bits a channel are scaled to 8. PIL's own bicubic, rows first, differs by at most 2 of 255 for
    pictures of 16 pixels and more a side; columns first, as PIL now takes tall ones, clips
    differently.

    Args:
        data: a JPEG, PNG or WebP file, or another that PIL reads.
        side: pixels of the result's sides.

    Returns:
        uint8 (side, side, 3), RGB, contiguous.

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
        pixels = _rgb(picture)
    except ImageError:
        raise
    except Exception as error:  # PIL's decoders raise whatever they trip over
        raise ImageError(f"cannot be decoded ({type(error).__name__}: {error})") from error
    return _turned(_resized(pixels, side), orientation)


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
    return np.array(picture.convert("RGB"))


def _resized(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    if pixels.shape[:2] == (side, side):
        return pixels
    image = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)
    resized = functional.interpolate(
        image, size=(side, side), mode="bicubic", align_corners=False, antialias=True
    )
    square: NDArray[np.uint8] = resized[0].permute(1, 2, 0).numpy()
    return square


def _turned(square: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Apply an EXIF orientation; on a square result this is cheap and commutes with resizing."""
    if orientation in _TRANSPOSED:
        square = square.transpose(1, 0, 2)
    if orientation in _FLIPPED_ROWS:
        square = square[::-1]
    if orientation in _FLIPPED_COLUMNS:
        square = square[:, ::-1]
    return np.ascontiguousarray(square)
