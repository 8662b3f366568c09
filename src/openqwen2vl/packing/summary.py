"""Figures about a folder of packs: how full they are, and what they are made of."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openqwen2vl.formats.manifest import Manifest
from openqwen2vl.packing.reader import Pack, PackFolder

SAMPLE = 500
"""Packs that are read for figures which the index does not have, at most."""


@dataclass(frozen=True)
class Bin:
    """A bar of a histogram: values ``low <= v <= high`` and how many there are."""

    low: int
    high: int
    count: int

    @property
    def label(self) -> str:
        """The range in words."""
        return f"{self.low:,}" if self.low == self.high else f"{self.low:,} to {self.high:,}"


@dataclass(frozen=True)
class PackSummary:
    """What a folder of packs holds.

    Attributes:
        manifest: of the folder.
        pad_share: share of positions that are pads.
        target_share: share of tokens that the model is asked for.
        image_share: share of tokens that are visual.
        images: histogram of the images in a pack, over all packs.
        documents: histogram of the documents in a pack, over all packs.
        lengths: histogram of the documents' expanded tokens, over the sample.
        sources: share of tokens by source, over the sample.
        sampled: packs in the sample, spread evenly.
    """

    manifest: Manifest
    pad_share: float
    target_share: float
    image_share: float
    images: list[Bin]
    documents: list[Bin]
    lengths: list[Bin]
    sources: dict[str, float]
    sampled: int


def spread(total: int, count: int) -> list[int]:
    """Choose ``count`` of ``total`` numbers, evenly from first to last; all when there are fewer."""
    if count >= total:
        return list(range(total))
    return sorted({round(place * (total - 1) / max(1, count - 1)) for place in range(count)})


def document_lengths(pack: Pack, image: int, tokens_per_image: int) -> NDArray[np.int64]:
    """Give the expanded tokens of each document of a pack.

    Args:
        pack: from ``PackFolder.read``.
        image: id of the image mark.
        tokens_per_image: visual tokens that a mark stands for.

    Returns:
        int64 (documents,).
    """
    expanded = np.where(pack.ids == image, tokens_per_image, 1)
    ends = np.concatenate([[0], np.cumsum(expanded)])
    starts = np.array([document["start"] for document in pack.documents], np.int64)
    stops = starts + np.array([document["length"] for document in pack.documents], np.int64)
    lengths: NDArray[np.int64] = ends[stops] - ends[starts]
    return lengths


def summarise(folder: PackFolder, sample: int = SAMPLE) -> PackSummary:
    """Gather the figures of a folder; only a sample of packs is read.

    Raises:
        ShardError: a shard does not hold what the index says.
    """
    manifest = folder.manifest
    spec, counts = manifest.spec, manifest.counts
    numbers = spread(len(folder), sample)
    lengths: list[int] = []
    sources: Counter[str] = Counter()
    for number in numbers:
        pack = folder.read(number)
        found = document_lengths(pack, spec.special.image, spec.tokens_per_image).tolist()
        lengths += found
        for document, length in zip(pack.documents, found, strict=True):
            sources[document["source"]] += length
    total = max(1, sources.total())
    return PackSummary(
        manifest=manifest,
        pad_share=1.0 - manifest.fill if counts.packs else 0.0,
        target_share=counts.targets / max(1, counts.tokens),
        image_share=counts.images * spec.tokens_per_image / max(1, counts.tokens),
        images=histogram(folder.images.tolist()),
        documents=histogram(folder.documents.tolist()),
        lengths=histogram(lengths),
        sources={name: tokens / total for name, tokens in sources.most_common()},
        sampled=len(numbers),
    )


def histogram(values: Sequence[int], most: int = 12) -> list[Bin]:
    """Count whole numbers in ``most`` ranges of one round width at most, without empty ends."""
    if not values:
        return []
    low, high = min(values), max(values)
    width = _round_width(-(-(high - low + 1) // most))
    first = low // width
    counts = np.bincount(np.asarray(values) // width - first).tolist()
    return [
        Bin((first + place) * width, (first + place + 1) * width - 1, count)
        for place, count in enumerate(counts)
    ]


def _round_width(least: int) -> int:
    """Give the smallest 1, 2 or 5 times a power of ten that is no less."""
    power = 1
    while True:
        for factor in (1, 2, 5):
            if factor * power >= least:
                return factor * power
        power *= 10
