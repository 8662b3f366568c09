"""Faces made unrecognisable: DataComp's ``face_bboxes``, blurred with a soft edge."""

import io
import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, JpegImagePlugin

from openqwen2vl.formats.images import MAX_PIXELS

METHOD = 3
"""Goes up whenever the same picture and boxes would give other bytes."""

_STRENGTH = 0.15  # standard deviation of the blur, of a box's longer side
_EDGE = 0.1  # how far the blur fades out beyond a box, of its longer side
_QUALITY = 95  # of JPEG and WebP
_ORIENTATION = 0x0112  # in EXIF
_BLURRED_AS_THEY_ARE = ("L", "RGB", "RGBA", "CMYK")

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are outside."""


@dataclass(frozen=True)
class Blurred:
    """A picture after blurring.

    Attributes:
        data: the file's bytes; the ones that were given when there is nothing to blur.
        faces: boxes that are blurred.
        bad_boxes: boxes that say no place in the picture.
        unreadable: whether there are boxes in a picture that cannot be decoded. ``data`` is empty
            then: another decoder may well show the faces.
    """

    data: bytes
    faces: int = 0
    bad_boxes: int = 0
    unreadable: bool = False


def blur_faces(data: bytes, boxes: Any) -> Blurred:
    """Blur the faces of a picture; without any its bytes stay as they are.

    A picture with faces is encoded anew: a JPEG at quality 95 with its own chroma subsampling, PNG
    and WebP as such, anything else as PNG. Orientation and colour profile stay; whatever else EXIF
    and XMP hold goes, since thumbnails and camera makers' previews show the face once more. Boxes
    are places in the picture as it is stored, before its orientation is applied, as DataComp found
    them.

    Args:
        data: an image file.
        boxes: a list of ``[left, top, right, bottom]``, fractions of width and height; None: none.
            What lies beyond the picture is cut off. A fifth number from 0 to 1, as detectors write
            how sure they are, is read over, as img2dataset does. Whatever is no such box is
            counted and left.

    Raises:
        MemoryError: the machine has not enough for the picture.
    """
    if boxes is None:
        return Blurred(data)
    given = boxes if isinstance(boxes, list) else [boxes]
    good = [box for box in given if _is_box(box)]
    bad = len(given) - len(good)
    if not good:
        return Blurred(data, bad_boxes=bad)
    try:
        encoded = _encoded(data, [box[:4] for box in good])
    except MemoryError:
        raise  # the machine's fault, not the picture's
    except Exception:  # PIL's decoders raise whatever they trip over
        return Blurred(b"", bad_boxes=bad, unreadable=True)
    return Blurred(encoded, len(good), bad)


def _is_box(box: Any) -> bool:
    """Whether this is a box of which some part lies within the picture."""
    if not isinstance(box, list) or len(box) not in (4, 5):
        return False
    if not all(isinstance(x, int | float) and math.isfinite(x) for x in box):
        return False
    left, top, right, bottom = (min(1.0, max(0.0, float(x))) for x in box[:4])
    return left < right and top < bottom and all(0 <= sure <= 1 for sure in box[4:])


def _encoded(data: bytes, boxes: list[list[float]]) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        picture = Image.open(io.BytesIO(data))
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise ValueError("too many pixels to decode")
    how = _how(picture)
    drawn = _drawable(picture)
    for left, top, right, bottom in boxes:
        _blur(
            drawn,
            (
                math.floor(max(0.0, left) * width),
                math.floor(max(0.0, top) * height),
                math.ceil(min(1.0, right) * width),
                math.ceil(min(1.0, bottom) * height),
            ),
        )
    file = io.BytesIO()
    drawn.save(file, **how)
    return file.getvalue()


def _how(picture: Image.Image) -> dict[str, Any]:
    """Give how to save a picture like the one that was opened."""
    kept: dict[str, Any] = {}
    if profile := picture.info.get("icc_profile"):
        kept["icc_profile"] = profile
    if (orientation := picture.getexif().get(_ORIENTATION)) in range(2, 9):
        kept["exif"] = Image.Exif()
        kept["exif"][_ORIENTATION] = orientation
    if picture.format in ("JPEG", "MPO"):
        sampling = JpegImagePlugin.get_sampling(picture)
        return {"format": "JPEG", "quality": _QUALITY, "subsampling": sampling, **kept}
    if picture.format == "WEBP":
        return {"format": "WEBP", "quality": _QUALITY, **kept}
    return {"format": "PNG", **kept}


def _drawable(picture: Image.Image) -> Image.Image:
    """Give a picture in a mode that can be blurred and saved: palettes and deep pixels cannot."""
    if picture.mode.startswith("I"):  # 16 bits a pixel
        high = np.asarray(picture).astype(np.int64).clip(0, 65_535) >> 8
        return Image.fromarray(high.astype(np.uint8))
    if picture.mode in _BLURRED_AS_THEY_ARE:
        picture.load()
        return picture
    seen_through = picture.mode in ("LA", "PA") or "transparency" in picture.info
    return picture.convert("RGBA" if seen_through else "RGB")


def _blur(picture: Image.Image, box: Box) -> None:
    left, top, right, bottom = box
    longer = max(right - left, bottom - top)
    deviation, edge = max(1.0, _STRENGTH * longer), max(1.0, _EDGE * longer)
    # All that the blur reaches or reads, so that a small face in a large picture costs little.
    far = math.ceil(edge + 3 * deviation)
    around = (
        max(0, left - far),
        max(0, top - far),
        min(picture.width, right + far),
        min(picture.height, bottom + far),
    )
    region = picture.crop(around)
    face = (left - around[0], top - around[1], right - around[0] - 1, bottom - around[1] - 1)
    mask = Image.new("L", region.size)
    draw = ImageDraw.Draw(mask)
    half = edge / 2
    draw.rectangle((face[0] - half, face[1] - half, face[2] + half, face[3] + half), fill=255)
    mask = mask.filter(ImageFilter.GaussianBlur(edge / 4))
    ImageDraw.Draw(mask).rectangle(face, fill=255)  # within the box nothing shows through
    picture.paste(region.filter(ImageFilter.GaussianBlur(deviation)), around[:2], mask)
