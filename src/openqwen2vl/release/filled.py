"""Our model filled from a stream: memory for one copy of the weights, and no random ones before."""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from openqwen2vl.formats.errors import CheckpointError
from openqwen2vl.model.mllm import MLLM
from openqwen2vl.release.streams import WeightStream


@contextmanager
def without_values() -> Iterator[None]:
    """Build modules whose parameters have no memory yet; buffers, which no file holds, have theirs."""
    register = nn.Module.register_parameter

    def bare(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        # One that is there already is being tied, and must stay the same one.
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.to("meta"), param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = bare  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def check_complete(model: MLLM, weights: WeightStream) -> None:
    """Make sure that a checkpoint holds the weights of a model that its own facts describe.

    Raises:
        CheckpointError: one is missing, too many, or of another shape.
    """
    needed = {k: v.shape for k, v in model.state_dict().items() if not k.startswith("vision.")}
    held = {k: v for k, v in weights.shapes.items() if not k.startswith("vision.")}
    unlike = sorted(k for k in needed.keys() | held.keys() if needed.get(k) != held.get(k))
    if unlike:
        name = unlike[0]
        raise CheckpointError(
            f"{weights.path} does not hold the model that it describes: {name} is "
            f"{_said(held.get(name))} there, {_said(needed.get(name))} was expected"
        )


def fill(model: MLLM, weights: WeightStream, dtype: torch.dtype) -> None:
    """Give projector and language model their values, in float32, all rounded to ``dtype``.

    The tower has its values, which are rounded in place.
    """
    for parameter in model.vision.parameters():
        parameter.data.copy_(parameter.data.to(dtype))
    values: dict[int, nn.Parameter] = {}
    for name, parameter in model.named_parameters():  # what is tied comes once
        if not name.startswith("vision."):
            value = weights.read(name).to(torch.float32)
            # In place: what stays between what comes and goes would leave holes in the memory.
            value.copy_(value.to(dtype))
            values[id(parameter)] = nn.Parameter(value, requires_grad=False)
    for module in model.modules():
        for key, held in module._parameters.items():
            if id(held) in values:
                module._parameters[key] = values[id(held)]


@torch.no_grad()
def logits(model: MLLM, ids: Tensor, images: Tensor, image_id: int, read: Tensor) -> Tensor:
    """Logits of one document by itself.

    Args:
        model: filled.
        ids: int64 (T,), each image already spread over its visual tokens.
        images: uint8 (K, S, S, 3).
        image_id: the mark of a visual token.
        read: int64 (N,) positions.

    Returns:
        float32 (N, V).
    """
    length = len(ids)
    rows = model(
        input_ids=ids[None],
        position_ids=torch.arange(length)[None],
        images=images,
        image_positions=(ids == image_id).nonzero()[:, 0],
        cu_seqlens=torch.tensor([0, length], dtype=torch.int32),
        max_length=length,
        grid=model.projector.grid,
        read_positions=read,
    )
    return model.head(rows)


def give_back_memory() -> None:
    """Return to the system what nobody holds any longer: a model's parts point at each other."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)


def _said(shape: torch.Size | None) -> str:
    return "not" if shape is None else str(tuple(shape))
