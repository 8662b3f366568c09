"""Vision towers of transformers (SigLIP, CLIP) as the timm ViTs that we run: sizes and weights."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor
from transformers import AutoConfig

from openqwen2vl.formats.errors import CheckpointError
from openqwen2vl.model.vision import FEATURE_BLOCK

PREFIX = "vision.model."


class _Kind(NamedTuple):
    """A tower's timm model of the same build (its sizes are given beside it) and its epsilon."""

    name: str
    epsilon: float


_KINDS = {
    "siglip_vision_model": _Kind("vit_so400m_patch14_siglip_384", 1e-6),
    "clip_vision_model": _Kind("vit_large_patch14_clip_quickgelu_336.openai", 1e-5),
}
_ACTS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}

# Hub names of towers (their last part), timm's own, and what differs from a kind's own defaults.
_SO = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27}
_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
_KNOWN: dict[str, tuple[str, str, dict[str, int]]] = {
    "siglip-so400m-patch14-384": (
        "siglip_vision_model",
        "vit_so400m_patch14_siglip_384",
        {**_SO, "num_attention_heads": 16, "image_size": 384, "patch_size": 14},
    ),
    "siglip-so400m-patch14-224": (
        "siglip_vision_model",
        "vit_so400m_patch14_siglip_224",
        {**_SO, "num_attention_heads": 16, "image_size": 224, "patch_size": 14},
    ),
    "clip-vit-large-patch14-336": (
        "clip_vision_model",
        "vit_large_patch14_clip_quickgelu_336.openai",
        {**_LARGE, "num_attention_heads": 16, "image_size": 336, "patch_size": 14},
    ),
    "clip-vit-large-patch14": (
        "clip_vision_model",
        "vit_large_patch14_clip_quickgelu_224.openai",
        {**_LARGE, "num_attention_heads": 16, "image_size": 224, "patch_size": 14},
    ),
}

_BLOCK_NAMES = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.out_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_SPLIT = tuple(f"self_attn.{letter}_proj" for letter in "qkv")
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_PREFIXES = {
    "embeddings.patch_embedding.": "patch_embed.proj.",
    "pre_layrnorm.": "norm_pre.",
}
# What stands behind the features, and a table that follows from the sizes.
_UNREAD = ("post_layernorm.", "head.", "embeddings.position_ids")
_UNREAD_TIMM = ("norm.", "fc_norm.", "attn_pool.", "head.")


def known_tower(name: str) -> tuple[dict[str, Any], str] | None:
    """Give the config of a tower that only its name tells, and timm's name of it.

    Args:
        name: on the hub or in someone's folders; its last part counts.
    """
    found = _KNOWN.get(Path(name).name)
    if found is None:
        return None
    kind, timm_name, sizes = found
    return {"model_type": kind, **sizes}, timm_name


def known_names() -> list[str]:
    """Give the names that ``known_tower`` knows."""
    return list(_KNOWN)


def tower_node(vision: Mapping[str, Any], layer: object, source: Path) -> dict[str, Any]:
    """Give what our ``VisionTower`` is built from, so that it gives the same features.

    It gives the output of its second-to-last block; so it has one block more than are read.

    Args:
        vision: a ``vision_config``; what it leaves out is as transformers presumes.
        layer: which of the hidden states is the feature, as transformers counts them.
        source: for messages.

    Raises:
        CheckpointError: a tower that no timm ViT of ours is.
    """
    fields = dict(vision)
    kind = str(fields.pop("model_type", None))
    if kind not in _KINDS:
        raise CheckpointError(
            f"{source} has a vision tower of the kind {kind}; there are {', '.join(_KINDS)}"
        )
    config = AutoConfig.for_model(kind, **fields)
    act, epsilon = config.hidden_act, config.layer_norm_eps
    if act not in _ACTS or epsilon != _KINDS[kind].epsilon:
        raise CheckpointError(
            f"{source} has a vision tower with activation {act} and epsilon {epsilon}; expected "
            f"{', '.join(_ACTS)} and {_KINDS[kind].epsilon}"
        )
    depth = config.num_hidden_layers
    read = _blocks_read(layer, depth, source)
    return {
        "_target_": "openqwen2vl.model.vision.VisionTower",
        "name": _KINDS[kind].name,
        "pretrained": False,
        "weights": None,
        "image_side": config.image_size,
        "overrides": {
            "embed_dim": config.hidden_size,
            "depth": read - FEATURE_BLOCK - 1,
            "num_heads": config.num_attention_heads,
            # timm cuts the product to a whole number.
            "mlp_ratio": (config.intermediate_size + 0.5) / config.hidden_size,
            "patch_size": config.patch_size,
            "act_layer": _ACTS[act],
        },
        "trainable": False,
        "seed": 0,
    }


