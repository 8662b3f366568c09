import os
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from support.models import tiny_mllm
from torch import nn

from openqwen2vl.formats.errors import CheckpointError
from openqwen2vl.training.checkpoint import (
    AtomicCheckpointIO,
    checkpoint_path,
    checkpoint_step,
    checkpoints,
    load_weights,
    read_facts,
    read_weights,
)

FACTS = {"stage": "pretrain", "phases": [{"start": 0, "stop": 4, "grid": 3}]}


def model(width: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(2, width), nn.Linear(width, 2))


def save(path: Path, trained: nn.Module, step: int = 5) -> Path:
    """Write a checkpoint file as a run does."""
    content = {
        "global_step": step,
        "openqwen2vl": FACTS,
        "state_dict": {f"model.{name}": value for name, value in trained.state_dict().items()},
    }
    AtomicCheckpointIO().save_checkpoint(content, path)
    return path


def test_a_checkpoint_gives_back_step_facts_and_weights(tmp_path: Path) -> None:
    trained = model()
    path = save(checkpoint_path(tmp_path, 5), trained)
    assert path.name == "step_00000005.ckpt"
    assert (checkpoint_step(path), read_facts(path)) == (5, FACTS)
    fresh = model()
    load_weights(fresh, read_weights(path), path)
    for name, value in trained.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value)


def test_checkpoints_are_listed_oldest_first_and_only_complete_ones(tmp_path: Path) -> None:
    for name in (
        "step_00000010.ckpt",
        "step_00000009.ckpt",
        ".step_00000011.ckpt.tmp",
        "last.ckpt",
    ):
        (tmp_path / name).touch()
    assert [path.name for path in checkpoints(tmp_path)] == [
        "step_00000009.ckpt",
        "step_00000010.ckpt",
    ]
    assert checkpoints(tmp_path / "nowhere") == []


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_checkpoint_that_was_cut_off_is_refused(tmp_path: Path, share: float) -> None:
    path = save(tmp_path / "step_00000005.ckpt", model(500))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=r"cannot be read as a checkpoint .*it is cut off"):
        read_weights(path)


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.victim),)


@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(
    tmp_path: Path, writer: str
) -> None:
    path, victim = tmp_path / "step_00000001.ckpt", tmp_path / "victim"
    content = {"global_step": 1, "openqwen2vl": FACTS, "state_dict": {"model.x": Hostile(victim)}}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    for read in (read_facts, read_weights, checkpoint_step):
        with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
            read(path)
    assert not victim.exists()
    # It would have run: the check above is not about a harmless file.
    with path.open("rb") as file:
        pickle.load(file) if writer == "pickle" else torch.load(file, weights_only=False)
    assert victim.exists()


