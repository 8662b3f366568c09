"""`openqwen2vl doctor`: each check turns yellow or red when its subject is ill, and says why."""

import hashlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from support.compose import composed
from support.runs import PackedCorpora, Run

from openqwen2vl.commands import _doctor_machine as machine
from openqwen2vl.commands import _doctor_software as software
from openqwen2vl.commands._doctor_data import (
    pack_findings,
    read_speed,
    speed_finding,
)
from openqwen2vl.commands._doctor_finding import Finding, Level
from openqwen2vl.commands.doctor import SCHEMA, _show
from openqwen2vl.config import check

GREEN, YELLOW, RED = Level.GREEN, Level.YELLOW, Level.RED
REMEDY = "three checkpoints take 56 GB: free some, or callbacks.checkpoints.keep=1"
SMALL = ("doctor", "read_bytes=1e6", "json=true")


def test_a_healthy_machine_ends_with_0_and_lists_every_check(
    call: Run, corpora: PackedCorpora
) -> None:
    code, out, err = call(*SMALL, f"packs={corpora.packs('red', 3)}", "space=1e6")
    assert code == 0, err
    figures = json.loads(out.splitlines()[-1])
    names = {one["name"] for one in figures["checks"]}
    assert {"python", "torch", "torch and torchvision", "GPUs", "open files", "space"} <= names
    assert {"offline flags", "SLURM", "disk speed", f"packs {corpora.packs('red', 3)}"} <= names
    levels = [one["level"] for one in figures["checks"]]
    assert {level: levels.count(level) for level in ("green", "yellow", "red")} == {
        level: figures[level] for level in ("green", "yellow", "red")
    }
    assert figures["worst"] in ("green", "yellow")
    assert all(bool(one["todo"]) == (one["level"] != "green") for one in figures["checks"])


def test_something_red_ends_with_2_after_the_figures(
    call: Run, corpora: PackedCorpora, tmp_path: Path
) -> None:
    packs = tmp_path / "packs"
    shutil.copytree(corpora.packs("red", 3), packs)
    shard = next(packs.glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1  # padding: only the hash can tell
    shard.write_bytes(content)
    code, out, err = call(*SMALL, f"packs=[{packs},{corpora.packs('blue', 3)}]")
    assert code == 2
    assert json.loads(out.splitlines()[-1])["worst"] == "red"
    assert f"packs {packs}: {shard.name} differ from the manifest's sha256" in err
    assert "Traceback" not in err
    assert str(corpora.packs("blue", 3)) not in err


def test_packs_that_are_gone_are_red(tmp_path: Path) -> None:
    (found,) = pack_findings([tmp_path], 4)
    assert found.level is RED
    assert "no manifest.json" in found.found


def test_the_config_is_sound() -> None:
    check(composed(name="doctor"), SCHEMA)


@pytest.mark.parametrize(
    ("line", "level"),
    [("torch>=2.0", GREEN), ("torch>=99", RED), ("surely-not-installed>=1", RED)],
)
def test_packages_are_compared_with_what_is_needed(line: str, level: Level) -> None:
    found = software.package_finding(Requirement(line))
    assert found.level is level
    assert (level is GREEN) or f"pip install '{line}'" in found.todo


def test_torchvision_for_another_torch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert software.torchvision_finding().level is GREEN
    monkeypatch.setattr(software, "requires", lambda name: ["numpy", "torch==1.2.3"])
    assert software.torchvision_finding().level is YELLOW
    monkeypatch.setattr(software, "_operators", lambda: False)
    assert software.torchvision_finding().level is RED


def test_offline_flags_matter_for_what_is_not_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "models--a--here" / "snapshots" / "123").mkdir(parents=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    flags, here, gone = software.hub_findings(["a/here", "a/gone"], tmp_path)
    assert (flags.found, here.level, gone.level) == ("HF_HUB_OFFLINE", GREEN, YELLOW)
    assert "llm.path=DIR" in gone.todo
    for flag in software._OFFLINE:
        monkeypatch.setenv(flag, "0")
    asked: list[str] = []
    monkeypatch.setattr(software, "hub_fault", lambda name: asked.append(name) or "")
    flags, _, gone = software.hub_findings(["a/here", "a/gone"], tmp_path)
    assert (flags.found, gone.level, asked) == ("none set", GREEN, ["a/gone"])


def test_a_hub_that_gives_nothing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for flag in software._OFFLINE:
        monkeypatch.setenv(flag, "0")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)  # 501 to whatever is asked
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(software, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    _, answered = software.hub_findings(["a/gone"], tmp_path)
    server.shutdown()
    server.server_close()
    _, refused = software.hub_findings(["a/gone"], tmp_path)
    monkeypatch.setattr(software, "ENDPOINT", "no address")
    _, wrong = software.hub_findings(["a/gone"], tmp_path)
    assert {one.level for one in (answered, refused, wrong)} == {YELLOW}
    assert "does not give it without a login (501 " in answered.found
    assert "cannot be reached (" in refused.found
    assert "llm.path=DIR" in refused.todo


def test_the_key_to_type_is_whole_at_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    long = "timm/ViT-SO400M-14-SigLIP-384"
    _show(
        [
            Finding("space", YELLOW, "34 GB", REMEDY),
            Finding(long, GREEN, "in /home/user/" + "x" * 90),
        ]
    )
    shown = capsys.readouterr().out
    assert "callbacks.checkpoints.keep=1" in shown
    assert long in shown
    assert shown.count("x") == 90


@pytest.mark.parametrize(("found", "level"), [(-1, GREEN), (4096, GREEN), (1024, YELLOW)])
def test_limits_are_compared(found: int, level: Level) -> None:
    assert machine.limit_finding("open files", found, 4096, "ulimit").level is level


def test_space_cores_and_shared_memory_are_compared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def free(amount: float) -> Finding:
        usage = SimpleNamespace(free=amount)
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage)
        return machine.space_finding(tmp_path / "new" / "run", 56e9)

    assert [free(size).level for size in (57e9, 55e9, 5e8)] == [GREEN, YELLOW, RED]
    assert [machine.shared_finding(size).level for size in (64_000_000, 10**10)] == [YELLOW, GREEN]
    assert [machine.cores_finding(*n).level for n in ((2, 0), (2, 2), (16, 8))] == [
        GREEN,
        YELLOW,
        GREEN,
    ]


