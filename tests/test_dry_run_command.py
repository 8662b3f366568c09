"""`train ... dry_run=true`: a verdict before the launch, by exit code, table and JSON."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from support.ill_samplers import OneForAll
from support.recorder import recorded
from support.runs import PackedCorpora, Run, assert_one_message, command, train

from openqwen2vl.commands import _assemble, _fit
from openqwen2vl.commands._dry_run import plan_replay
from openqwen2vl.data_modules import packed
from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.model.mllm import MLLM
from openqwen2vl.model.vision import VisionTower
from openqwen2vl.packing.reader import Pack, PackFolder
from openqwen2vl.training.dry_run import Replay, Topology

DryRun = Callable[..., tuple[int, str, str]]
"""Changes of the run's keys, such as ``replay__steps=4``, to exit code, stdout and stderr."""


@pytest.fixture
def dry(
    call: Run, corpora: PackedCorpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> DryRun:
    """Call a dry run of ten small steps on two ranks; whoever builds a model fails."""

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("built a model")

    for owner, name in (
        (MLLM, "__init__"),
        (VisionTower, "__init__"),
        (_assemble, "build_model"),
        (_fit, "build_model"),
        (_fit, "spawn"),
    ):
        monkeypatch.setattr(owner, name, refuse)

    def called(**changes: object) -> tuple[int, str, str]:
        overrides = {
            "dry_run": "true",
            "strategy": "ddp",
            "trainer.devices": 2,
            "json": "true",
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
        words = command(corpora, tmp_path / "run", overrides)
        return call(*words[words.index("train") :])

    return called


def figures_of(told: tuple[int, str, str], code: int = 0) -> dict[str, Any]:
    found, out, err = told
    assert found == code, err
    figures: dict[str, Any] = json.loads(out.splitlines()[-1])
    return figures


def test_two_topologies_that_serve_the_same_end_with_0(dry: DryRun, tmp_path: Path) -> None:
    told = dry()
    figures = figures_of(told)
    for words in ("dry run of pretrain", "2 x 2 x 1", "1 x 1 x 4", "looked at steps 1 to "):
        assert words in told[1]
    assert figures["equal"] is True
    assert figures["first_difference"] is None
    assert f"equal over 10 steps: {figures['digest']}" in told[1]
    assert figures["windows"][0]["first"] == 1
    assert figures["windows"][-1]["last"] == 10
    why = " ".join(reason for window in figures["windows"] for reason in window["why"])
    for reason in ("the start", "grid 3 -> 6 at step 7", "pass 2 of "):
        assert reason in why
        assert reason in told[1]
    mine, other = figures["topologies"]
    assert (mine["ranks"], mine["micro_batch"], mine["accumulation"]) == (2, 2, 1)
    assert (other["ranks"], other["micro_batch"], other["accumulation"]) == (1, 1, 4)
    assert (mine["packs"], other["packs"]) == ([20, 20], [40])
    assert sum(mine["images"]) == sum(other["images"]) == sum(mine["images_by_grid"].values())
    assert mine["switches"] == other["switches"] == [7]
    assert mine["sources"] == other["sources"]
    assert mine["passes"] == other["passes"]
    assert mine["images_spread"] >= other["images_spread"] == 1
    assert list(tmp_path.iterdir()) == []


def test_an_order_that_depends_on_the_rank_ends_with_1_and_is_named(
    dry: DryRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "StepBatches", OneForAll)
    told = dry(replay__steps=2)
    figures = figures_of(told, code=1)
    assert figures["equal"] is False
    assert figures["digest"] is None
    found = figures["first_difference"]
    assert found["step"] == 1
    assert "NOT EQUAL: step 1 is the first that differs" in told[1]
    assert {pack["source"] for pack in found["packs"]} <= {"red", "blue"}
    for pack in found["packs"]:
        assert pack["uids"]
        assert pack["uids"][0] in told[1]
    assert told[2] == ""


def test_broken_pictures_and_the_loaders_pace_are_told_only_where_pictures_were_decoded(
    dry: DryRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = PackFolder.read

    def broken(folder: PackFolder, number: int) -> Pack:
        pack = whole(folder, number)
        return replace(pack, images=[b"no picture", *pack.images[1:]])

    monkeypatch.setattr(PackFolder, "read", broken)
    told = dry(replay__steps=1)
    figures = figures_of(told)
    assert figures["decoded"] is False
    for one in figures["topologies"]:
        assert (one["corrupt"], one["steps_per_second"]) == (None, None)
        assert one["reader_steps_per_second"] > 0
    assert "not looked at (replay.decode=true)" in told[1]
    assert "reader without decoding" in told[1]
    told = dry(replay__steps=1, replay__decode="true")
    figures = figures_of(told)
    assert figures["decoded"] is True
    for one in figures["topologies"]:
        assert one["corrupt"] == sum(one["packs"]) > 0
        assert one["steps_per_second"] > 0
        assert one["reader_steps_per_second"] is None
    assert "not looked at" not in told[1]
    assert "without decoding" not in told[1]


def test_a_folder_that_the_launch_would_refuse_is_told(dry: DryRun, tmp_path: Path) -> None:
    assert figures_of(dry(replay__steps=1))["refused"] is None
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").touch()
    told = dry(replay__steps=1)
    figures = figures_of(told)
    assert "run holds a run already; go on with it by resume=last" in figures["refused"]
    assert f"the launch would be refused: {figures['refused']}" in told[1]
    assert figures_of(dry(replay__steps=1, resume="auto"))["refused"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": "nowhere"}, "nowhere"),
        ({"replay__against__devices": 3}, "3 rank(s) x data.micro_batch 1 take 3 at a time"),
        ({"replay__start": "soon"}, "replay.start is 'soon'; expected a whole number or null"),
        ({"resume": "last", "json": "false"}, "has no complete checkpoint"),
    ],
)
def test_what_cannot_be_replayed_is_the_users_to_mend(
    dry: DryRun, changes: dict[str, object], message: str
) -> None:
    assert_one_message(dry(**changes), message)


def planned(
    devices: int | str = 2, num_workers: int | str = 4, accelerator: str = "cpu", **against: int
) -> tuple[Topology, Replay]:
    """The plan of a run, compared with another topology, whose keys are ``against_...``."""
    other = {key.removeprefix("against_"): value for key, value in against.items()}
    return plan_replay(
        OmegaConf.create(
            {
                "trainer": {"accelerator": accelerator, "devices": devices, "num_nodes": 1},
                "data": {"micro_batch": 2, "num_workers": num_workers},
                "replay": {"steps": 20, "start": None, "decode": False, "against": other},
            }
        )
    )


def test_what_proves_nothing_or_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, wanted = planned(against_devices=4)
    assert (mine.ranks, wanted.against.ranks, wanted.against.num_workers) == (2, 4, 0)
    with pytest.raises(ConfigError, match=r"are one topology \(devices=2 .* num_workers=4\)"):
        planned(against_devices=2, against_micro_batch=2, against_num_workers=4)
    for wrong in ("devices", "num_nodes", "micro_batch"):
        with pytest.raises(ConfigError, match=f"{wrong}=0"):
            planned(**{f"against_{wrong}": 0})
    with pytest.raises(ConfigError, match=r"replay\.steps is 0"):
        Replay(steps=0, against=Topology())
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with pytest.raises(ConfigError, match="start it without torchrun or srun"):
        planned(against_devices=4)


def test_loader_processes_alone_are_a_comparison_only_where_both_are_numbers() -> None:
    same = {"against_devices": 2, "against_micro_batch": 2}
    assert planned(num_workers=4, **same)[1].against.num_workers == 0
    with pytest.raises(ConfigError, match="are one topology"):
        planned(num_workers="auto", **same)


@pytest.mark.parametrize("accelerator", ["gpu", "cuda", "auto"])
def test_as_many_devices_as_there_are_gpus_is_no_number_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, accelerator: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"has none; give trainer\.devices"):
        planned(devices="auto", accelerator=accelerator)
    assert planned(devices=8, accelerator=accelerator)[0].ranks == 8
    assert planned(devices="auto")[0].ranks == 1


@pytest.mark.slow
def test_a_real_run_of_two_ranks_is_served_what_the_dry_run_says(
    dry: DryRun, corpora: PackedCorpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Down to the pixels, and from any of its checkpoints on any other topology."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    # The grid changes with the fourth step.
    steps = {"budget.steps": 5}
    done = train(
        corpora,
        tmp_path / "run",
        **steps,
        **{
            "strategy": "ddp",
            "trainer.devices": 2,
            "data.micro_batch": 1,
            "data.num_workers": 1,
            "+callbacks.recorder._target_": "support.recorder.Recorder",
            "+callbacks.recorder.folder": tmp_path / "served",
        },
    )
    assert done.returncode == 0, done.stderr
    real = {step + 1: batch.digest() for step, batch in recorded(tmp_path / "served").items()}
    assert len(real) == 5
    decoded = {"replay.decode": "true", **steps}
    fresh = figures_of(dry(**decoded))
    assert {batch["step"]: batch["digest"] for batch in fresh["batches"]} == real
    checkpoint = tmp_path / "run" / "checkpoints" / "step_00000002.ckpt"
    resumed = figures_of(dry(resume=checkpoint, trainer__devices=4, data__micro_batch=1, **decoded))
    assert resumed["windows"][0]["first"] == 3
    assert {batch["step"]: batch["digest"] for batch in resumed["batches"]} == {
        step: digest for step, digest in real.items() if step > 2
    }
    assert_one_message(
        dry(resume=checkpoint, seed=8, **steps), "another order of packs (seed: 7 there"
    )
