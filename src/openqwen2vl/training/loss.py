"""Cross-entropy of target positions alone, in chunks, so that full logits never exist.

Shapes: N targets, D width, V vocabulary.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from openqwen2vl.model.mllm import MLLM

CHUNK = 1024
"""Rows of logits that are held at a time, by every implementation that can be told."""

Losses = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Called as `target_losses` is, with rows, ids and the head; gives each target's loss."""


def target_losses(
    hidden_rows: Tensor, target_ids: Tensor, head_weight: Tensor, chunk: int = CHUNK
) -> Tensor:
    """Cross-entropy of each target, in float32.

    In pre-training four positions of five are image tokens without a target, and one row of
    Qwen2.5's logits is 600 KB in float32: so the caller gathers the rows that have a target, and
    here at most ``chunk`` rows of logits are held; backward works them out again.

    Args:
        hidden_rows: float (N, D), the decoder's output at the target positions. N may be 0: the
            result is then empty, yet both inputs still receive a (zero) gradient.
        target_ids: int64 (N,).
        head_weight: float (V, D), the output embedding.
        chunk: rows of logits held at a time.

    Returns:
        float32 (N,); float64 for float64 weights. Matrix products run in the weight's dtype, or in
        autocast's where that is on; the softmax in the result's.

    Raises:
        ValueError: as many rows as targets are needed.
    """
    rows, weight = operands(hidden_rows, target_ids, head_weight)
    losses: Tensor = _ChunkedCrossEntropy.apply(rows, target_ids, weight, chunk)
    return losses


def operands(hidden_rows: Tensor, target_ids: Tensor, head_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Give rows and weight in the dtype of their product: autocast's where it is on.

    Args:
        hidden_rows: as of `target_losses`, as are the others.
        target_ids: one for each row.
        head_weight: its dtype is the product's without autocast.

    Raises:
        ValueError: as many rows as targets are needed.
    """
    if hidden_rows.shape[0] != target_ids.shape[0]:
        raise ValueError(
            f"{hidden_rows.shape[0]} hidden rows meet {target_ids.shape[0]} targets; "
            "gather one row for each target"
        )
    device = hidden_rows.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else head_weight.dtype
    return hidden_rows.to(dtype), head_weight.to(dtype)


def wide(dtype: torch.dtype) -> torch.dtype:
    """Give the dtype of losses: float32 for anything narrower; float64 stays, for tests."""
    return torch.promote_types(dtype, torch.float32)


def batch_losses(model: MLLM, batch: Mapping[str, Any], losses: Losses = target_losses) -> Tensor:
    """Cross-entropy of each target of a batch.

    Args:
        model: at the batch's grid.
        batch: of ``packing.batch.collate``, on the model's device.
        losses: what turns target rows into losses.

    Returns:
        float32 (N,), in the order of ``target_positions``.

    Raises:
        ValueError: as of ``MLLM.forward``.
    """
    rows = read_rows(model, batch, batch["target_positions"])
    return losses(rows, batch["target_ids"], model.head_weight)


def read_rows(model: MLLM, batch: Mapping[str, Any], read_positions: Tensor | None) -> Tensor:
    """Call the model, whatever wraps it, with what a batch holds.

    Args:
        model: at the batch's grid.
        batch: of ``packing.batch.collate``, on the model's device.
        read_positions: as of ``MLLM.forward``.

    Returns:
        As of ``MLLM.forward``: (N, D) of the positions, or (B, T, D).
    """
    rows: Tensor = model(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        images=batch["images"],
        image_positions=batch["image_positions"],
        cu_seqlens=batch["cu_seqlens"],
        max_length=batch["max_length"],
        grid=batch["grid"],
        read_positions=read_positions,
    )
    return rows


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Keeps the inputs and one number a row; the weight's gradient is summed in float32."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, targets: Tensor, weight: Tensor, chunk: int) -> Tensor:
        losses = rows.new_empty(rows.shape[0], dtype=wide(rows.dtype))
        normalisers = torch.empty_like(losses)
        for here in _chunks(rows.shape[0], chunk):
            logits = (rows[here] @ weight.T).to(losses.dtype)
            normalisers[here] = logits.logsumexp(dim=1)
            losses[here] = normalisers[here] - logits.gather(1, targets[here, None])[:, 0]
        ctx.save_for_backward(rows, targets, weight, normalisers)
        ctx.chunk = chunk
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        rows, targets, weight, normalisers = ctx.saved_tensors
        wants_rows, _, wants_weight, _ = ctx.needs_input_grad
        rows_grad = torch.zeros_like(rows) if wants_rows else None
        weight_grad = torch.zeros_like(weight, dtype=normalisers.dtype) if wants_weight else None
        for here in _chunks(rows.shape[0], ctx.chunk):
            logits = (rows[here] @ weight.T).to(normalisers.dtype)
            slope = logits.sub_(normalisers[here, None]).exp_()
            slope.scatter_add_(1, targets[here, None], slope.new_full((len(slope), 1), -1.0))
            narrow = slope.mul_(upstream[0][here, None]).to(rows.dtype)
            if rows_grad is not None:
                rows_grad[here] = narrow @ weight
            if weight_grad is not None:
                weight_grad += narrow.T @ rows[here]
        return rows_grad, None, None if weight_grad is None else weight_grad.to(weight.dtype), None


def _chunks(count: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, count)) for start in range(0, count, chunk)]