def test_what_is_no_checkpoint_of_ours_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*gone"):
        read_facts(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        read_facts(tmp_path)
    foreign = tmp_path / "foreign.ckpt"
    torch.save({"state_dict": {"vit.weight": torch.ones(1)}, "global_step": 1}, foreign)
    with pytest.raises(CheckpointError, match="was not written by openqwen2vl"):
        read_facts(foreign)
    with pytest.raises(CheckpointError, match="holds no model weights"):
        read_weights(foreign)
    torch.save([1, 2], foreign)
    with pytest.raises(CheckpointError, match="holds a list, expected a checkpoint"):
        read_facts(foreign)


def test_a_checkpoint_of_another_model_names_the_first_differences(tmp_path: Path) -> None:
    path = save(tmp_path / "step_00000005.ckpt", model(4))
    with pytest.raises(CheckpointError) as caught:
        load_weights(model(3), read_weights(path), path)
    message = str(caught.value)
    assert "is a checkpoint of another model" in message
    assert "0.bias is (4,) there and (3,) here" in message
    assert "; compose the same model" in message


def test_many_differences_are_counted_not_listed(tmp_path: Path) -> None:
    other = nn.Sequential(*[nn.Linear(2, 2) for _ in range(5)])
    with pytest.raises(CheckpointError, match=r"2\.bias is unknown here; .* and 3 more; compose"):
        load_weights(model(2), other.state_dict(), tmp_path)
    with pytest.raises(CheckpointError, match=r"2\.bias is missing there"):
        load_weights(other, model(2).state_dict(), tmp_path)


def test_a_model_that_does_not_fit_is_left_as_it_was(tmp_path: Path) -> None:
    fresh = model(3)
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    weights = model(3).state_dict() | {"1.weight": torch.ones(7, 7)}
    with pytest.raises(CheckpointError):
        load_weights(fresh, weights, tmp_path)
    assert all(torch.equal(before[name], value) for name, value in fresh.state_dict().items())


@pytest.mark.parametrize(("trained", "built"), [(True, False), (False, True), (True, True)])
def test_a_tower_is_loaded_when_both_sides_train_it_and_may_be_absent(
    tmp_path: Path, trained: bool, built: bool
) -> None:
    there, here = tiny_mllm(trainable_tower=trained, seed=1), tiny_mllm(trainable_tower=built)
    before = here.vision.weights_hash()
    load_weights(here, there.state_dict(), tmp_path)
    assert torch.equal(here.head_weight, there.head_weight)
    loaded = here.vision.weights_hash() != before
    assert loaded == (trained and built)


def test_a_crash_while_saving_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "step_00000005.ckpt", model())
    before = path.read_bytes()

    def crash(content: object, file: object) -> None:
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(KeyboardInterrupt):
        save(path, model())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def save_sharded(folder: Path, weights: dict[str, object]) -> Path:
    """Write a folder as Lightning's sharded strategy does, in this one process."""
    state = {f"model.{name}": value for name, value in weights.items()}
    dcp.save({"model": state}, checkpoint_id=folder, no_dist=True)
    torch.save({"global_step": 7, "openqwen2vl": FACTS}, folder / "meta.pt")
    return folder


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
class TestShardedFolder:
    def test_it_is_read_in_one_process(self, tmp_path: Path) -> None:
        trained = model()
        path = save_sharded(tmp_path / "step_00000007.ckpt", trained.state_dict())
        assert (checkpoint_step(path), read_facts(path)) == (7, FACTS)
        weights = read_weights(path)
        assert sorted(weights) == sorted(trained.state_dict())
        assert all(torch.equal(weights[name], v) for name, v in trained.state_dict().items())

    @pytest.mark.parametrize("gone", [".metadata", "meta.pt"])
    def test_without_one_of_its_parts_it_is_refused(self, tmp_path: Path, gone: str) -> None:
        path = save_sharded(tmp_path / "step_00000007.ckpt", model().state_dict())
        (path / gone).unlink()
        with pytest.raises(CheckpointError, match=r"no checkpoint at|lacks its \.metadata"):
            read_facts(path)

    @pytest.mark.parametrize("part", [".metadata", "meta.pt", "__0_0.distcp"])
    def test_with_a_part_cut_off_it_is_refused(self, tmp_path: Path, part: str) -> None:
        path = save_sharded(tmp_path / "step_00000007.ckpt", model(500).state_dict())
        whole = (path / part).read_bytes()
        (path / part).write_bytes(whole[: len(whole) // 2])
        read = read_facts if part == "meta.pt" else read_weights
        with pytest.raises(CheckpointError, match=r"cannot be read as .*it is cut off"):
            read(path)

    @pytest.mark.parametrize("part", [".metadata", "meta.pt", "a loose value"])
    def test_code_in_any_part_of_it_does_not_run(self, tmp_path: Path, part: str) -> None:
        victim = tmp_path / "victim"
        hostile = Hostile(victim)
        loose = {"value": hostile} if part == "a loose value" else {}
        path = save_sharded(tmp_path / "step_00000007.ckpt", model().state_dict() | loose)
        if part == ".metadata":
            (path / part).write_bytes(pickle.dumps(hostile))
        elif part == "meta.pt":
            torch.save({"global_step": hostile}, path / part)
        with pytest.raises(CheckpointError, match="cannot be read as"):
            read_facts(path)
        if part != "meta.pt":
            with pytest.raises(CheckpointError, match="cannot be read as"):
                read_weights(path)
        assert not victim.exists()
