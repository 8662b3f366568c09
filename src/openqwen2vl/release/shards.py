"""Weights as safetensors shards, written one tensor at a time."""

import json
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openqwen2vl.formats.files import atomic_file

INDEX = "model.safetensors.index.json"
_NAMES = {torch.bfloat16: "BF16", torch.float32: "F32"}
_ALIGNED = 8  # bytes: where the tensors begin


def write_shards(
    folder: Path,
    shapes: Mapping[str, Sequence[int]],
    tensors: Iterator[tuple[str, Tensor]],
    dtype: torch.dtype,
    shard_bytes: int,
) -> int:
    """Write tensors as they come, into ``model.safetensors`` or several shards and their index.

    Args:
        folder: that takes the files.
        shapes: of the tensors, in the order in which they come.
        tensors: names and values; each is rounded to ``dtype``.
        dtype: bfloat16 or float32.
        shard_bytes: that a shard holds at most, unless one tensor is larger.

    Returns:
        Bytes of all tensors.

    Raises:
        UserError: the disk is full.
        ValueError: the tensors are not those that were announced.
    """
    size = {name: dtype.itemsize * prod(shape) for name, shape in shapes.items()}
    parts = _parts(size, shard_bytes)
    files = _file_names(len(parts))
    for file_name, names in zip(files, parts, strict=True):
        with atomic_file(folder / file_name) as file:
            file.write(_header(names, shapes, size, dtype))
            for name in names:
                came, value = next(tensors, ("nothing", torch.empty(0)))
                if came != name or list(value.shape) != list(shapes[name]):
                    raise ValueError(
                        f"{name} {tuple(shapes[name])} was to be written, there came {came} "
                        f"{tuple(value.shape)}"
                    )
                whole = value.to(dtype).contiguous().view(-1).view(torch.uint8)
                file.write(whole.numpy().data)
    if len(files) > 1:
        where = {name: file for file, names in zip(files, parts, strict=True) for name in names}
        _write_index(folder, where, sum(size.values()))
    return sum(size.values())


def _write_index(folder: Path, where: Mapping[str, str], size: int) -> None:
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
    with atomic_file(folder / INDEX) as file:
        file.write((json.dumps(index, indent=2) + "\n").encode())


def _parts(size: Mapping[str, int], most: int) -> list[list[str]]:
    """Part the names, in their order, into as few shards as that allows."""
    parts: list[list[str]] = []
    room = -1
    for name, needed in size.items():
        if needed > room or not parts:
            parts.append([])
            room = most
        parts[-1].append(name)
        room -= needed
    return parts


def _file_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]


def _header(
    names: Sequence[str],
    shapes: Mapping[str, Sequence[int]],
    size: Mapping[str, int],
    dtype: torch.dtype,
) -> bytes:
    """Give the length of the table of contents and the table, padded with spaces."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name in names:
        table[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shapes[name]),
            "data_offsets": [begin, begin + size[name]],
        }
        begin += size[name]
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return len(text).to_bytes(8, "little") + text
