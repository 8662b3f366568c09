"""Samples for scorers: pictures and captions in a raw shard, and scorers that say little."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from openqwen2vl.curation.samples import Sample, read_samples
from support.shards import write_tar


def encoded(image: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    """Give a picture as a file."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def photo(seed: int, size: tuple[int, int] = (512, 384), cells: int = 7) -> Image.Image:
    """Draw smooth fields of colour with some noise: about as a photograph compresses."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
    smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.float32)
    noisy = smooth + rng.normal(0, 5, smooth.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def samples_of(
    path: Path, images: Sequence[bytes] | None = None, captions: Sequence[str] | None = None
) -> list[Sample]:
    """Write a shard of these images or these captions, and read it."""
    images = images or [encoded(Image.new("RGB", (8, 8)))] * len(captions or ())
    captions = captions or ["a picture"] * len(images)
    files: dict[str, bytes] = {}
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        files[f"{number:05d}.jpg"] = image
        files[f"{number:05d}.txt"] = caption.encode()
    write_tar(path, files)
    found = list(read_samples(path, "tiny"))
    assert all(isinstance(sample, Sample) for sample in found), found
    return [sample for sample in found if isinstance(sample, Sample)]


@dataclass
class LengthScorer:
    """Scores a caption by its length; fails on ``boom``, gives NaN for ``nan``.

    ``most`` is how many samples its memory holds at once.
    """

    name: str = "length"
    batch_size: int = 4
    most: int = 1000
    setting: int = 0

    @property
    def columns(self) -> Mapping[str, pa.DataType]:
        return {"length": pa.float32()}

    def fingerprint(self) -> dict[str, Any]:
        return {"setting": self.setting}

    def score(self, samples: Sequence[Sample]) -> dict[str, list[Any]]:
        if len(samples) > self.most:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if any("boom" in sample.caption for sample in samples):
            raise KeyError("boom")
        return {"length": [value_of(sample.caption) for sample in samples]}


def value_of(caption: str) -> float:
    """Give the length of a caption, or NaN for one that asks for it."""
    return float("nan") if "nan" in caption else float(len(caption))
