"""Laws 4 to 6 on whole runs: real processes, real kills, real sharding."""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.runs import (
    PackedCorpora,
    command,
    environment,
    kill_tree,
    kill_when,
    rows,
    train,
)

pytestmark = pytest.mark.slow
STEPS = 10
TOLERANCE = 2e-6


@pytest.fixture(scope="session")
def unbroken(corpora: PackedCorpora, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ten steps that nobody disturbs, with every checkpoint kept."""
    run_dir = tmp_path_factory.mktemp("unbroken") / "run"
    done = train(corpora, run_dir)
    assert done.returncode == 0, done.stderr
    return run_dir


def cut_to(unbroken: Path, run_dir: Path, step: int) -> None:
    """Leave of a run what it had on disk when it was killed after ``step``'s checkpoint."""
    shutil.copytree(unbroken, run_dir)
    for path in (run_dir / "checkpoints").iterdir():
        if int(path.stem.removeprefix("step_")) > step:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def assert_close(run_dir: Path, reference: Path) -> None:
    """Equal up to the order in which floats are added."""
    ours, theirs = rows(run_dir), rows(reference)
    assert [r["step"] for r in ours] == [str(s) for s in range(1, STEPS + 1)]
    for mine, other in zip(ours, theirs, strict=True):
        for key in ("step", "lr", "tokens", "target_tokens", "images", "grid"):
            assert mine[key] == other[key]
        assert float(mine["loss"]) == pytest.approx(float(other["loss"]), rel=TOLERANCE)
        assert float(mine["grad_norm"]) == pytest.approx(float(other["grad_norm"]), rel=1e-4)


def test_the_unbroken_run_learns_and_switches_its_grid(unbroken: Path) -> None:
    found = rows(unbroken)
    assert [row["grid"] for row in found] == ["3"] * 6 + ["6"] * 4
    assert float(found[-1]["loss"]) < float(found[0]["loss"]) - 1


@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_killed_at_random_steps_equals_the_unbroken_one_bitwise(
    corpora: PackedCorpora, unbroken: Path, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    run_dir = tmp_path / "run"
    for step in sorted(rng.sample(range(1, STEPS), 2)):
        words = command(
            corpora, run_dir, {"resume": "auto", "data.num_workers": rng.choice([0, 1])}
        )
        kill_when(words, run_dir, step)
    done = train(corpora, run_dir, resume="auto")
    assert done.returncode == 0, done.stderr
    assert rows(run_dir) == rows(unbroken)


@pytest.mark.parametrize("step", [5, 6, 7])
def test_resuming_around_the_switch_of_the_grid_is_bitwise(
    corpora: PackedCorpora, unbroken: Path, tmp_path: Path, step: int
) -> None:
    cut_to(unbroken, tmp_path / "run", step)
    done = train(corpora, tmp_path / "run", resume="last", data__num_workers=1)
    assert done.returncode == 0, done.stderr
    assert rows(tmp_path / "run") == rows(unbroken)


@pytest.mark.parametrize(("micro", "workers"), [(1, 0), (4, 2)])
def test_another_micro_batch_and_other_workers_resume_the_same_curve(
    corpora: PackedCorpora, unbroken: Path, tmp_path: Path, micro: int, workers: int
) -> None:
    cut_to(unbroken, tmp_path / "run", 3)
    done = train(
        corpora,
        tmp_path / "run",
        resume="last",
        data__micro_batch=micro,
        data__num_workers=workers,
    )
    assert done.returncode == 0, done.stderr
    assert_close(tmp_path / "run", unbroken)


def test_one_process_then_two_then_one_follow_the_same_curve(
    corpora: PackedCorpora, unbroken: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    cut_to(unbroken, run_dir, 3)
    words = command(corpora, run_dir, {"resume": "last", "strategy": "ddp", "trainer.devices": 2})
    kill_when(words, run_dir, 7)
    done = train(corpora, run_dir, resume="last")
    assert done.returncode == 0, done.stderr
    assert_close(run_dir, unbroken)


def test_two_sharded_processes_then_one_follow_the_same_curve(
    corpora: PackedCorpora, unbroken: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    sharded = {
        "strategy": "fsdp",
        "strategy.param_dtype": "fp32",
        "trainer.devices": 2,
        "checkpointing": "full",
    }
    kill_when(command(corpora, run_dir, sharded), run_dir, 6)
    assert (run_dir / "checkpoints" / "step_00000005.ckpt").is_dir()
    done = train(corpora, run_dir, resume="last", strategy="fsdp", strategy__param_dtype="fp32")
    assert done.returncode == 0, done.stderr
    assert_close(run_dir, unbroken)


def test_a_rank_without_images_does_not_hang_the_others(
    corpora: PackedCorpora, tmp_path: Path
) -> None:
    # One of the sources holds no image at all, and each rank takes one pack at a time.
    done = train(
        corpora,
        tmp_path / "run",
        **{
            "resolution": "tiny",
            "strategy": "fsdp",
            "strategy.param_dtype": "fp32",
            "trainer.devices": 2,
            "data.micro_batch": 1,
            "+mixture.sources.text.packs": corpora.packs("text", 6),
        },
    )
    assert done.returncode == 0, done.stderr
    images = [int(row["images"]) for row in rows(tmp_path / "run")]
    assert len(images) == STEPS
    assert min(images) < max(images)


@pytest.mark.parametrize("devices", [1, 2])
def test_sigterm_saves_and_the_run_goes_on_bitwise(
    corpora: PackedCorpora, unbroken: Path, tmp_path: Path, devices: int
) -> None:
    run_dir = tmp_path / "run"
    settings: dict[str, object] = {"callbacks.checkpoints.every_n_steps": 1000}
    if devices == 2:
        settings |= {"strategy": "ddp", "trainer.devices": 2}
    with subprocess.Popen(
        command(corpora, run_dir, settings),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        deadline = time.monotonic() + 120
        while len(rows(run_dir)) < 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    record = json.loads((run_dir / "run.json").read_text())
    stopped = record["state"] == "stopped"
    assert stopped == (record["step"] < STEPS)
    assert [p.name for p in (run_dir / "checkpoints").iterdir()] == [
        f"step_{record['step']:08d}.ckpt"
    ]
    done = train(corpora, run_dir, resume="last")
    assert done.returncode == 0, done.stderr
    assert_close(run_dir, unbroken)


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(
    corpora: PackedCorpora, unbroken: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    cut_to(unbroken, run_dir, 4)
    half = (unbroken / "checkpoints" / "step_00000005.ckpt").read_bytes()[:1000]
    (run_dir / "checkpoints" / ".step_00000005.ckpt.tmp").write_bytes(half)
    done = train(corpora, run_dir, resume="last")
    assert done.returncode == 0, done.stderr
    assert rows(run_dir) == rows(unbroken)


def test_a_finished_run_goes_on_only_with_the_curves_length_named(
    corpora: PackedCorpora, unbroken: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(unbroken, run_dir)
    refused = train(corpora, run_dir, resume="last", budget__steps=12)
    assert refused.returncode == 2
    assert "schedule.length (=10 keeps the old curve)" in refused.stderr
    done = train(corpora, run_dir, resume="last", budget__steps=12, schedule__length=20)
    assert done.returncode == 0, done.stderr
    found = rows(run_dir)
    assert [row["step"] for row in found] == [str(step) for step in range(1, 13)]
    # The switch stays where the first start put it, and the old rows are untouched.
    assert [row["grid"] for row in found] == ["3"] * 6 + ["6"] * 6
    assert found[:STEPS] == rows(unbroken)


def test_a_second_writer_is_turned_away(corpora: PackedCorpora, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    words = command(
        corpora, run_dir, {"budget.steps": 4000, "callbacks.checkpoints.every_n_steps": 9999}
    )
    first = subprocess.Popen(
        words, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 120
        while not (run_dir / "run.json").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        second = train(corpora, run_dir, resume="auto")
    finally:
        kill_tree(first.pid)
        first.wait()
    assert second.returncode == 2
    assert "another process is writing" in second.stderr


def test_ranks_leave_when_their_launcher_dies(corpora: PackedCorpora, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    words = command(
        corpora, run_dir, {"budget.steps": 4000, "strategy": "ddp", "trainer.devices": 2}
    )
    with subprocess.Popen(
        words, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 120
        while len(rows(run_dir)) < 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        (launcher,) = children(process.pid)
        ranks = children(launcher)
        assert len(ranks) == 2
        os.kill(launcher, signal.SIGKILL)
        for _ in itertools.takewhile(lambda _: any(map(alive, ranks)), range(600)):
            time.sleep(0.1)
        assert not any(map(alive, ranks))
        kill_tree(process.pid)


def children(pid: int) -> list[int]:
    """List the direct children of a process."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def alive(pid: int) -> bool:
    """Tell whether a process runs (a zombie does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
