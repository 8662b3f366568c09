import os
import signal
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.runs import PackedCorpora

from openqwen2vl.data_modules.packed import PackedDataModule
from openqwen2vl.formats.errors import CheckpointError, ConfigError
from openqwen2vl.packing.order import Phase

SIDE = 28
LOW_TO_HIGH = [{"grid": 3, "until": 0.6}, {"grid": 6, "until": 1.0}]


def module(
    corpora: PackedCorpora,
    plan: Sequence[dict[str, float]] = LOW_TO_HIGH,
    sources: Sequence[str] = ("red", "blue"),
    world: tuple[int, int] = (0, 1),
    **arguments: Any,
) -> PackedDataModule:
    """A data module over the small corpora, as a trainer of this rank holds it."""
    settings: dict[str, Any] = {
        "budget": {"steps": 5},
        "image_side": SIDE,
        "global_batch": 4,
        "micro_batch": 2,
        "num_workers": 0,
    }
    if "documents_per_step" in arguments:
        del settings["global_batch"]
    made = PackedDataModule(
        mixture={
            "sources": {n: {"packs": [str(corpora.packs(n, g)) for g in (3, 6)]} for n in sources}
        },
        resolution={"plan": list(plan)},
        **(settings | arguments),
    )
    attach(made, world)
    return made


def attach(made: PackedDataModule, world: tuple[int, int] = (0, 1), step: int = 0) -> None:
    """Put the module under a trainer that has done some steps."""
    rank, ranks = world
    made.trainer = SimpleNamespace(global_rank=rank, world_size=ranks, global_step=step)


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other[key]), key
        else:
            assert value == other[key], key


def test_loader_processes_do_not_change_the_batches(corpora: PackedCorpora) -> None:
    alone = list(module(corpora).train_dataloader())
    helped = list(module(corpora, num_workers=2).train_dataloader())
    assert len(alone) == len(helped) == 10
    for one, other in zip(alone, helped, strict=True):
        assert_equal(one, other)


def test_a_batch_says_what_it_is_part_of(corpora: PackedCorpora) -> None:
    made = module(corpora)
    batches = list(made.train_dataloader())
    assert [(b["step"], b["slot"]) for b in batches] == [(s, t) for s in range(5) for t in (0, 2)]
    assert [b["grid"] for b in batches] == [3] * 6 + [6] * 4
    for step in range(5):
        parts = [b for b in batches if b["step"] == step]
        served = [(source, turn, pack) for b in parts for source, turn, pack in b["packs"]]
        packs = made.order.packs(step)
        assert sorted(served) == sorted((k.source, k.turn, k.pack) for k in packs)
        # The divisor of the loss is the number of targets that the micro-batches really hold.
        targets = sum(len(b["target_ids"]) for b in parts)
        assert {b["global_targets"] for b in parts} == {targets}
        contents = made.contents(step)
        assert contents["tokens"] == sum(b["tokens"] for b in parts)
        assert contents["images"] == sum(len(b["images"]) for b in parts)


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_spread_of_images_is_that_of_the_batches_served(
    corpora: PackedCorpora, ranks: int
) -> None:
    made = [module(corpora, world=(rank, ranks), micro_batch=1) for rank in range(ranks)]
    served = [list(one.train_dataloader()) for one in made]
    for step in range(5):
        images = [[len(b["images"]) for b in own if b["step"] == step] for own in served]
        slowest = sum(max(turn) for turn in zip(*images, strict=True))
        fair = sum(map(sum, images)) / ranks
        assert {one.contents(step)["images_spread"] for one in made} == {slowest / fair}


def test_a_resumed_module_goes_on_where_the_unbroken_one_was(corpora: PackedCorpora) -> None:
    unbroken = list(module(corpora).train_dataloader())
    state = module(corpora)
    attach(state, step=3)
    resumed = module(corpora)
    resumed.load_state_dict(state.state_dict())
    attach(resumed, step=3)
    rest = list(resumed.train_dataloader())
    assert len(rest) == 4
    for one, other in zip(unbroken[6:], rest, strict=True):
        assert_equal(one, other)


def test_a_trainer_at_another_step_than_the_data_is_stopped(corpora: PackedCorpora) -> None:
    made = module(corpora)
    attach(made, step=3)
    with pytest.raises(CheckpointError, match="start at global batch 0, the trainer is at step 3"):
        made.train_dataloader()


@pytest.mark.parametrize(("ranks", "micro"), [(1, 1), (2, 2), (3, 4)])
def test_validation_measures_every_held_out_target_once(
    corpora: PackedCorpora, ranks: int, micro: int
) -> None:
    targets = Counter[int]()
    lengths = set()
    for rank in range(ranks):
        made = module(corpora, micro_batch=micro, global_batch=12, world=(rank, ranks))
        batches = list(made.validation_loader(3))
        lengths.add(len(batches))
        for batch in batches:
            assert batch["input_ids"].shape[0] == micro
            # A ghost row is read like any other, and asks for nothing.
            real = torch.arange(micro) < micro - batch["ghosts"]
            assert (batch["labels"][~real] == -100).all()
            targets.update(batch["sources"][batch["target_rows"]].tolist())
    assert len(lengths) == 1
    held_out = module(corpora).held_out
    assert held_out is not None
    wanted = {s: f.manifest.counts.targets for s, f in enumerate(held_out.folders[3])}
    assert targets == wanted


