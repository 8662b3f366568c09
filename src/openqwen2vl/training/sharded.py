"""Opening a sharded checkpoint folder without running what a stranger put into it.

PyTorch writes such a folder with a pickled table of contents and pickled loose values, and opens
both without any check, in our loader as in Lightning's. So the folder is looked through before.
"""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from openqwen2vl.formats.errors import CheckpointError

CONTENTS = ".metadata"
_RECORDS = "torch.distributed.checkpoint.metadata"
# The plain records that a table of contents is made of; dtypes come on top.
_ALLOWED = {
    *((_RECORDS, name) for name in ("Metadata", "MetadataIndex", "StorageMeta")),
    *((_RECORDS, name) for name in ("TensorStorageMetadata", "BytesStorageMetadata")),
    *((_RECORDS, name) for name in ("ChunkStorageMetadata", "TensorProperties")),
    (_RECORDS, "_MEM_FORMAT_ENCODING"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("collections", "OrderedDict"),
    *((module, "PosixPath") for module in ("pathlib", "pathlib._local")),
}


class _Reader(pickle.Unpickler):
    """Builds the records of a table of contents and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        dtype = module == "torch" and isinstance(vars(torch).get(name), torch.dtype)
        if not dtype and (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which may run code")
        return super().find_class(module, name)


def vet(path: Path) -> None:
    """Make sure that PyTorch may open a sharded folder.

    Raises:
        CheckpointError: it is not complete, or what it holds could run code or lies elsewhere.
    """
    if not (path / CONTENTS).is_file():
        raise CheckpointError(f"{path} lacks its {CONTENTS}; it is not a complete sharded folder")
    try:
        contents = _Reader(io.BytesIO((path / CONTENTS).read_bytes())).load()
        if not isinstance(contents, Metadata):
            raise TypeError(f"{CONTENTS} holds a {type(contents).__name__}")
        for place in contents.storage_data.values():
            if Path(place.relative_path).name != place.relative_path:
                raise ValueError(f"it names {place.relative_path!r}, outside of its folder")
        for name, entry in contents.state_dict_metadata.items():
            if isinstance(entry, BytesStorageMetadata):
                place = contents.storage_data[MetadataIndex(name)]
                with (path / place.relative_path).open("rb") as file:
                    file.seek(place.offset)
                    torch.load(io.BytesIO(file.read(place.length)), weights_only=True)
    except Exception as error:
        raise CheckpointError(_refusal(path, error)) from error


def read_model(path: Path) -> dict[str, Any]:
    """Gather the model's shards into whole tensors in this process, on CPU.

    Raises:
        CheckpointError: a part of the folder is missing or damaged, or could run code.
    """
    vet(path)
    state: dict[str, Any] = {}
    try:
        _load_state_dict(
            state,
            storage_reader=FileSystemReader(os.fspath(path)),
            planner=_EmptyStateDictLoadPlanner(keys={"model"}),  # type: ignore[no-untyped-call]
            no_dist=True,
        )
    except CheckpointException as error:
        raise CheckpointError(_refusal(path, next(iter(error.failures.values()))[0])) from error
    model = state.get("model", {})
    return dict(model) if isinstance(model, dict) else {}


def _refusal(path: Path, error: BaseException) -> str:
    said = (str(error).splitlines() or [""])[0]
    return (
        f"{path} cannot be read as a sharded checkpoint ({type(error).__name__}: {said}); it is "
        "cut off or not one of ours"
    )
