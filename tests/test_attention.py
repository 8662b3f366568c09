"""Attention over packs: exact per document, and loud where it would be silently wrong."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from openqwen2vl.formats.errors import ConfigError
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
