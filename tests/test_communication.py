"""The formula for bytes on the wire equals what real runs send."""

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.runs import PackedCorpora
from support.sharded import sharded_runs
from transformers import Qwen2Config, Qwen2ForCausalLM

from openqwen2vl.model.projector import AvgPoolProjector
from openqwen2vl.release.trained import load_model
from openqwen2vl.training.communication import (
    Cluster,
    Layout,
    Traffic,
    Unit,
    efficiency,
    seconds,
    step_traffic,
    units_of,
)

WIRES = Cluster(per_node=8, node_bandwidth=2e11, network_bandwidth=2e10, hop_seconds=1e-6)
# Name of a run, its layout, the micro-batches that each rank accumulates.
COUNTED = [
    ("full", Layout(sharding="FULL_SHARD", ranks=2, param_bytes=4), 1),
    ("accumulated", Layout(sharding="FULL_SHARD", ranks=2, param_bytes=4), 2),
    ("kept", Layout(sharding="SHARD_GRAD_OP", ranks=2, param_bytes=4), 2),
    ("each", Layout(sharding="FULL_SHARD", ranks=2, param_bytes=4, sync="micro_batch"), 2),
    ("frozen", Layout(sharding="FULL_SHARD", ranks=2, param_bytes=4), 2),
    ("hybrid", Layout(sharding="FULL_SHARD", ranks=4, replicate=2, param_bytes=4), 1),
    ("hybrid_kept", Layout(sharding="SHARD_GRAD_OP", ranks=4, replicate=2, param_bytes=4), 2),
]


@pytest.fixture
def runs(corpora: PackedCorpora) -> Path:
    return sharded_runs(corpora)


def units_of_run(run_dir: Path) -> list[Unit]:
    """Build a run's model again, as its checkpoint describes it."""
    model, _ = load_model(run_dir)
    config = json.loads((run_dir / "config.json").read_text())
    trains = config["trainable"]
    model.freeze(projector=not trains["projector"], llm=not trains["llm"])
    return units_of(model)


def counted(folder: Path, ranks: int) -> dict[str, dict[str, int]]:
    """Read what every rank counted, which must be the same."""
    found = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(ranks)]
    assert all(one == found[0] for one in found)
    return dict(found[0])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layout", "turns"), COUNTED, ids=[c[0] for c in COUNTED])
def test_the_formula_equals_the_counted_bytes(
    runs: Path, name: str, layout: Layout, turns: int
) -> None:
    expected = step_traffic(units_of_run(runs / name / "run"), layout, turns)
    found = counted(runs / name, layout.ranks)
    large = {kind: calls for kind, calls in found["calls"].items() if "small" not in kind}
    assert large == {one.kind: one.calls for one in expected}
    assert {kind: found["bytes"][kind] for kind in large} == {
        one.kind: one.payload for one in expected
    }


@pytest.mark.slow
def test_ddp_sends_what_unsharded_fsdp_would(runs: Path) -> None:
    layout = Layout(sharding="NO_SHARD", ranks=2, param_bytes=4)
    (expected,) = step_traffic(units_of_run(runs / "ddp" / "run"), layout, 2)
    found = counted(runs / "ddp", 2)
    assert found["bytes"]["all_reduce"] == expected.payload


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "accumulated", "each", "hybrid"])
def test_besides_weights_and_gradients_only_a_few_numbers_are_sent(runs: Path, name: str) -> None:
    found = counted(runs / name, 2)
    small = sum(size for kind, size in found["bytes"].items() if "small" in kind)
    assert small < 1024
    # Per step, not per micro-batch: these wait for one another.
    assert sum(calls for kind, calls in found["calls"].items() if "small" in kind) <= 12


sizes = st.lists(st.integers(1, 10**6), min_size=2, max_size=6)


