"""From one stage to the next: weights, frozen towers, and what a checkpoint knows."""

import json
from pathlib import Path

import pytest
import torch
from support.runs import PackedCorpora, build_corpora, command, kill_when, rows, train

from openqwen2vl.release.trained import load_model
from openqwen2vl.training.checkpoint import checkpoints, read_facts, read_weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def first(corpora: PackedCorpora, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run that trains all parts, the tower too."""
    run_dir = tmp_path_factory.mktemp("first") / "run"
    done = train(corpora, run_dir, budget__steps=4)
    assert done.returncode == 0, done.stderr
    return run_dir


def test_a_tower_that_one_stage_trained_and_the_next_froze_keeps_its_weights(
    corpora: PackedCorpora, first: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    settings = {
        "trainable.vision": "false",
        "init_from": first,
        "stage": "sft",
        "resolution": "tiny",
    }
    settings["data.documents_per_step"] = "null"
    settings["resume"] = "auto"
    kill_when(command(corpora, run_dir, settings), run_dir, 4)
    done = train(corpora, run_dir, **settings)
    assert done.returncode == 0, done.stderr
    assert len(rows(run_dir)) == 10
    checkpoint = checkpoints(run_dir / "checkpoints")[-1]
    assert not any(name.startswith("vision.") for name in read_weights(checkpoint))
    trained, _ = load_model(first)
    frozen, facts = load_model(run_dir)
    assert facts["tower"]["hash"] == trained.vision.weights_hash() == frozen.vision.weights_hash()


def test_a_sharded_run_starts_from_a_file_and_a_file_run_from_shards(
    corpora: PackedCorpora, first: Path, tmp_path: Path
) -> None:
    sharded = {"strategy": "fsdp", "strategy.param_dtype": "fp32", "trainer.devices": 2}
    frozen = {"trainable.vision": "false", "budget.steps": 4}
    one = train(corpora, tmp_path / "one", init_from=first, **sharded, **frozen)
    assert one.returncode == 0, one.stderr
    two = train(corpora, tmp_path / "two", init_from=first, **frozen)
    assert two.returncode == 0, two.stderr
    shards = read_weights(checkpoints(tmp_path / "one" / "checkpoints")[-1])
    whole = read_weights(checkpoints(tmp_path / "two" / "checkpoints")[-1])
    assert shards.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(shards[name], value, rtol=1e-3, atol=1e-4)
    three = train(corpora, tmp_path / "three", init_from=tmp_path / "one", **frozen)
    assert three.returncode == 0, three.stderr


def test_bf16_shards_keep_fp32_masters(corpora: PackedCorpora, tmp_path: Path) -> None:
    done = train(corpora, tmp_path / "run", budget__steps=4, strategy="fsdp", trainer__devices=2)
    assert done.returncode == 0, done.stderr
    weights = read_weights(checkpoints(tmp_path / "run" / "checkpoints")[-1])
    assert {value.dtype for value in weights.values()} == {torch.float32}
    found = rows(tmp_path / "run")
    assert float(found[-1]["loss"]) < float(found[0]["loss"])


def test_a_checkpoint_of_another_model_is_refused_with_the_difference(
    corpora: PackedCorpora, first: Path, tmp_path: Path
) -> None:
    done = train(corpora, tmp_path / "run", init_from=first, llm__config__intermediate_size=96)
    assert done.returncode == 2
    assert "is a checkpoint of another model" in done.stderr
    assert "(64, 32) there and (96, 32) here" in done.stderr


def test_packs_of_another_template_than_the_stage_before_are_refused(
    first: Path, tmp_path: Path
) -> None:
    other = build_corpora(tmp_path, template="open_qwen2vl_v1")
    done = train(other, tmp_path / "run", init_from=first)
    assert done.returncode == 2
    assert "was trained on packs of another tokenizer or template (tokenizer" in done.stderr


def test_another_strategys_checkpoint_or_another_seed_is_not_resumed(
    corpora: PackedCorpora, first: Path
) -> None:
    other = train(corpora, first, resume="last", strategy="fsdp", budget__steps=4)
    assert other.returncode == 2
    assert "keep the strategy that wrote it" in other.stderr
    other = train(corpora, first, resume="last", seed=8, budget__steps=4)
    assert other.returncode == 2
    assert "seed: 7 there, 8 here" in other.stderr


def test_facts_are_plain_and_say_where_the_run_came_from(first: Path) -> None:
    facts = read_facts(checkpoints(first / "checkpoints")[-1])
    assert json.loads(json.dumps(facts)) == facts
    assert facts["stage"] == "pretrain"
    assert facts["phases"][0] == {"start": 0, "stop": 2, "grid": 3}
