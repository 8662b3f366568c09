"""The image scorer: size, hashes and blankness, with as little decoding as they need."""

import hashlib
import io
import struct
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import imagehash
import numpy as np
import pyarrow as pa
from PIL import Image

from openqwen2vl.curation.samples import Sample
from openqwen2vl.curation.scorer import MORE, told
from openqwen2vl.curation.scorers.jpeg import plain_jpeg_size
from openqwen2vl.formats.errors import ImageError, UserError

THUMBNAIL = 64
"""Pixels of a JPEG's shorter side that are decoded at least: twice what the hash looks at."""

METHOD = 1
"""Goes up whenever the same picture would get other figures."""

_SAME = 16  # of 256: a colour channel may differ so much from the commonest colour's
_ORIENTATION = 0x0112
# What each EXIF orientation but the upright one asks for.
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TRANSPOSED = (5, 6, 7, 8)
_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")


@dataclass(frozen=True, kw_only=True)
class ImageScorer:
    """Measures images.

    ``width`` and ``height`` are in pixels and as the picture is shown, so after the EXIF
    orientation; ``aspect`` is the longer side over the shorter; ``bytes`` is the file's size and
    ``sha256`` the hash of its bytes. ``phash`` is imagehash's perceptual hash, 64 bits, and
    ``blank_share`` is ``blank_share`` of the picture as training shows it. With neither of the
    last two no pixel is decoded, and what is broken behind an intact header is not noticed.

    JPEGs are decoded at an eighth, a quarter or half of their size (libjpeg's draft), as long as
    ``THUMBNAIL`` pixels remain. The hash looks at 32 x 32, so that this costs it nothing or, of
    photographs one in four, two of its 64 bits, and it takes a third of the time.

    Of a conversation it is the first picture that is measured. ``pictures`` says how many there
    are, and ``more_sha256``, ``more_phash`` and ``more_blank_share`` hold what was found of the
    others, end to end: 32, 8 and 4 bytes each, the numbers little-endian. Without pictures
    ``pictures`` is 0 and all else null; where one cannot be decoded all is null.

    Attributes:
        name: folder of the scores.
        sha256: whether to hash the bytes.
        phash: whether to make the perceptual hash.
        blank: whether to measure ``blank_share``.
        max_pixels: a picture of more is refused from its header, as training does; the number is
            that of ``formats.images``, which would bring torch into every worker.
        batch_size: samples at a time.
        conversations: whether samples are conversations.
    """

    reads_conversations: ClassVar[bool] = True

    name: str = "image"
    sha256: bool = True
    phash: bool = True
    blank: bool = True
    max_pixels: int = 178_000_000
    batch_size: int = 256
    conversations: bool = False

    @property
    def columns(self) -> Mapping[str, pa.DataType]:
        """What is written, with these settings."""
        columns = {
            "width": pa.int32(),
            "height": pa.int32(),
            "aspect": pa.float32(),
            "bytes": pa.int64(),
        }
        if self.sha256:
            columns["sha256"] = pa.binary(32)
        if self.phash:
            columns["phash"] = pa.uint64()
        if self.blank:
            columns["blank_share"] = pa.float32()
        return columns | self._of_conversations

    @property
    def _of_conversations(self) -> dict[str, pa.DataType]:
        """Columns that only conversations have."""
        if not self.conversations:
            return {}
        hashed = {"sha256": self.sha256, "phash": self.phash, "blank_share": self.blank}
        more = [f"more_{name}" for name, wanted in hashed.items() if wanted]
        return {"pictures": pa.int32(), **dict.fromkeys(more, pa.binary())}

    def for_conversations(self) -> Self:
        """Give the scorer that measures conversations as this one measures pairs."""
        return replace(self, conversations=True)

    def fingerprint(self) -> dict[str, Any]:
        """Give the settings, and which perceptual hash it is."""
        hashed = {"phash": f"imagehash {imagehash.__version__}"} if self.phash else {}
        more = {MORE: list(self._of_conversations)} if self.conversations else {}
        return {
            "method": METHOD,
            "columns": [name for name in self.columns if name not in self._of_conversations],
            "max_pixels": self.max_pixels,
            **hashed,
            **more,
        }

    def score(self, samples: Sequence[Sample]) -> dict[str, list[Any]]:
        """Measure the image of each sample; one that cannot be decoded has an error alone.

        Raises:
            ShardError: the shard went away.
            MemoryError: the machine has not enough for a picture.
        """
        error = f"{self.name}_error"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's of large and of odd pictures
            rows = [self._sample(sample, error) for sample in samples]
        return {name: [row.get(name) for row in rows] for name in (*self.columns, error)}

    def _sample(self, sample: Sample, error: str) -> dict[str, Any]:
        if not self.conversations:
            return self._row(sample.read(), error)
        rows = [self._row(sample.read_image(image), error) for image in sample.images]
        for number, row in enumerate(rows):
            if error in row:
                return {error: row[error] if len(rows) == 1 else f"image {number}: {row[error]}"}
        return joined(rows)

    def _row(self, data: bytes, error: str) -> dict[str, Any]:
        try:
            return self._measured(data)
        except (UserError, MemoryError):  # the shard's fault or the machine's, not the picture's
            raise
        except ImageError as fault:
            return {error: str(fault)}
        except Exception as fault:  # PIL's decoders raise whatever they trip over
            return {error: f"cannot be decoded ({told(fault)})"}

    def _measured(self, data: bytes) -> dict[str, Any]:
        if not (self.phash or self.blank) and (size := plain_jpeg_size(data)):
            row = self._sizes(data, *size)
        else:
            picture = Image.open(io.BytesIO(data))
            orientation = picture.getexif().get(_ORIENTATION) if "exif" in picture.info else None
            size = picture.size[::-1] if orientation in _TRANSPOSED else picture.size
            row = self._sizes(data, *size)
            if self.phash or self.blank:
                row.update(self._seen(picture, orientation))
        if self.sha256:
            row["sha256"] = hashlib.sha256(data).digest()
        return row

    def _sizes(self, data: bytes, width: int, height: int) -> dict[str, Any]:
        if width * height > self.max_pixels:
            raise ImageError(f"{width} x {height} pixels; at most {self.max_pixels} are decoded")
        aspect = max(width, height) / min(width, height)
        return {"width": width, "height": height, "aspect": aspect, "bytes": len(data)}

    def _seen(self, picture: Image.Image, orientation: int | None) -> dict[str, Any]:
        """Measure what takes a look at the pixels."""
        small = thumbnail(picture)
        if orientation in _TURN:
            small = small.transpose(_TURN[orientation])
        row: dict[str, Any] = {}
        if self.phash:
            row["phash"] = perceptual_hash(small)
        if self.blank:
            row["blank_share"] = blank_share(small)
        return row


