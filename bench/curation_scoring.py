"""Rows of the curation bench: the image and the text scorer."""

import hashlib
import io
import json
import random
import shutil
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import py3langid
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rows import Row

from openqwen2vl.corpus.shards import Sample, write_raw_shard
from openqwen2vl.curation.score import score_source
from openqwen2vl.curation.scorers.caption_rules import bad_pattern, normalized
from openqwen2vl.curation.scorers.image import ImageScorer, blank_share
from openqwen2vl.curation.scorers.text import TextScorer, caption_hash

SIDE, DISTINCT = 512, 64
WORDS = 16  # of a caption on average: about 100 characters
COLORS = (
    "red blue pale dark small large old new wooden painted quiet crowded sunny foggy northern local"
)
THINGS = (
    "house boat garden market bicycle dog horse bridge harbour street window table kitchen river "
    "mountain woman man child teacher band festival train station castle museum coat hat dress"
)


def scoring_rows(folder: Path, quick: bool) -> list[Row]:
    """Give a row for each set of settings that a curation of many millions chooses between."""
    many, few = (200, 60) if quick else (4000, 800)
    photos = [photo(seed) for seed in range(8 if quick else DISTINCT)]
    shards = {count: write(folder / f"{count}.tar", photos, count) for count in {many, few}}
    header = ImageScorer(phash=False, blank=False, sha256=False)
    hashed = ImageScorer(phash=False, blank=False)
    rules, spoken = TextScorer(language=False), TextScorer()
    perceptual, whole = ImageScorer(blank=False), ImageScorer()

    def row(name: str, count: int, scorers: list[Any], plain: list[Any], goal: float | None) -> Row:
        part = shards[few]
        return Row(
            name=name,
            unit="samples",
            items=count,
            ours=partial(ours, shards[count], scorers, folder / "ours"),
            plain=partial(plainly, part, plain, folder / "plain.parquet"),
            plain_items=few,
            goal=goal,
        )

    check(shards[few], folder)
    return [
        row("header, text rules", many, [header, rules], [size, words], 10_000),
        row("header, sha256, text rules", many, [hashed, rules], [size, sha256, words], None),
        row("text rules, language", many, [spoken], [words, language], None),
        row("perceptual hash", few, [perceptual], [size, sha256, phash], 700),
        row("perceptual hash, blank share", few, [whole], [size, sha256, phash, blank], None),
    ]


def photo(seed: int) -> bytes:
    """A JPEG of 512 x 512 pixels and about 42 KB: colour fields, finer texture, sensor noise."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(0, 8, (SIDE, SIDE, 3))
    for cells, weight in ((5, 0.6), (40, 0.4)):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        pixels += weight * np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=75)
    return file.getvalue()


def write(path: Path, photos: list[bytes], count: int) -> Path:
    """Write a raw shard of ``count`` pairs; the photos recur, which no decoder knows."""
    rng = random.Random(count)
    samples = (
        Sample(f"{rng.getrandbits(128):032x}", rng.choice(photos), SIDE, SIDE, caption(rng))
        for _ in range(count)
    )
    write_raw_shard(path, samples)
    return path


def caption(rng: random.Random) -> str:
    """Words as an alternative text has them."""
    words = [*COLORS.split(), *THINGS.split(), "a", "the", "in", "of", "with"]
    return " ".join(rng.choices(words, k=rng.randint(4, 2 * WORDS - 4)))


def ours(shard: Path, scorers: list[Any], out: Path) -> None:
    """Score a shard as ``curate`` does: samples read, scores written."""
    shutil.rmtree(out, ignore_errors=True)
    score_source([shard], "bench", scorers, out)


Step = Callable[[bytes, str], dict[str, Any]]
"""What a plain loop does with one image and its caption."""


def plainly(shard: Path, steps: list[Step], out: Path) -> None:
    """Score a shard one sample at a time: open the tar, gather a sample, measure it, write a row."""
    rows: list[dict[str, Any]] = []
    with tarfile.open(shard) as tar:
        files: dict[str, bytes] = {}
        for member in tar:
            key, _, ending = member.name.partition(".")
            files[ending] = tar.extractfile(member).read()
            if len(files) == 3:
                image, text = files["jpg"], files["txt"].decode()
                row = {"key": key, "uid": json.loads(files["json"])["uid"]}
                for step in steps:
                    row |= step(image, text)
                rows.append(row)
                files = {}
    pq.write_table(pa.Table.from_pylist(rows), out)


def size(image: bytes, _: str) -> dict[str, Any]:
    """Measure a picture's sides and bytes."""
    width, height = Image.open(io.BytesIO(image)).size
    aspect = max(width, height) / min(width, height)
    return {"width": width, "height": height, "aspect": aspect, "bytes": len(image)}


def sha256(image: bytes, _: str) -> dict[str, Any]:
    """Hash the bytes."""
    return {"sha256": hashlib.sha256(image).digest()}


def phash(image: bytes, _: str) -> dict[str, Any]:
    """Hash what is seen, decoded whole."""
    return {"phash": str(imagehash.phash(Image.open(io.BytesIO(image))))}


def blank(image: bytes, _: str) -> dict[str, Any]:
    """Say how much of a picture is one colour."""
    return {"blank_share": blank_share(Image.open(io.BytesIO(image)).convert("RGB"))}


def words(_: bytes, text: str) -> dict[str, Any]:
    """Count what a caption holds."""
    text = normalized(text)
    found = text.split()
    return {
        "characters": len(text),
        "words": len(found),
        "unique_ratio": len(set(found)) / len(found),
        "bad_pattern": bad_pattern(text),
        "caption_hash": np.uint64(caption_hash(text)),
    }


def language(_: bytes, text: str) -> dict[str, Any]:
    """Guess a caption's language."""
    code, probability = py3langid.classify(text)
    return {"language": code, "language_probability": probability}


def check(shard: Path, folder: Path) -> None:
    """See that both sides measure the same, but for the bits that a draft costs a hash."""
    ours(shard, [ImageScorer(), TextScorer(language=False)], folder / "ours")
    plainly(shard, [size, sha256, phash, words], folder / "plain.parquet")
    theirs = pq.read_table(folder / "plain.parquet")
    for name in ("image", "text"):
        found = pq.read_table(next((folder / "ours" / "bench" / name).glob("*.parquet")))
        for column in {*found.column_names} & {*theirs.column_names} - {"phash"}:
            if found[column] != theirs[column].cast(found[column].type):
                raise AssertionError(f"{column} differs between ours and the plain loop")
        if name == "image":
            hashes = zip(found["phash"].to_pylist(), theirs["phash"].to_pylist(), strict=True)
            worst = max((mine ^ int(other, 16)).bit_count() for mine, other in hashes)
            if worst > 4:
                raise AssertionError(
                    f"a perceptual hash differs by {worst} bits from the plain one"
                )
