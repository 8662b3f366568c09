"""Which implementation works out the losses: ours, torch's own operator, or Liger's kernels.

All are given the rows of targets alone and give one loss for each, since the log tells sources
apart. So all work the logits out twice: gradients kept from the forward pass, which save the
second time, are those of one sum.

Shapes: N targets, D width, V vocabulary.
"""

import warnings
from collections.abc import Callable
from functools import lru_cache, partial
from importlib import import_module
from importlib.metadata import version

import torch
from torch import Tensor, nn
from torch.nn import functional

from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.training.loss import CHUNK, Losses, operands, target_losses, wide

LOSSES = ("auto", "chunked", "linear_cross_entropy", "liger")

LIGER = (0, 8, 2)
"""The first version whose gradients are right where losses weigh differently."""


def choose_losses(name: str, device: str) -> Losses:
    """Give the implementation of a name.

    Args:
        name: ``auto`` (``chunked``, until another was measured to be faster on a GPU),
            ``chunked`` (`target_losses`), ``linear_cross_entropy`` or ``liger``.
        device: the type of the device that it runs on.

    Raises:
        ConfigError: no such name, or this machine lacks what it takes.
    """
    if name not in LOSSES:
        raise ConfigError(f'loss is "{name}"; choose one of {", ".join(LOSSES)}')
    if name == "linear_cross_entropy":
        _torch_operator()
        return linear_cross_entropy_losses
    if name == "liger":
        if device != "cuda":
            raise ConfigError(
                f"loss=liger runs Triton kernels, which need a CUDA device, but this is {device}; "
                "choose loss=auto"
            )
        _liger_operator()
        return liger_losses
    return target_losses


def linear_cross_entropy_losses(
    hidden_rows: Tensor, target_ids: Tensor, head_weight: Tensor
) -> Tensor:
    """Cross-entropy of each target by ``torch.nn.functional.linear_cross_entropy``.

    Args:
        hidden_rows: float (N, D); N may be 0.
        target_ids: int64 (N,).
        head_weight: float (V, D).

    Returns:
        float32 (N,), float64 for float64 weights; where the product runs in bfloat16, each loss
        has been rounded to that (3 digits), though its gradient has not.

    Raises:
        ConfigError: this torch has no such operator.
        ValueError: as many rows as targets are needed.
    """
    rows, weight = operands(hidden_rows, target_ids, head_weight)
    losses: Tensor = _torch_operator()(rows, weight, target_ids)
    return losses.to(wide(weight.dtype))


def liger_losses(hidden_rows: Tensor, target_ids: Tensor, head_weight: Tensor) -> Tensor:
    """Cross-entropy of each target by Liger's fused kernel.

    It asks the device how many targets there are, once forward and once backward, so the host
    waits twice in each micro-batch.

    Args:
        hidden_rows: float (N, D); N may be 0.
        target_ids: int64 (N,).
        head_weight: float (V, D).

    Returns:
        float32 (N,).

    Raises:
        ConfigError: Liger is not installed, or an old one is.
        ValueError: as many rows as targets are needed.
    """
    if hidden_rows.shape[0] == 0:
        return target_losses(hidden_rows, target_ids, head_weight)  # Liger divides by the rows.
    rows, weight = operands(hidden_rows, target_ids, head_weight)
    losses: Tensor = _liger_operator()(weight, rows, target_ids)
    return losses


@lru_cache(maxsize=1)
def _torch_operator() -> Callable[..., Tensor]:
    """Torch's operator in chunks, proven on two rows: versions differ in what they take."""
    try:
        # Its own choice for few rows is one or two at a time, which is several times slower.
        options = nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK)
        operator = partial(functional.linear_cross_entropy, reduction="none", options=options)
        with warnings.catch_warnings():
            # Where it has no chunks for single losses, it warns and makes all logits.
            warnings.filterwarnings("error", message=".*linear_cross_entropy")
            operator(torch.ones(2, 2), torch.ones(2, 2), torch.zeros(2, dtype=torch.int64))
    except (AttributeError, TypeError, ValueError, RuntimeError, UserWarning) as error:
        raise ConfigError(
            "loss=linear_cross_entropy needs torch's operator with single losses in chunks, which "
            f"torch {torch.__version__} lacks ({str(error).strip().splitlines()[0]}); choose "
            "loss=auto, or install torch 2.15 or newer"
        ) from error
    return operator


@lru_cache(maxsize=1)
def _liger_operator() -> Callable[..., Tensor]:
    """Liger's module, which sums the weight's gradient in float32 as ours does."""
    try:
        kernels = import_module("liger_kernel.transformers")
        found = version("liger-kernel")
    except ImportError as error:
        raise ConfigError(
            "loss=liger needs Liger's kernels, which are not installed; run: pip install "
            "'openqwen2vl[liger]', or choose loss=auto"
        ) from error
    if tuple(int(part) for part in found.split(".")[:3] if part.isdigit()) < LIGER:
        raise ConfigError(
            f"loss=liger found liger-kernel {found}, whose gradients of single losses are wrong; "
            f"install {'.'.join(map(str, LIGER))} or newer"
        )
    operator: Callable[..., Tensor] = kernels.LigerFusedLinearCrossEntropyLoss(
        reduction="none", accum_dtype=torch.float32
    )
    return operator
