"""Arithmetic of plans: work that is executed, described data, hours."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.batches import lay_out, random_document, random_images
from support.models import tiny_mllm
from torch.utils.flop_counter import FlopCounterMode

from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.packing.budget import Budget, GridPhase
from openqwen2vl.training.activations import MemorySpec
from openqwen2vl.training.described import (
    Described,
    described_disk,
    described_loads,
    packs_per_step,
)
from openqwen2vl.training.flops import (
    FlopSpec,
    Work,
    attention_pairs,
    executed_flops,
    forward_flops,
    model_flops,
    strict_flops,
)
from openqwen2vl.training.loss import target_losses
from openqwen2vl.training.planning import Hardware, checkpoint_bytes, device_hours, run_flops

LOW = [GridPhase(grid=12, until=1.0)]
TWO = [GridPhase(grid=12, until=0.75), GridPhase(grid=27, until=1.0)]


def described(**changes: float | None) -> Described:
    values: dict[str, float | None] = {
        "tokens": 5e9,
        "images": 29e6,
        "documents": None,
        "context": 4096,
        "fill": 0.98,
        "target_share": 1.0,
        "image_bytes": 93_000,
    }
    return Described(**(values | changes))  # type: ignore[arg-type]


def _nothing(*args: object, **options: object) -> int:
    return 0


@pytest.mark.parametrize("checkpointing", ["none", "mlp", "full"])
@pytest.mark.parametrize(("context", "targets"), [(40, 10), (120, 100)])
def test_executed_flops_are_those_that_torch_counts(
    context: int, targets: int, checkpointing: str
) -> None:
    model = tiny_mllm(trainable_tower=False)
    model.set_checkpointing(checkpointing)
    batch = lay_out([[random_document(context - 18, 0, 2)]], random_images(2), context)
    kernels = torch.ops.aten
    # Its versions count attention on a CPU differently or not at all; ours is a formula.
    attention = {
        kernels._scaled_dot_product_flash_attention_for_cpu: _nothing,
        kernels._scaled_dot_product_flash_attention_for_cpu_backward: _nothing,
    }
    rows = torch.arange(targets)
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        hidden = model(**batch, read_positions=rows)
        target_losses(hidden, rows, model.head_weight).sum().backward()
    spec = FlopSpec.of(model)
    work = Work(tokens=context, pairs=0, targets=targets, images=2, visual_tokens=18)
    tower_attention = 2 * 2 * 2 * 36**2 * model.vision.width * len(model.vision.model.blocks)
    told = executed_flops(spec, work, checkpointing) - tower_attention
    assert told == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_the_convention_counts_rows_that_nobody_reads() -> None:
    spec = FlopSpec.of(tiny_mllm())
    work = Work(tokens=100, pairs=500, targets=30, images=2, visual_tokens=18)
    usual, strict = model_flops(spec, work), strict_flops(spec, work)
    assert usual["llm_linear"] - strict["llm_linear"] == 2 * 3 * spec.llm_last_forward * 70
    assert forward_flops(spec, work)["llm_linear"] * 3 == usual["llm_linear"]
    assert {**usual, "llm_linear": 0, "total": 0} == {**strict, "llm_linear": 0, "total": 0}


@given(
    text=st.floats(2, 500),
    images=st.integers(10**5, 10**8),
    plan=st.sampled_from([LOW, TWO]),
    isolate=st.booleans(),
)
@example(text=398.0625, images=100_000, plan=[GridPhase(grid=12, until=1.0)], isolate=False)
@settings(max_examples=40, deadline=None)
def test_described_data_is_served_once_a_pass(
    text: float, images: int, plan: list[GridPhase], isolate: bool
) -> None:
    tokens = images * (text + 144) if plan is LOW else images * (text + 729)
    data = described(tokens=tokens, images=images)
    loads = described_loads(data, plan, Budget(), 64, isolate)
    # The last global batch is filled up.
    spare = 64 * 4096 * len(plan)
    assert tokens - 1e-6 * tokens <= sum(load.work.tokens for load in loads) <= tokens + spare
    assert sum(load.images for load in loads) == pytest.approx(images, rel=0.02, abs=2000)
    for load in loads:
        assert load.work.visual_tokens == load.images * load.grid**2
        assert load.work.targets < load.work.tokens - load.work.visual_tokens + 2
        longest = attention_pairs([round(4096 * 0.98)]) * load.packs
        assert load.work.pairs <= longest * 1.01
        assert isolate or load.work.pairs == longest


def test_a_budget_bounds_described_data() -> None:
    (load,) = described_loads(described(), LOW, Budget(steps=100), 256, True)
    assert (load.steps, load.packs) == (100, 25_600)
    (twice,) = described_loads(described(), LOW, Budget(passes=2), 256, True)
    (once,) = described_loads(described(), LOW, Budget(), 256, True)
    assert twice.work.tokens == pytest.approx(2 * once.work.tokens, rel=1e-3)


def test_text_without_images_fills_packs() -> None:
    (load,) = described_loads(described(images=0), LOW, Budget(), 256, True)
    assert (load.images, load.work.visual_tokens) == (0, 0)
    assert load.work.tokens == pytest.approx(5e9, rel=1e-3)


def test_documents_a_step_become_packs_as_in_fine_tuning() -> None:
    # 128 conversations of 1003.5 tokens are 32 packs of 4014.
    data = described(tokens=1e6 * 4096 * 0.98 / 4, images=1e6)
    assert packs_per_step(data, [GridPhase(grid=27, until=1.0)], 128) == 32


def test_images_that_do_not_fit_into_the_tokens_are_refused() -> None:
    with pytest.raises(ConfigError, match="more than the 5,000,000,000 tokens"):
        described_loads(described(images=4e7), LOW, Budget(), 256, True)


def test_hours_are_work_over_speed() -> None:
    hardware = Hardware(
        name="X",
        kind="gpu",
        peak_tflops=100,
        memory_gib=1,
        reserve_gib=0,
        devices=1,
        mfu=0.5,
        spread=0.2,
    )
    assert device_hours(50e12 * 3600, hardware) == pytest.approx((0.8, 1.0, 1.2))


def test_parts_of_a_run_add_up() -> None:
    spec = FlopSpec.of(tiny_mllm())
    loads = described_loads(described(tokens=1.5e10), TWO, Budget(steps=8), 16, True)
    found = run_flops(spec, loads)
    assert found["total"] == sum(model_flops(spec, load.work)["total"] for load in loads)


def test_disk_grows_with_images_and_kept_checkpoints() -> None:
    spec = MemorySpec.of(tiny_mllm(trainable_tower=False))
    disk = described_disk(described(), LOW, spec, keep=2)
    assert disk.checkpoint == checkpoint_bytes(spec) == 12 * spec.trainable
    assert disk.checkpoints == 3 * disk.checkpoint
    assert disk.packed == pytest.approx(2.7e12, rel=0.02)  # 29M images of 93 KB
    assert disk.raw > disk.packed
