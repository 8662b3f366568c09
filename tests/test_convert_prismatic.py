"""The released ``.pt`` as a checkpoint of ours: the same logits, and the two formats it learnt."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import tiny_mllm
from support.released import TINY_PARTS, example, our_logits, prismatic_model
from support.runs import Run
from support.shards import tiny_tokenizer

from openqwen2vl.formats.documents import IMAGE, Turn
from openqwen2vl.formats.templates import prompt_ids
from openqwen2vl.formats.tokens import special_tokens
from openqwen2vl.model.mllm import MLLM
from openqwen2vl.model.projector import LinearProjector, MLPProjector
from openqwen2vl.release.trained import initial_weights, load_model, load_trained

VOCAB = 512
GIVEN = ("template=open_qwen2vl_v1", "grid=3")


def convert(call: Run, source: Path, out: Path, *words: str) -> Any:
    """Convert with the parts of the tiny model; gives the figures."""
    code, said, err = call(
        "convert", f"source={source}", f"out={out}", *TINY_PARTS, *words, "json=true"
    )
    assert code == 0, err
    return json.loads(said.splitlines()[-1])


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    tiny_tokenizer(tmp_path / "tokenizer")
    return f"tokenizer={tmp_path / 'tokenizer'}"


def model_of(tmp_path: Path, grid: int = 3, seed: int = 5) -> MLLM:
    """A model with as many ids as the tokenizer, the tower as `vision=tiny` draws it."""
    vocab = len(tiny_tokenizer(tmp_path / "vocabulary"))
    model = tiny_mllm(grid=grid, vocab_size=vocab, seed=seed)
    model.vision.load_state_dict(tiny_mllm(seed=0).vision.state_dict())
    return model


@pytest.mark.parametrize("tower", [False, True])
def test_logits_are_those_of_the_model_that_was_saved(
    tmp_path: Path, call: Run, tokenizer: str, tower: bool
) -> None:
    model, source, out = model_of(tmp_path), tmp_path / "x.pt", tmp_path / "y.ckpt"
    if tower:
        for weight in model.vision.parameters():
            weight.data *= 1.5
    torch.save({"model": prismatic_model(model, tower)}, source)
    told = convert(call, source, out, *GIVEN, tokenizer)
    assert told["found"] == "a prismatic .pt"
    assert told["vision_tower"] == (
        "in the checkpoint" if tower else "vit_so400m_patch14_siglip_384"
    )
    opened, facts = load_model(out)
    for name, value in model.weights().items():
        torch.testing.assert_close(opened.weights()[name], value, rtol=0, atol=0)
    inputs = example(grid=3)
    expected = our_logits(model, inputs)
    torch.testing.assert_close(our_logits(opened, inputs), expected, rtol=0, atol=0)
    assert expected.abs().max() > 0.1
    assert opened.projector.grid == 3
    assert facts["text"]["template"]


@pytest.mark.parametrize(("name", "maps"), [("linear", 1), ("mlp", 3)])
def test_its_other_projectors_convert_too(
    tmp_path: Path, call: Run, tokenizer: str, name: str, maps: int
) -> None:
    kind = LinearProjector if name == "linear" else MLPProjector
    plain = model_of(tmp_path)
    model = MLLM(plain.vision, partial(kind, grid=3, seed=4), plain.llm)
    parts = prismatic_model(model)
    # Their names: a bare map, or layers that are not called after pooling.
    before = "mlp_projector.0." if maps == 1 else "mlp_projector."
    parts["projector"] = {
        key.replace(before, "projector."): value for key, value in parts["projector"].items()
    }
    assert len(parts["projector"]) == 2 * maps
    torch.save({"model": parts}, tmp_path / "x.pt")
    words = (*GIVEN, tokenizer, f"projector={name}")
    convert(call, tmp_path / "x.pt", tmp_path / "y.ckpt", *words)
    opened, _ = load_model(tmp_path / "y.ckpt")
    inputs = example(grid=3)
    torch.testing.assert_close(
        our_logits(opened, inputs), our_logits(model, inputs), rtol=0, atol=0
    )


def test_numbers_of_16_bits_stay_16_bits_in_the_file(
    tmp_path: Path, call: Run, tokenizer: str
) -> None:
    model = model_of(tmp_path)
    parts = prismatic_model(model)
    narrow = {p: {k: v.bfloat16() for k, v in held.items()} for p, held in parts.items()}
    torch.save({"model": narrow}, tmp_path / "x.pt")
    told = convert(call, tmp_path / "x.pt", tmp_path / "y.ckpt", *GIVEN, tokenizer)
    assert told["numbers"] == ["bfloat16"]
    assert told["bytes"] < 2 * told["parameters"] + 100_000
    opened, _ = load_model(tmp_path / "y.ckpt")
    for name, value in model.state_dict().items():
        if not name.startswith("vision."):
            rounded = value.bfloat16().float()
            torch.testing.assert_close(opened.state_dict()[name], rounded, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "first"), [("open_qwen2vl_v1", "image"), ("open_qwen2vl_v2", "bos")]
)
def test_both_formats_of_the_released_trainer_can_be_asked_in(
    tmp_path: Path, call: Run, tokenizer: str, name: str, first: str
) -> None:
    torch.save({"model": prismatic_model(model_of(tmp_path))}, tmp_path / "x.pt")
    convert(call, tmp_path / "x.pt", tmp_path / "y.ckpt", f"template={name}", "grid=3", tokenizer)
    trained = load_trained(tmp_path / "y.ckpt")
    assert trained.template.name == name
    turns = [Turn("user", (IMAGE, "\nWhat color is the circle?"))]
    ids = prompt_ids(turns, trained.tokenizer, trained.template)
    special = special_tokens(trained.tokenizer)
    assert ids[0] == getattr(special, first)
    spoken = trained.tokenizer.decode(ids)
    head = "<s><|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    tail = "What color is the circle?<|im_end|>assistant\n"
    image = "<|image_pad|>"
    assert spoken == (f"{image}\n{head}{tail}" if first == "image" else f"{head}{image}{tail}")


def test_a_run_starts_from_what_was_converted(tmp_path: Path, call: Run, tokenizer: str) -> None:
    model = model_of(tmp_path)
    torch.save({"model": prismatic_model(model, tower=True)}, tmp_path / "x.pt")
    convert(call, tmp_path / "x.pt", tmp_path / "y.ckpt", *GIVEN, tokenizer)
    fresh = tiny_mllm(grid=3, vocab_size=model.head_weight.shape[0], seed=9, trainable_tower=False)
    initial_weights(fresh, tmp_path / "y.ckpt")
    inputs = example(grid=3)
    torch.testing.assert_close(our_logits(fresh, inputs), our_logits(model, inputs))


def test_what_a_file_does_not_say_must_be_given(tmp_path: Path, call: Run, tokenizer: str) -> None:
    torch.save({"model": prismatic_model(model_of(tmp_path))}, tmp_path / "x.pt")
    words = ("convert", f"source={tmp_path / 'x.pt'}", f"out={tmp_path / 'y'}", *TINY_PARTS)
    code, _, err = call(*words, tokenizer)
    assert code == 2
    assert "give template=... (open_qwen2vl_v1" in err
    assert "grid=... (27" in err
    code, _, err = call(*words, *GIVEN)
    assert (code, "give tokenizer=" in err) == (2, True)
    code, _, err = call(*words, tokenizer, "template=open_qwen2vl_v1", "grid=7")
    assert code == 2
    assert "grid is 7" in err
    assert "6 x 6" in err
    assert not (tmp_path / "y").exists()
