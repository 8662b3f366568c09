"""torch's fused flex kernel against the reference; deselected where there is no GPU."""

import pytest
import torch
from torch import Tensor, nn

from openqwen2vl.model.attention import packed_attention
from openqwen2vl.model.compiled import uncompiled
from openqwen2vl.model.flex import document_mask

pytestmark = pytest.mark.gpu

EDGES = [0, 100, 130, 512, 900, 1024, 1024]


def run(backend: str, dtype: torch.dtype, edges: Tensor) -> list[Tensor]:
    """Attention of two rows of 512 and the gradients of its mean square."""
    draw = torch.Generator("cuda").manual_seed(0)
    tensors = [
        torch.randn(2, heads, 512, 128, device="cuda", generator=draw)
        .to(torch.bfloat16)
        .to(dtype)
        .requires_grad_()
        for heads in (12, 2, 2)
    ]
    mixed, _ = packed_attention(
        nn.Identity(),
        *tensors,
        None,
        cu_seq_lens_q=edges,
        max_length_q=512,
        attention_backend=backend,
    )
    mixed.float().square().mean().backward()
    return [mixed.detach().float(), *(t.grad.float() for t in tensors if t.grad is not None)]


@pytest.mark.parametrize("edges", [EDGES, [0, 512, 1024]], ids=["isolated", "whole rows"])
def test_flex_equals_one_call_per_document_forward_and_backward(edges: list[int]) -> None:
    there = torch.tensor(edges, dtype=torch.int32, device="cuda")
    found = run("flex", torch.bfloat16, there), run("sdpa", torch.float32, there)
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() / other.norm() < 2e-2


def test_documents_do_not_see_each_other() -> None:
    edges = torch.tensor(EDGES, dtype=torch.int32, device="cuda")
    draw = torch.Generator("cuda").manual_seed(0)
    query, key, value = (
        torch.randn(2, h, 512, 128, device="cuda", generator=draw).bfloat16() for h in (12, 2, 2)
    )
    given = {"cu_seq_lens_q": edges, "max_length_q": 512, "attention_backend": "flex"}
    before, _ = packed_attention(nn.Identity(), query, key, value, None, **given)
    key[0, :, :100] += 1
    value[0, :, :100] -= 1
    after, _ = packed_attention(nn.Identity(), query, key, value, None, **given)
    assert not torch.equal(before[0, :100], after[0, :100])
    assert torch.equal(before[0, 100:], after[0, 100:])
    assert torch.equal(before[1], after[1])


def test_once_compiled_nothing_waits_and_other_documents_make_no_program() -> None:
    edges = torch.tensor(EDGES, dtype=torch.int32, device="cuda")
    run("flex", torch.bfloat16, edges)
    other = torch.tensor([0, 7, 300, 512, 640, 1000, 1024], dtype=torch.int32, device="cuda")
    made = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    query, key, value = (
        torch.randn(2, h, 512, 128, device="cuda", requires_grad=True, dtype=torch.bfloat16)
        for h in (12, 2, 2)
    )
    given = {"cu_seq_lens_q": other, "max_length_q": 512, "attention_backend": "flex"}
    torch.cuda.set_sync_debug_mode("error")
    try:
        mixed, _ = packed_attention(nn.Identity(), query, key, value, None, **given)
        mixed.float().square().mean().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == made


def test_a_held_out_batch_holds_no_scores() -> None:
    """Uncompiled layers still run the fused kernel: the scores of 8,192 positions were 3.2 GB."""
    edges = torch.tensor([0, 5000, 8192], dtype=torch.int32, device="cuda")
    query, key, value = (
        torch.randn(1, h, 8192, 128, device="cuda", dtype=torch.bfloat16) for h in (12, 2, 2)
    )
    mask = document_mask(edges, 1, 8192)
    given = {"cu_seq_lens_q": edges, "attention_backend": "flex", "document_mask": mask}
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.no_grad(), uncompiled():
        packed_attention(nn.Identity(), query, key, value, None, **given)
    assert torch.cuda.max_memory_allocated() - before < 2**28
