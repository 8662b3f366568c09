"""Packs to measure on: the demo's captions, and pre-training captions with photo-like pictures."""

import io
import random
import string
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from openqwen2vl.corpus.build import ShardJob, write_shard
from openqwen2vl.corpus.handwriting import load_scans
from openqwen2vl.corpus.shards import Sample, write_raw_shard
from openqwen2vl.formats.raw import raw_shards, read_raw_shard
from openqwen2vl.formats.rejects import Reject
from openqwen2vl.formats.tokens import train_tokenizer
from openqwen2vl.packing.reader import PackFolder
from openqwen2vl.packing.writer import PackRequest, make_spec, pack_folder

DEMO_VOCABULARY = 512
PHOTO_VOCABULARY = 2048
# 5B tokens over 29M pairs at 144 visual tokens leave 28.4 for the text, of which three are the
# layout's own; alt texts have a long tail, and the longest of them hold hundreds of tokens.
CAPTION_TOKENS, CAPTION_SIGMA, LONGEST_CAPTION = 25.4, 0.8, 400
DISTINCT_PHOTOS = 64


def demo_packs(folder: Path, documents: int, context: int, grid: int, seed: int = 0) -> PackFolder:
    """Pack the embedded corpus's captions: half clean scenes, a quarter noisy, a quarter digits.

    Args:
        folder: an empty one; raw shards and packs go below it.
        documents: image-caption pairs.
        context: tokens of a pack.
        grid: visual tokens along an image's side.
        seed: of everything drawn.
    """
    scans = load_scans()
    shares = {"scenes": documents // 2, "noisy": documents // 4}
    shares["handwriting"] = documents - sum(shares.values())
    for number, (source, size) in enumerate(shares.items()):
        path = folder / "raw" / f"{number:05d}.tar"
        write_shard(ShardJob(path, source, 0, size, seed, scans))
    return _packed(folder, DEMO_VOCABULARY, context, grid)


def photo_packs(
    folder: Path, documents: int, context: int, grid: int, size: tuple[int, int], seed: int = 0
) -> PackFolder:
    """Pack pairs as in pre-training: pictures of ``size`` pixels, captions of the paper's lengths.

    The pictures are smooth noise of about a photo's bytes a pixel, and they recur: decoding
    keeps no memory of them. Arguments as of ``demo_packs``.
    """
    rng = random.Random(seed)
    photos = [_photo(np.random.default_rng([seed, i]), size) for i in range(DISTINCT_PHOTOS)]
    samples = (
        Sample(f"{seed}-{i}", rng.choice(photos), *size, caption=_caption(rng))
        for i in range(documents)
    )
    write_raw_shard(folder / "raw" / "00000.tar", samples)
    return _packed(folder, PHOTO_VOCABULARY, context, grid)


def _packed(folder: Path, vocabulary: int, context: int, grid: int) -> PackFolder:
    tokenizer = train_tokenizer(islice(_texts(folder / "raw"), 2000), vocabulary)
    spec = make_spec(tokenizer, context, grid, "qwen2_5")
    out = folder / "packs"
    pack_folder(PackRequest(input=folder / "raw", out=out, source="bench", spec=spec), tokenizer)
    return PackFolder(out)


def _texts(raw: Path) -> Iterator[str]:
    for shard in raw_shards(raw):
        for document in read_raw_shard(shard, "bench"):
            if not isinstance(document, Reject):
                yield document.turns[0].text


def _caption(rng: random.Random) -> str:
    """Words whose number follows a log-normal law; the tokenizer makes one token of each."""
    mean = np.log(CAPTION_TOKENS) - CAPTION_SIGMA**2 / 2
    count = round(rng.lognormvariate(mean, CAPTION_SIGMA))
    return " ".join(rng.choice(_WORDS) for _ in range(min(max(count, 1), LONGEST_CAPTION)))


_LETTERS = random.Random(0)
_WORDS = ["".join(_LETTERS.choices(string.ascii_lowercase, k=3)) for _ in range(500)]


def _photo(rng: np.random.Generator, size: tuple[int, int]) -> bytes:
    """A JPEG of coarse colour fields, finer texture and sensor noise."""
    pixels = sum(
        weight * np.asarray(_field(rng, cells, size), np.float32)
        for cells, weight in ((6, 0.6), (48, 0.4))
    )
    pixels = np.clip(pixels + rng.normal(0, 6, pixels.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def _field(rng: np.random.Generator, cells: int, size: tuple[int, int]) -> Image.Image:
    coarse = rng.integers(0, 256, (cells, cells, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
