"""Flex attention over packs: the mask's blocks, parity, isolation, programs, and no waiting.

torch refuses gradients of it on a CPU, though its reference has them: the tests that want them take
that refusal away and run the reference. The fused kernel is tried in tests/gpu.
"""

import warnings
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.batches import lay_out, random_document, random_images
from support.models import tiny_mllm
from torch import Tensor, nn
from torch.nn.attention import flex_attention as torchs

from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.model import attention, flex
from openqwen2vl.model.attention import choose_backend, layer_arguments, packed_attention
from openqwen2vl.model.compiled import programs, uncompiled
from openqwen2vl.model.flex import BLOCK, document_mask, document_numbers
from openqwen2vl.model.mllm import MLLM

CONTEXT = 160  # one block and a part of a second


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    hooks = torch._dynamo.config.skip_nnmodule_hook_guards
    ddp = torch._dynamo.config.optimize_ddp
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        yield
    torch._dynamo.config.skip_nnmodule_hook_guards = hooks
    torch._dynamo.config.optimize_ddp = ddp
    torch._dynamo.reset()


@pytest.fixture
def trains_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchs, "_validate_device", lambda *tensors: None)
    monkeypatch.setattr(attention, "refuse_flex", lambda device, trains: None)


def boundaries(rows: int, length: int, cuts: list[int]) -> Tensor:
    """Bounds of every row and of documents, and a tail that repeats the last."""
    edges = {*range(0, rows * length + 1, length), *(cut % (rows * length) for cut in cuts)}
    return torch.tensor([*sorted(edges), *[rows * length] * 3], dtype=torch.int32)


def dense(edges: Tensor, rows: int, length: int) -> Tensor:
    """The mask by its definition, bool (B, T, T)."""
    flat = torch.zeros(rows * length, dtype=torch.int64)
    for number, (start, stop) in enumerate(pairwise(edges.tolist())):
        flat[start:stop] = number
    owner = flat.view(rows, length)
    return (owner[:, :, None] == owner[:, None, :]) & torch.ones(length, length).tril().bool()


@given(
    rows=st.integers(1, 3),
    length=st.sampled_from([1, 7, 127, 128, 129, 256, 300, 500]),
    cuts=st.lists(st.integers(0, 1500), max_size=12),
)
@settings(max_examples=40, deadline=None)
def test_blocks_are_those_that_every_position_gives(
    rows: int, length: int, cuts: list[int]
) -> None:
    edges = boundaries(rows, length, cuts)
    mask = document_mask(edges, rows, length)
    count = -(-length // BLOCK)
    room = count * BLOCK
    padded = torch.zeros(rows, room, room, dtype=torch.bool)
    padded[:, :length, :length] = dense(edges, rows, length)
    tiles = padded.view(rows, count, BLOCK, count, BLOCK).transpose(2, 3)
    some, all_of_it = tiles.any(-1).any(-1), tiles.all(-1).all(-1)
    assert torch.equal(_listed(mask.kv_num_blocks, mask.kv_indices), some & ~all_of_it)
    assert torch.equal(_listed(mask.full_kv_num_blocks, mask.full_kv_indices), all_of_it)
    backwards = _listed(mask.q_num_blocks, mask.q_indices)
    assert torch.equal(backwards, (some & ~all_of_it).transpose(1, 2))
    at = torch.arange(length)
    for row in range(rows):
        seen = mask.mask_mod(torch.tensor(row), torch.tensor(0), at[:, None], at[None])
        assert torch.equal(seen, dense(edges, rows, length)[row])


def _listed(counts: Any, indices: Any) -> Tensor:
    """Bool (B, C, C) of the blocks that a mask lists."""
    chosen = torch.arange(indices.shape[-1]) < counts[:, 0, :, None]
    table = torch.zeros_like(chosen)
    return table.scatter(2, indices[:, 0].long(), chosen)


def test_shapes_depend_on_rows_and_length_alone() -> None:
    shapes = {
        tuple(
            tuple(t.shape)
            for t in document_mask(boundaries(2, 300, cuts), 2, 300).as_tuple()
            if isinstance(t, Tensor)
        )
        for cuts in ([], [5], [5, 200, 299, 301, 450])
    }
    assert len(shapes) == 1


def test_a_mask_is_made_without_reading_a_value() -> None:
    """On the meta device a tensor has no values, so whatever waits for one fails here."""
    edges = torch.empty(9, dtype=torch.int32, device="meta")
    assert document_mask(edges, 2, 300).kv_indices.shape == (2, 1, 3, 3)
    assert document_numbers(edges, 2, 300).shape == (2, 300)


def queries(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, heads, 300, 8, generator=draw, dtype=dtype).requires_grad_()
        for heads in (4, 2, 2)
    ]


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("cuts", [[50, 130, 420], []], ids=["isolated", "whole rows"])
@pytest.mark.usefixtures("trains_on_cpu")
def test_values_and_gradients_are_those_of_one_call_per_document(
    scaling: float | None, cuts: list[int]
) -> None:
    edges = boundaries(2, 300, cuts)
    found = []
    for backend in ("flex", "sdpa"):
        inputs = queries(torch.float64)
        mixed, _ = packed_attention(
            nn.Identity(), *inputs, None, scaling, cu_seq_lens_q=edges, attention_backend=backend
        )
        weights = torch.linspace(-1, 2, mixed.numel(), dtype=torch.float64).view_as(mixed)
        found.append([mixed.detach(), *torch.autograd.grad((mixed * weights).sum(), inputs)])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)


