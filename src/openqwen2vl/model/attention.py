"""Attention over packs: each document attends to itself alone, whatever shares its row.

transformers hands every layer's queries, keys and values to a function registered by name. Ours
takes the documents' boundaries from the batch, so no T x T mask exists at any time and, on CUDA,
nothing waits for the host.

Shapes: B rows, T tokens, H query heads, J key-value heads, E head width.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.model.attention_op import by_document, by_document_op
from openqwen2vl.model.flex import document_mask, flex

NAME = "openqwen2vl"
"""The name under which transformers knows the function; absent from its masks, so it makes none."""

BACKENDS = ("auto", "varlen", "flex", "sdpa")

# torch 2.11 takes as many key-value heads as query heads and has no such argument; 2.13 asks for it.
_KERNEL_GROUPS_HEADS = "enable_gqa" in inspect.signature(varlen_attn).parameters


def register() -> None:
    """Make ``attn_implementation="openqwen2vl"`` known to transformers; again does no harm."""
    AttentionInterface.register(NAME, packed_attention)


def choose_backend(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """Which kernel runs: flash attention over flattened rows, blocks of a mask, or documents.

    Args:
        name: ``auto``, ``varlen``, ``flex`` or ``sdpa`` (one call per document).
        device: of the queries.
        dtype: of the values.

    Returns:
        ``varlen``, ``flex`` or ``sdpa``; ``auto`` takes ``varlen`` wherever it runs, else ``sdpa``.

    Raises:
        ConfigError: no such backend, ``varlen`` where it cannot run, or ``flex`` on a CPU while
            gradients are wanted.
    """
    if name not in BACKENDS:
        raise ConfigError(f'attention is "{name}"; choose one of {", ".join(BACKENDS)}')
    if name == "flex":
        refuse_flex(device.type, torch.is_grad_enabled())
    if name in ("flex", "sdpa"):
        return name
    runs = (
        device.type == "cuda"
        and dtype in (torch.bfloat16, torch.float16)
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )
    if name == "varlen" and not runs:
        raise ConfigError(
            f"attention=varlen needs a CUDA device of capability 8.0 and bfloat16 or float16, but "
            f"the queries are {dtype} on {device}; choose attention=auto or a bf16 precision"
        )
    return "varlen" if runs else "sdpa"


def refuse_flex(device: str, trains: bool) -> None:
    """Refuse what torch's flex attention cannot do: gradients on a CPU.

    Args:
        device: its type.
        trains: whether a backward pass follows.

    Raises:
        ConfigError: it would.
    """
    if device == "cpu" and trains:
        raise ConfigError(
            "attention=flex cannot train on a CPU: torch's flex attention has no backward pass "
            "there; choose attention=auto, or train on a GPU"
        )


def layer_arguments(
    name: str, embeddings: Tensor, boundaries: Tensor, longest: int
) -> dict[str, Any]:
    """Give what each layer's `packed_attention` needs of a batch, made once for all layers.

    Args:
        name: as of `choose_backend`.
        embeddings: (B, T, D), what enters the first layer.
        boundaries: int32 (segments+1,) over the flattened B*T; trailing repeats are empty.
        longest: at least the longest segment.

    Returns:
        Keywords for the language model.

    Raises:
        ConfigError: as of `choose_backend`.
    """
    backend = choose_backend(name, embeddings.device, compute_dtype(embeddings))
    given: dict[str, Any] = {
        "cu_seq_lens_q": boundaries,
        "max_length_q": longest,
        "attention_backend": backend,
    }
    if backend == "flex":
        given["document_mask"] = document_mask(boundaries, *embeddings.shape[:2])
    return given


def compute_dtype(embeddings: Tensor) -> torch.dtype:
    """Give the dtype in which the layers' products run: autocast's where it is on.

    Args:
        embeddings: what enters the first layer.
    """
    device = embeddings.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return embeddings.dtype


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **batch: object,
) -> tuple[Tensor, None]:
    """Causal attention inside each document, in the form transformers calls.

    Args:
        module: the attention layer; not read.
        query: float (B, H, T, E).
        key: float (B, J, T, E), J a divisor of H.
        value: float (B, J, T, E).
        attention_mask: must be ``None``: the boundaries say it all.
        scaling: of the scores; ``None`` is 1/sqrt(E).
        dropout: must be 0.
        **batch: what the caller gave the model for its layers: ``cu_seq_lens_q`` int32 (segments+1,)
            over the flattened B*T, ``max_length_q`` int, ``attention_backend`` as `choose_backend`
            gave it (``auto``: chosen here), ``document_mask`` for ``flex`` (none: made here); and
            the layer's own settings.

    Returns:
        float (B, T, H, E), and no weights.

    Raises:
        ValueError: boundaries are missing, or the layer asks for what a pack cannot give.
    """
    boundaries = batch.get("cu_seq_lens_q")
    if not isinstance(boundaries, Tensor) or attention_mask is not None:
        raise ValueError(
            "attention over packs got no cu_seq_lens_q or got a mask; call MLLM, which passes the "
            'boundaries, or switch with llm.set_attn_implementation("sdpa")'
        )
    longest = batch.get("max_length_q")
    longest = longest if isinstance(longest, int) else query.shape[2]
    _refuse_unsupported(dropout, longest, batch)
    backend = batch.get("attention_backend", "auto")
    if backend == "auto":
        backend = choose_backend("auto", query.device, value.dtype)
    if backend == "varlen":
        return _varlen(query, key, value, boundaries, longest, scaling), None
    if backend == "flex":
        mask = batch.get("document_mask")
        if not isinstance(mask, BlockMask):
            mask = document_mask(boundaries, query.shape[0], query.shape[2])
        return flex(query, key, value, mask, scaling), None
    # Uncompiled, autograd keeps what the loop's own backward needs, which is faster.
    run = by_document_op if torch.compiler.is_compiling() else by_document
    return run(query, key, value, boundaries, scaling), None


def _refuse_unsupported(dropout: float, longest: int, batch: dict[str, object]) -> None:
    """What some other model's layers ask for; to ignore it would change the model in silence."""
    window = batch.get("sliding_window")
    if isinstance(window, int) and window < longest:
        raise ValueError(
            f"the model attends to a sliding window of {window} tokens, but packs are {longest} "
            "long; choose an LLM with full attention or a context of at most the window"
        )
    asked = [name for name in ("softcap", "s_aux") if batch.get(name) is not None]
    asked += ["dropout"] if dropout else []
    if asked:
        raise ValueError(
            f"the model's attention asks for {', '.join(asked)}, which attention over packs does "
            "not do; choose another LLM"
        )


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    boundaries: Tensor,
    longest: int,
    scaling: float | None,
) -> Tensor:
    """One flash-attention call over the flattened rows; the boundaries stay on the device."""
    rows, heads, length, width = query.shape
    # Under autocast the rotary embedding lifts queries and keys to float32; the values stay.
    queries, keys, values = (
        tensor.to(value.dtype).transpose(1, 2).reshape(rows * length, tensor.shape[1], width)
        for tensor in (query, key, value)
    )
    options: dict[str, Any] = {"scale": scaling, "window_size": (-1, 0)}
    if _KERNEL_GROUPS_HEADS:
        options["enable_gqa"] = True
    elif key.shape[1] != heads:
        groups = heads // key.shape[1]
        keys, values = (t.repeat_interleave(groups, dim=1) for t in (keys, values))
    kernel: Callable[..., Any] = varlen_attn
    mixed: Tensor = kernel(
        queries, keys, values, boundaries, boundaries, longest, longest, **options
    )
    return mixed.view(rows, length, heads, width)
