"""The CUDA kernel against the reference; deselected where there is no GPU."""

import pytest
import torch
from torch import nn

from openqwen2vl.model.attention import packed_attention

pytestmark = pytest.mark.gpu


def test_varlen_equals_one_call_per_document_forward_and_backward() -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    edges = torch.tensor([0, 100, 130, 512, 900, 1024, 1024], dtype=torch.int32, device="cuda")
    results = []
    for backend, dtype in (("varlen", torch.bfloat16), ("sdpa", torch.float32)):
        generator.manual_seed(0)
        tensors = [
            torch.randn(2, heads, 512, 128, device="cuda", generator=generator)
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
        results.append([mixed.float(), *(t.grad.float() for t in tensors)])
    for one, other in zip(*results, strict=True):
        error = (one - other).norm() / other.norm()
        assert error < 2e-2


def test_documents_do_not_see_each_other() -> None:
    draw = torch.Generator("cuda").manual_seed(0)
    edges = torch.tensor([0, 100, 130, 512, 900, 1024, 1024], dtype=torch.int32, device="cuda")
    query, key, value = (
        torch.randn(2, h, 512, 128, device="cuda", generator=draw).bfloat16() for h in (12, 2, 2)
    )
    given = {"cu_seq_lens_q": edges, "max_length_q": 512, "attention_backend": "varlen"}
    before, _ = packed_attention(nn.Identity(), query, key, value, None, **given)
    key[0, :, :100] += 1
    value[0, :, :100] -= 1
    after, _ = packed_attention(nn.Identity(), query, key, value, None, **given)
    assert not torch.equal(before[0, :100], after[0, :100])
    assert torch.equal(before[0, 100:], after[0, 100:])
    assert torch.equal(before[1], after[1])
