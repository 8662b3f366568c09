"""Runs of several processes that cannot be: told before anything starts, and after a rank died."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from support.runs import PackedCorpora, Run, assert_one_message, command

from openqwen2vl.commands import _fit
from openqwen2vl.formats.errors import CheckpointError, UserError
from openqwen2vl.training.exit_note import VARIABLE


@pytest.mark.parametrize("devices", [1, 2])
def test_several_nodes_want_a_launcher(
    call: Run,
    corpora: PackedCorpora,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    devices: int,
) -> None:
    monkeypatch.setattr(_fit, "spawn", lambda *given: pytest.fail("started ranks"))
    settings = {
        "strategy": "ddp",
        "trainer.num_nodes": 2,
        "trainer.devices": devices,
        "data.micro_batch": 1,
    }
    words = command(corpora, tmp_path / "run", settings)
    told = call(*words[words.index("train") :])
    assert_one_message(told, "trainer.num_nodes is 2", "on every node with torchrun or srun")


def test_a_rank_leaves_a_note_of_a_mistake_and_only_then(
    call: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    note = tmp_path / "note"
    monkeypatch.setenv(VARIABLE, str(note))
    assert call("compare", "table=[1,2,3,4]")[0] == 0
    assert not note.exists()
    assert call("compare", "table=[1,2]")[0] == 2
    assert note.exists()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "gone" / "note"))
    assert call("compare", "table=[1,2]")[0] == 2


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [(2, UserError, "the ranks' messages"), (1, RuntimeError, "crashed or was killed")],
)
def test_a_killed_rank_is_no_mistake_of_the_users(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, kind: type, message: str
) -> None:
    config = OmegaConf.create({"run_dir": str(tmp_path), "resume": None})
    nothing: Any = lambda *given: None  # noqa: E731
    monkeypatch.setattr(_fit, "_data", nothing)
    monkeypatch.setattr(_fit.HydraConfig, "get", lambda: OmegaConf.create(HYDRA))
    monkeypatch.setattr(_fit, "spawn", lambda *given: code)
    with pytest.raises(kind, match=message) as caught:
        _fit.run_processes(config, 2)
    assert isinstance(caught.value, UserError) is (code == 2)


HYDRA = {"runtime": {"config_sources": []}, "overrides": {"task": []}}


def test_a_converted_checkpoint_is_no_run_to_resume(tmp_path: Path) -> None:
    path = tmp_path / "converted.ckpt"
    facts = {"converted": {"source": "x.pt", "layout": "a prismatic .pt"}}
    torch.save({"state_dict": {}, "global_step": 0, "openqwen2vl": facts}, path)
    with pytest.raises(CheckpointError, match=r"was converted, not trained.*init_from="):
        _fit.resumable(path, OmegaConf.create({}), None)  # type: ignore[arg-type]
