"""Compiled layers: the same numbers, a handful of programs, none of them made in mid-run."""

import random
from typing import Any

import pytest
import torch
from support.batches import IMAGE_ID, lay_out, random_document, random_images
from support.models import tiny_mllm
from torch import Tensor

from openqwen2vl.model import attention
from openqwen2vl.model.attention_op import by_document, by_document_op
from openqwen2vl.model.compiled import programs
from openqwen2vl.model.mllm import MLLM

CONTEXT = 96
BOUNDARIES = 24
# Traces and differentiates as the real one does, and generates no machine code: seconds, not minutes.
TRACED = "aot_eager"


@pytest.fixture(autouse=True)
def _afresh() -> Any:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    hooks = torch._dynamo.config.skip_nnmodule_hook_guards
    ddp = torch._dynamo.config.optimize_ddp
    yield
    torch._dynamo.config.skip_nnmodule_hook_guards = hooks
    torch._dynamo.config.optimize_ddp = ddp
    torch._dynamo.reset()


def packing(seed: int, images: int | None = None) -> dict[str, Any]:
    """Two rows of documents as different as batches are: lengths, images, targets."""
    draw = random.Random(seed)
    left = draw.choice([1, 2, 3, 5]) if images is None else images
    count, rows = left, []
    for row in range(2):
        documents, room = [], CONTEXT
        while room > 30 and len(documents) < 8:
            own = min(left, 1) if row == 0 else left
            documents.append(random_document(draw.randint(3, 12), seed + len(documents), own))
            left -= own
            room -= len(documents[-1]) + 8 * own
        rows.append(documents)
    assert left == 0
    batch: dict[str, Any] = dict(lay_out(rows, random_images(count, seed=seed), CONTEXT))
    edges = batch["cu_seqlens"]
    batch["cu_seqlens"] = torch.cat([edges, edges[-1:].expand(BOUNDARIES - len(edges))])
    text = (batch["input_ids"].flatten() != IMAGE_ID).nonzero()[:, 0]
    batch["read_positions"] = text[: draw.randint(5, 40)]
    return batch


def step(model: MLLM, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    rows = model(**batch)
    weights = torch.linspace(0.5, 2, rows.numel()).view_as(rows)
    (rows * weights).sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return rows.detach(), found


@pytest.mark.parametrize("checkpointing", ["none", "mlp", "full"])
def test_rows_and_gradients_are_those_of_the_uncompiled_model(checkpointing: str) -> None:
    plain, compiled = tiny_mllm().train(), tiny_mllm().train()
    compiled.set_checkpointing(checkpointing)
    compiled.compile(TRACED)
    for seed in (0, 1):
        rows, gradients = step(plain, packing(seed))
        there, theirs = step(compiled, packing(seed))
        torch.testing.assert_close(there, rows, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(theirs, gradients, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_machine_code_gives_the_same_rows() -> None:
    plain, compiled = tiny_mllm().train(), tiny_mllm().train()
    compiled.compile()
    rows, gradients = step(plain, packing(0))
    there, theirs = step(compiled, packing(0))
    torch.testing.assert_close(there, rows, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(theirs, gradients, rtol=1e-2, atol=1e-3)


def test_fifty_packings_after_the_first_make_no_program() -> None:
    model = tiny_mllm().train()
    model.compile(TRACED)
    before = programs()
    step(model, packing(0, images=1))
    made = programs()
    # One for tower blocks, one for decoder layers, one for the last, which leaves rows out.
    assert made - before == 3
    for seed in range(1, 51):
        step(model, packing(seed))
    step(model, packing(51, images=0))
    assert programs() == made
    assert not torch._dynamo.utils.counters["graph_break"]


def test_the_last_layer_still_leaves_rows_out() -> None:
    model = tiny_mllm().train()
    model.compile(TRACED)
    batch = packing(0)
    seen = []
    model.decoder_layers[-1].mlp.down_proj.register_forward_hook(
        lambda *call: seen.append(call[2].shape[1])
    )
    model(**batch)
    assert seen == [len(batch["read_positions"])]


def test_documents_do_not_see_each_other_in_compiled_layers() -> None:
    model = tiny_mllm().train()
    model.compile(TRACED)
    batch = packing(3)
    del batch["read_positions"]
    rows = model(**batch).flatten(0, 1)
    first, second = batch["cu_seqlens"][1:3].tolist()
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    text = changed["input_ids"].flatten()
    text[first - 1] = (text[first - 1] + 1) % 200 + 5
    other = model(**changed).flatten(0, 1)
    assert not torch.equal(rows[first - 1], other[first - 1])
    torch.testing.assert_close(rows[first:], other[first:], rtol=0, atol=0)
    assert second > first


def test_answers_run_uncompiled() -> None:
    model = tiny_mllm()
    prompts = [[5, 6, IMAGE_ID, 7], [8, 9]]
    expected = model.generate(prompts, random_images(1), IMAGE_ID, 0, [1], 6)
    model.compile(TRACED)
    before = programs()
    assert model.generate(prompts, random_images(1), IMAGE_ID, 0, [1], 6) == expected
    # The tower's blocks compile for any number of pictures; no layer for any length.
    assert programs() == before


def test_weights_keep_their_names() -> None:
    model = tiny_mllm()
    before = list(model.state_dict())
    model.compile(TRACED)
    model.set_checkpointing("mlp")
    assert list(model.state_dict()) == before


@pytest.mark.parametrize("scaling", [None, 0.3])
def test_the_operator_has_the_gradients_of_the_loop(scaling: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 4, 20, 8), (2, 2, 20, 8), (2, 2, 20, 8))
    edges = torch.tensor([0, 1, 9, 20, 26, 40, 40], dtype=torch.int32)
    results = []
    for function in (by_document, by_document_op):
        generator.manual_seed(0)
        inputs = [
            torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
            for shape in shapes
        ]
        mixed = function(*inputs, edges, scaling)
        weights = torch.linspace(-1, 2, mixed.numel(), dtype=torch.float64).view_as(mixed)
        results.append([mixed, *torch.autograd.grad((mixed * weights).sum(), inputs)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_the_operator_keeps_the_rules_of_operators() -> None:
    shapes = ((1, 4, 6, 8), (1, 2, 6, 8), (1, 2, 6, 8))
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    edges = torch.tensor([0, 2, 6], dtype=torch.int32)
    torch.library.opcheck(by_document_op, (*inputs, edges, None))


def test_uncompiled_attention_does_not_pass_through_the_operator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*inputs: object) -> Tensor:
        raise AssertionError

    monkeypatch.setattr(attention, "by_document_op", refuse)
    tiny_mllm()(**packing(0))
