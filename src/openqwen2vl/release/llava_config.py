"""What a model folder says of a model: the config files of transformers' LLaVA and its processor."""

from collections.abc import Mapping, Sequence
from typing import Any

from openqwen2vl.formats.errors import CheckpointError
from openqwen2vl.formats.tokens import SpecialTokens
from openqwen2vl.model.vision import FEATURE_BLOCK, VisionTower

STOCK = "LlavaForConditionalGeneration"
BUNDLED = "OpenQwen2VLForConditionalGeneration"
BUNDLED_CONFIG = "OpenQwen2VLConfig"
CODE = "modeling_openqwen2vl"
"""The file of bundled code, without its ending."""

_IMAGE = "<|image_pad|>"
_BICUBIC = 3  # PIL's number
# What transformers calls the activations that a timm block may have.
_ACTIVATIONS = {
    "GELU(approximate='none')": "gelu",
    "GELU(approximate='tanh')": "gelu_pytorch_tanh",
    "GELUTanh()": "gelu_pytorch_tanh",  # timm's own, in SigLIP towers of 16-pixel patches
}


def vision_config(tower: VisionTower) -> dict[str, Any]:
    """Describe a tower as SigLIP's, with the unread block behind the features.

    Raises:
        CheckpointError: its blocks are none of SigLIP's.
    """
    block = tower.model.blocks[0]
    activation = repr(block.mlp.act)
    if activation not in _ACTIVATIONS:
        raise CheckpointError(
            f"vision tower {tower.name} has the activation {activation}, which no SigLIP has; "
            "export writes SigLIP towers only"
        )
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": tower.width,
        "intermediate_size": block.mlp.fc1.out_features,
        "num_hidden_layers": len(tower.model.blocks) + 1,
        "num_attention_heads": block.attn.num_heads,
        "num_channels": 3,
        "image_size": tower.side,
        "patch_size": tower.model.patch_embed.patch_size[0],
        "hidden_act": _ACTIVATIONS[activation],
        "layer_norm_eps": block.norm1.eps,
        "attention_dropout": 0.0,
        "vision_use_head": False,
    }


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give a language model's config in the words that transformers 4 and 5 both read.

    Args:
        config: as version 5 gives it, with the rotary settings in one field.
    """
    found = {k: v for k, v in config.items() if k not in ("transformers_version", "dtype")}
    rotary = found.pop("rope_parameters", None)
    if isinstance(rotary, Mapping) and not any(isinstance(v, Mapping) for v in rotary.values()):
        scaling = dict(rotary)
        if "rope_theta" in scaling:
            found["rope_theta"] = scaling.pop("rope_theta")
        if scaling.get("rope_type", "default") != "default":
            found["rope_scaling"] = scaling
    elif rotary is not None:
        found["rope_parameters"] = rotary
    return found | {"use_cache": True}


def model_config(
    tower: VisionTower,
    llm_config: Mapping[str, Any],
    widths: Sequence[int],
    grid: int,
    special: SpecialTokens,
    dtype: str,
) -> dict[str, Any]:
    """Give ``config.json``: a stock LLaVA where one can be it, else one with bundled code.

    Args:
        tower: the vision tower.
        llm_config: of the language model, as version 5 gives it.
        widths: of the projector's input and of what each of its maps gives.
        grid: visual tokens on each side of an image.
        special: ids of the special tokens.
        dtype: of the weights, ``bfloat16`` or ``float32``.
    """
    text = text_config(llm_config)
    common = {
        "torch_dtype": dtype,
        "image_token_index": special.image,
        "image_seq_length": grid * grid,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": FEATURE_BLOCK,
        "vision_feature_select_strategy": "full",
        "tie_word_embeddings": bool(text.get("tie_word_embeddings", False)),
        "bos_token_id": special.bos,
        "eos_token_id": special.eos,
        "pad_token_id": special.pad,
        "text_config": text,
        "vision_config": vision_config(tower),
    }
    if is_stock(tower, widths, grid):
        return {"architectures": [STOCK], "model_type": "llava", **common}
    return {
        "architectures": [BUNDLED],
        "model_type": "openqwen2vl",
        "auto_map": {
            "AutoConfig": f"{CODE}.{BUNDLED_CONFIG}",
            "AutoModelForImageTextToText": f"{CODE}.{BUNDLED}",
        },
        "grid": grid,
        "projector_widths": list(widths),
        **common,
    }


def is_stock(tower: VisionTower, widths: Sequence[int], grid: int) -> bool:
    """Tell whether transformers' own class is this model: no pooling, and two linear maps."""
    return grid == tower.patch_grid and len(widths) == 3 and widths[1] == widths[2]


def image_processor_config(tower: VisionTower) -> dict[str, Any]:
    """Give ``preprocessor_config.json``: squash to a square, bicubic, normalise.

    CLIP's class, because what serves models asks an image processor for its crop, which SigLIP's
    lacks.
    """
    square = {"height": tower.side, "width": tower.side}
    config = tower.model.pretrained_cfg
    return {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": square,
        "resample": _BICUBIC,
        "do_center_crop": False,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config["mean"]),
        "image_std": list(config["std"]),
    }


def processor_config(tower: VisionTower, grid: int) -> dict[str, Any]:
    """Give ``processor_config.json``: how many marks an image becomes in a prompt.

    The class counts patches; pooling makes fewer of them, which is told as a surplus below zero.
    """
    return {
        "processor_class": "LlavaProcessor",
        "image_token": _IMAGE,
        "patch_size": tower.model.patch_embed.patch_size[0],
        "vision_feature_select_strategy": "full",
        "num_additional_image_tokens": grid * grid - tower.patch_grid**2,
    }


def generation_config(special: SpecialTokens) -> dict[str, Any]:
    """Give ``generation_config.json``: greedy, ended by the end of a turn, as evaluation does."""
    return {
        "bos_token_id": special.bos,
        "eos_token_id": special.eos,
        "pad_token_id": special.pad,
        "do_sample": False,
        "max_new_tokens": 512,
    }


def tokenizer_config(longest: int | None) -> dict[str, Any]:
    """Give ``tokenizer_config.json``: everything else is in ``tokenizer.json``.

    Args:
        longest: tokens that the language model can hold, where its config tells.
    """
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "LlavaProcessor",
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        # Version 4 would add token_type_ids, which generate() of version 4 refuses.
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "left",
        **({} if longest is None else {"model_max_length": longest}),
    }
