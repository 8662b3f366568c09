"""Folders of transformers' LLaVA: the same logits as the stock model's, from both layouts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.released import (
    CHATML,
    PATCHES,
    example,
    llava_model,
    our_logits,
    their_logits,
    with_tokenizer,
    write_folder,
)
from support.runs import Run, assert_one_message

from openqwen2vl.release.trained import load_model, load_trained

HALF = torch.full((1, 3, 1, 1), 0.5)
CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
SCALES = {"siglip": (HALF, HALF), "clip": (CLIP_MEAN, CLIP_STD)}


def folder_of(tmp_path: Path, kind: str = "siglip", **more: object) -> tuple[Path, Any]:
    """Save a stock model with a tokenizer."""
    folder = tmp_path / "llava"
    vocab = with_tokenizer(folder)
    llava = llava_model(kind, vocab, **more)
    llava.save_pretrained(folder)
    return folder, llava


def legacy(folder: Path) -> None:
    """Rename the weights of a folder of version 5 to those of version 4."""
    weights = load_file(folder / "model.safetensors")
    renamed = {
        name.replace("vision_tower.", "vision_tower.vision_model."): value
        for name, value in weights.items()
    }
    assert set(renamed) != set(weights)
    write_folder(folder, renamed, json.loads((folder / "config.json").read_text()))


def in_memory(folder: Path) -> None:
    """Rename the weights to those that version 5 has while it runs."""
    weights = load_file(folder / "model.safetensors")
    renamed = {}
    for name, value in weights.items():
        inner = name.replace("language_model.model.", "language_model.")
        renamed["lm_head.weight" if "lm_head" in name else f"model.{inner}"] = value
    write_folder(folder, renamed, json.loads((folder / "config.json").read_text()))


@pytest.mark.parametrize("layout", [None, legacy, in_memory])
@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_logits_are_those_of_the_stock_model(
    tmp_path: Path, call: Run, kind: str, layout: Any
) -> None:
    folder, llava = folder_of(tmp_path, kind)
    if layout is not None:
        layout(folder)
    code, out, err = call("convert", f"source={folder}", f"out={tmp_path / 'y.ckpt'}")
    assert code == 0, err
    assert "a LLaVA folder of transformers" in out
    inputs = example(grid=PATCHES)
    expected = their_logits(llava, inputs, *SCALES[kind])
    for path in (tmp_path / "y.ckpt", folder):
        model, _ = load_model(path)
        assert model.projector.grid == PATCHES
        found = our_logits(model, inputs)[:, : expected.shape[1]]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1


@pytest.mark.parametrize(("layer", "act"), [(-1, "gelu"), (-3, "gelu_pytorch_tanh"), (1, "gelu")])
def test_any_one_block_may_be_the_feature(tmp_path: Path, layer: int, act: str) -> None:
    vision = {"hidden_act": act}
    folder, llava = folder_of(tmp_path, vision_feature_layer=layer)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"] |= vision
    (folder / "config.json").write_text(json.dumps(config))
    again = type(llava).from_pretrained(folder, dtype=torch.float32).eval()
    model, _ = load_model(folder)
    inputs = example(grid=PATCHES, images=1)
    found, expected = our_logits(model, inputs), their_logits(again, inputs, HALF, HALF)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_head_of_its_own_stays_one(tmp_path: Path) -> None:
    folder, _ = folder_of(tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["language_model.lm_head.weight"] = torch.randn(weights[EMBEDDING].shape)
    write_folder(folder, weights, json.loads((folder / "config.json").read_text()))
    model, _ = load_model(folder)
    torch.testing.assert_close(model.head_weight.data, weights["language_model.lm_head.weight"])
    assert model.llm.get_input_embeddings().weight is not model.head_weight


EMBEDDING = "language_model.model.embed_tokens.weight"


def test_tokens_that_the_source_lacks_get_rows(tmp_path: Path) -> None:
    folder = tmp_path / "llava"
    vocab = with_tokenizer(folder)
    llava = llava_model("siglip", vocab - 7)
    llava.save_pretrained(folder)
    model, _ = load_model(folder)
    rows = load_file(folder / "model.safetensors")[EMBEDDING]
    assert model.head_weight.shape[0] == vocab
    torch.testing.assert_close(model.head_weight[: vocab - 7].data, rows)
    assert model.head_weight[vocab - 7 :].abs().max() > 0
    assert model.llm.get_input_embeddings().weight is model.head_weight


def test_template_and_tokenizer_are_the_folders_or_given(tmp_path: Path, call: Run) -> None:
    folder, _ = folder_of(tmp_path)
    assert load_trained(folder).template.name == "qwen2_5"
    assert load_trained(folder, template="open_qwen2vl_v2").template.name == "open_qwen2vl_v2"
    (folder / "chat_template.jinja").write_text(CHATML.replace("im_start", "turn"))
    words = ("convert", f"source={folder}", f"out={tmp_path / 'y'}")
    assert_one_message(call(*words), "give template=qwen2_5|open_qwen2vl_v1|open_qwen2vl_v2")
    (folder / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    assert_one_message(call(*words), "no tokenizer.json in", "tokenizer=DIR_OR_NAME")
    given = (f"tokenizer={tmp_path}", "template=qwen2_5")
    code, out, _ = call(*words, *given)
    assert code == 0
    assert "presumed" not in out
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".y")]


def test_pictures_of_another_scale_are_refused(tmp_path: Path, call: Run) -> None:
    folder, _ = folder_of(tmp_path)
    settings = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.2, 0.2, 0.2]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    told = call("convert", f"source={folder}", f"out={tmp_path / 'y'}")
    assert_one_message(told, "image_std [0.2, 0.2, 0.2]")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"projector_hidden_act": "relu"}, "activation relu"),
        ({"vision_feature_select_strategy": "default"}, "strategy 'default'"),
        ({"vision_feature_layer": [-2, -3]}, "hidden states [-2, -3]"),
        ({"vision_feature_layer": 9}, "hidden states 9"),
        ({"vision_config": {"model_type": "pixtral"}}, "of the kind pixtral"),
        ({"vision_config": {"hidden_act": "relu"}}, "activation relu"),
        ({"text_config": {"model_type": "nonesuch"}}, "language model of the kind nonesuch"),
        ({"text_config": {"hidden_size": 64}}, "are not of this shape here"),
        ({"model_type": "llava_next"}, "model_type 'llava_next'"),
    ],
)
def test_what_ours_does_otherwise_is_refused(
    tmp_path: Path, call: Run, change: dict[str, Any], said: str
) -> None:
    folder, _ = folder_of(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    for key, value in change.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))
    assert_one_message(call("convert", f"source={folder}", f"out={tmp_path / 'y'}"), said)
    assert not (tmp_path / "y").exists()
