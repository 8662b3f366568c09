"""Offload on a real GPU: the same curve with weights on the host; deselected where there is none."""

from pathlib import Path

import pytest
from support.ranks import train_in_ranks
from support.runs import PackedCorpora, one_gpu, rows

pytestmark = pytest.mark.gpu

COMMON: dict[str, object] = {
    "strategy": "fsdp",
    "trainer": "gpu",
    "resolution": "tiny",
    "budget.steps": 4,
    "data.micro_batch": 2,  # of four packs: two turns a step on one GPU
    "data.preflight": "false",
    "callbacks.validation": "null",
    "callbacks.checkpoints.every_n_steps": 2,
}
OFFLOADED = {"strategy.cpu_offload": "true"}


def test_one_gpu_trains_and_resumes_alike_with_its_weights_on_the_host(
    corpora: PackedCorpora, tmp_path: Path
) -> None:
    halfway = tmp_path / "offloaded" / "checkpoints" / "step_00000002.ckpt"
    runs = {
        tmp_path / "plain": COMMON,
        tmp_path / "offloaded": {**COMMON, **OFFLOADED},
        tmp_path / "again": {**COMMON, **OFFLOADED, "resume": halfway},
    }
    train_in_ranks(corpora, 1, runs, **one_gpu())
    plain, offloaded, again = (
        [(float(row["loss"]), float(row["grad_norm"])) for row in rows(run)] for run in runs
    )
    # AdamW's kernels on host and device round differently.
    for ours, theirs in zip(offloaded, plain, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    for ours, theirs in zip(again, offloaded[2:], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
