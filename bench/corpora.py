"""Packs to measure on: the demo's captions, and pre-training captions with photo-like pictures."""

import io
import random
import string
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from openqwen2vl.corpus.build import ShardJob, write_shard
from openqwen2vl.corpus.handwriting import load_scans
from openqwen2vl.corpus.shards import Sample, write_raw_shard
from openqwen2vl.formats.manifest import PackSpec
from openqwen2vl.formats.raw import raw_shards, read_raw_shard
from openqwen2vl.formats.rejects import Reject
from openqwen2vl.formats.tokens import train_tokenizer
from openqwen2vl.packing.reader import Pack, PackFolder
from openqwen2vl.packing.request import PackRequest, make_spec
from openqwen2vl.packing.writer import pack_folder

DEMO_VOCABULARY, PHOTO_VOCABULARY = 512, 2048
# 5B tokens over 29M pairs at 144 visual tokens leave 28.4 for the text, of which three are the
# layout's own; alt texts have a long tail, and the longest of them hold hundreds of tokens.
CAPTION_TOKENS, CAPTION_SIGMA, LONGEST_CAPTION = 25.4, 0.8, 400
DEMO_TEXT, PHOTO_TEXT = 15.1, 28.4  # mean tokens beside an image's own
DEMO_SHARES = {"scenes": 0.75, "noisy": 0.10, "handwriting": 0.15}  # conf/demo.yaml
# A few documents too many: the pack that they begin is dropped, so that the others are full.
PLENTY = 1.06
DISTINCT_PHOTOS = 64


@dataclass(frozen=True)
class Steps:
    """Packs of a few training steps; each step's documents are drawn at random and packed alone.

    First-fit-decreasing over a whole corpus puts captions of like length together, which would
    spare padded rows most of their pads: no padded loader sees such batches. What is left of a
    step's documents beyond its full packs is dropped, for all variants alike.
    """

    spec: PackSpec
    steps: list[list[Pack]]


def demo_steps(folder: Path, count: int, packs: int, context: int, grid: int) -> Steps:
    """Pack the captions of the embedded corpus in the demo's shares.

    Args:
        folder: an empty one; raw shards and packs go below it.
        count: steps.
        packs: of a step.
        context: tokens of a pack.
        grid: visual tokens along an image's side.
    """
    scans = load_scans()
    documents = int(PLENTY * packs * context / (grid**2 + DEMO_TEXT))
    sizes = {source: round(share * documents) for source, share in DEMO_SHARES.items()}
    for step in range(count):
        for number, (source, size) in enumerate(sizes.items()):
            path = folder / "raw" / f"{step * len(sizes) + number:05d}.tar"
            write_shard(ShardJob(path, source, step * size, (step + 1) * size, 0, scans))
    return _steps(
        _packed(folder, DEMO_VOCABULARY, context, grid, sum(sizes.values())), len(sizes), packs
    )


def photo_steps(folder: Path, count: int, packs: int, context: int, grid: int) -> Steps:
    """Pack pairs as in pre-training, like ``photo_packs``; arguments as of ``demo_steps``."""
    documents = int(PLENTY * packs * context / (grid**2 + PHOTO_TEXT))
    write_photos(folder, count, documents, (512, 384))
    return _steps(_packed(folder, PHOTO_VOCABULARY, context, grid, documents), 1, packs)


def photo_packs(
    folder: Path, packs: int, context: int, grid: int, size: tuple[int, int]
) -> PackFolder:
    """Pack pairs as in pre-training: pictures of ``size`` pixels, captions of the paper's lengths.

    The pictures are smooth noise of about a photo's bytes a pixel, and they recur: decoding
    keeps no memory of them.
    """
    documents = int(packs * context / (grid**2 + PHOTO_TEXT))
    write_photos(folder, 1, documents, size)
    return _packed(folder, PHOTO_VOCABULARY, context, grid, documents)


def write_photos(folder: Path, shards: int, documents: int, size: tuple[int, int]) -> None:
    """Write raw shards of captions and photos of ``size`` pixels below ``folder/raw``."""
    rng = random.Random(0)
    photos = [_photo(np.random.default_rng([0, i]), size) for i in range(DISTINCT_PHOTOS)]
    for shard in range(shards):
        samples = (
            Sample(f"{shard}-{i}", rng.choice(photos), *size, caption=caption(rng))
            for i in range(documents)
        )
        write_raw_shard(folder / "raw" / f"{shard:05d}.tar", samples)


def _packed(folder: Path, vocabulary: int, context: int, grid: int, window: int) -> PackFolder:
    raw, out = folder / "raw", folder / "packs"
    tokenizer = train_tokenizer(islice(_texts(raw), 2000), vocabulary)
    spec = make_spec(tokenizer, context, grid, "qwen2_5")
    pack_folder(
        PackRequest(input=raw, out=out, source="bench", spec=spec, window=window), tokenizer
    )
    return PackFolder(out)


def _steps(folder: PackFolder, shards_per_step: int, packs: int) -> Steps:
    steps: dict[int, list[Pack]] = {}
    for number in range(len(folder)):
        pack = folder.read(number)
        shard = int(Path(pack.documents[0]["shard"]).stem)
        steps.setdefault(shard // shards_per_step, []).append(pack)
    return Steps(folder.manifest.spec, [found[:packs] for found in steps.values()])


def _texts(raw: Path) -> Iterator[str]:
    for shard in raw_shards(raw):
        for document in read_raw_shard(shard, "bench"):
            if not isinstance(document, Reject):
                yield document.turns[0].text


def caption(rng: random.Random) -> str:
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
