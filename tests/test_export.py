"""Exported folders: opened again by transformers, and what they hold."""

import json
import os
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from support.batches import random_images
from support.exports import PATCHES, VISION, request, unchecked, write_run
from transformers import AutoProcessor, GenerationConfig, LlavaForConditionalGeneration

from openqwen2vl.formats.tokens import load_tokenizer, special_tokens
from openqwen2vl.model.mllm import MLLM
from openqwen2vl.release import export as exporting
from openqwen2vl.release.checking import reload
from openqwen2vl.release.export import KEY, export
from openqwen2vl.release.modelling.modeling_openqwen2vl import OpenQwen2VLForConditionalGeneration
from openqwen2vl.release.trained import load_model

SIDE_FOLDER = Path(__file__).parents[1] / ".side" / "transformers-4.57"
# The class of the folder, and the runs that lead to it: every projector, tower and layout once.
STOCK: dict[str, Any] = {"grid": PATCHES, "trainable_tower": True}
POOLED: dict[str, Any] = {"grid": 4, "template": "open_qwen2vl_v1", "tied": False, "sharded": True}
OTHERS: dict[str, dict[str, Any]] = {
    "linear": {"grid": 3, "projector": "LinearProjector", "template": "open_qwen2vl_v2"},
    "mlp": {"grid": PATCHES, "projector": "MLPProjector"},
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the other process away: importing the libraries takes seconds."""
    monkeypatch.setattr(exporting, "reload", unchecked)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return found


@pytest.mark.slow
@pytest.mark.parametrize("settings", [STOCK, POOLED], ids=["stock", "pooled"])
def test_transformers_5_opens_it_as_the_same_model(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    made = write_run(tmp_path / "run", **settings)
    told = export(request(made.run, dtype="bf16", shard_bytes=200_000), tmp_path / "out")
    assert told["check"]["transformers"].startswith("5.")
    assert told["check"]["loading"] == {"missing": [], "unexpected": [], "mismatched": []}
    assert told["check"]["dtype"] == "bfloat16"
    assert told["check"]["logits"] < 1e-4
    assert told["check"]["largest_logit"] > 1
    assert sum(name.endswith(".safetensors") for name in told["files"]) > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [STOCK, POOLED, *OTHERS.values()], ids=["stock", "pooled", *OTHERS]
)
def test_transformers_4_57_opens_it_as_the_same_model(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not SIDE_FOLDER.is_dir():
        # `make test` makes the folder and says so: there it must not be forgotten.
        assert "OPENQWEN2VL_SIDE" not in os.environ, f"no {SIDE_FOLDER}"
        pytest.skip(f"no {SIDE_FOLDER}; make side puts it there")
    older = partial(reload, more={"PYTHONPATH": str(SIDE_FOLDER)})
    monkeypatch.setattr(exporting, "reload", older)
    made = write_run(tmp_path / "run", **settings)
    told = export(request(made.checkpoint), tmp_path / "out")
    assert told["check"]["transformers"].startswith("4.57.")
    assert told["check"]["loading"] == {"missing": [], "unexpected": [], "mismatched": []}
    assert told["check"]["logits"] < 1e-4


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "settings", [STOCK, POOLED, *OTHERS.values()], ids=["stock", "pooled", *OTHERS]
)
def test_a_folder_comes_back_as_the_model_that_it_was_made_from(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    made = write_run(tmp_path / "run", **settings)
    export(request(made.checkpoint), tmp_path / "out")
    back, facts = load_model(tmp_path / "out")
    assert back.projector.grid == settings["grid"]
    assert facts["stage"] == "sft"
    before, after = made.model.weights(), back.weights()
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=0)


@pytest.mark.usefixtures("quick")
def test_bf16_is_the_weights_rounded_once(tmp_path: Path) -> None:
    made = write_run(tmp_path / "run", grid=4)
    export(request(made.checkpoint, dtype="bf16"), tmp_path / "out")
    held = weights_of(tmp_path / "out")
    assert {value.dtype for value in held.values()} == {torch.bfloat16}
    name = "model.language_model.layers.1.mlp.up_proj.weight"
    ours = made.model.state_dict()["llm.model.layers.1.mlp.up_proj.weight"]
    assert torch.equal(held[name], ours.to(torch.bfloat16))


@pytest.mark.usefixtures("quick")
def test_sharded_and_single_checkpoints_give_the_same_files(tmp_path: Path) -> None:
    folders = []
    for sharded in (False, True):
        made = write_run(tmp_path / str(sharded) / "run", grid=4, sharded=sharded)
        folders.append(tmp_path / str(sharded) / "out")
        export(request(made.checkpoint, shard_bytes=100_000), folders[-1])
    # Not even where the tokenizer lay shows.
    one, other = ({p.name: p.read_bytes() for p in folder.iterdir()} for folder in folders)
    assert one == other


@pytest.mark.usefixtures("quick")
def test_the_index_says_where_every_weight_lies(tmp_path: Path) -> None:
    made = write_run(tmp_path / "run")
    told = export(request(made.checkpoint, shard_bytes=100_000), tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    held = weights_of(tmp_path / "out")
    assert index["weight_map"].keys() == held.keys()
    assert index["metadata"]["total_size"] == told["bytes"]
    assert sum(value.nbytes for value in held.values()) == told["bytes"]
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "out" / file, "pt") as opened:
            assert name in opened.keys()  # noqa: SIM118
    # A shard holds more than was asked for only where one weight is that large.
    for file in (tmp_path / "out").glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            names = list(opened.keys())
        assert len(names) == 1 or sum(held[name].nbytes for name in names) <= 100_000


@pytest.mark.usefixtures("quick")
def test_the_config_says_what_the_model_is_and_where_it_comes_from(tmp_path: Path) -> None:
    made = write_run(tmp_path / "run", grid=4)
    export(request(made.checkpoint), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["text_config"]["rope_theta"] == 500.0
    assert config["vision_config"]["hidden_act"] == "gelu"
    assert (config["image_seq_length"], config["grid"]) == (16, 4)
    own = config[KEY]
    assert (own["format"], own["grid"], own["dtype"]) == (1, 4, "fp32")
    assert own["facts"]["template"] == "qwen2_5"
    assert own["facts"]["phases"][-1]["grid"] == 4
    assert (tmp_path / "out" / "modeling_openqwen2vl.py").is_file()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("grid", [4, PATCHES])
def test_servers_are_told_what_they_ask_for(tmp_path: Path, grid: int) -> None:
    made = write_run(tmp_path / "run", grid=grid)
    export(request(made.checkpoint), tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out", trust_remote_code=True)
    # Servers count an image's tokens by its size alone, and batch prompts of unlike lengths.
    assert processor._get_num_multimodal_tokens([(50, 90)])["num_image_tokens"] == [grid**2]
    mask = processor(text=["a", "a b c d"], padding=True, return_tensors="pt")["attention_mask"]
    assert (int(mask[0, 0]), int(mask[0, -1])) == (0, 1)
    settings = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (settings.do_sample, settings.eos_token_id) == (False, processor.tokenizer.eos_token_id)


@pytest.mark.usefixtures("quick")
def test_a_siglip_with_the_other_gelu_says_so(tmp_path: Path) -> None:
    tanh = VISION | {"overrides": VISION["overrides"] | {"act_layer": "gelu_tanh"}}
    made = write_run(tmp_path / "run", vision=tanh)
    export(request(made.checkpoint), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vision_config"]["hidden_act"] == "gelu_pytorch_tanh"


@pytest.mark.usefixtures("quick")
def test_a_grid_of_the_patches_makes_any_run_a_stock_llava(tmp_path: Path) -> None:
    made = write_run(tmp_path / "run", grid=3)
    told = export(request(made.checkpoint, grid=PATCHES), tmp_path / "out")
    assert told["class"] == "LlavaForConditionalGeneration"
    assert "modeling_openqwen2vl.py" not in told["files"]


@pytest.mark.usefixtures("quick")
def test_a_tower_that_an_earlier_stage_trained_is_fetched_from_there(tmp_path: Path) -> None:
    first = write_run(tmp_path / "first", trainable_tower=True)
    second = write_run(tmp_path / "second", init_from=first.run)
    facts = dict(
        second.facts, tower=second.facts["tower"] | {"hash": first.model.vision.weights_hash()}
    )
    state = {f"model.{k}": v for k, v in second.model.state_dict().items()}
    content = {"global_step": 5, "openqwen2vl": facts, "state_dict": state}
    torch.save(content, second.checkpoint)
    export(request(second.checkpoint), tmp_path / "out")
    held = weights_of(tmp_path / "out")
    trained = first.model.vision.state_dict()["model.blocks.1.norm1.weight"]
    name = "vision_tower.vision_model.encoder.layers.1.layer_norm1.weight"
    assert torch.equal(held[name], trained)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("grid", [3, PATCHES])
def test_the_folder_continues_a_prompt_as_our_model_does(tmp_path: Path, grid: int) -> None:
    made = write_run(tmp_path / "run", grid=grid)
    export(request(made.checkpoint), tmp_path / "out")
    kind = LlavaForConditionalGeneration if grid == PATCHES else OpenQwen2VLForConditionalGeneration
    theirs = kind.from_pretrained(tmp_path / "out").eval()
    special = special_tokens(load_tokenizer(str(tmp_path / "tokenizer")))
    images = random_images(1)
    ids = [special.bos, special.image, 40, 41, 42]
    settings = {"max_new_tokens": 12}
    ours = made.model.generate(
        [ids], images, special.image, special.pad, eos_ids=[special.eos], **settings
    )
    spread = [special.bos, *[special.image] * grid**2, 40, 41, 42]
    pixels = made.model.vision.pixels(images)
    prompt = torch.tensor([spread])
    mask = torch.ones_like(prompt)
    found = theirs.generate(
        input_ids=prompt, attention_mask=mask, pixel_values=pixels, do_sample=False, **settings
    )
    assert found[0, len(spread) :].tolist()[: len(ours[0])] == ours[0]
    assert len(ours[0]) > 3


def test_our_model_is_gone_before_the_other_process_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = write_run(tmp_path / "run")
    plain = request(made.checkpoint)
    seen = []

    def build() -> MLLM:
        model = plain.build()
        seen.append(weakref.ref(model))
        return model

    def reloaded(folder: Path, question: Path) -> dict[str, Any]:
        assert [model() for model in seen] == [None]
        return unchecked(folder, question)

    monkeypatch.setattr(exporting, "reload", reloaded)
    export(replace(plain, build=build), tmp_path / "out")
    assert len(seen) == 1
