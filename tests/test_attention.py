"""Attention over packs: exact per document, and loud where it would be silently wrong."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.model import attention
from openqwen2vl.model.attention import choose_backend, packed_attention


def queries(rows: int = 2, length: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (rows, 4, length, 8)
    query = torch.randn(shape, generator=generator, requires_grad=True)
    key, value = (torch.randn(rows, 2, length, 8, generator=generator) for _ in range(2))
    return query, key, value


def test_it_equals_attention_under_a_block_mask() -> None:
    query, key, value = queries()
    edges = torch.tensor([0, 5, 12, 14, 24, 24, 24], dtype=torch.int32)
    ours, _ = packed_attention(nn.Identity(), query, key, value, None, cu_seq_lens_q=edges)
    owner = torch.tensor([[0] * 5 + [1] * 7, [2] * 2 + [3] * 10])
    same = owner[:, :, None] == owner[:, None, :]
    mask = (same & torch.ones(12, 12, dtype=torch.bool).tril())[:, None]
    theirs = scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(ours, theirs.transpose(1, 2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("edges", [[0, 5], [1, 24], [0, 30]])
def test_boundaries_that_do_not_cover_the_batch_are_refused(edges: list[int]) -> None:
    query, key, value = queries()
    boundaries = torch.tensor(edges, dtype=torch.int32)
    with pytest.raises(ValueError, match="must run from 0 to 24"):
        packed_attention(nn.Identity(), query, key, value, None, cu_seq_lens_q=boundaries)


def test_a_mask_or_missing_boundaries_are_refused() -> None:
    query, key, value = queries()
    with pytest.raises(ValueError, match="no cu_seq_lens_q or got a mask"):
        packed_attention(nn.Identity(), query, key, value, None)
    edges = torch.tensor([0, 24], dtype=torch.int32)
    mask = torch.ones(12, 12)
    with pytest.raises(ValueError, match="got a mask"):
        packed_attention(nn.Identity(), query, key, value, mask, cu_seq_lens_q=edges)


def test_what_a_model_asks_for_and_does_not_get_is_told() -> None:
    query, key, value = queries(rows=1)
    edges = torch.tensor([0, 12], dtype=torch.int32)
    with pytest.raises(ValueError, match="sliding window of 4"):
        packed_attention(
            nn.Identity(), query, key, value, None, cu_seq_lens_q=edges, sliding_window=4
        )
    with pytest.raises(ValueError, match="dropout"):
        packed_attention(nn.Identity(), query, key, value, None, dropout=0.1, cu_seq_lens_q=edges)


def test_backends_are_chosen_by_the_device() -> None:
    cpu = torch.device("cpu")
    assert choose_backend("auto", cpu, torch.float32) == "sdpa"
    assert choose_backend("sdpa", cpu, torch.bfloat16) == "sdpa"
    with pytest.raises(ConfigError, match="needs a CUDA device"):
        choose_backend("varlen", cpu, torch.bfloat16)
    with pytest.raises(ConfigError, match="choose one of"):
        choose_backend("flash", cpu, torch.bfloat16)


@pytest.mark.parametrize("groups_heads", [True, False])
def test_the_cuda_kernel_is_fed_without_reading_the_boundaries(
    monkeypatch: pytest.MonkeyPatch, groups_heads: bool
) -> None:
    """On the meta device a tensor has no values, so whatever waits for one fails here."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def kernel(*tensors: Any, **options: Any) -> Tensor:
        calls.append((tensors, options))
        return torch.empty_like(tensors[0])

    monkeypatch.setattr(attention, "varlen_attn", kernel)
    monkeypatch.setattr(attention, "_KERNEL_GROUPS_HEADS", groups_heads)
    monkeypatch.setattr(attention, "choose_backend", lambda *_: "varlen")
    edges = torch.empty(7, dtype=torch.int32, device="meta")
    # As under autocast: rotary embeddings have lifted queries and keys to float32.
    query, key, value = (
        torch.empty(2, heads, 12, 8, device="meta", dtype=dtype)
        for heads, dtype in ((4, torch.float32), (2, torch.float32), (2, torch.bfloat16))
    )
    batch = {"cu_seq_lens_q": edges, "max_length_q": 12}
    mixed, _ = packed_attention(nn.Identity(), query, key, value, None, 0.5, **batch)
    assert (mixed.shape, mixed.dtype) == ((2, 12, 4, 8), torch.bfloat16)
    ((queries_, keys, values, *rest), options) = calls[0]
    assert rest[0] is rest[1] is edges
    assert rest[2:] == [12, 12]
    assert queries_.shape == (24, 4, 8)
    assert keys.shape == values.shape == (24, 2 if groups_heads else 4, 8)
    assert {t.dtype for t in (queries_, keys, values)} == {torch.bfloat16}
    grouped = {"enable_gqa": True} if groups_heads else {}
    assert options == {"scale": 0.5, "window_size": (-1, 0), **grouped}
