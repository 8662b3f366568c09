"""The data path replayed rank by rank: any topology serves the same global batches."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.ill_samplers import Late, OneForAll
from support.runs import PackedCorpora

from openqwen2vl.data_modules import packed
from openqwen2vl.data_modules.online import OnlineDataModule
from openqwen2vl.data_modules.packed import PackedDataModule
from openqwen2vl.data_modules.sampling import StepBatches
from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.packing.fingerprint import (
    FINGERPRINT_SIDE,
    Difference,
    GlobalBatch,
    difference,
    fingerprint,
)
from openqwen2vl.packing.order import Order, Phase, Source, Stream
from openqwen2vl.training.dry_run import Rank, Record, Topology, Window, replay, windows

PLAN = {"plan": [{"grid": 3, "until": 0.6}, {"grid": 6, "until": 1.0}]}
WHOLE = Window(0, 5, ("the start",))
PLAINEST = Topology()
SPLITS = st.sampled_from([(r, m) for r in range(1, 13) for m in range(1, 13) if 12 % (r * m) == 0])
LOADING: dict[str, Any] = {
    "resolution": PLAN,
    "budget": {"steps": 5},
    "image_side": FINGERPRINT_SIDE,
    "global_batch": 12,
}


def from_packs(corpora: PackedCorpora, topology: Topology, mode: str) -> PackedDataModule:
    sources = {
        name: {"packs": [str(corpora.packs(name, g)) for g in (3, 6)], "weight": weight}
        for name, weight in (("red", 1.0), ("blue", 0.5))
    }
    return PackedDataModule({"mode": mode, "sources": sources}, **LOADING, **loading(topology))


def from_raw(corpora: PackedCorpora, topology: Topology, mode: str) -> PackedDataModule:
    sources = {n: {"packs": str(corpora.root / "raw" / n)} for n in ("red", "blue")}
    return OnlineDataModule(
        str(corpora.tokenizer),
        str(corpora.root / "index"),
        context=256,
        workers=1,
        mixture={"mode": mode, "sources": sources},
        **LOADING,
        **loading(topology),
    )


def loading(topology: Topology) -> dict[str, int | str]:
    return {"micro_batch": topology.micro_batch, "num_workers": topology.num_workers}


def served(
    corpora: PackedCorpora,
    topology: Topology,
    window: Window = WHOLE,
    make: Callable[..., PackedDataModule] = from_packs,
    mode: str = "proportional",
) -> Record:
    """What a topology serves of the steps of one window."""
    data = make(corpora, topology, mode)
    data.decode = fingerprint
    return replay(data, topology, [window])


def first_difference(one: Record, other: Record) -> Difference | None:
    steps = sorted(one.batches.keys() | other.batches.keys())
    found = [difference(one.batches[n], other.batches[n], ("one", "other")) for n in steps]
    return next((each for each in found if each is not None), None)


@settings(max_examples=6, deadline=None)
@given(split=SPLITS, nodes=st.integers(1, 2), mode=st.sampled_from(["proportional", "weights"]))
def test_every_topology_serves_the_same_global_batches(
    corpora: PackedCorpora, split: tuple[int, int], nodes: int, mode: str
) -> None:
    ranks, micro = split
    nodes = nodes if ranks % nodes == 0 else 1
    topology = Topology(devices=ranks // nodes, num_nodes=nodes, micro_batch=micro)
    one, other = (served(corpora, each, mode=mode) for each in (topology, PLAINEST))
    assert first_difference(one, other) is None
    digests = [batch.digest() for batch in one.batches.values()]
    assert digests == [batch.digest() for batch in other.batches.values()]
    assert len(set(digests)) == 5
    assert one.turns == 12 // (ranks * micro)
    assert [packs for packs, _, _ in one.per_rank()] == [60 // ranks] * ranks
    assert np.sum(one.per_rank(), 0).tolist() == np.sum(other.per_rank(), 0).tolist()


def test_loader_processes_and_packing_while_training_change_nothing(
    corpora: PackedCorpora,
) -> None:
    window = Window(2, 4, ("the switch",))
    helped = Topology(devices=2, micro_batch=3, num_workers=1)
    found = [served(corpora, each, window, from_raw) for each in (helped, PLAINEST)]
    assert first_difference(*found) is None
    assert [batch.grids for batch in found[0].batches.values()] == [[3], [6]]


@pytest.mark.parametrize("start", [1, 3, 4])
def test_a_resumed_start_serves_the_tail_of_the_fresh_run(
    corpora: PackedCorpora, start: int
) -> None:
    fresh = served(corpora, PLAINEST)
    tail = served(corpora, Topology(devices=3, micro_batch=2), Window(start, 5, ("resumed",)))
    assert {n: b.digest() for n, b in tail.batches.items()} == {
        n: b.digest() for n, b in fresh.batches.items() if n >= start
    }


def test_what_is_served_is_what_the_index_says(corpora: PackedCorpora) -> None:
    data = from_packs(corpora, PLAINEST, "proportional")
    for step, batch in served(corpora, Topology(devices=2, micro_batch=2)).batches.items():
        for pack in batch.packs:
            folder = data.mixture.folders[pack.key.grid][pack.key.source]
            for name in ("tokens", "images", "targets"):
                assert getattr(pack, name) == getattr(folder, name)[pack.key.pack]
        assert batch.divisors == {sum(pack.targets for pack in batch.packs)}
        assert sorted(pack.key for pack in batch.packs) == sorted(data.order.packs(step))


def test_how_unequal_ranks_are_is_told() -> None:
    record = Record(Topology(devices=2), 2)
    record.loads = {(0, 0, 0): (1, 9, 4), (0, 0, 1): (1, 9, 2), (0, 1, 0): (1, 9, 1)}
    record.loads[0, 1, 1] = (1, 9, 1)
    assert record.images_spread() == pytest.approx(5 / 4)
    assert record.per_rank() == [(2, 18, 5), (2, 18, 3)]


@pytest.mark.parametrize(
    ("sampler", "facts", "wrong"),
    [
        (OneForAll, "", "times in one, 0 times in other"),
        (Late, "the micro-batches of other say that they are of step 1, 2", "times in other"),
    ],
)
def test_an_order_that_depends_on_the_rank_is_found_and_named(
    corpora: PackedCorpora,
    monkeypatch: pytest.MonkeyPatch,
    sampler: type[StepBatches],
    facts: str,
    wrong: str,
) -> None:
    monkeypatch.setattr(packed, "StepBatches", sampler)
    window = Window(0, 2, ("the start",))
    one, other = (
        served(corpora, each, window) for each in (PLAINEST, Topology(devices=2, micro_batch=2))
    )
    found = first_difference(one, other)
    assert found is not None
    assert found.step == 0
    assert facts in " ".join(found.facts)
    assert any(wrong in what for _, what in found.packs)
    mine, theirs = (sorted(pack.key for pack in record.batches[0].packs) for record in (one, other))
    assert {key for key, _ in found.packs} == {
        key for key in {*mine, *theirs} if mine.count(key) != theirs.count(key)
    }


def micro_batch(corpora: PackedCorpora) -> dict[str, Any]:
    data = from_packs(corpora, Topology(micro_batch=4), "proportional")
    data.decode = fingerprint
    data.trainer = Rank(0, 1, 1, 0)
    return next(iter(data.train_dataloader()))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("input_ids", "input_ids"),
        ("labels", "labels"),
        ("position_ids", "position_ids"),
        ("document_ids", "document_ids"),
        ("target_ids", "targets"),
        ("target_positions", "targets"),
        ("images", "images"),
        ("image_positions", "images"),
        ("cu_seqlens", "segments"),
        ("sources", "source"),
    ],
)
def test_everything_that_the_model_reads_is_compared(
    corpora: PackedCorpora, name: str, part: str
) -> None:
    batch = micro_batch(corpora)
    one, other = GlobalBatch(0), GlobalBatch(0)
    one.add(batch)
    changed = batch[name].clone()
    # The bounds of segments begin with a 0 that all have; sources are one a row.
    changed.view(-1)[int(name != "sources")] += 1
    other.add({**batch, name: changed})
    found = difference(one, other, ("one", "other"))
    assert found is not None
    assert [what for _, what in found.packs] == [f"has other {part}"]
    # The first row is the one whose second entry, or first picture, was changed.
    assert tuple(found.packs[0][0])[1:] == batch["packs"][0]


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"global_targets": 7}, "in one, 7 in other"),
        ({"corrupt": [("some uid", "cut off")]}, "broken pictures: none in one, some uid in other"),
        ({"step": 4}, "the micro-batches of other say that they are of step 5"),
    ],
)
def test_what_a_micro_batch_says_of_itself_is_compared(
    corpora: PackedCorpora, changes: dict[str, Any], fact: str
) -> None:
    batch = micro_batch(corpora)
    one, other = GlobalBatch(0), GlobalBatch(0)
    one.add(batch)
    other.add({**batch, **changes})
    found = difference(one, other, ("one", "other"))
    assert found is not None
    assert [fact in told for told in found.facts] == [True]
    assert found.packs == []


def test_pictures_are_told_apart_by_their_bytes() -> None:
    one, other = (fingerprint(data, FINGERPRINT_SIDE) for data in (b"picture 1", b"picture 2"))
    assert one.shape == (FINGERPRINT_SIDE, FINGERPRINT_SIDE, 3)
    assert not np.array_equal(one, other)
    assert np.array_equal(one, fingerprint(b"picture 1", FINGERPRINT_SIDE))
    assert torch.from_numpy(one).dtype == torch.uint8


def an_order(sizes: tuple[int, int] = (40, 25)) -> Order:
    """100 steps of 2 packs with a switch at 60: grid 3 takes 120 packs, grid 6 takes 80."""
    streams = {
        grid: Stream(7, grid, [Source(name="red", tokens=np.full(size, 9, np.int64))])
        for grid, size in zip((3, 6), (sizes[0] * 2, sizes[1] * 2), strict=True)
    }
    return Order((Phase(start=0, stop=60, grid=3), Phase(start=60, stop=100, grid=6)), streams, 2)


@pytest.mark.parametrize(
    ("start", "steps", "expected"),
    [
        (0, 10, [(0, 10, 1), (35, 45, 1), (55, 65, 1)]),
        (0, 30, [(0, 75, 3)]),
        (38, 6, [(38, 44, 2), (57, 63, 1)]),
        (70, 6, [(70, 76, 1), (82, 88, 1)]),
        (90, 30, [(90, 100, 1)]),
        (0, 1, [(0, 1, 1), (40, 41, 1), (60, 61, 1)]),
    ],
)
def test_the_steps_around_every_turn_of_the_run_are_looked_at(
    start: int, steps: int, expected: list[tuple[int, int, int]]
) -> None:
    found = windows(an_order(), ["red"], start, steps)
    assert [(one.start, one.stop, len(one.reasons)) for one in found] == expected
    told = " ".join(reason for one in found for reason in one.reasons)
    assert ("grid 3 -> 6 at step 61" in told) == (start < 60)
    if start == 0:
        assert "pass 2 of red at step 41" in told


def test_a_start_after_the_end_is_told() -> None:
    with pytest.raises(ConfigError, match="after 100 steps has nothing to replay: the run has 100"):
        windows(an_order(), ["red"], 100, 5)
