"""Reading and writing a run's checkpoints: atomic, weights-only, file or sharded folder."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor, nn

from openqwen2vl.formats.errors import CheckpointError
from openqwen2vl.formats.files import atomic_file
from openqwen2vl.training.sharded import read_model, vet

NAME = re.compile(r"step_(\d{8})\.ckpt")
# Lightning's own name for what is not sharded in a checkpoint folder.
META = "meta.pt"
PREFIX = "model."


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint file beside its place and renames it when it is complete.

    Stock Lightning writes to the temporary folder and moves; where that is another file system,
    the move is a copy over the final name, and a kill leaves half a checkpoint.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write ``checkpoint``, or nothing."""
        with atomic_file(Path(path)) as file:
            torch.save(checkpoint, file)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Name the checkpoint of a step; the same step always has the same content."""
    return folder / f"step_{step:08d}.ckpt"


def checkpoints(folder: Path) -> list[Path]:
    """List the complete checkpoints of a run, oldest first."""
    found = [path for path in folder.glob("step_*.ckpt") if NAME.fullmatch(path.name)]
    return sorted(found)


def newest(path: Path) -> Path:
    """Give a run folder's newest checkpoint; a checkpoint's own path as it is.

    Raises:
        CheckpointError: a run folder without a complete checkpoint.
    """
    folder = path / "checkpoints"
    if not folder.is_dir():
        return path
    found = checkpoints(folder)
    if not found:
        raise CheckpointError(f"{folder} has no complete checkpoint yet")
    return found[-1]


def checkpoint_step(path: Path) -> int:
    """Give the optimizer step at which a checkpoint was written.

    Raises:
        CheckpointError: no checkpoint there, or half of one.
    """
    return int(_open(path)["global_step"])


def read_facts(path: Path) -> dict[str, Any]:
    """Give the plain facts that a run wrote into its checkpoint, without reading the weights.

    Raises:
        CheckpointError: no checkpoint, half of one, or one of another program.
    """
    facts = _open(path).get("openqwen2vl")
    if not isinstance(facts, dict):
        raise CheckpointError(f"{path} was not written by openqwen2vl; it cannot be resumed here")
    return facts


def read_weights(path: Path) -> dict[str, Tensor]:
    """Give the model's weights from a checkpoint file or a sharded folder, on CPU.

    Returns:
        Names as `MLLM.state_dict` has them.

    Raises:
        CheckpointError: no checkpoint, half of one, or one of another program.
    """
    opened = _open(path)
    state = read_model(path) if path.is_dir() else opened.get("state_dict", {})
    weights = {k.removeprefix(PREFIX): v for k, v in state.items() if k.startswith(PREFIX)}
    if not weights:
        raise CheckpointError(f"{path} holds no model weights; expected names like model.llm...")
    return weights


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Put weights into a model, all of them or none.

    A tower that is frozen here is not part of the model's weights, so the source may hold one
    (it must be the same, which the facts tell); a trainable one must be in the source or stays
    as it was built.

    Raises:
        CheckpointError: names or shapes differ, with the first differences.
    """
    own = model.state_dict()
    optional = {name for name in {*own, *weights} if name.startswith("vision.")}
    missing = sorted(set(own) - set(weights) - optional)
    surplus = sorted(set(weights) - set(own) - optional)
    shapes = [
        f"{name} is {tuple(weights[name].shape)} there and {tuple(own[name].shape)} here"
        for name in sorted(set(own) & set(weights))
        if own[name].shape != weights[name].shape
    ]
    faults = [
        *(f"{name} is missing there" for name in missing),
        *(f"{name} is unknown here" for name in surplus),
        *shapes,
    ]
    if faults:
        rest = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise CheckpointError(
            f"{source} is a checkpoint of another model: {'; '.join(faults[:3])}{rest}; "
            "compose the same model, vision, llm and projector as that run"
        )
    model.load_state_dict({k: v for k, v in weights.items() if k in own}, strict=False)


def _open(path: Path) -> dict[str, Any]:
    """Open the unsharded part lazily; never runs code from the file."""
    file = path / META if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(f"no checkpoint at {path}; give a .ckpt file or folder of a run")
    if path.is_dir():
        # A resumed run opens the rest through Lightning, which does not look first.
        vet(path)
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise CheckpointError(
            f"{file} cannot be read as a checkpoint ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}); it is cut off or not one of ours"
        ) from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{file} holds a {type(loaded).__name__}, expected a checkpoint")
    return loaded
