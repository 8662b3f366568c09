"""Pictures for models: opened as they are meant to be seen, on threads, ahead of their use."""

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from openqwen2vl.formats.errors import ConfigError, ImageError

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_ASPECT = 200
"""The longer side over the shorter, at most: models enlarge the shorter one to their own size, and
a line of pixels would become gigabytes; some refuse such pictures themselves."""

_TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")


def open_picture(data: bytes) -> Image.Image:
    """Decode a picture to upright RGB at its own size.

    As in ``formats.images``, transparency is laid over white, the EXIF orientation is applied and
    16 bits a channel are scaled to 8.

    Args:
        data: a JPEG, PNG or WebP file, or another that PIL reads.

    Raises:
        ImageError: the bytes cannot be decoded, are cut off, hold too many pixels for PIL, or are
            a line rather than a picture.
    """
    picture = _decoded(data)
    if max(picture.size) > MAX_ASPECT * min(picture.size):
        raise ImageError(
            f"{picture.width} x {picture.height} pixels are longer than {MAX_ASPECT} to 1"
        )
    return picture


def _decoded(data: bytes) -> Image.Image:
    try:
        picture: Image.Image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        if picture.mode.startswith("I"):  # 16 bits a pixel; PIL's own conversion cuts off at 255
            deep = np.asarray(picture).astype(np.int64).clip(0, 65_535)
            picture = Image.fromarray(((deep * 255 + 32_767) // 65_535).astype(np.uint8))
        if picture.mode in _TRANSPARENT or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture)
        return picture.convert("RGB")
    except MemoryError:
        raise  # the machine's fault, and another time there may be enough
    except Exception as error:  # PIL's decoders raise whatever they trip over
        raise ImageError(f"cannot be decoded ({type(error).__name__}: {error})") from error


def decoding_threads(asked: int | None) -> int:
    """Give how many threads decode pictures.

    Args:
        asked: as a config says; None: one for each core that this process may run on.

    Raises:
        ConfigError: less than one.
    """
    if asked is None:
        return len(os.sched_getaffinity(0))
    if asked < 1:
        raise ConfigError(f"threads is {asked}; expected at least 1, or null for one a core")
    return asked


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], pool: Executor, most: int
) -> Iterator[Result]:
    """Map on a pool while the caller works on what came before.

    Args:
        function: called once for each item.
        items: in the order of the results.
        pool: of threads.
        most: results that are begun before they are asked for; bounds the memory they take.

    Yields:
        ``function(item)`` in order; what it raises is raised here.
    """
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
