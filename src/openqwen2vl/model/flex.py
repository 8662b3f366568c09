"""Attention over packs by torch's flex attention, whose mask says which blocks of positions meet.

The mask is made from the boundaries where these lie, so nothing waits for the host, and once a
forward pass: all layers read the same one. Documents are contiguous, hence the first and the last
position of each block decide what the whole block sees, and no T x T mask exists at any time.

Shapes: B rows, T tokens, H query heads, J key-value heads, E head width, C blocks of a row.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

BLOCK = 128
"""Positions of a block, the kernel's own size; a shorter last block is masked position by position."""


def document_mask(boundaries: Tensor, rows: int, length: int) -> BlockMask:
    """Who may look at whom: each position at those before it in its own document, and at itself.

    Args:
        boundaries: int32 (segments+1,) over the flattened B*T; trailing repeats are empty.
        rows: B.
        length: T.

    Returns:
        The mask of B rows for any number of heads, on the boundaries' device. Its tensors' shapes
        depend on B and T only, so compiled code is kept from batch to batch.
    """
    owners = document_numbers(boundaries, rows, length)
    count = -(-length // BLOCK)
    stops = torch.arange(1, count + 1, device=owners.device) * BLOCK
    first = owners[:, ::BLOCK]
    last = owners.index_select(1, (stops - 1).clamp(max=length - 1))
    numbers = stops // BLOCK
    earlier = numbers[None, :] < numbers[:, None]
    # Owners only grow along a row: two blocks meet if the later begins where the earlier ends,
    # and do so everywhere if one document fills both.
    meet = earlier & (last[:, None, :] == first[:, :, None])
    whole = earlier & (first[:, None, :] == last[:, :, None]) & (stops <= length)[:, None]
    partly = (meet & ~whole) | (numbers[None, :] == numbers[:, None])

    def visible(row: Tensor, head: Tensor, asks: Tensor, asked: Tensor) -> Tensor:
        return (asks >= asked) & (owners[row, asks] == owners[row, asked])

    return BlockMask.from_kv_blocks(
        *_ordered(partly),
        *_ordered(whole),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(length, length),
    )


def document_numbers(boundaries: Tensor, rows: int, length: int) -> Tensor:
    """Number the segments along the flattened rows.

    Args:
        boundaries: as of `document_mask`.
        rows: B.
        length: T.

    Returns:
        int64 (B, T), growing by one wherever a segment begins (by more behind empty ones).
    """
    flat = torch.arange(rows * length, dtype=boundaries.dtype, device=boundaries.device)
    return torch.bucketize(flat, boundaries[1:], right=True).view(rows, length)


def flex(
    query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scaling: float | None
) -> Tensor:
    """Attention of all heads under a mask.

    Compiled code takes the operator into its program; uncompiled code on a GPU runs it as a
    program of its own, and on a CPU as torch's reference, which holds all scores.

    Args:
        query: float (B, H, T, E).
        key: float (B, J, T, E), J a divisor of H.
        value: float (B, J, T, E).
        mask: of `document_mask`, for B rows of T.
        scaling: of the scores; ``None`` is 1/sqrt(E).

    Returns:
        float (B, T, H, E) in the values' dtype.
    """
    # Under autocast the rotary embedding lifts queries and keys to float32; the values stay.
    queries, keys = (tensor.to(value.dtype) for tensor in (query, key))
    grouped = key.shape[1] != query.shape[1]
    options: dict[str, Any] = {"block_mask": mask, "scale": scaling, "enable_gqa": grouped}
    if torch.compiler.is_compiling():
        mixed: Any = flex_attention(queries, keys, value, **options)
    elif value.device.type == "cpu":
        # Else torch would trace its reference anew for each shape.
        with torch.compiler.set_stance("force_eager"):
            mixed = flex_attention(queries, keys, value, **options)
    else:
        # A program of its own even where all others run as written: answers and held-out losses
        # would otherwise hold B x H x T x T scores.
        with torch.compiler.set_stance("default"):
            mixed = _fused()(queries, keys, value, **options)
    result: Tensor = mixed.transpose(1, 2)
    return result


@lru_cache(maxsize=1)
def _fused() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=False)


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Turn bool (B, C, C) into how many blocks a block sees, (B, 1, C), and which come first."""
    counts = blocks.sum(-1, dtype=torch.int32)
    order = blocks.to(torch.int32).argsort(dim=-1, descending=True, stable=True)
    return counts[:, None], order.to(torch.int32)[:, None]