def test_queries_lifted_by_autocast_come_back_to_the_values_dtype() -> None:
    query, key, value = (t.detach() for t in queries())
    edges = boundaries(2, 300, [50])
    with torch.no_grad():
        mixed, _ = packed_attention(
            nn.Identity(), query, key, value.bfloat16(), None,
            cu_seq_lens_q=edges, attention_backend="flex",
        )  # fmt: skip
    assert (mixed.shape, mixed.dtype) == ((2, 300, 4, 8), torch.bfloat16)


def test_gradients_on_a_cpu_are_refused_and_held_out_losses_are_not() -> None:
    cpu = torch.device("cpu")
    with pytest.raises(ConfigError, match="attention=flex cannot train on a CPU"):
        choose_backend("flex", cpu, torch.float32)
    with torch.no_grad():
        assert choose_backend("flex", cpu, torch.float32) == "flex"
    assert choose_backend("flex", torch.device("cuda"), torch.float32) == "flex"


def test_a_model_that_trains_on_a_cpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose attention=auto, or train on a GPU"):
        model(attends="flex").train()(**packing(0))


def model(attends: str) -> MLLM:
    made = tiny_mllm()
    made.attention = attends
    return made


def packing(seed: int) -> dict[str, Any]:
    rows = [
        [random_document(20 + 3 * seed, 0, 1), random_document(30, 1 + seed)],
        [random_document(9, 2), random_document(80 - seed, 3), random_document(20, 4, 1)],
    ]
    batch: dict[str, Any] = dict(lay_out(rows, random_images(2, seed=seed), CONTEXT))
    return batch


def test_the_models_rows_are_those_of_the_reference() -> None:
    with torch.no_grad():
        ours, theirs = (model(name).eval()(**packing(0)) for name in ("flex", "sdpa"))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_one_mask_serves_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    plain = flex.document_mask
    monkeypatch.setattr(attention, "document_mask", lambda *a: made.append(1) or plain(*a))
    with torch.no_grad():
        model("flex").eval()(**packing(0))
    assert made == [1]
    embeddings = torch.zeros(2, CONTEXT, 64)
    assert "document_mask" not in layer_arguments("auto", embeddings, packing(0)["cu_seqlens"], 9)


@pytest.mark.parametrize(
    ("attends", "compiled"),
    [("flex", False), ("sdpa", False), pytest.param("flex", True, marks=pytest.mark.slow)],
)
def test_documents_do_not_see_each_other(attends: str, compiled: bool) -> None:
    one = model(attends).eval()
    if compiled:
        one.compile("aot_eager")
    batch = packing(3)
    first = int(batch["cu_seqlens"][1])
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"].flatten()[first - 1] += 1
    with torch.no_grad():
        rows, other = (one(**inputs).flatten(0, 1) for inputs in (batch, changed))
    assert not torch.equal(rows[first - 1], other[first - 1])
    torch.testing.assert_close(rows[first:], other[first:], rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.usefixtures("trains_on_cpu")
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_compiled_layers_train_alike_and_are_kept_from_packing_to_packing(
    checkpointing: str,
) -> None:
    plain, compiled = model("sdpa").train(), model("flex").train()
    compiled.set_checkpointing(checkpointing)
    compiled.compile("aot_eager")
    made = 0
    for seed in range(4):
        gradients = []
        for one in (plain, compiled):
            rows = one(**packing(seed))
            rows.square().mean().backward()
            gradients.append([p.grad.clone() for p in one.parameters() if p.grad is not None])
            one.zero_grad()
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)
        made = made or programs()
    assert programs() == made


def test_held_out_losses_run_uncompiled() -> None:
    one = model("flex").eval()
    with torch.no_grad():
        expected = one(**packing(0))
        one.compile("aot_eager")
        before = programs()
        with uncompiled():
            found = one(**packing(0))
    assert programs() == before
    torch.testing.assert_close(found, expected)


def test_the_fused_kernel_leaves_the_uncompiled_stance(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where the reference would hold all scores of a held-out batch."""
    ran: list[str] = []

    def program(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        ran.append(str(torch._dynamo.eval_frame._stance.stance))
        return query

    monkeypatch.setattr(flex, "_fused", lambda: program)
    inputs = [torch.empty(2, heads, 300, 8, device="meta") for heads in (4, 2, 2)]
    mask = document_mask(torch.empty(5, dtype=torch.int32, device="meta"), 2, 300)
    with uncompiled():
        assert flex.flex(*inputs, mask, None).shape == (2, 300, 4, 8)
    assert ran == ["default"]
