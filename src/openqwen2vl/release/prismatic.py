"""The ``.pt`` that prismatic's trainer writes: what the Open-Qwen2VL weights were released as.

``{"model": {"projector", "llm_backbone"[, "vision_backbone"]}}`` and no config at all
[official ``fsdp.py``, ``save_checkpoint``].
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from openqwen2vl.formats.errors import CheckpointError
from openqwen2vl.release.pickled import open_pickled
from openqwen2vl.release.source import is_derived, refuse_unknown
from openqwen2vl.release.towers import timm_weights

LAYOUT = "a prismatic .pt"
_PROJECTOR, _LLM, _VISION = "projector", "llm_backbone", "vision_backbone"
# The pooling projector calls its layers otherwise than the others do.
_LAYERS = ("mlp_projector.", "projector.")
_TOWER = "featurizer."


def is_prismatic(opened: Mapping[str, Any]) -> bool:
    """Tell by its content whether a file is one of these."""
    model = opened.get("model")
    return isinstance(model, Mapping) and {_PROJECTOR, _LLM} <= set(model)


def read_prismatic(path: Path, blocks: int) -> dict[str, Tensor]:
    """Give the weights under our names; those of a tower only where the file has one.

    Args:
        path: the file.
        blocks: of the vision tower that are run; those behind them are left out.

    Raises:
        CheckpointError: another file, half of one, one that could run code, unknown weights.
    """
    opened = open_pickled(path)
    if not is_prismatic(opened):
        raise CheckpointError(
            f"{path} is no {LAYOUT}: it has no model with {_PROJECTOR} and {_LLM}"
        )
    parts = _parts(opened["model"], path)
    ours: dict[str, Tensor] = {}
    tower: dict[str, Tensor] = {}
    unknown = [
        f"{part}.{name}"
        for part in set(parts) - {_PROJECTOR, _LLM, _VISION}
        for name in parts[part]
    ]
    for name, value in parts[_PROJECTOR].items():
        layers = next((prefix for prefix in _LAYERS if name.startswith(prefix)), None)
        rest = name.removeprefix(layers or "")
        if layers is None:
            unknown.append(f"{_PROJECTOR}.{name}")
        ours[f"projector.layers.{rest if '.' in rest else f'0.{rest}'}"] = value
    for name, value in parts[_LLM].items():
        if is_derived(name):
            continue
        if name.startswith("llm."):
            ours[name] = value
        else:
            unknown.append(f"{_LLM}.{name}")
    for name, value in parts.get(_VISION, {}).items():
        if name.startswith(_TOWER):
            tower[name.removeprefix(_TOWER)] = value
        else:
            unknown.append(f"{_VISION}.{name}")
    refuse_unknown(unknown, path, LAYOUT)
    return ours | timm_weights(tower, blocks)


def _parts(model: Mapping[Any, Any], path: Path) -> Mapping[str, Mapping[str, Tensor]]:
    """Refuse parts that are no tables of names to tensors: the file may be anybody's.

    Raises:
        CheckpointError: with the first such part.
    """
    for part, weights in model.items():
        named = isinstance(weights, Mapping) and all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
        )
        if not named:
            raise CheckpointError(
                f"{path} holds something else than named tensors as its {part}; expected {LAYOUT}"
            )
    return model
