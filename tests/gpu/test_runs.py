"""Real runs of the tiny model on a GPU, in processes of their own; deselected where there is none.

CUDA's attention sums a document's gradients in no fixed order, so what must be equal bit for bit on
a CPU is compared within a bound here; what was counted must be equal all the same.
"""

import json
import subprocess
from pathlib import Path

import pytest
from support.runs import PackedCorpora, Run, command, environment, one_gpu, rows

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

ACCELERATOR = "gpu"
MEASURED = ("loss", "grad_norm")
FIRST = 3  # steps whose gradients are compared: rounding grows


def run(corpora: PackedCorpora, run_dir: Path, **overrides: object) -> list[dict[str, str]]:
    """Train on the GPU and give the steps' rows."""
    settings = {"trainer": ACCELERATOR, "trainer.devices": 1}
    words = command(
        corpora, run_dir, settings | {key.replace("__", "."): v for key, v in overrides.items()}
    )
    done = subprocess.run(
        words,
        env=environment() | one_gpu(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return rows(run_dir)


def assert_same(found: list[dict[str, str]], wanted: list[dict[str, str]]) -> None:
    """What was counted is equal, what was computed nearly so."""
    assert len(found) == len(wanted)
    for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
        counted = {key: value for key, value in one.items() if key not in MEASURED}
        assert counted == {key: value for key, value in other.items() if key not in MEASURED}
        assert float(one["loss"]) == pytest.approx(float(other["loss"]), rel=0.05)
        if number < FIRST:
            norm = pytest.approx(float(other["grad_norm"]), rel=0.1)
            assert float(one["grad_norm"]) == norm


@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp"])
def test_a_run_learns_and_a_resumed_one_goes_on(
    corpora: PackedCorpora, tmp_path: Path, strategy: str
) -> None:
    whole = run(corpora, tmp_path / "whole", strategy=strategy)
    assert float(whole[-1]["loss"]) < float(whole[0]["loss"])
    # Both resolutions were served.
    assert {row["grid"] for row in whole} == {"3", "6"}
    checkpoints = sorted((tmp_path / "whole" / "checkpoints").iterdir())
    middle = next(path for path in checkpoints if "000004" in path.name)
    again = run(corpora, tmp_path / "again", strategy=strategy, resume=middle)
    assert_same(again, whole[4:])


def test_strategies_compute_the_same(corpora: PackedCorpora, tmp_path: Path) -> None:
    found = [run(corpora, tmp_path / name, strategy=name) for name in ("single", "ddp", "fsdp")]
    assert_same(found[1], found[0])
    assert_same(found[2], found[0])


def test_a_sharded_run_is_exported(corpora: PackedCorpora, call: Run, tmp_path: Path) -> None:
    run(corpora, tmp_path / "run", strategy="fsdp", budget__steps=2)
    code, out, err = call("export", f"checkpoint={tmp_path / 'run'}", f"out={tmp_path / 'out'}")
    assert code == 0, err
    assert (tmp_path / "out" / "model.safetensors").exists(), out
    card = json.loads((tmp_path / "out" / "config.json").read_text())
    (stage,) = card["openqwen2vl"]["provenance"]["stages"]
    assert stage["gpu_hours"] > 0
