from collections import Counter
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from openqwen2vl.data_modules.sampling import StepBatches, ValidationBatches
from openqwen2vl.packing.order import Order, PackKey, Phase, Source, Stream


@dataclass(frozen=True)
class IndexOnly:
    """What the order and the samplers read of a pack folder."""

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    images: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.tokens)


@cache
def stub(sizes: tuple[int, ...] = (11, 5)) -> tuple[Order, Any]:
    """An order over two sources and two grids, and a mixture of which only the index is there."""
    rng = np.random.default_rng(0)
    folders = {
        grid: [
            IndexOnly(*(rng.integers(*span, size) for span in ((200, 257), (0, 99), (0, 30))))
            for size in sizes
        ]
        for grid in (3, 6)
    }
    streams = {
        grid: Stream(
            7, grid, [Source(name=str(i), tokens=f.tokens) for i, f in enumerate(folders[grid])]
        )
        for grid in (3, 6)
    }
    phases = (Phase(start=0, stop=3, grid=3), Phase(start=3, stop=5, grid=6))
    return Order(phases, streams, global_batch=12), SimpleNamespace(folders=folders)


SPLITS = st.sampled_from([(r, m) for r in range(1, 13) for m in range(1, 13) if 12 % (r * m) == 0])


@given(split=SPLITS, start=st.integers(0, 5))
def test_ranks_micro_batches_and_accumulation_make_the_same_global_batches(
    split: tuple[int, int], start: int
) -> None:
    ranks, micro = split
    order, mixture = stub()
    samplers = [StepBatches(order, mixture, start, micro, (r, ranks)) for r in range(ranks)]
    batches = [batch for sampler in samplers for batch in sampler]
    for step in range(start, order.steps):
        parts = sorted((b for b in batches if b.step == step), key=lambda b: b.slot)
        assert sorted(key for part in parts for key in part.keys) == sorted(order.packs(step))
        assert {len(part.keys) for part in parts} == {micro}
        folders = mixture.folders[order.grid(step)]
        targets = sum(int(folders[k.source].targets[k.pack]) for k in order.packs(step))
        assert {part.global_targets for part in parts} == {targets}
    assert {batch.step for batch in batches} == set(range(start, order.steps))
    assert {len(sampler) for sampler in samplers} == {order.steps * 12 // (ranks * micro)}


@given(split=SPLITS)
def test_micro_batches_do_not_depend_on_the_ranks(split: tuple[int, int]) -> None:
    ranks, micro = split
    order, mixture = stub()
    alone = {(b.step, b.slot): b for b in StepBatches(order, mixture, 0, micro, (0, 1))}
    shared = [b for r in range(ranks) for b in StepBatches(order, mixture, 0, micro, (r, ranks))]
    assert {(b.step, b.slot): b for b in shared} == alone


@given(ranks=st.integers(1, 5), micro=st.integers(1, 5), sizes=st.tuples(*[st.integers(1, 9)] * 2))
def test_validation_gives_every_rank_as_many_batches_and_every_pack_counts_once(
    ranks: int, micro: int, sizes: tuple[int, int]
) -> None:
    _, mixture = stub(sizes)
    samplers = [ValidationBatches(mixture, 3, micro, (rank, ranks)) for rank in range(ranks)]
    batches = [list(sampler) for sampler in samplers]
    assert {len(own) for own in batches} == {len(sampler) for sampler in samplers}
    assert len({len(own) for own in batches}) == 1
    whole = [batch for own in batches for batch in own]
    assert {len(batch.keys) for batch in whole} == {micro}
    real = Counter(key for batch in whole for key in batch.keys[: micro - batch.ghosts])
    assert real == Counter(PackKey(3, s, 0, p) for s, size in enumerate(sizes) for p in range(size))
