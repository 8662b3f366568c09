"""Which documents made up a global batch: from the run's order back to the raw shards."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from openqwen2vl.packing.mixture import Mixture
from openqwen2vl.packing.order import Order, PackKey


@dataclass(frozen=True)
class Traced:
    """One document of a global batch.

    Attributes:
        source: the mixture's name of where it came from.
        pack: which pack of that source, and in which pass.
        place: its number among the pack's documents.
        record: what the pack says of it: ``uid, source, shard, key, start, length, images`` and
            its scores where curation gave it any.
    """

    source: str
    pack: PackKey
    place: int
    record: dict[str, Any]


def trace_step(mixture: Mixture, order: Order, step: int) -> Iterator[Traced]:
    """Name the documents of a global batch, in the order of the run.

    Args:
        mixture: the run's, opened.
        order: likewise.
        step: of the global batch, from 0.

    Raises:
        ShardError: a pack cannot be read.
    """
    for key in order.packs(step):
        folder = mixture.folders[key.grid][key.source]
        for place, record in enumerate(folder.read(key.pack).documents):
            yield Traced(mixture.names[key.source], key, place, record)
