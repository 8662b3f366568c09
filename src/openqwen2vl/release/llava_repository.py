"""Folders of the original LLaVA repository and its offspring, among them the MLM-Filter scorers.

One flat config of the language model with ``mm_`` fields; the projector and often the tower are
stored inside of it [haotian-liu/LLaVA ``llava_arch.py``; Victorwz/LLaVA-Unified for the pooling].
"""

import re
from collections.abc import Callable, Mapping
from math import isqrt
from pathlib import Path
from typing import Any

from torch import Tensor

from openqwen2vl.formats.errors import CheckpointError
from openqwen2vl.release.folder import CONFIG, read_json, read_tensors
from openqwen2vl.release.source import (
    Source,
    is_derived,
    language_model,
    projector_node,
    refuse_unknown,
    tie_head,
)
from openqwen2vl.release.towers import (
    fetch_tower,
    known_names,
    known_tower,
    tower_node,
    tower_weights,
)

LAYOUT = "a folder of the LLaVA repository"
_TOWER, _PROJECTOR = "model.vision_tower.", "model.mm_projector."
# Classes of that repository by the word in their model_type, and what they are built on.
_LANGUAGE = {"qwen": "qwen2", "qwen2": "qwen2", "qwen3": "qwen3", "llama": "llama", "phi3": "phi3"}
_CHATML = ("qwen2", "qwen3")  # what their conversations are laid out in there, too
# The linear maps of each projector: where its names begin, and our class.
_POOLED = "aapool_mlp"
_PROJECTORS = {
    "linear": ("LinearProjector", ""),
    "mlp1x_gelu": ("LinearProjector", "0."),
    "mlp2x_gelu": ("AvgPoolProjector", ""),
    _POOLED: ("AvgPoolProjector", "mlp_projector."),
}
# Settings that change what the model is shown, and the one value that ours has.
_FIXED = {
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "mm_vision_select_feature": "patch",
    "mm_patch_merge_type": "flat",
}


def is_llava_repository(config: Mapping[str, Any]) -> bool:
    """Tell by its config whether a folder is one of these."""
    return "mm_vision_tower" in config


def read_llava_repository(
    path: Path,
    tower: str | None = None,
    fetch: Callable[[str, int], dict[str, Tensor]] = fetch_tower,
) -> Source:
    """Read a folder of the LLaVA repository.

    Args:
        path: with ``config.json`` and safetensors.
        tower: name or folder (in transformers' layout) of the vision tower; ``None`` is what the
            config says. The folder's own weights of it count where there are any.
        fetch: gets a tower's weights by timm's name and the number of blocks.

    Raises:
        CheckpointError: a tower, projector or setting that we do not have, unknown weights, or
            files that cannot be read.
    """
    config = read_json(path / CONFIG)
    _check_settings(config, path)
    named = str(tower or config["mm_vision_tower"])
    vision, timm_name = _tower(named, path)
    node = tower_node(vision, config.get("mm_vision_select_layer", -2), path)
    blocks = node["overrides"]["depth"] - 1
    kind, prefix = _projector(config, path)
    patches = node["image_side"] // node["overrides"]["patch_size"]
    grid = _pooled_grid(config, path) if prefix == "mlp_projector." else patches
    weights = _weights(read_tensors(path), prefix, blocks, path)
    if not any(name.startswith("vision.") for name in weights):
        weights |= _beside(Path(named), blocks) if timm_name is None else fetch(timm_name, blocks)
    llm = language_model({**config, "model_type": _language(config, path)}, path)
    tie_head(weights, llm, bool(config.get("tie_word_embeddings", False)))
    notes = [f"vision tower: {named}, the output of block {blocks}"]
    if config.get("image_aspect_ratio", "square") != "square":
        notes.append("pictures are squashed to a square here; its own program may pad them")
    return Source(
        layout=LAYOUT,
        vision=node,
        projector=projector_node(kind, grid),
        llm=llm,
        grid=grid,
        weights=weights,
        template="qwen2_5" if llm["model_type"] in _CHATML else None,
        notes=notes,
    )


def _check_settings(config: Mapping[str, Any], path: Path) -> None:
    for key, wanted in _FIXED.items():
        if config.get(key, wanted) != wanted:
            raise CheckpointError(
                f"{path} has {key}={config[key]!r}; only models with {wanted!r} have a place here"
            )


def _tower(named: str, path: Path) -> tuple[dict[str, Any], str | None]:
    """Give a tower's config, and timm's name where its weights are to be had there."""
    folder = Path(named).expanduser()
    if (folder / CONFIG).is_file():
        found = read_json(folder / CONFIG)
        return dict(found.get("vision_config", found)), None
    known = known_tower(named)
    if known is None:
        raise CheckpointError(
            f"{path} has the vision tower {named!r}, which is neither a folder nor one of "
            f"{', '.join(known_names())}; give its name or folder (tower=...)"
        )
    return known


def _projector(config: Mapping[str, Any], path: Path) -> tuple[str, str]:
    kind = str(config.get("mm_projector_type", "linear"))
    if kind not in _PROJECTORS:
        raise CheckpointError(
            f"{path} has the projector {kind!r}; there are {', '.join(_PROJECTORS)}"
        )
    return _PROJECTORS[kind]


def _pooled_grid(config: Mapping[str, Any], path: Path) -> int:
    tokens = config.get("mm_num_image_tokens")
    if not isinstance(tokens, int) or tokens < 1 or isqrt(tokens) ** 2 != tokens:
        raise CheckpointError(
            f"{path} has mm_num_image_tokens={tokens!r}; expected the square of a grid, such as 144"
        )
    return isqrt(tokens)


def _language(config: Mapping[str, Any], path: Path) -> str:
    """Give transformers' name of the language model, which that repository hides in its own."""
    said = str(config.get("model_type", ""))
    words = re.split(r"[_\W]+", said.lower())
    found = [_LANGUAGE[word] for word in words if word in _LANGUAGE]
    if not found:
        raise CheckpointError(
            f"{path} has the model_type {said!r}; expected one with {', '.join(_LANGUAGE)} in it"
        )
    return found[-1]


def _weights(
    found: Mapping[str, Tensor], prefix: str, blocks: int, path: Path
) -> dict[str, Tensor]:
    ours: dict[str, Tensor] = {}
    tower: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, value in found.items():
        if is_derived(name):
            continue
        if name.startswith(_TOWER):
            # The class that wraps the tower has it under the same name once more.
            inner = name.removeprefix(_TOWER).removeprefix("vision_tower.")
            tower[inner.removeprefix("vision_model.")] = value
        elif name.startswith(_PROJECTOR + prefix):
            rest = name.removeprefix(_PROJECTOR + prefix)
            ours[f"projector.layers.{rest if '.' in rest else f'0.{rest}'}"] = value
        elif name.startswith(("model.embed_tokens.", "model.layers.", "model.norm.", "lm_head.")):
            ours[f"llm.{name}"] = value
        else:
            unknown.append(name)
    renamed, strange = tower_weights(tower, blocks)
    refuse_unknown([*unknown, *(f"{_TOWER}{name}" for name in strange)], path, LAYOUT)
    return ours | renamed


def _beside(folder: Path, blocks: int) -> dict[str, Tensor]:
    """Read a tower from a folder of its own; a text encoder beside it is left alone."""
    found = read_tensors(folder.expanduser())
    inner = {k.removeprefix("vision_model."): v for k, v in found.items()}
    kept = {k: v for k, v in inner.items() if not k.startswith(("text_model.", "logit_"))}
    renamed, strange = tower_weights(kept, blocks)
    refuse_unknown(strange, folder, "a vision tower")
    return renamed
