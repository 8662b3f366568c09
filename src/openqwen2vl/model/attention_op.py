"""Attention by document as one operator, so that compiled layers hold it as a single node.

The plain loop reads the boundaries, which a compiler can neither trace nor keep: every packing
would be another program. As an operator it is opaque, whatever the boundaries say. CUDA's kernel
is such an operator already; this is its counterpart for CPUs, and its reference.

Shapes: B rows, T tokens, H query heads, J key-value heads, E head width.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def by_document(
    query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor, scaling: float | None
) -> Tensor:
    """Causal attention inside each document, one call for all documents of one length.

    Args:
        query: float (B, H, T, E).
        key: float (B, J, T, E), J a divisor of H.
        value: float (B, J, T, E).
        boundaries: int32 (segments+1,) over the flattened B*T; trailing repeats are empty.
        scaling: of the scores; ``None`` is 1/sqrt(E).

    Returns:
        float (B, T, H, E).

    Raises:
        ValueError: the boundaries do not run from 0 to B*T.
    """
    rows, heads, length, width = query.shape
    edges = boundaries.tolist()
    if edges[0] != 0 or edges[-1] != rows * length:
        raise ValueError(
            f"cu_seqlens run from {edges[0]} to {edges[-1]}, but the batch has {rows} rows of "
            f"{length} tokens; they must run from 0 to {rows * length}"
        )
    lengths = [stop - start for start, stop in pairwise(edges) if stop > start]
    flat = (t.transpose(1, 2).flatten(0, 1) for t in (query, key, value))
    # Split, not sliced: the backward pass of a slice fills a whole row of zeros for each document.
    parts = list(zip(*(torch.split(tensor, lengths) for tensor in flat), strict=True))
    alike: dict[int, list[int]] = {}
    for number, own in enumerate(lengths):
        alike.setdefault(own, []).append(number)
    mixed: list[Tensor] = [query] * len(lengths)
    for numbers in alike.values():
        together = zip(*(parts[number] for number in numbers), strict=True)
        q, k, v = (torch.stack(documents).transpose(1, 2) for documents in together)
        done = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
        for number, document in zip(numbers, done.transpose(1, 2), strict=True):
            mixed[number] = document
    return torch.cat(mixed).view(rows, length, heads, width)


@torch.library.custom_op("openqwen2vl::by_document", mutates_args=())
def by_document_op(
    query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor, scaling: float | None
) -> Tensor:
    """`by_document` for compiled code."""
    return by_document(query, key, value, boundaries, scaling)


@by_document_op.register_fake
def _shape(
    query: Tensor, key: Tensor, value: Tensor, boundaries: Tensor, scaling: float | None
) -> Tensor:
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1], query.shape[3])


@torch.library.custom_op("openqwen2vl::by_document_backward", mutates_args=())
def _backward_op(
    upstream: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    boundaries: Tensor,
    scaling: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Works the scores out once more: between two compiled passes only inputs are kept.

    Written out, since no gradient can be asked for inside an operator.
    """
    rows, heads, length, width = query.shape
    scale = width**-0.5 if scaling is None else scaling
    groups = heads // key.shape[1]
    flat = [t.transpose(1, 2).flatten(0, 1) for t in (query, key, value)]
    flat.append(upstream.flatten(0, 1))
    slopes = [torch.empty_like(tensor) for tensor in flat[:3]]
    for start, stop in pairwise(boundaries.tolist()):
        if stop > start:
            q, k, v, up = (tensor[start:stop].transpose(0, 1) for tensor in flat)
            k, v = (tensor.repeat_interleave(groups, dim=0) for tensor in (k, v))
            ahead = torch.ones(stop - start, stop - start, dtype=torch.bool).triu(1)
            scores = (q @ k.mT * scale).masked_fill(ahead.to(q.device), -torch.inf).softmax(-1)
            through = scores * (up @ v.mT)
            inner = through - scores * through.sum(-1, keepdim=True)
            back = (inner @ k * scale, inner.mT @ q * scale, scores.mT @ up)
            slopes[0][start:stop] = back[0].transpose(0, 1)
            for slope, shared in zip(slopes[1:], back[1:], strict=True):
                own = shared.view(-1, groups, *shared.shape[1:]).sum(1)
                slope[start:stop] = own.transpose(0, 1)
    query_slope, key_slope, value_slope = (
        slope.view(rows, length, -1, width).transpose(1, 2).contiguous() for slope in slopes
    )
    return query_slope, key_slope, value_slope


@_backward_op.register_fake
def _backward_shapes(
    upstream: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    boundaries: Tensor,
    scaling: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.scaling = inputs
    ctx.save_for_backward(*tensors)


def _slopes(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value = _backward_op(upstream, *ctx.saved_tensors, ctx.scaling)
    return query, key, value, None, None


by_document_op.register_autograd(_slopes, setup_context=_keep)