def joined(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Give the figures of a conversation.

    Args:
        rows: of each of its pictures, which all could be decoded.
    """
    first, others = dict(rows[0]) if rows else {}, rows[1:]
    more = {
        "more_sha256": [row.get("sha256", b"") for row in others],
        "more_phash": [struct.pack("<Q", row.get("phash", 0)) for row in others],
        "more_blank_share": [struct.pack("<f", row.get("blank_share", 0.0)) for row in others],
    }
    parts = {name: b"".join(values) for name, values in more.items()} if rows else {}
    return {**first, "pictures": len(rows), **parts}


def thumbnail(picture: Image.Image) -> Image.Image:
    """Decode a picture to RGB, a JPEG at a fraction of its size; transparency is laid over white.

    Args:
        picture: opened, not yet decoded.

    Returns:
        Of the picture's aspect; the shorter side has ``THUMBNAIL`` pixels, or all that there are.
    """
    picture.draft("RGB", (THUMBNAIL, THUMBNAIL))
    if picture.mode.startswith("I"):  # 16 bits a pixel; PIL's own conversion cuts off at 255
        deep = np.asarray(picture).astype(np.int64).clip(0, 65_535)
        return Image.fromarray((deep >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode in _ALPHA or "transparency" in picture.info:
        seen = picture.convert("RGBA")
        white = Image.new("RGBA", seen.size, "white")
        return Image.alpha_composite(white, seen).convert("RGB")
    return picture.convert("RGB")


def perceptual_hash(picture: Image.Image) -> int:
    """Give imagehash's ``phash`` as a number of 64 bits, the first of them the highest."""
    bits = np.packbits(imagehash.phash(picture).hash.ravel())
    return int.from_bytes(bits.tobytes())


def blank_share(picture: Image.Image) -> float:
    """Give the share of a picture that is one flat colour.

    The picture is averaged down to 64 x 64 fields. The commonest of 16 x 16 x 16 coarse colours
    is found, then the mean of the fields that have it; a field counts when none of its channels
    is further than 16 of 256 from that mean. 1 is an empty picture, about 0.7 a thing on white,
    and a photograph without such a ground is below a half.

    Args:
        picture: RGB.

    Returns:
        0 to 1, in steps of 1/4096.
    """
    small = picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    channels = [np.frombuffer(band.tobytes(), np.uint8).astype(np.int32) for band in small.split()]
    red, green, blue = (channel >> 4 for channel in channels)
    coarse = red << 8 | green << 4 | blue
    commonest = coarse == np.bincount(coarse).argmax()
    count = np.count_nonzero(commonest)
    near = np.ones(len(coarse), bool)
    for channel in channels:
        near &= np.abs(channel - channel.dot(commonest) / count) <= _SAME
    return float(np.count_nonzero(near) / len(near))
