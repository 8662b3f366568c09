"""CUDA's kernels against the reference; deselected where there is no GPU."""

import pytest
import torch
from torch import Tensor, nn

from openqwen2vl.model.attention import packed_attention

pytestmark = pytest.mark.gpu

KERNELS = ("varlen", "flex")
EDGES = [0, 100, 130, 512, 900, 1024, 1024]


def run(backend: str, dtype: torch.dtype, edges: list[int]) -> list[Tensor]:
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
        cu_seq_lens_q=torch.tensor(edges, dtype=torch.int32, device="cuda"),
        max_length_q=512,
        attention_backend=backend,
    )
    mixed.float().square().mean().backward()
    return [mixed.detach().float(), *(t.grad.float() for t in tensors if t.grad is not None)]


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("edges", [EDGES, [0, 512, 1024]], ids=["isolated", "whole rows"])
def test_it_equals_one_call_per_document_forward_and_backward(
    backend: str, edges: list[int]
) -> None:
    found = run(backend, torch.bfloat16, edges), run("sdpa", torch.float32, edges)
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() / other.norm() < 2e-2


@pytest.mark.parametrize("backend", KERNELS)
def test_documents_do_not_see_each_other(backend: str) -> None:
    edges = torch.tensor(EDGES, dtype=torch.int32, device="cuda")
    draw = torch.Generator("cuda").manual_seed(0)
    query, key, value = (
        torch.randn(2, h, 512, 128, device="cuda", generator=draw).bfloat16() for h in (12, 2, 2)
    )
    given = {"cu_seq_lens_q": edges, "max_length_q": 512, "attention_backend": backend}
    before, _ = packed_attention(nn.Identity(), query, key, value, None, **given)
    key[0, :, :100] += 1
    value[0, :, :100] -= 1
    after, _ = packed_attention(nn.Identity(), query, key, value, None, **given)
    assert not torch.equal(before[0, :100], after[0, :100])
    assert torch.equal(before[0, 100:], after[0, 100:])
    assert torch.equal(before[1], after[1])
