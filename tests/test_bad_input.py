import json
from functools import partial
from pathlib import Path

import pytest
import torch
from support.models import tiny_llm, tiny_mllm, tiny_tower
from support.runs import PackedCorpora, Run, assert_one_message, rows

from openqwen2vl.formats.errors import CheckpointError, UserError
from openqwen2vl.model.mllm import MLLM
from openqwen2vl.model.projector import AvgPoolProjector
from openqwen2vl.release.trained import initial_weights
from openqwen2vl.training.checkpoint import AtomicCheckpointIO, checkpoint_path, checkpoints
from openqwen2vl.training.run_folder import RunFolder


def save(path: Path, model: MLLM) -> Path:
    """Write a checkpoint as a run of this model does."""
    tower = model.vision
    known = {"name": tower.name, "hash": None if tower.trainable else tower.weights_hash()}
    content = {
        "global_step": 1,
        "openqwen2vl": {"tower": known, "init_from": None},
        "state_dict": {f"model.{name}": value for name, value in model.state_dict().items()},
    }
    AtomicCheckpointIO().save_checkpoint(content, path)
    return path


def fill_up(path: Path) -> None:
    """Make the next atomic writing of `path` run out of space, as on a full disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f".{path.name}.tmp").symlink_to("/dev/full")


def test_init_from_a_checkpoint_of_the_same_model_takes_its_weights(tmp_path: Path) -> None:
    there, here = tiny_mllm(seed=1), tiny_mllm(seed=2)
    initial_weights(here, save(tmp_path / "other.ckpt", there))
    for name, value in there.state_dict().items():
        assert torch.equal(here.state_dict()[name], value), name


def test_init_from_a_checkpoint_of_another_model_names_the_differences(tmp_path: Path) -> None:
    path = save(tmp_path / "other.ckpt", tiny_mllm(vocab_size=400))
    with pytest.raises(CheckpointError) as caught:
        initial_weights(tiny_mllm(vocab_size=300), path)
    message = str(caught.value)
    assert f"{path} is a checkpoint of another model" in message
    assert "(400, 64) there and (300, 64) here" in message
    assert "compose the same model" in message


def test_init_from_a_checkpoint_of_another_frozen_tower_names_both(tmp_path: Path) -> None:
    path = save(tmp_path / "other.ckpt", tiny_mllm(trainable_tower=False, seed=1))
    here = MLLM(tiny_tower(seed=2), partial(AvgPoolProjector, grid=3), tiny_llm())
    with pytest.raises(CheckpointError, match=r"was trained on the frozen tower .*vision=\.\.\."):
        initial_weights(here, path)


def test_init_from_a_checkpoint_that_trained_another_tower_names_the_differences(
    tmp_path: Path,
) -> None:
    # The tower is frozen here, so it is to be filled from there.
    path = save(tmp_path / "other.ckpt", tiny_mllm(trainable_tower=True))
    narrow = tiny_tower(width=32)
    here = MLLM(narrow, partial(AvgPoolProjector, grid=3), tiny_llm())
    with pytest.raises(CheckpointError, match=r"is a checkpoint of another model: .*\(48,\) there"):
        initial_weights(here, path)


LLAVA = json.dumps(
    {
        "model_type": "llava",
        "vision_feature_select_strategy": "full",
        "vision_config": {"model_type": "siglip_vision_model"},
        "text_config": {"model_type": "qwen2"},
    }
).encode()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no checkpoint at"),
        ({"config.json": b"{}"}, "is of model_type None; expected a folder that"),
        ({"config.json": LLAVA}, r"has a config\.json but no \.safetensors file"),
        ({"config.json": LLAVA, "pytorch_model.bin": b"x"}, r"no \.safetensors file"),
    ],
)
def test_init_from_a_folder_without_weights_says_what_is_missing(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        initial_weights(tiny_mllm(), tmp_path)


def test_a_disk_that_is_full_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    model = tiny_mllm()
    before = save(checkpoint_path(tmp_path, 1), model)
    fill_up(checkpoint_path(tmp_path, 2))
    with pytest.raises(UserError, match=r"no space left while writing .*step_00000002\.ckpt"):
        save(checkpoint_path(tmp_path, 2), model)
    assert checkpoints(tmp_path) == [before]
    assert list(tmp_path.iterdir()) == [before]


def test_a_disk_that_is_full_leaves_the_facts_before(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_json("run.json", {"step": 1})
    fill_up(tmp_path / "run.json")
    with pytest.raises(UserError, match="no space left"):
        folder.write_json("run.json", {"step": 2})
    assert folder.read_json("run.json") == {"step": 1}


def test_a_run_whose_disk_is_full_ends_with_one_message_and_can_go_on(
    call_train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    fill_up(checkpoint_path(run_dir / "checkpoints", 2))
    often = "callbacks.checkpoints.every_n_steps=1"
    with monkeypatch.context() as patched:
        # The run would take the stand-in for what a kill left, and delete it.
        patched.setattr("openqwen2vl.callbacks.checkpoints._tidy", lambda *given: None)
        assert_one_message(call_train("budget.steps=3", often), "no space left while writing")
    assert [path.name for path in checkpoints(run_dir / "checkpoints")] == ["step_00000001.ckpt"]
    code, _, err = call_train("budget.steps=3", often, "resume=last")
    assert code == 0, err
    assert [row["step"] for row in rows(run_dir)] == ["1", "2", "3"]


def test_a_run_from_another_models_checkpoint_ends_before_its_first_step(
    call_train: Run, tmp_path: Path, corpora: PackedCorpora
) -> None:
    path = save(tmp_path / "other.ckpt", tiny_mllm())
    assert_one_message(call_train(f"init_from={path}"), "is a checkpoint of another model")
    assert_one_message(call_train(f"init_from={tmp_path}/gone.ckpt"), "no checkpoint at")
    torch.save({"anything": 1}, path)
    assert_one_message(call_train(f"init_from={path}"), "holds no model weights")
    assert not (tmp_path / "run" / "metrics.csv").exists()