@given(sizes, st.sampled_from([2, 4, 8]), st.integers(1, 6))
def test_the_closed_forms_hold(parameters: list[int], ranks: int, turns: int) -> None:
    # Multiples of the ranks, so that no padding blurs the comparison.
    units = [Unit(n * ranks, root=i == 0) for i, n in enumerate(parameters)]
    p, share = sum(unit.parameters for unit in units), (ranks - 1) / ranks

    def sent(**changes: object) -> dict[str, float]:
        layout = Layout(**({"sharding": "FULL_SHARD", "ranks": ranks} | changes))  # type: ignore[arg-type]
        return {one.kind: one.sent for one in step_traffic(units, layout, turns)}

    gather, reduce = 2 * p * share, 4 * p * share
    root = 2 * units[0].parameters * share
    full = sent()
    assert full["all_gather"] == pytest.approx(turns * (2 * gather - root))
    assert full["reduce_scatter"] == pytest.approx(reduce)
    assert sent(sync="micro_batch")["reduce_scatter"] == pytest.approx(turns * reduce)
    kept = sent(sharding="SHARD_GRAD_OP")
    assert kept == pytest.approx({"all_gather": gather, "reduce_scatter": reduce})
    assert sent(sharding="NO_SHARD") == pytest.approx({"all_reduce": 2 * reduce})


def test_copies_send_their_shards_and_one_rank_sends_nothing() -> None:
    units = [Unit(64, root=True), Unit(128), Unit(32, trains=False)]
    assert step_traffic(units, Layout(sharding="FULL_SHARD", ranks=1), 3) == []
    found = step_traffic(units, Layout(sharding="FULL_SHARD", ranks=16, replicate=2), 1)
    assert found == [
        Traffic("all_gather", group=8, span=8, calls=5, payload=2 * (64 + 2 * 160)),
        Traffic("reduce_scatter", group=8, span=8, calls=2, payload=4 * 192),
        Traffic("all_reduce", group=2, span=16, calls=2, payload=4 * 192 // 8),
    ]


def test_a_group_within_a_node_uses_its_wires() -> None:
    near = Traffic("all_gather", group=8, span=8, calls=3, payload=8 * 10**9)
    far = Traffic("all_gather", group=8, span=9, calls=3, payload=8 * 10**9)
    assert seconds([near], WIRES) == pytest.approx(7e9 / 2e11 + 21e-6)
    assert seconds([far], WIRES) == pytest.approx(7e9 / 2e10 + 21e-6)
    both = Traffic("all_reduce", group=2, span=16, calls=1, payload=10**9)
    assert seconds([both], WIRES) == pytest.approx(1e9 / 2e10 + 2e-6)


def test_efficiency_falls_when_communication_outgrows_the_computing_it_hides_behind() -> None:
    assert efficiency(1.0, 0.0) == 1
    assert efficiency(1.0, 0.5) == pytest.approx(1 / 1.01)
    assert efficiency(1.0, 1.9) == pytest.approx(1 / (1 + 1.0 + 0.038))


def test_the_pages_table_is_the_benchs(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[1]
    monkeypatch.syspath_prepend(root / "bench")
    scaling = import_module("scaling")
    lines = (root / "docs" / "scaling.md").read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines]
    at = rows.index(list(scaling.HEADER))
    found = rows[at + 2 : at + 2 + len(scaling.RANKS)]
    assert found == [scaling.row(scaling.predict(ranks)) for ranks in scaling.RANKS]


def test_the_benchs_units_are_the_2b_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "bench")
    root, *layers = import_module("scaling").UNITS
    sizes = Qwen2Config(
        vocab_size=151_936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        llm = Qwen2ForCausalLM(sizes)
        projector = AvgPoolProjector(vision_width=1152, llm_width=1536, grid=12)
    (size,) = {sum(p.numel() for p in layer.parameters()) for layer in llm.model.layers}
    assert layers == [Unit(size)] * 28
    total = sum(p.numel() for part in (llm, projector) for p in part.parameters())
    assert root == Unit(total - 28 * size, root=True)