def tower_weights(
    weights: Mapping[str, Tensor], blocks: int
) -> tuple[dict[str, Tensor], list[str]]:
    """Rename a tower's weights.

    Args:
        weights: under transformers' names, from ``embeddings.`` and ``encoder.`` on.
        blocks: that are run.

    Returns:
        Our names to tensors, and the names that such a tower does not have.
    """
    found: dict[str, Tensor] = {}
    fused: dict[tuple[str, str], dict[str, Tensor]] = {}
    unknown: list[str] = []
    for key, value in weights.items():
        layer = _LAYER.fullmatch(key)
        if key.startswith(_UNREAD) or (layer and int(layer[1]) >= blocks):
            continue
        if layer and layer[2] in _SPLIT:
            fused.setdefault((layer[1], layer[3]), {})[layer[2]] = value
        elif (name := _renamed(key, layer)) is None:
            unknown.append(key)
        else:
            found[PREFIX + name] = value[None, None] if name == "cls_token" else value
    for (number, kind), parts in fused.items():
        name = f"{PREFIX}blocks.{number}.attn.qkv.{kind}"
        if set(parts) == set(_SPLIT):
            found[name] = torch.cat([parts[one] for one in _SPLIT])
    positions = f"{PREFIX}pos_embed"
    if positions in found:
        found[positions] = found[positions][None]
    return found, unknown


def timm_weights(weights: Mapping[str, Tensor], blocks: int) -> dict[str, Tensor]:
    """Give a whole timm ViT's weights under our names, without what stands behind the features.

    Args:
        weights: as timm names them.
        blocks: that are run.
    """
    unread = (*_UNREAD_TIMM, *(f"blocks.{number}." for number in range(blocks, _deepest(weights))))
    return {PREFIX + k: v for k, v in weights.items() if not k.startswith(unread)}


def fetch_tower(name: str, blocks: int) -> dict[str, Tensor]:
    """Fetch a tower's weights from the hub, or from its cache.

    Raises:
        CheckpointError: they cannot be reached.
    """
    try:
        model = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"cannot load the vision tower {name} from the hub: "
            f"{(str(error).strip() or type(error).__name__).splitlines()[0]}; the source does not "
            "hold it: give a folder of it in transformers' layout (tower=DIR)"
        ) from error
    return timm_weights(model.state_dict(), blocks)


def _blocks_read(layer: object, depth: int, source: Path) -> int:
    read = 0
    if isinstance(layer, int) and not isinstance(layer, bool):
        # Hidden state 0 is what goes into the first block.
        read = layer if layer >= 0 else depth + 1 + layer
    if not 1 <= read <= depth:
        raise CheckpointError(
            f"{source} reads the hidden states {layer!r} of {depth} vision blocks; expected the "
            f"output of one block, such as {FEATURE_BLOCK}"
        )
    return read


def _renamed(key: str, layer: re.Match[str] | None) -> str | None:
    if layer:
        name = _BLOCK_NAMES.get(layer[2])
        return name and f"blocks.{layer[1]}.{name}.{layer[3]}"
    if key == "embeddings.position_embedding.weight":
        return "pos_embed"
    if key == "embeddings.class_embedding":
        return "cls_token"
    for before, after in _PREFIXES.items():
        if key.startswith(before):
            return after + key.removeprefix(before)
    return None


def _deepest(weights: Mapping[str, Tensor]) -> int:
    numbers = [int(m[1]) for m in (re.match(r"blocks\.(\d+)\.", key) for key in weights) if m]
    return 1 + max(numbers, default=-1)