@pytest.mark.parametrize(
    ("variables", "gpus", "level"),
    [
        ({}, 8, GREEN),
        ({"SLURM_JOB_ID": "7"}, 8, GREEN),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS_PER_NODE": "8"}, 8, GREEN),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS_PER_NODE": "4"}, 8, RED),
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"}, 8, RED),
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS_PER_NODE": "8"}, 8, GREEN),
    ],
)
def test_a_slurm_job_wants_a_task_for_each_gpu(
    variables: dict[str, str], gpus: int, level: Level
) -> None:
    assert machine.slurm_finding(variables, gpus).level is level


def test_gpus_are_examined_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = [
        SimpleNamespace(name="NVIDIA A100", total_memory=40 * 2**30, major=8, minor=0),
        SimpleNamespace(name="Tesla V100", total_memory=16 * 2**30, major=7, minor=0),
    ]
    cuda = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 2,
        get_device_properties=lambda number: facts[number],
        can_device_access_peer=lambda one, other: False,
    )
    monkeypatch.setattr(machine.torch, "cuda", cuda)
    new, old, between = machine.gpu_findings()
    assert (new.level, old.level, between.level) == (GREEN, YELLOW, YELLOW)
    assert "precision=32-true" in old.todo
    assert "0 of 2 pairs" in between.found
    monkeypatch.setattr(machine.dist, "is_nccl_available", lambda: False)
    assert list(machine.gpu_findings())[2].level is RED


def test_a_disk_is_measured_against_what_the_gpus_take(tmp_path: Path) -> None:
    assert speed_finding(100e6, 40e6, 1).level is GREEN
    assert speed_finding(60e6, 40e6, 1).level is YELLOW
    assert speed_finding(30e6, 40e6, 1).level is RED
    assert speed_finding(30e6, 40e6, 0).level is YELLOW  # nothing waits for it here
    assert read_speed([], tmp_path, 1e6) > 0
    assert list(tmp_path.iterdir()) == []
    file = tmp_path / "shard"
    file.write_bytes(b"x" * 100_000)
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    assert read_speed([file], tmp_path, 1e6) > 0
    assert hashlib.sha256(file.read_bytes()).hexdigest() == before
