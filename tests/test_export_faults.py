"""What cannot be exported: one message, exit code 2, and nothing stays behind."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from support.exports import VISION, Trained, beside, request, unchecked, write_run
from support.runs import Run, assert_one_message

from openqwen2vl.formats.errors import CheckpointError
from openqwen2vl.packing import space
from openqwen2vl.release import export as exporting
from openqwen2vl.release.export import export


@pytest.fixture
def made(tmp_path: Path) -> Trained:
    return write_run(tmp_path / "run", grid=4)


def test_a_checkpoint_cut_off_is_refused(call: Run, made: Trained, tmp_path: Path) -> None:
    whole = made.checkpoint.read_bytes()
    made.checkpoint.write_bytes(whole[: len(whole) // 2])
    told = call("export", f"checkpoint={made.run}", f"out={tmp_path}/out")
    assert_one_message(told, "cannot be read as a checkpoint")
    assert beside(tmp_path / "out") == set()


def test_a_shard_cut_off_is_refused(call: Run, tmp_path: Path) -> None:
    made = write_run(tmp_path / "run", sharded=True)
    (part,) = made.checkpoint.glob("*.distcp")
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    told = call("export", f"checkpoint={made.checkpoint}", f"out={tmp_path}/out")
    assert_one_message(told, "cannot be read as a sharded checkpoint")
    assert beside(tmp_path / "out") == set()


@pytest.mark.parametrize("aim", ["../outside.distcp", "/etc/hostname"])
def test_a_sharded_folder_that_points_out_of_itself_is_refused(
    call: Run, tmp_path: Path, aim: str
) -> None:
    made = write_run(tmp_path / "run", sharded=True)
    contents = pickle.loads((made.checkpoint / ".metadata").read_bytes())
    place = next(iter(contents.storage_data.values()))
    place.relative_path = aim
    (made.checkpoint / ".metadata").write_bytes(pickle.dumps(contents))
    told = call("export", f"checkpoint={made.checkpoint}", f"out={tmp_path}/out")
    assert_one_message(told, "outside of its folder")
    assert beside(tmp_path / "out") == set()


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.victim),)


@pytest.mark.parametrize("part", [".metadata", "meta.pt"])
def test_a_sharded_folder_that_could_run_code_does_not(
    call: Run, tmp_path: Path, part: str
) -> None:
    made = write_run(tmp_path / "run", sharded=True)
    hostile = {"global_step": Hostile(tmp_path / "victim")}
    if part == "meta.pt":
        torch.save(hostile, made.checkpoint / part)
    else:
        (made.checkpoint / part).write_bytes(pickle.dumps(hostile))
    told = call("export", f"checkpoint={made.checkpoint}", f"out={tmp_path}/out")
    assert_one_message(told, "cannot be read as a")
    assert beside(tmp_path / "out") == set()


def test_a_checkpoint_without_one_of_its_weights_is_refused(
    call: Run, made: Trained, tmp_path: Path
) -> None:
    content = torch.load(made.checkpoint, weights_only=True)
    del content["state_dict"]["model.projector.layers.2.bias"]
    torch.save(content, made.checkpoint)
    told = call("export", f"checkpoint={made.run}", f"out={tmp_path}/out")
    assert_one_message(told, "projector.layers.2.bias is not there, (64,) was expected")
    assert beside(tmp_path / "out") == set()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["grid=7"], "grid is 7, but the vision tower has only 6 x 6 patches"),
        (["grid=0"], "grid is 0; expected visual tokens along a side"),
        (["dtype=fp16"], "dtype is 'fp16'; there are bf16, fp32"),
        (["shard_gb=0"], "shard_gb is 0; expected gigabytes above 0"),
        (["licence='a: [b'"], "licence is 'a: [b'; expected one word"),
        (["licence=null"], "licence is None; expected one word"),
        (["tokenizer=./nowhere"], "no tokenizer folder ./nowhere"),
        (["scores=./nowhere"], "no scored.jsonl at nowhere"),
        (["curation=./nowhere"], "no nowhere/curation.json; give a folder that curate wrote"),
        (["checkpoint=./nowhere"], "no checkpoint at nowhere"),
    ],
)
def test_values_that_cannot_be_meant_are_answered(
    call: Run, made: Trained, tmp_path: Path, words: list[str], message: str
) -> None:
    told = call("export", f"checkpoint={made.run}", f"out={tmp_path}/out", *words)
    assert_one_message(told, message)
    assert beside(tmp_path / "out") == set()


def test_the_tokenizer_of_the_run_is_asked_for_when_it_is_gone(
    call: Run, made: Trained, tmp_path: Path
) -> None:
    for path in (tmp_path / "tokenizer").iterdir():
        path.unlink()
    (tmp_path / "tokenizer").rmdir()
    told = call("export", f"checkpoint={made.run}", f"out={tmp_path}/out")
    assert_one_message(told, "give the tokenizer of that run (tokenizer=DIR_OR_NAME)")


def test_a_tower_that_is_no_siglip_is_refused(call: Run, tmp_path: Path) -> None:
    sizes = {"embed_dim": 48, "depth": 3, "num_heads": 4}
    clip = VISION | {"name": "vit_large_patch14_clip_336.openai", "overrides": sizes}
    made = write_run(tmp_path / "run", vision=clip)
    told = call("export", f"checkpoint={made.run}", f"out={tmp_path}/out")
    assert_one_message(told, "vision.model.cls_token has no place", "needs a SigLIP tower")
    assert beside(tmp_path / "out") == set()


def test_a_place_that_cannot_be_written_is_told(call: Run, made: Trained, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    told = call("export", f"checkpoint={made.run}", f"out={tmp_path}/file/out")
    assert_one_message(told, "file/out cannot be written (")


def test_facts_that_are_not_whole_are_told(call: Run, made: Trained, tmp_path: Path) -> None:
    content = torch.load(made.checkpoint, weights_only=True)
    del content["openqwen2vl"]["text"]
    torch.save(content, made.checkpoint)
    told = call("export", f"checkpoint={made.run}", f"out={tmp_path}/out")
    assert_one_message(told, "does not tell its text")


def test_a_full_disk_is_told_before_anything_is_written(
    call: Run, made: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 10_000_000

    monkeypatch.setattr(space.shutil, "disk_usage", lambda folder: Usage)
    told = call("export", f"checkpoint={made.run}", f"out={tmp_path}/out")
    assert_one_message(told, "the weights need about", "10 MB free")
    assert beside(tmp_path / "out") == set()


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"logits": 0.5}, "logits that differ by 0.5, at most"),
        ({"logits": float("nan")}, "logits that differ by nan"),
        ({"pixels": [0.1, 0.0]}, "pixels that differ by 0.1"),
        ({"pixels": [0.0, 0.1]}, "after a resize by 0.1"),
        ({"unlike_ids": ["<s>Hi"]}, "other token ids for '<s>Hi'"),
        ({"unlike_ends": [None]}, "answers that end with token None"),
        ({"loading": {"missing": ["lm_head.weight"]}}, "missing weights lm_head.weight"),
        ({"first_token": 1.0}, "generate() that begins with another token"),
    ],
)
def test_a_model_that_reads_otherwise_is_not_let_out(
    made: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    found: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr(exporting, "reload", unchecked)
    export(request(made.run), tmp_path / "out")
    before = (tmp_path / "out" / "config.json").read_bytes()
    monkeypatch.setattr(exporting, "reload", lambda one, two: unchecked(one, two) | found)
    with pytest.raises(CheckpointError) as caught:
        export(request(made.run, dtype="bf16"), tmp_path / "out", overwrite=True)
    assert message in str(caught.value)
    # The model that was there before is untouched.
    assert beside(tmp_path / "out") == {"out"}
    assert (tmp_path / "out" / "config.json").read_bytes() == before


@pytest.mark.slow
def test_the_other_process_sees_what_is_wrong(
    made: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = exporting.llava_config.model_config

    def wrong(*arguments: Any) -> dict[str, Any]:
        config = right(*arguments)
        # Near enough to go unnoticed in answers.
        return config | {"vision_config": config["vision_config"] | {"hidden_act": "quick_gelu"}}

    monkeypatch.setattr(exporting.llava_config, "model_config", wrong)
    template = exporting.chat_template
    monkeypatch.setattr(exporting, "chat_template", lambda name: f"x{template(name)}")
    monkeypatch.setattr(exporting.llava_config, "generation_config", lambda special: {})
    with pytest.raises(CheckpointError) as caught:
        export(request(made.run), tmp_path / "out")
    said = ("logits that differ by", "other token ids for 'x<|im_start|>", "end with token")
    for fault in said:
        assert fault in str(caught.value)
    assert "pixels" not in str(caught.value)
    assert beside(tmp_path / "out") == set()


@pytest.mark.slow
def test_a_folder_that_does_not_open_says_why(
    made: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting.llava_config, "processor_config", lambda tower, grid: {})
    monkeypatch.setattr(exporting.llava_config, "image_processor_config", lambda tower: {})
    with pytest.raises(CheckpointError, match="cannot be opened by transformers"):
        export(request(made.run), tmp_path / "out")
    assert beside(tmp_path / "out") == set()
