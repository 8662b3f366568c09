"""How a training run turns pictures into pixels: by which library, and how exactly."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from threading import local
from typing import Any, Literal, Self, cast

import numpy as np
from numpy.typing import NDArray

from openqwen2vl.formats.errors import CheckpointError, ConfigError
from openqwen2vl.formats.images import PIXELS_VERSION, JpegReader, decode_image

Library = Literal["pillow", "simplejpeg"]
DECODERS = ("auto", "pillow", "simplejpeg")
# What runs did before they recorded it.
_UNRECORDED: Mapping[str, Any] = {"version": 1, "library": "pillow", "draft": False}


@dataclass(frozen=True)
class PictureDecoder:
    """Decodes pictures as `decode_image` does, in one way through a run.

    Both libraries read JPEGs by libjpeg-turbo's exact transform, so that pixels are equal where
    both are built on it; another libjpeg may round otherwise. Where simplejpeg finds fault with a
    file, Pillow decides: both refuse the same files in the same words.

    Args:
        library: that reads JPEGs; all else is Pillow's.
        draft: whether large JPEGs are read at a half, a quarter or an eighth of their size.
    """

    library: Library = "pillow"
    draft: bool = False

    def __call__(
        self, data: bytes, side: int, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Decode one picture; arguments, result and errors as of `decode_image`."""
        return decode_image(data, side, self.draft, _READERS[self.library], out)

    def __str__(self) -> str:
        return f"JPEGs by {self.library}, {'large ones in drafts' if self.draft else 'in full'}"

    @classmethod
    def chosen(cls, decoder: str, draft: bool) -> Self:
        """Settle what is asked for.

        Args:
            decoder: one of ``DECODERS``; ``auto`` is simplejpeg where it is installed.
            draft: as of the class.

        Raises:
            ConfigError: an unknown name, or simplejpeg is asked for and not installed.
        """
        if decoder not in DECODERS:
            raise ConfigError(f"data.decoder is {decoder!r}; there are {', '.join(DECODERS)}")
        if decoder == "auto":
            return cls("simplejpeg" if _has_simplejpeg() else "pillow", draft)
        if decoder == "simplejpeg" and not _has_simplejpeg():
            raise ConfigError(
                'data.decoder=simplejpeg is not installed: pip install "openqwen2vl[fast]", or '
                "data.decoder=auto"
            )
        return cls(cast(Library, decoder), draft)

    def facts(self) -> dict[str, Any]:
        """Give what pixels are a function of beside the files, in plain values."""
        return {"version": PIXELS_VERSION, "library": self.library, "draft": self.draft}

    def resumed(self, decoder: str, facts: Mapping[str, Any] | None) -> "PictureDecoder":
        """Give what a resumed run goes on with.

        Args:
            decoder: as it was asked for. ``auto`` keeps the run's library; another that is named
                is taken, since pixels stay equal.
            facts: that the run recorded; None: it is older than that, and read in full by Pillow.

        Raises:
            CheckpointError: pixels would change midway: drafts, or another version of
                `decode_image`; or the run's library is not installed.
        """
        began = facts or _UNRECORDED
        if began["version"] != PIXELS_VERSION or began["draft"] != self.draft:
            raise CheckpointError(
                f"the run's pictures were decoded with data.draft={began['draft']} by version "
                f"{began['version']} of the decoding, now it is data.draft={self.draft} and version "
                f"{PIXELS_VERSION}; restore these, or start a new run with init_from="
            )
        if decoder != "auto":
            return self
        if began["library"] == "simplejpeg" and not _has_simplejpeg():
            raise CheckpointError(
                "the run's JPEGs were read by simplejpeg, which is not installed: pip install "
                '"openqwen2vl[fast]", or go on by Pillow with data.decoder=pillow (equal pixels '
                "where Pillow is built on libjpeg-turbo)"
            )
        return PictureDecoder(began["library"], self.draft)


def _has_simplejpeg() -> bool:
    return find_spec("simplejpeg") is not None


def _by_simplejpeg(data: bytes, size: tuple[int, int], scale: int) -> NDArray[np.uint8] | None:
    """Read a JPEG as `JpegReader` says."""
    import simplejpeg

    width, height = size
    if (needed := 3 * width * height) > _SCRATCH_BYTES:
        scratch = np.empty(needed, np.uint8)
    else:
        # Memory that is used again and again stays in the processor's cache.
        if not hasattr(_LOCAL, "scratch"):
            _LOCAL.scratch = np.empty(_SCRATCH_BYTES, np.uint8)
        scratch = _LOCAL.scratch
    least = {"min_width": width, "min_height": height} if scale > 1 else {}
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data, min_factor=scale, buffer=scratch, **least
        )
    except ValueError:  # also for what can be mended; Pillow knows whether to mend it
        return None
    return pixels if pixels.shape == (height, width, 3) else None


_LOCAL = local()
_SCRATCH_BYTES = 4 << 20
_READERS: dict[Library, JpegReader | None] = {"pillow": None, "simplejpeg": _by_simplejpeg}
