"""Models to score with, of true shapes and random weights, saved as a user's folders would be."""

import json
from collections.abc import Iterable
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from transformers import CLIPImageProcessor, LlavaConfig, LlavaProcessor
from transformers import LlavaForConditionalGeneration as Llava

from openqwen2vl.formats.tokens import train_tokenizer

TINY_CLIP = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "layers": 3, "width": 128, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 3},
}
# Hidden size and layers of the language model, width and layers of the tower.
JUDGES = {"tiny": (64, 2, 64, 2), "small": (384, 8, 384, 8)}
SIDE, PATCH = 224, 16
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}"
    "{% if part.type == 'image' %}<|image_pad|>\n{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


def clip_folder(folder: Path, name: str) -> Path:
    """Save a contrastive model of one of open_clip's shapes, or of ``tiny``'s."""
    folder.mkdir(parents=True)
    config = TINY_CLIP if name == "tiny" else open_clip.get_model_config(name)
    described = {"model_cfg": config, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    network = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def judge_folder(folder: Path, name: str, texts: Iterable[str]) -> Path:
    """Save a LLaVA of 196 visual tokens a picture and one of ``JUDGES``' sizes."""
    width, layers, tower_width, tower_layers = JUDGES[name]
    tokenizer = train_tokenizer(texts, 2048)
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": tower_width,
            "intermediate_size": 4 * tower_width,
            "num_hidden_layers": tower_layers,
            "num_attention_heads": tower_width // 64,
            "image_size": SIDE,
            "patch_size": PATCH,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 32,
            "num_key_value_heads": 2,
        },
        image_token_index=image,
        image_seq_length=(SIDE // PATCH) ** 2,
    )
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<|image_pad|>",
        chat_template=CHAT,
    )
    Llava(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