def test_what_the_order_is_a_function_of_is_told(corpora: PackedCorpora) -> None:
    base = module(corpora).identity()
    assert module(corpora).identity() == base
    assert module(corpora, num_workers=3, micro_batch=1, isolate=False).identity() == base
    assert module(corpora, budget={"steps": 6}).identity() == base
    for changes in ({"seed": 8}, {"global_batch": 8}, {"sources": ("blue", "red")}):
        assert module(corpora, **changes).identity() != base
    high_only = module(corpora, plan=[{"grid": 6, "until": 1.0}]).identity()
    assert high_only["manifests"].keys() == {"6"}


def test_another_seed_is_another_order(corpora: PackedCorpora) -> None:
    one, other = module(corpora, seed=1).order, module(corpora, seed=2).order
    assert [one.packs(s) for s in range(5)] != [other.packs(s) for s in range(5)]


def test_documents_per_step_become_packs_by_the_manifests_mean(corpora: PackedCorpora) -> None:
    made = module(corpora, documents_per_step=1)
    mean = made.mixture.documents_per_pack(3)
    assert made.global_batch == 1
    assert module(corpora, documents_per_step=round(3 * mean)).global_batch == 3
    # From 8 packs on, multiples of 8: eight ranks should divide it.
    assert module(corpora, documents_per_step=round(21 * mean)).global_batch == 24
    assert module(corpora, documents_per_step=round(19 * mean)).global_batch == 16


@pytest.mark.parametrize(
    "arguments", [{"global_batch": None}, {"global_batch": 4, "documents_per_step": 9}]
)
def test_the_global_batch_is_given_in_exactly_one_way(
    corpora: PackedCorpora, arguments: dict[str, int | None]
) -> None:
    with pytest.raises(ConfigError, match="give exactly one of them"):
        PackedDataModule(
            mixture={"sources": {"red": {"packs": str(corpora.packs("red", 3))}}},
            resolution={"plan": [{"grid": 3, "until": 1.0}]},
            budget={},
            **arguments,
        )


@pytest.mark.parametrize(
    ("world", "micro", "message"),
    [
        ((0, 3), 1, r"global_batch is 4 packs, but 3 rank\(s\) .* nearest: 3 or 6"),
        ((0, 2), 3, r"take 6 at a time; nearest: 6$"),
    ],
)
def test_a_batch_that_ranks_do_not_divide_names_the_nearest(
    corpora: PackedCorpora, world: tuple[int, int], micro: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        module(corpora, micro_batch=micro, world=world).train_dataloader()


@pytest.mark.parametrize(
    ("key", "value"), [("num_workers", -1), ("prefetch_factor", 0), ("micro_batch", 0)]
)
def test_loader_settings_that_no_loader_could_have_are_refused(
    corpora: PackedCorpora, key: str, value: int
) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{key} (is )?{value}\b"):
        module(corpora, **{key: value})


def test_a_resumed_run_keeps_the_switch_where_it_was(corpora: PackedCorpora) -> None:
    longer = module(corpora, budget={"steps": 10})
    assert longer.order.phases[0].stop == 6
    longer.keep_phases(module(corpora).order.phases)
    assert longer.order.phases == (
        Phase(start=0, stop=3, grid=3),
        Phase(start=3, stop=10, grid=6),
    )


def test_held_out_documents_ask_for_what_their_answers_say(corpora: PackedCorpora) -> None:
    made = module(corpora, sources=("red", "text"))
    assert made.held_out_documents(0, 3) == []
    found = made.held_out_documents(3, 3)
    assert len(found) == 3
    spec = made.mixture.folders[3][0].manifest.spec
    for document in found:
        assert document["prompt"].count(spec.special.image) == len(document["images"])
        assert document["images"].shape[1:] == (SIDE, SIDE, 3)
        assert document["answer"]
        assert document["tokenizer_hash"] == spec.tokenizer_hash
    everything = made.held_out_documents(10**6, 3)
    assert [d["uid"] for d in everything[:3]] == [d["uid"] for d in found]
    assert any(d["images"].shape[0] == 0 for d in everything)


def test_loader_processes_share_the_index_and_outlive_signals_to_the_group(
    corpora: PackedCorpora,
) -> None:
    loader = module(corpora, num_workers=1, prefetch_factor=1).train_dataloader()
    batches = iter(loader)
    try:
        next(batches)
        (worker,) = batches._workers
        assert type(worker).__name__ == "ForkProcess"
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(worker.pid, number)
        assert len(list(batches)) == len(loader) - 1
    finally:
        batches._shutdown_workers()


def test_loaders_need_the_towers_image_side(corpora: PackedCorpora) -> None:
    with pytest.raises(RuntimeError, match="set image_side"):
        module(corpora, image_side=None).train_dataloader()


def test_without_held_out_packs_there_is_no_validation(
    corpora: PackedCorpora, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = module(corpora)
    monkeypatch.setattr(made, "held_out", None)
    assert made.validation_loader(3) is None
    assert made.val_dataloader() == []
    assert made.validation_names() == []
    assert made.held_out_documents(4, 3) == []
