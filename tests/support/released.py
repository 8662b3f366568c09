"""Tiny models in the layouts of others, written here by the inverse of what is to be read."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from openqwen2vl.model.mllm import MLLM
from support.batches import ModelInputs, lay_out, random_document, random_images
from support.models import SIDE
from support.shards import tiny_tokenizer

PATCHES = SIDE // 14
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
# Overrides that compose the model of `tiny_mllm` for a file without a config.
TINY_PARTS = (
    "vision=tiny",
    "vision.overrides={embed_dim: 48, depth: 4, num_heads: 4, mlp_ratio: 3.7362}",
    "~vision.overrides.weight_init",
    "llm=tiny",
    "llm.config={model_type: qwen2, vocab_size: 300, hidden_size: 64, intermediate_size: 128, "
    "num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, "
    "max_position_embeddings: 4096, tie_word_embeddings: true}",
)
_SIZES = {"hidden_size": 32, "intermediate_size": 72, "num_attention_heads": 2}
_KINDS: dict[str, Callable[..., Any]] = {"siglip": SiglipVisionConfig, "clip": CLIPVisionConfig}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "max_position_embeddings": 2048,
}


def prismatic_model(model: MLLM, tower: bool = False) -> dict[str, dict[str, Tensor]]:
    """Name a model's weights as prismatic's trainer does: parts, and inside of each its own."""
    parts: dict[str, dict[str, Tensor]] = {"projector": {}, "llm_backbone": {}}
    for name, value in model.weights().items():
        part, _, rest = name.partition(".")
        if part == "projector":
            parts["projector"]["mlp_projector." + rest.removeprefix("layers.")] = value
        elif part == "llm":
            parts["llm_backbone"]["llm." + rest] = value
        elif tower:
            inner = "featurizer." + rest.removeprefix("model.")
            parts.setdefault("vision_backbone", {})[inner] = value
            # The official tower is whole: one block, a norm and a pooling more than are read.
            if ".blocks.0." in name:
                parts["vision_backbone"][inner.replace("blocks.0.", "blocks.3.")] = value
    if tower:
        for name in ("norm.weight", "attn_pool.latent"):
            parts["vision_backbone"][f"featurizer.{name}"] = torch.ones(48)
    return parts


def example(grid: int, images: int = 2) -> ModelInputs:
    """A document with images, as input of our model."""
    document = random_document(9, 3, images=images)
    length = len(document) + images * (grid**2 - 1)
    return lay_out([[document]], random_images(images), length, grid=grid)


@torch.no_grad()
def our_logits(model: MLLM, inputs: ModelInputs) -> Tensor:
    """Logits of one row: (T, V)."""
    model.eval()
    return model.head(model(**inputs)[0])


def vision_config(kind: str, layers: int = 3, **more: object) -> Any:
    """A tower of 6 x 6 patches in transformers' terms."""
    sizes: dict[str, Any] = {**_SIZES, "num_hidden_layers": layers, "image_size": SIDE}
    extra = {"vision_use_head": False} if kind == "siglip" else {}
    return _KINDS[kind](patch_size=14, **sizes, **extra, **more)


def llava_model(kind: str, vocab_size: int, seed: int = 0, **more: object) -> Any:
    """Transformers' own LLaVA with a random tower, projector and Qwen2."""
    torch.manual_seed(seed)
    strategy = "full" if kind == "siglip" else "default"
    settings: dict[str, Any] = {
        "vision_config": vision_config(kind),
        "text_config": Qwen2Config(vocab_size=vocab_size, tie_word_embeddings=True, **TEXT),
        "image_token_index": 299,
        "image_seq_length": PATCHES**2,
        "vision_feature_select_strategy": strategy,
        "tie_word_embeddings": True,
        **more,
    }
    return shaken(LlavaForConditionalGeneration(LlavaConfig(**settings)).eval())


def shaken(model: Any, seed: int = 1) -> Any:
    """Spread weights that begin as zeros or ones, so that a mixed-up name shows."""
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    return model


def their_logits(llava: Any, inputs: ModelInputs, mean: Tensor, std: Tensor) -> Tensor:
    """Logits of one row from transformers' own forward pass, on the same picture."""
    pixels = (inputs["images"].permute(0, 3, 1, 2).float() / 255 - mean) / std
    with torch.no_grad():
        found: Tensor = llava(input_ids=inputs["input_ids"], pixel_values=pixels).logits[0]
    return found


def with_tokenizer(folder: Path, chat: bool = True) -> int:
    """Put a tokenizer into a folder; gives the number of its ids."""
    tokenizer = tiny_tokenizer(folder)
    if chat:
        (folder / "chat_template.jinja").write_text(CHATML)
    return len(tokenizer)


def repository_folder(
    folder: Path,
    tower: Path,
    projector: str = "mlp2x_gelu",
    with_tower: bool = True,
    **config: object,
) -> tuple[Any, Any, torch.nn.Module]:
    """Write a folder of the LLaVA repository around a tower's own folder.

    Returns:
        The language model and the tower of transformers, and the projector.
    """
    folder.mkdir(parents=True)
    vocab = with_tokenizer(folder)
    torch.manual_seed(0)
    vision = shaken(SiglipVisionModel(vision_config("siglip")).eval())
    vision.save_pretrained(tower)
    llm = shaken(Qwen2ForCausalLM(Qwen2Config(vocab_size=vocab, tie_word_embeddings=True, **TEXT)))
    first, second = torch.nn.Linear(32, 32), torch.nn.Linear(32, 32)
    layers = [first] if projector == "linear" else [first, torch.nn.GELU(), second]
    mapped = torch.nn.Sequential(*layers)
    inner = {"linear": "", "aapool_mlp": "mlp_projector."}.get(projector, "")
    weights = {k: v for k, v in llm.eval().state_dict().items() if k != "lm_head.weight"}
    for name, value in mapped.state_dict().items():
        plain = name.removeprefix("0.") if projector == "linear" else name
        weights[f"model.mm_projector.{inner}{plain}"] = value
    if with_tower:
        for name, value in vision.state_dict().items():
            legacy = name if name.startswith("vision_model.") else f"vision_model.{name}"
            weights[f"model.vision_tower.vision_tower.{legacy}"] = value
    write_folder(
        folder,
        weights,
        {**llm.config.to_dict(), "model_type": "llava_qwen"}
        | {
            "mm_vision_tower": str(tower),
            "mm_projector_type": projector,
            "mm_hidden_size": 32,
            "mm_vision_select_layer": -2,
            "mm_vision_select_feature": "patch",
            "mm_patch_merge_type": "flat",
            "mm_use_im_start_end": False,
            "mm_use_im_patch_token": False,
            **config,
        },
    )
    return llm, vision, mapped


def write_folder(folder: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write a config and one file of weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config), default=str))
    whole = {name: value.detach().clone().contiguous() for name, value in weights.items()}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
