"""Weight names: ours and those of transformers' LLaVA, in layouts that versions 4 and 5 load.

Version 5 writes another layout than it reads of old; a folder in that one opens in version 4 with
a random vision tower and no more than a warning. So the names here are those of before. Version 5
renames them for its own classes alone; code that is bundled with a model gets the names that its
modules have in both.
"""

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from openqwen2vl.formats.errors import CheckpointError

EMBEDDING, HEAD = "llm.model.embed_tokens.weight", "llm.lm_head.weight"
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
# Prefixes of the other parts.
_PREFIXES = {
    "llm.model.": "language_model.model.",
    "llm.lm_head.": "language_model.lm_head.",
    "vision.model.patch_embed.proj.": _PATCHES,
}
# Names in the files of bundled code, where they differ.
_BUNDLED = {
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}
_BLOCK = re.compile(r"vision\.model\.blocks\.(\d+)\.(.+)\.(weight|bias)")
_LAYER_KEY = re.compile(re.escape(_LAYER) + r"(\d+)\.(.+)\.(weight|bias)")
# The projector's maps count from 1 there; here the activations between them count too.
_MAP = re.compile(r"projector\.layers\.(\d+)\.(weight|bias)")
_MAP_KEY = re.compile(r"multi_modal_projector\.linear_(\d+)\.(weight|bias)")


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
        CheckpointError: the tower is no SigLIP, or a weight that a LLaVA has no place for.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in weights.items():
        renamed |= rename(key, value)
    return renamed | unused_end(weights)


def rename(key: str, value: Tensor) -> dict[str, Tensor]:
    """Rename one weight; the fused query-key-value map becomes three.

    Raises:
        CheckpointError: a SigLIP tower or a LLaVA has no place for it.
    """
    block, linear = _BLOCK.fullmatch(key), _MAP.fullmatch(key)
    if block:
        return _block_to(block[1], block[2], block[3], value)
    if linear:
        return {f"multi_modal_projector.linear_{int(linear[1]) // 2 + 1}.{linear[2]}": value}
    if key == "vision.model.pos_embed":
        return {_POSITIONS: value[0]}
    return {_swap_prefix(key, _PREFIXES): value}


def unused_end(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the block and the norm behind the features, both passing their input on.

    Args:
        weights: as ``MLLM.weights()`` gives them; only the tower's last block is looked at.

    Raises:
        CheckpointError: there is no tower.
    """
    blocks = [(int(m[1]), m, v) for k, v in weights.items() if (m := _BLOCK.fullmatch(k))]
    if not blocks:
        raise CheckpointError("the weights hold no vision tower; pass MLLM.weights()")
    last = max(number for number, _, _ in blocks)
    found: dict[str, Tensor] = {}
    for number, match, value in blocks:
        if number == last:
            found |= _block_to(str(last + 1), match[2], match[3], torch.zeros_like(value))
    norm = weights[f"vision.model.blocks.{last}.norm1.weight"]
    return found | {
        f"{_FINAL_NORM}weight": torch.ones_like(norm),
        f"{_FINAL_NORM}bias": torch.zeros_like(norm),
    }


def bundled_name(name: str) -> str:
    """Give the name that a weight of the stock layout has in the files of bundled code."""
    return _swap_prefix(name, {stock: bundled for bundled, stock in _BUNDLED.items()})


def from_huggingface(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo ``to_huggingface``: the last block, the final norm and SigLIP's own head are left out.

    Args:
        weights: of a LLaVA with a SigLIP tower, in the layout of before version 5 or in that of
            bundled code. A head that is tied to the embedding may be absent.

    Returns:
        Our names to tensors.

    Raises:
        CheckpointError: a name that such a model does not have, or blocks are missing.
    """
    weights = {_stock_name(key): value for key, value in weights.items()}
    numbers = {int(m[1]) for m in map(_LAYER_KEY.fullmatch, weights) if m}
    if numbers != set(range(len(numbers))) or len(numbers) < 2:
        raise CheckpointError(
            f"the weights hold the vision layers {sorted(numbers)}; a whole tower has at least two, "
            "numbered from 0"
        )
    renamed: dict[str, Tensor] = {}
    fused: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, value in weights.items():
        layer = _LAYER_KEY.fullmatch(key)
        if layer and int(layer[1]) == max(numbers):
            continue
        if layer and layer[2] in _SPLIT:
            fused.setdefault((layer[1], layer[3]), {})[layer[2]] = value
        else:
            renamed.update(_back(key, value))
    for (number, kind), parts in fused.items():
        key = f"vision.model.blocks.{number}.attn.qkv.{kind}"
        renamed[key] = torch.cat([parts[name] for name in _SPLIT])
    if EMBEDDING in renamed:
        renamed.setdefault(HEAD, renamed[EMBEDDING])
    return renamed


def _back(key: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the weight under our name, or nothing when we have no such weight."""
    layer, linear = _LAYER_KEY.fullmatch(key), _MAP_KEY.fullmatch(key)
    if layer:
        yield _block_from(layer[1], layer[2], layer[3]), value
    elif linear:
        yield f"projector.layers.{2 * (int(linear[1]) - 1)}.{linear[2]}", value
    elif key == _POSITIONS:
        yield "vision.model.pos_embed", value[None]
    elif not key.startswith((_FINAL_NORM, _TOWER + "head.")):
        yield _swap_prefix(key, {theirs: ours for ours, theirs in _PREFIXES.items()}), value


def _stock_name(name: str) -> str:
    for bundled, stock in _BUNDLED.items():
        if name.startswith(bundled):
            return stock + name.removeprefix(bundled)
    return name


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
        "tokens, a projector of linear maps, and a language model with layers as Qwen2 has them"
    )
