"""Folders of the LLaVA repository, among them the MLM-Filter scorers, against a plain forward."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support.released import PATCHES, example, our_logits, repository_folder
from support.runs import Run, assert_one_message
from torch.nn.functional import adaptive_avg_pool2d

from openqwen2vl.release.llava_repository import read_llava_repository
from openqwen2vl.release.towers import known_tower, tower_node
from openqwen2vl.release.trained import load_model, load_trained


@torch.no_grad()
def plain_logits(parts: tuple[Any, Any, torch.nn.Module], layer: int, grid: int) -> torch.Tensor:
    """What that repository's own program works out: tower, pooling, projector, language model."""
    llm, tower, projector = parts
    inputs = example(grid=grid)
    pixels = inputs["images"].permute(0, 3, 1, 2).float() / 127.5 - 1
    features = tower(pixels, output_hidden_states=True).hidden_states[layer]
    square = features.transpose(1, 2).unflatten(2, (PATCHES, PATCHES))
    pooled = adaptive_avg_pool2d(square, grid).flatten(2).transpose(1, 2)
    embedded = llm.get_input_embeddings()(inputs["input_ids"]).flatten(0, 1)
    embedded[inputs["image_positions"]] = projector(pooled).flatten(0, 1)
    return llm(inputs_embeds=embedded[None]).logits[0]


@pytest.mark.parametrize(
    ("projector", "layer", "grid"),
    [("mlp2x_gelu", -2, 6), ("linear", -1, 6), ("aapool_mlp", -1, 4), ("aapool_mlp", -2, 2)],
)
@pytest.mark.parametrize("with_tower", [True, False])
def test_logits_are_those_of_its_own_program(
    tmp_path: Path, call: Run, projector: str, layer: int, grid: int, with_tower: bool
) -> None:
    folder, tower = tmp_path / "scorer", tmp_path / "tower"
    config = {"mm_vision_select_layer": layer, "mm_num_image_tokens": grid**2}
    parts = repository_folder(folder, tower, projector, with_tower, **config)
    code, out, err = call("convert", f"source={folder}", f"out={tmp_path / 'y.ckpt'}")
    assert code == 0, err
    assert "a folder of the LLaVA repository" in out
    assert "template qwen2_5 is presumed" in out
    assert f"the output of block {3 if layer == -1 else 2}" in out
    shutil.rmtree(tower)
    model, _ = load_model(tmp_path / "y.ckpt")
    expected = plain_logits(parts, layer, grid)
    found = our_logits(model, example(grid=grid))[:, : expected.shape[1]]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1


def test_a_folder_is_opened_where_it_lies(tmp_path: Path) -> None:
    repository_folder(tmp_path / "scorer", tmp_path / "tower")
    trained = load_trained(tmp_path / "scorer")
    assert trained.template.name == "qwen2_5"
    assert trained.model.projector.grid == PATCHES


def test_a_tower_that_cannot_be_fetched_is_told(
    tmp_path: Path, call: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(timm, "create_model", unreachable)
    folder = tmp_path / "scorer"
    name = "openai/clip-vit-large-patch14-336"
    repository_folder(folder, tmp_path / "tower", with_tower=False, mm_vision_tower=name)
    told = call("convert", f"source={folder}", f"out={tmp_path / 'y'}")
    assert_one_message(told, "quickgelu_336.openai from the hub: no network here", "tower=DIR")


def test_a_tower_that_nobody_holds_is_fetched_by_its_name(tmp_path: Path) -> None:
    folder, asked = tmp_path / "scorer", []

    def fetch(name: str, blocks: int) -> dict[str, torch.Tensor]:
        asked.append((name, blocks))
        return {"vision.model.pos_embed": torch.zeros(1)}

    name = "/home/someone/models/siglip-so400m-patch14-384"
    repository_folder(folder, tmp_path / "tower", with_tower=False, mm_vision_tower=name)
    source = read_llava_repository(folder, fetch=fetch)
    assert asked == [("vit_so400m_patch14_siglip_384", 26)]
    assert source.grid == 27
    assert "vision.model.pos_embed" in source.weights


@pytest.mark.parametrize(
    ("name", "timm_name", "grid"),
    [
        ("google/siglip-so400m-patch14-384", "vit_so400m_patch14_siglip_384", 27),
        ("openai/clip-vit-large-patch14-336", "vit_large_patch14_clip_quickgelu_336.openai", 24),
    ],
)
def test_known_towers_have_the_sizes_of_timms(name: str, timm_name: str, grid: int) -> None:
    found = known_tower(name)
    assert found is not None
    vision, fetched = found
    assert fetched == timm_name
    node = tower_node(vision, -2, Path())
    with torch.device("meta"):
        whole = timm.create_model(timm_name)
        ours = timm.create_model(node["name"], img_size=node["image_side"], **node["overrides"])
    theirs = {name: value.shape for name, value in whole.state_dict().items()}
    assert {name: value.shape for name, value in ours.state_dict().items()} == theirs
    assert node["image_side"] // node["overrides"]["patch_size"] == grid


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end=True"),
        ({"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature='cls_patch'"),
        ({"mm_patch_merge_type": "spatial_unpad"}, "mm_patch_merge_type='spatial_unpad'"),
        ({"mm_projector_type": "mlp3x_gelu"}, "the projector 'mlp3x_gelu'"),
        ({"mm_vision_tower": "their/eva"}, "the vision tower 'their/eva'"),
        ({"mm_projector_type": "aapool_mlp", "mm_num_image_tokens": 5}, "mm_num_image_tokens=5"),
        ({"model_type": "llava_mpt"}, "model_type 'llava_mpt'"),
        ({"mm_projector_type": "aapool_mlp", "mm_num_image_tokens": 9}, "4 weights"),
    ],
)
def test_what_ours_does_otherwise_is_refused(
    tmp_path: Path, call: Run, change: dict[str, Any], said: str
) -> None:
    folder = tmp_path / "scorer"
    repository_folder(folder, tmp_path / "tower")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    assert_one_message(call("convert", f"source={folder}", f"out={tmp_path / 'y'}"), said)


def test_a_tower_may_be_named_beside_the_config(tmp_path: Path, call: Run) -> None:
    folder, tower = tmp_path / "scorer", tmp_path / "tower"
    repository_folder(folder, tower, mm_vision_tower="/gone/away")
    words = ("convert", f"source={folder}", f"out={tmp_path / 'y'}")
    assert_one_message(call(*words), "tower=...")
    assert call(*words, f"tower={tower}")[0] == 0
