"""Folders of transformers' LLaVA, as version 4 writes them and as version 5 does."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
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
from openqwen2vl.release.towers import tower_node, tower_weights

LAYOUT = "a LLaVA folder of transformers"
_MAP = re.compile(r"multi_modal_projector\.linear_([12])\.(weight|bias)")
_CHATML = "<|im_start|>"
_MEANS = ("image_mean", "mean"), ("image_std", "std")


def is_llava_folder(config: Mapping[str, Any]) -> bool:
    """Tell by its config whether a folder is one of these."""
    return config.get("model_type") == "llava" and "vision_config" in config


def read_llava_folder(path: Path) -> Source:
    """Read a folder of ``LlavaForConditionalGeneration``.

    Raises:
        CheckpointError: a tower, projector or choice of features that we do not have, unknown
            weights, or files that cannot be read.
    """
    config = read_json(path / CONFIG)
    vision = config["vision_config"]
    node = tower_node(vision, config.get("vision_feature_layer", -2), path)
    _check_choices(config, path)
    blocks = node["overrides"]["depth"] - 1
    side, patch = node["image_side"], node["overrides"]["patch_size"]
    llm = language_model({"model_type": "llama", **config.get("text_config", {})}, path)
    weights = _weights(read_tensors(path), blocks, path)
    tied = config.get("tie_word_embeddings", llm.get("tie_word_embeddings", False))
    tie_head(weights, llm, bool(tied))
    chat = any(_CHATML in text for text in _chat_templates(path))
    return Source(
        layout=LAYOUT,
        vision=node,
        projector=projector_node("AvgPoolProjector", side // patch),
        llm=llm,
        grid=side // patch,
        weights=weights,
        template="qwen2_5" if chat else None,
        notes=_look_at_pictures(path, node["name"]),
    )


def _check_choices(config: Mapping[str, Any], path: Path) -> None:
    """Refuse what our model does otherwise."""
    kind = config["vision_config"].get("model_type")
    act = config.get("projector_hidden_act", "gelu")
    # "default" leaves the first feature out, which is a class token in CLIP and a patch in SigLIP.
    wanted = "full" if kind == "siglip_vision_model" else "default"
    found = config.get("vision_feature_select_strategy", "default")
    if act != "gelu":
        raise CheckpointError(f"{path} has a projector with the activation {act}; expected gelu")
    if found != wanted:
        raise CheckpointError(
            f"{path} has vision_feature_select_strategy {found!r}; with a {kind} it must be "
            f"{wanted!r}, so that the features are all of the patches and nothing else"
        )


def _weights(found: Mapping[str, Tensor], blocks: int, path: Path) -> dict[str, Tensor]:
    """Sort the weights of either layout by their part."""
    ours: dict[str, Tensor] = {}
    tower: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, value in found.items():
        # Version 5 keeps all but the head in a `model`, version 4 the language model in one.
        key = re.sub(r"^model\.(?=vision_tower|multi_modal|language_model)", "", name)
        linear = _MAP.fullmatch(key)
        part, _, rest = key.partition(".")
        if is_derived(name):
            continue
        if linear:
            ours[f"projector.layers.{2 * (int(linear[1]) - 1)}.{linear[2]}"] = value
        elif part == "vision_tower":
            tower[rest.removeprefix("vision_model.")] = value
        elif part == "language_model":
            inner = rest if rest.startswith(("model.", "lm_head.")) else f"model.{rest}"
            ours[f"llm.{inner}"] = value
        elif part == "lm_head":
            ours[f"llm.{key}"] = value
        else:
            unknown.append(name)
    renamed, strange = tower_weights(tower, blocks)
    refuse_unknown([*unknown, *(f"vision_tower.{name}" for name in strange)], path, LAYOUT)
    return ours | renamed


def _look_at_pictures(path: Path, tower: str) -> list[str]:
    """Compare what the folder's processor does to pictures with what we do."""
    settings = _processor(path)
    ours = timm.get_pretrained_cfg(tower)
    for theirs, own in _MEANS:
        found, wanted = settings.get(theirs), getattr(ours, own)
        if found and max(abs(a - b) for a, b in zip(found, wanted, strict=True)) > 1e-3:
            raise CheckpointError(
                f"{path} scales pictures with {theirs} {found}, its tower is run here with "
                f"{list(wanted)}; it is another model"
            )
    if settings.get("do_center_crop") or settings.get("do_pad"):
        return ["pictures are squashed to a square here; its own processor cuts or pads them"]
    return []


def _processor(path: Path) -> dict[str, Any]:
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (path / name).is_file():
            found = read_json(path / name)
            inner = found.get("image_processor", found)
            if isinstance(inner, dict) and "image_mean" in inner:
                return inner
    return {}


def _chat_templates(path: Path) -> list[str]:
    found = [p.read_text() for p in (path / "chat_template.jinja",) if p.is_file()]
    for name in ("tokenizer_config.json", "processor_config.json", "chat_template.json"):
        if (path / name).is_file():
            found.append(str(read_json(path / name).get("chat_template", "")))
    return found
