import random

import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from support.batches import random_images
from support.models import SIDE, TOWER, tiny_tower
from torchvision.transforms.v2.functional import normalize

from openqwen2vl.formats.errors import CheckpointError, ConfigError
from openqwen2vl.model.vision import VisionTower

SMALL = {"embed_dim": 48, "depth": 4, "num_heads": 4}
TOWERS = {
    "siglip": (TOWER, {}),
    "clip": ("vit_large_patch14_clip_336.openai", {}),
    "dinov2": ("vit_large_patch14_dinov2.lvd142m", {}),
    "dinov2 with registers": ("vit_large_patch14_reg4_dinov2.lvd142m", {}),
}


def timm_model(name, **overrides):
    return timm.create_model(name, pretrained=False, img_size=SIDE, **{**SMALL, **overrides}).eval()


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize("trainable", [False, True])
def test_features_are_timms_own_second_to_last_block(kind, trainable):
    name, overrides = TOWERS[kind]
    tower = VisionTower(
        name,
        pretrained=False,
        image_side=SIDE,
        overrides={**SMALL, **overrides},
        trainable=trainable,
    )
    whole = timm_model(name, **overrides)
    missing, unexpected = whole.load_state_dict(tower.model.state_dict(), strict=False)
    assert not unexpected
    assert {key.split(".")[0] for key in missing} <= {"blocks", "norm", "attn_pool", "head"}
    images = random_images(3)
    expected = whole.get_intermediate_layers(tower.pixels(images), n=[2])[0]
    features = tower(images)
    assert features.shape == (3, 36, 48)
    assert torch.equal(features, expected)


def test_the_last_block_is_neither_kept_nor_run():
    tower = tiny_tower(depth=4)
    assert len(tower.model.blocks) == 3
    assert {key.split(".")[0] for key in tower.model.state_dict()} == {
        "pos_embed",
        "patch_embed",
        "blocks",
    }


def test_every_weight_of_a_trainable_tower_gets_a_gradient():
    tower = tiny_tower(trainable=True)
    tower(random_images(2)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tower.parameters())


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        (TOWER, [0.5] * 3, [0.5] * 3),
        (
            "vit_large_patch14_clip_336.openai",
            [0.48145466, 0.4578275, 0.40821073],
            [0.26862954, 0.26130258, 0.27577711],
        ),
    ],
)
def test_pixels_are_normalised_as_the_weights_were_trained(name, mean, std):
    tower = VisionTower(name, pretrained=False, image_side=SIDE, overrides=SMALL)
    images = random_images(2)
    expected = normalize(images.permute(0, 3, 1, 2).float() / 255, mean, std)
    torch.testing.assert_close(tower.pixels(images), expected, rtol=0, atol=1e-6)


def test_normalisation_survives_a_bfloat16_tower():
    tower = tiny_tower().to(torch.bfloat16)
    images = random_images(1)
    pixels = tower.pixels(images)
    assert pixels.dtype == torch.bfloat16
    assert torch.equal(pixels, tiny_tower().pixels(images).to(torch.bfloat16))


def test_attributes_name_side_patches_and_width():
    tower = tiny_tower(width=64)
    assert (tower.side, tower.patch_grid, tower.width) == (84, 6, 64)


def test_no_image_gives_no_feature():
    assert tiny_tower()(random_images(0)).shape == (0, 36, 48)


def test_no_image_still_gives_a_trainable_tower_zero_gradients():
    tower = tiny_tower(trainable=True)
    features = tower(random_images(0))
    assert features.shape == (0, 36, 48)
    features.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in tower.parameters())


def test_a_frozen_tower_has_no_graph_and_stays_in_eval_mode():
    tower = tiny_tower(trainable=False)
    tower.train()
    assert not any(module.training for module in tower.modules())
    assert not any(p.requires_grad for p in tower.parameters())
    assert not tower(random_images(1)).requires_grad
    trainable = tiny_tower(trainable=True)
    assert trainable.training
    assert not trainable.eval().training


def test_random_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = tiny_tower(seed=5)
    torch.manual_seed(2)
    again, other = tiny_tower(seed=5), tiny_tower(seed=6)
    assert first.weights_hash() == again.weights_hash() != other.weights_hash()
    assert len(first.weights_hash()) == 16
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_building_leaves_the_random_state_alone():
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002 - the global state itself
    tiny_tower()
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002


def test_the_hash_does_not_change_when_a_frozen_tower_is_cast():
    tower = tiny_tower()
    before = tower.weights_hash()
    assert tower.to(torch.bfloat16).weights_hash() == before


def test_weights_come_from_a_local_file_that_holds_the_whole_model(tmp_path):
    whole = timm_model(TOWER)
    file = tmp_path / "tower.safetensors"
    save_file(whole.state_dict(), file)
    tower = VisionTower(TOWER, weights=str(file), image_side=SIDE, overrides=SMALL)
    images = random_images(2)
    expected = whole.get_intermediate_layers(tower.pixels(images), n=[2])[0]
    assert torch.equal(tower(images), expected)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    file = tmp_path / "tower.safetensors"
    save_file(timm_model(TOWER, embed_dim=96).state_dict(), file)
    with pytest.raises(
        CheckpointError, match=r"cannot load .*tower\.safetensors.*vision\.weights="
    ):
        VisionTower(TOWER, weights=str(file), image_side=SIDE, overrides=SMALL)


@pytest.mark.parametrize(
    ("file", "message"),
    [("gone.safetensors", "do not exist"), ("tower.pt", r"no \.safetensors file")],
)
def test_weights_must_be_an_existing_safetensors_file(tmp_path, file, message):
    with pytest.raises(CheckpointError, match=message):
        VisionTower(TOWER, weights=str(tmp_path / file))


def test_an_unreachable_hub_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"the hub.*vision\.weights=FILE"):
        VisionTower(TOWER, image_side=SIDE, overrides=SMALL)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("vit_so400m_patch14_siglip_383", {}, "did you mean .*vit_so400m_patch14_siglip_384"),
        ("resnet18", {}, "no plain ViT"),
        (TOWER, {"embed_dimension": 48}, "refuses the overrides.*embed_dimension"),
        (TOWER, {**SMALL, "depth": 1}, "has 1 block.*at least 2"),
        (TOWER, {**SMALL, "img_size": (84, 98)}, "6x7 patches"),
    ],
)
def test_towers_that_cannot_be_built_say_why(name, overrides, message):
    with pytest.raises(ConfigError, match=message):
        VisionTower(name, pretrained=False, overrides=overrides)


@pytest.mark.parametrize(
    "images",
    [random_images(1, side=70), random_images(1).float(), random_images(1).permute(0, 3, 1, 2)],
)
def test_images_of_another_shape_or_dtype_are_refused(images):
    with pytest.raises(ValueError, match=r"tower .* takes torch\.uint8 \(K, 84, 84, 3\)"):
        tiny_tower()(images)
