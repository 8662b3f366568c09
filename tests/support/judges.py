"""Tiny judges: random models that answer questions about pictures, saved as folders."""

from pathlib import Path

import torch
from transformers import (
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from support.shards import tiny_tokenizer

# ChatML, the mark of a picture wherever a picture is.
_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% for part in m.content %}{% if part.type == 'image' %}IMAGE"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "initializer_range": 0.3,
}
VIDEO, VISION_START, VISION_END = "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"


def llava_folder(folder: Path, seed: int = 0) -> Path:
    """Save a LLaVA: four patches a picture, Qwen2 of two layers."""
    tokenizer = tiny_tokenizer(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        text_config={"model_type": "qwen2", "vocab_size": len(tokenizer), **_TEXT},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="default",
        image_seq_length=4,
    )
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_CHAT.replace("IMAGE", "<image>\n"),
    )
    return _saved(LlavaForConditionalGeneration(config), processor, folder)


def qwen2_vl_folder(folder: Path, seed: int = 0) -> Path:
    """Save a Qwen2-VL: as many visual tokens as a picture's size asks, three-part positions."""
    tokenizer = tiny_tokenizer(folder)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|image_pad|>", VIDEO, VISION_START, VISION_END]}
    )
    ids = tokenizer.convert_tokens_to_ids
    torch.manual_seed(seed)
    config = Qwen2VLConfig(
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 14,
            "spatial_merge_size": 2,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [1, 1, 2],
            },
            **_TEXT,
        },
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids(VIDEO),
        vision_start_token_id=ids(VISION_START),
        vision_end_token_id=ids(VISION_END),
    )
    pixels = {"min_pixels": 28 * 28, "max_pixels": 56 * 56}
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(**pixels),
        tokenizer,
        Qwen2VLVideoProcessor(**pixels),
        chat_template=_CHAT.replace("IMAGE", f"{VISION_START}<|image_pad|>{VISION_END}"),
    )
    return _saved(Qwen2VLForConditionalGeneration(config), processor, folder)


def _saved(model: torch.nn.Module, processor: object, folder: Path) -> Path:
    assert hasattr(model, "save_pretrained")
    assert hasattr(processor, "save_pretrained")
    # Random heads prefer no token much: spread them, so that answers differ between prompts.
    model.lm_head.weight.data *= 3
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
