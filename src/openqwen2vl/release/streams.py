"""Weights of a checkpoint one tensor at a time, so that memory holds no copy of the whole."""

from abc import ABC, abstractmethod
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from openqwen2vl.formats.errors import CheckpointError
from openqwen2vl.training.checkpoint import PREFIX, read_facts

# Pages of a mapped file stay in memory until it is closed: it is opened anew after so many bytes.
_MAPPED = 1 << 30
_MODEL = "model."


class WeightStream(ABC):
    """The model's weights in a checkpoint, by the names of ``MLLM.state_dict``.

    Attributes:
        path: of the checkpoint.
        shapes: of every weight.
    """

    path: Path
    shapes: dict[str, torch.Size]

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """Give a copy of one weight, on CPU, in the dtype of the checkpoint.

        Raises:
            CheckpointError: there is none of that name, or it cannot be read.
        """

    def bytes(self, itemsize: int = 4) -> int:
        """Give what all weights take up at so many bytes a number."""
        return itemsize * sum(prod(shape) for shape in self.shapes.values())

    def _must_have(self, name: str) -> None:
        if name not in self.shapes:
            raise CheckpointError(f"{self.path} lacks the weight {name}; it is not complete")


def open_weights(path: Path) -> WeightStream:
    """Open a checkpoint, one file or a sharded folder, without reading its weights.

    Raises:
        CheckpointError: no checkpoint, half of one, one of another program, one without weights,
            or a sharded folder that could run code.
    """
    read_facts(path)  # looks through the whole of it first
    stream = _Folder(path) if path.is_dir() else _File(path)
    if not stream.shapes:
        raise CheckpointError(f"{path} holds no model weights; expected names like model.llm...")
    return stream


class _File(WeightStream):
    """One file, mapped into memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._state: dict[str, Tensor] = {}
        self._touched = 0
        self._map()
        self.shapes = {name: value.shape for name, value in self._state.items()}

    def read(self, name: str) -> Tensor:
        self._must_have(name)
        if self._touched > _MAPPED:
            self._map()
        value = self._state[name]
        self._touched += value.nbytes
        return value.clone()

    def _map(self) -> None:
        self._state, self._touched = {}, 0
        content: dict[str, Any] = torch.load(
            self.path, map_location="cpu", weights_only=True, mmap=True
        )
        state = content.get("state_dict", {})
        self._state = {k.removeprefix(PREFIX): v for k, v in state.items() if k.startswith(PREFIX)}


class _Folder(WeightStream):
    """A folder of shards, as FSDP writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # The table of contents was looked through when the facts were read.
        table = FileSystemReader(path).read_metadata().state_dict_metadata
        prefix = _MODEL + PREFIX
        self._tensors = {
            key.removeprefix(prefix): entry
            for key, entry in table.items()
            if key.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
        }
        self.shapes = {name: entry.size for name, entry in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        self._must_have(name)
        entry = self._tensors[name]
        key = _MODEL + PREFIX + name
        place = {key: torch.empty(entry.size, dtype=entry.properties.dtype)}
        try:
            _load_state_dict(place, storage_reader=FileSystemReader(self.path), no_dist=True)
        except CheckpointException as error:
            cause = next(iter(error.failures.values()))[0]
            said = (str(cause).splitlines() or [""])[0]
            raise CheckpointError(
                f"{self.path} cannot be read as a sharded checkpoint ({type(cause).__name__}: "
                f"{said}); it is cut off or not one of ours"
            ) from error
        return place[key]
