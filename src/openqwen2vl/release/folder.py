"""Model folders: their config and their weights, without running what lies in them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from openqwen2vl.formats.errors import CheckpointError
from openqwen2vl.release.huggingface import from_huggingface

CONFIG, INDEX = "config.json", "model.safetensors.index.json"
_SHOWN = 3
"""Names that a message lists; the others are counted."""


def read_model_folder(path: Path) -> dict[str, Tensor]:
    """Give the weights of a folder in the layout of `to_huggingface`, under our names.

    Raises:
        CheckpointError: no safetensors there (pickled weights are not opened), half a file, or
            another model.
    """
    return from_huggingface(read_tensors(path))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Give the weights of a folder under the names that they have there, one file at a time.

    The tensors lie in the files until they are used.

    Raises:
        CheckpointError: no safetensors, files that the index names and that are not there, or
            outside of the folder, or cut off.
    """
    index = path / INDEX
    named = _indexed(index) if index.is_file() else {}
    files = sorted(set(named.values())) or sorted(f.name for f in path.glob("[!.]*.safetensors"))
    if not files:
        raise CheckpointError(
            f"{path} has a config.json but no .safetensors file; give a folder with weights "
            "(pickled ones, such as .bin, are not opened: convert them first)"
        )
    weights: dict[str, Tensor] = {}
    for name in files:
        weights |= _read_file(path / name, index if named else None)
    missing = [name for name in named if name not in weights]
    if missing:
        raise CheckpointError(f"{index} lists weights that its files lack: {listed(missing)}")
    return weights


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: there is none, or something else.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, expected an object")
    return found


def listed(names: Iterable[str]) -> str:
    """Write the first names and how many more there are."""
    every = sorted(names)
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return ", ".join(every[:_SHOWN]) + more


def _indexed(index: Path) -> dict[str, str]:
    """Give the file of each weight; a name that leads out of the folder is refused."""
    named = read_json(index).get("weight_map")
    if not isinstance(named, Mapping) or not all(isinstance(f, str) for f in named.values()):
        raise CheckpointError(f"{index} has no weight_map of names to files")
    outside = {file for file in named.values() if Path(file).name != file or file in ("", "..")}
    if outside:
        raise CheckpointError(
            f"{index} names files outside of its folder: {listed(outside)}; expected plain names"
        )
    return dict(named)


def _read_file(file: Path, index: Path | None) -> dict[str, Tensor]:
    if not file.is_file():
        raise CheckpointError(f"{index} names {file.name}, which is not there; copy all files")
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} cannot be read as safetensors ({str(error).splitlines()[0]}); it is cut off "
            "or none"
        ) from error
