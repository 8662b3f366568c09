"""Images written into a JSON as base64, as the official packer's shards of web pages have them."""

import binascii
from pathlib import Path
from typing import Any

from openqwen2vl.formats.cells import image_extension
from openqwen2vl.formats.documents import ImageRef
from openqwen2vl.formats.rejects import Unusable

_MARK = "#base64"
_KEY = "image_base64"
_LISTS = ("image_info", "images")


def is_written(image: ImageRef) -> bool:
    """Whether an image lies in its file as base64; ``size`` is that of the decoded bytes."""
    return image.path.endswith(_MARK)


def written_span(image: ImageRef) -> tuple[str, int]:
    """Give the file of a written image, and how many of its bytes the base64 takes up."""
    return image.path.removesuffix(_MARK), _letters(image.size)


def decode_written(letters: bytes | bytearray) -> bytes:
    """Decode the base64 of a written image.

    Raises:
        ValueError: it is none.
    """
    return binascii.a2b_base64(letters, strict_mode=True)


def written_images(
    fields: dict[str, Any], raw: bytes, start: int, path: Path
) -> tuple[ImageRef, ...]:
    """Give the images that a page's JSON holds, by where their base64 lies in the file.

    An entry of ``image_info`` or ``images`` is an object with ``image_base64``, or null where the
    page has a text. So that each can be read on its own later, the base64 has to stand in the JSON
    letter by letter: with padding, without line breaks or escapes.

    Args:
        fields: the JSON.
        raw: its bytes.
        start: where they begin in the file.
        path: of the file, a raw shard.

    Returns:
        The images in the order of the list; none when the page has no such list or entry.

    Raises:
        Unusable: ``missing_image``, when an image cannot be decoded or found again.
    """
    entries: list[Any] = next(
        (fields[name] for name in _LISTS if isinstance(fields.get(name), list)), []
    )
    found: list[ImageRef] = []
    at = 0
    for entry in entries:
        if not isinstance(entry, dict) or _KEY not in entry:
            continue
        letters = _encoded(entry[_KEY], len(found))
        begin = raw.find(b'"' + letters + b'"', at) + 1
        if not begin:
            raise Unusable("missing_image", f"{_KEY} of image {len(found)} is written with escapes")
        at = begin + len(letters)
        data = _decoded(letters, len(found))
        extension = image_extension(data)
        found.append(ImageRef(f"{path}{_MARK}", start + begin, len(data), extension))
    return tuple(found)


def _encoded(value: Any, number: int) -> bytes:
    if not isinstance(value, str) or not value:
        raise Unusable("missing_image", f"{_KEY} of image {number} holds no text")
    try:
        return value.encode("ascii")
    except UnicodeEncodeError as error:
        raise Unusable("missing_image", f"{_KEY} of image {number} is no base64") from error


def _decoded(letters: bytes, number: int) -> bytes:
    try:
        data = decode_written(letters)
    except ValueError as error:
        raise Unusable(
            "missing_image", f"{_KEY} of image {number} is no base64 ({error})"
        ) from error
    if not data or len(letters) != _letters(len(data)):
        raise Unusable("missing_image", f"{_KEY} of image {number} holds no whole image")
    return data


def _letters(size: int) -> int:
    return -(-size // 3) * 4
