"""Model folders: weights of a transformers LLaVA as weights of ours."""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from openqwen2vl.formats.errors import CheckpointError
from openqwen2vl.release.huggingface import from_huggingface


def read_model_folder(path: Path) -> dict[str, Tensor]:
    """Give the weights of a folder in the layout of `to_huggingface`, under our names.

    Raises:
        CheckpointError: no safetensors there (pickled weights are not opened), or another model.
    """
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise CheckpointError(
            f"{path} has a config.json but no .safetensors file; give a folder with weights"
        )
    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= load_file(file)
    return from_huggingface(weights)
