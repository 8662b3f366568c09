"""Ranks that would train unlike runs are stopped before the first step."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.models import tiny_mllm
from support.runs import PackedCorpora, command, environment

from openqwen2vl.training.agreement import disagreements, flat, require_agreement, weights_sample


def test_equal_facts_agree_wherever_the_ranks_run() -> None:
    assert list(disagreements([{"seed": "7", "host": "a"}, {"seed": "7", "host": "b"}])) == []


def test_a_fact_that_differs_is_told_with_both_values_and_where() -> None:
    ranks = [
        {"seed": "7", "packs": "x", "host": "a"},
        {"seed": "7", "packs": "x", "host": "a"},
        {"seed": "8", "packs": "x", "host": "b"},
        {"seed": "8", "packs": "x", "host": "b"},
    ]
    (told,) = disagreements(ranks)
    assert told == "seed is 7 on rank 0 (a) and 8 on rank 2 (b) and 1 more"


def test_a_fact_that_only_one_rank_has_is_told() -> None:
    (told,) = disagreements([{"host": "a"}, {"step": "4", "host": "b"}])
    assert told == "step is missing on rank 0 (a) and 4 on rank 1 (b)"


def test_paths_may_differ_and_what_is_beside_them_not() -> None:
    facts = {"tower": {"path": "/scratch/1/siglip", "hash": "ab"}, "plan": [{"grid": 3}]}
    assert dict(flat(facts)) == {"tower.hash": "ab", "plan": "[{'grid': 3}]"}


def test_one_process_has_nobody_to_agree_with() -> None:
    require_agreement({"seed": 7})


def test_any_tensor_of_another_model_changes_the_sample() -> None:
    model = tiny_mllm(grid=3)
    before = weights_sample(model)
    assert weights_sample(model) == before
    for value in model.state_dict().values():
        kept = value.clone()
        value.copy_(value + 1)
        assert weights_sample(model) != before
        value.copy_(kept)
    assert weights_sample(model) == before


@pytest.mark.slow
def test_ranks_that_were_told_unlike_things_train_nothing(
    corpora: PackedCorpora, tmp_path: Path
) -> None:
    settings = {"strategy": "ddp", "trainer.devices": 2, "data.micro_batch": 1}
    words = shlex.join(command(corpora, tmp_path / "run", settings))
    words += " callbacks.validation.every_n_steps=1$RANK"
    # As on two nodes, where somebody typed two commands.
    ranks = [*TORCHRUN, "bash", "-c", f"exec {words} seed=$RANK"]
    ended = subprocess.run(
        ranks, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode != 0
    assert "order.seed is 0 on rank 0" in ended.stderr
    assert "and 1 on rank 1" in ended.stderr
    # Ranks that measure at other steps would wait for each other until the time runs out.
    assert "callbacks.validation.every_n_steps is 10 on rank 0" in ended.stderr
    assert "exitcode  : 2" in ended.stderr
    assert not list((tmp_path / "run").rglob("*.ckpt"))
    assert not (tmp_path / "run" / "metrics.csv").exists()


TORCHRUN = [
    *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
    *("--nproc-per-node=2", "--no-python"),
]
