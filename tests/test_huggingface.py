"""The same weights in transformers' LLaVA give the same logits, and come back unchanged."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.batches import IMAGE_ID, lay_out, random_document, random_images
from support.models import SIDE, tiny_mllm
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

from openqwen2vl.formats.errors import CheckpointError
from openqwen2vl.model.mllm import MLLM
from openqwen2vl.release.huggingface import from_huggingface, to_huggingface

PATCHES = 6


def llava_config(model: MLLM) -> LlavaConfig:
    """The sizes of our model in the terms of transformers."""
    width = model.vision.width
    mlp = model.vision.model.blocks[0].mlp.fc1.out_features
    vision = SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=len(model.vision.model.blocks) + 1,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=14,
        hidden_act="gelu",
        vision_use_head=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=Qwen2Config(**model.llm.config.to_dict()),
        image_token_index=IMAGE_ID,
        image_seq_length=PATCHES**2,
        projector_hidden_act="gelu",
        vision_feature_select_strategy="full",
        vision_feature_layer=-2,
        tie_word_embeddings=True,
    )


def llava_of(model: MLLM) -> LlavaForConditionalGeneration:
    """Transformers' own class, filled from ours."""
    llava = LlavaForConditionalGeneration(llava_config(model)).eval()
    # The names are those of transformers 4, which version 5 renames when it loads a folder.
    renamed = {
        "model."
        + k.replace("vision_model.", "").replace("language_model.model.", "language_model."): v
        for k, v in to_huggingface(model.weights()).items()
        if not k.startswith("language_model.lm_head")
    }
    missing, surplus = llava.load_state_dict(renamed, strict=False)
    assert not surplus
    assert set(missing) <= {"lm_head.weight"}
    llava.tie_weights()
    return llava


def test_logits_equal_llavas_at_the_patch_grid() -> None:
    model = tiny_mllm(grid=PATCHES).eval()
    document, images = random_document(9, 3, images=2), random_images(2)
    length = len(document) + 2 * (PATCHES**2 - 1)
    inputs = lay_out([[document]], images, length, grid=PATCHES)
    pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        ours = model.head(model(**inputs)[0])
        theirs = llava_of(model)(input_ids=inputs["input_ids"], pixel_values=pixels).logits[0]
    assert ours.abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_folder_with_these_names_loads_whole(tmp_path: Path) -> None:
    model = tiny_mllm(grid=PATCHES)
    named = {name: value.contiguous() for name, value in to_huggingface(model.weights()).items()}
    # Tied to the input embedding, and a file holds each storage once.
    del named["language_model.lm_head.weight"]
    llava_config(model).save_pretrained(tmp_path)
    save_file(named, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, report = LlavaForConditionalGeneration.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    expected = llava_of(model).state_dict()
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


def test_there_and_back_is_the_identity() -> None:
    weights = tiny_mllm().weights()
    back = from_huggingface(to_huggingface(weights))
    assert back.keys() == weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(back[name], value, rtol=0, atol=0)


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(CheckpointError, match="no vision tower"):
        to_huggingface({})
    with pytest.raises(CheckpointError, match="at least two"):
        from_huggingface({"language_model.model.embed_tokens.weight": torch.zeros(1)})
    weights = tiny_mllm().weights() | {"vision.model.cls_token": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="cls_token"):
        to_huggingface(weights)
