"""Whole runs with compiled layers: the same curve, in one process and sharded over two."""

from pathlib import Path
from typing import Any

import pytest
from support.runs import PackedCorpora, train

from openqwen2vl.training.csv_log import read_rows

pytestmark = pytest.mark.slow

RUNS: dict[str, dict[str, Any]] = {
    "single": {},
    "ddp": {"strategy": "ddp", "trainer__devices": 2},
    "fsdp": {
        "strategy": "fsdp",
        "strategy__param_dtype": "fp32",
        "trainer__devices": 2,
        "checkpointing": "mlp",
    },
}


def run(corpora: PackedCorpora, run_dir: Path, **overrides: Any) -> list[dict[str, str]]:
    # The backend that traces and differentiates as the real one does, without machine code.
    done = train(corpora, run_dir, budget__steps=6, **overrides)
    assert done.returncode == 0, done.stderr
    return read_rows(run_dir / "metrics.csv")[1]


@pytest.fixture(scope="module")
def plain(corpora: PackedCorpora, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    return run(corpora, tmp_path_factory.mktemp("plain") / "run")


@pytest.mark.parametrize("name", list(RUNS))
def test_compiled_layers_follow_the_same_curve_and_compile_once(
    corpora: PackedCorpora, plain: list[dict[str, str]], tmp_path: Path, name: str
) -> None:
    found = run(corpora, tmp_path / "run", compile="aot_eager", **RUNS[name])
    assert [float(row["loss"]) for row in found] == pytest.approx(
        [float(row["loss"]) for row in plain], rel=1e-5
    )
    counts = [int(row["programs"]) for row in found]
    assert counts[0] >= 3
    changes = {row["grid"] for row, count in zip(found, counts, strict=True) if count > counts[0]}
    assert not changes, f"programs by step: {counts}"
