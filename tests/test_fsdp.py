"""Sharded runs follow the curve of one process, however their ranks are laid out."""

from pathlib import Path
from typing import cast

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy
from support.runs import PackedCorpora, rows
from support.sharded import STEPS, sharded_runs

from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.training.checkpoint import checkpoints, read_weights
from openqwen2vl.training.strategy import ShardedStrategy, fsdp

TOLERANCE = 2e-6


@pytest.fixture
def runs(corpora: PackedCorpora) -> Path:
    return sharded_runs(corpora)


def assert_follows(
    run_dir: Path, reference: Path, first: int = 1, tolerance: float = TOLERANCE
) -> None:
    """Equal up to the order in which floats are added, from a step on."""
    ours, theirs = rows(run_dir), rows(reference)[first - 1 :]
    assert [int(row["step"]) for row in ours] == list(range(first, STEPS + 1))
    for mine, other in zip(ours, theirs, strict=True):
        for key in ("lr", "tokens", "target_tokens", "images", "grid"):
            assert mine[key] == other[key]
        assert float(mine["loss"]) == pytest.approx(float(other["loss"]), rel=tolerance)
        norm = pytest.approx(float(other["grad_norm"]), rel=5 * tolerance)
        assert float(mine["grad_norm"]) == norm


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["full", "accumulated", "kept", "each", "whole", "copies", "ddp", "hybrid"]
)
def test_every_layout_follows_one_process(runs: Path, name: str) -> None:
    assert_follows(runs / name / "run", runs / "one" / "run")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["narrow", "narrow_whole", "narrow_alone"])
def test_bf16_stays_near_fp32(runs: Path, name: str) -> None:
    assert_follows(runs / name / "run", runs / "one" / "run", tolerance=2e-2)


@pytest.mark.slow
def test_two_micro_batches_give_the_gradients_of_one(runs: Path) -> None:
    whole, halves = rows(runs / "full" / "run"), rows(runs / "accumulated" / "run")
    first, second = float(whole[0]["grad_norm"]), float(halves[0]["grad_norm"])
    assert first == pytest.approx(second, rel=TOLERANCE)
    assert_follows(runs / "accumulated" / "run", runs / "full" / "run")


@pytest.mark.slow
def test_a_resumed_sharded_run_is_bitwise_the_unbroken_one(runs: Path) -> None:
    assert rows(runs / "full_on_2" / "run") == rows(runs / "full" / "run")[1:]
    ours = read_weights(checkpoints(runs / "full_on_2" / "run" / "checkpoints")[-1])
    theirs = read_weights(checkpoints(runs / "full" / "run" / "checkpoints")[-1])
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full_on_1", "full_on_4", "hybrid_on_2"])
def test_shards_resume_on_other_processes(runs: Path, name: str) -> None:
    assert_follows(runs / name / "run", runs / "one" / "run", first=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "hybrid"])
def test_shards_are_read_as_whole_weights(runs: Path, name: str) -> None:
    ours = read_weights(checkpoints(runs / name / "run" / "checkpoints")[-1])
    theirs = read_weights(checkpoints(runs / "one" / "run" / "checkpoints")[-1])
    assert ours.keys() == theirs.keys()
    for key, weight in theirs.items():
        # AdamW turns the smallest gradients' rounding into whole steps.
        torch.testing.assert_close(ours[key], weight, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"sharding": "HALF"}, "strategy.sharding is 'HALF'; expected one of"),
        ({"sync": "epoch"}, "strategy.sync is 'epoch'; expected one of"),
        ({"param_dtype": "fp8"}, "strategy.param_dtype is 'fp8'; expected one of"),
        ({"replicate": 0}, "strategy.replicate is 0; expected 1, 2, ... or nodes"),
        ({"replicate": "racks"}, "strategy.replicate is 'racks'; expected 1, 2, ... or nodes"),
        ({"sharding": "NO_SHARD", "replicate": 2}, "NO_SHARD has a copy on every rank already"),
    ],
)
def test_a_layout_that_does_not_exist_is_refused(settings: dict[str, object], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        fsdp(**settings)  # type: ignore[arg-type]
    assert fault in str(caught.value)


def laid_out(
    monkeypatch: pytest.MonkeyPatch, ranks: int, nodes: int, **settings: object
) -> tuple[str, tuple[int, int] | None]:
    """Give the sharding and the mesh's shape of a strategy set up for these ranks, unstarted."""
    shapes = []
    monkeypatch.setattr(FSDPStrategy, "setup_environment", lambda self: None)
    monkeypatch.setattr(
        "openqwen2vl.training.strategy.init_device_mesh",
        lambda device, shape, mesh_dim_names: shapes.append(shape),
    )
    strategy = cast(ShardedStrategy, fsdp(**settings))  # type: ignore[arg-type]
    assert strategy.cluster_environment is not None
    strategy.cluster_environment.set_world_size(ranks)
    strategy.num_nodes, strategy.parallel_devices = nodes, [torch.device("cpu")]
    strategy.setup_environment()
    return strategy.sharding_strategy.name, shapes[0] if shapes else None


@pytest.mark.parametrize(
    ("settings", "sharding", "shape"),
    [
        ({}, "FULL_SHARD", None),
        ({"replicate": "nodes"}, "HYBRID_SHARD", (2, 8)),
        ({"replicate": 4}, "HYBRID_SHARD", (4, 4)),
        ({"replicate": 2, "sharding": "SHARD_GRAD_OP"}, "_HYBRID_SHARD_ZERO2", (2, 8)),
        ({"sharding": "NO_SHARD"}, "NO_SHARD", None),
        ({"replicate": 16}, "NO_SHARD", None),
    ],
)
def test_copies_are_laid_out_so_that_neighbours_share_one(
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, object],
    sharding: str,
    shape: tuple[int, int] | None,
) -> None:
    assert laid_out(monkeypatch, 16, 2, **settings) == (sharding, shape)


def test_one_node_has_one_copy_and_copies_must_divide_the_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert laid_out(monkeypatch, 8, 1, replicate="nodes") == ("FULL_SHARD", None)
    with pytest.raises(ConfigError, match="replicate is 3, which does not divide the 8 ranks"):
        laid_out(monkeypatch, 8, 1, replicate=3)
