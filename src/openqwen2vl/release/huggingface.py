"""Weight names: ours and those of transformers' LLaVA, in the layout that versions 4 and 5 load.

Version 5 writes another layout than it reads of old; a folder in that one opens in version 4 with
a random vision tower and no more than a warning. So the names here are those of before.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from openqwen2vl.formats.errors import CheckpointError

_TOWER = "vision_tower.vision_model."
_LAYER = _TOWER + "encoder.layers."
_POSITIONS = _TOWER + "embeddings.position_embedding.weight"
_PATCHES = _TOWER + "embeddings.patch_embedding."
_FINAL_NORM = _TOWER + "post_layernorm."

# timm's names inside a block, and SigLIP's; the fused query-key-value map is split beside this.
_BLOCK_NAMES = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_SPLIT = tuple(f"self_attn.{letter}_proj" for letter in "qkv")
# Prefixes of the other parts. The activation sits between the projector's two maps.
_PREFIXES = {
    "projector.layers.0.": "multi_modal_projector.linear_1.",
    "projector.layers.2.": "multi_modal_projector.linear_2.",
    "llm.": "language_model.",
    "vision.model.patch_embed.proj.": _PATCHES,
}
_BLOCK = re.compile(r"vision\.model\.blocks\.(\d+)\.(.+)\.(weight|bias)")
_LAYER_KEY = re.compile(re.escape(_LAYER) + r"(\d+)\.(.+)\.(weight|bias)")


def to_huggingface(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename our weights for ``LlavaForConditionalGeneration`` with a SigLIP tower.

    That class reads the second-to-last of its blocks, so it must have one more than we keep. The
    one behind is filled with zeros, which makes it pass its input on, and the final norm with the
    identity; neither is read.

    Args:
        weights: as ``MLLM.weights()`` gives them.

    Returns:
        New names to tensors; all but the split, reshaped and filled ones share storage.

    Raises:
        CheckpointError: the tower is no SigLIP, or the projector has not two linear maps.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in weights.items():
        block = _BLOCK.fullmatch(key)
        if block:
            renamed |= _block_to(block[1], block[2], block[3], value)
        elif key == "vision.model.pos_embed":
            renamed[_POSITIONS] = value[0]
        else:
            renamed[_swap_prefix(key, _PREFIXES)] = value
    depth = 1 + max((int(m[1]) for m in map(_BLOCK.fullmatch, weights) if m), default=-1)
    if depth == 0:
        raise CheckpointError("the weights hold no vision tower; pass MLLM.weights()")
    return renamed | _unused_end(renamed, depth)


def from_huggingface(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo ``to_huggingface``: the last block, the final norm and SigLIP's own head are left out.

    Args:
        weights: of a LLaVA with a SigLIP tower, in the layout of before version 5.

    Returns:
        Our names to tensors.

    Raises:
        CheckpointError: a name that such a model does not have, or blocks are missing.
    """
    numbers = {int(m[1]) for m in map(_LAYER_KEY.fullmatch, weights) if m}
    if numbers != set(range(len(numbers))) or len(numbers) < 2:
        raise CheckpointError(
            f"the weights hold the vision layers {sorted(numbers)}; a whole tower has at least two, "
            "numbered from 0"
        )
    back = {theirs: ours for ours, theirs in _PREFIXES.items()}
    renamed: dict[str, Tensor] = {}
    fused: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, value in weights.items():
        layer = _LAYER_KEY.fullmatch(key)
        if layer and layer[2] in _SPLIT:
            fused.setdefault((layer[1], layer[3]), {})[layer[2]] = value
        elif layer:
            renamed[_block_from(layer[1], layer[2], layer[3])] = value
        elif key == _POSITIONS:
            renamed["vision.model.pos_embed"] = value[None]
        elif not key.startswith((_FINAL_NORM, _TOWER + "head.")):
            renamed[_swap_prefix(key, back)] = value
    for (number, kind), parts in fused.items():
        key = f"vision.model.blocks.{number}.attn.qkv.{kind}"
        renamed[key] = torch.cat([parts[name] for name in _SPLIT])
    unused = f"vision.model.blocks.{max(numbers)}."
    return {key: value for key, value in renamed.items() if not key.startswith(unused)}


def _block_to(number: str, name: str, kind: str, value: Tensor) -> dict[str, Tensor]:
    prefix = f"{_LAYER}{number}."
    if name == "attn.qkv":
        parts = value.chunk(3)
        return {f"{prefix}{to}.{kind}": v for to, v in zip(_SPLIT, parts, strict=True)}
    if name not in _BLOCK_NAMES:
        raise CheckpointError(
            f"block weight {name}.{kind} has no place in SigLIP; only SigLIP towers become a LLaVA"
        )
    return {f"{prefix}{_BLOCK_NAMES[name]}.{kind}": value}


def _block_from(number: str, name: str, kind: str) -> str:
    back = {theirs: ours for ours, theirs in _BLOCK_NAMES.items()}
    if name not in back:
        raise CheckpointError(f"vision layer weight {name}.{kind} is none of SigLIP's")
    return f"vision.model.blocks.{number}.{back[name]}.{kind}"


def _swap_prefix(key: str, prefixes: Mapping[str, str]) -> str:
    for before, after in prefixes.items():
        if key.startswith(before):
            return after + key.removeprefix(before)
    raise CheckpointError(
        f"weight {key} has no place in the other layout; it needs a SigLIP tower without prefix "
        "tokens and a projector of two linear maps"
    )


def _unused_end(renamed: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """The block and the norm behind the features, both passing their input on."""
    last, added = f"{_LAYER}{depth - 1}.", f"{_LAYER}{depth}."
    block = {
        added + key.removeprefix(last): torch.zeros_like(value)
        for key, value in renamed.items()
        if key.startswith(last)
    }
    norm = renamed[f"{last}layer_norm1.weight"]
    return block | {
        f"{_FINAL_NORM}weight": torch.ones_like(norm),
        f"{_FINAL_NORM}bias": torch.zeros_like(norm),
    }
