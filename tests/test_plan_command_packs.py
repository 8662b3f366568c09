"""`openqwen2vl plan` over packs that exist: what will be served, and a probe of real steps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.runs import TINY_MODEL, PackedCorpora, Run, assert_one_message, train

from openqwen2vl.packing.reader import PackFolder
from openqwen2vl.packing.summary import document_lengths
from openqwen2vl.training.flops import attention_pairs

PlanPacks = Callable[..., tuple[int, str, str]]


@pytest.fixture
def plan_packs(call: Run, corpora: PackedCorpora) -> PlanPacks:
    """Call ``plan`` with the keys of a tiny run over packs."""

    def called(*words: str) -> tuple[int, str, str]:
        keys = {
            "stage": "pretrain",
            "mixture": "empty",
            "tokenizer": corpora.tokenizer,
            "resolution": "tiny_low_to_high",
            "hardware": "cpu",
            "strategy.device": "cpu",
            "data.global_batch": 4,
            "data.micro_batch": 2,
            "data.num_workers": 0,
            "budget.steps": 10,
            "json": "true",
        }
        settings = [f"{key}={value}" for key, value in keys.items()]
        return call("plan", *TINY_MODEL, *settings, *corpora.mixture(), *words)

    return called


def figures_of(told: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = told
    assert code == 0, err
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def test_packs_that_exist_are_counted(plan_packs: PlanPacks, corpora: PackedCorpora) -> None:
    figures = figures_of(plan_packs())
    assert (figures["steps"], figures["packs"]) == (10, 40)
    assert {grid: one["steps"] for grid, one in figures["grids"].items()} == {"3": 6, "6": 4}
    folders = [PackFolder(corpora.packs(name, grid)) for name in ("red", "blue") for grid in (3, 6)]
    on_disk = sum(shard.stat().st_size for f in folders for shard in f.path.glob("*.tar"))
    assert figures["disk"]["packed"] == on_disk
    # A tenth of the documents is held out; tars end in zeros that nobody counts.
    raw = sum(
        (corpora.root / "raw" / name / "00000.tar").stat().st_size for name in ("red", "blue")
    )
    assert figures["disk"]["raw"] == pytest.approx(0.9 * raw, rel=0.15)


@pytest.mark.slow
def test_a_run_serves_and_saves_what_its_plan_says(
    plan_packs: PlanPacks, corpora: PackedCorpora, tmp_path: Path
) -> None:
    figures = figures_of(plan_packs())
    done = train(corpora, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    sources = json.loads((tmp_path / "run" / "consumed.json").read_text()).values()
    for name, told in (("tokens", "tokens"), ("images", "images"), ("target_tokens", "targets")):
        key = "targets" if name == "target_tokens" else name
        assert sum(source[key] for source in sources) == figures[told]
    saved = (tmp_path / "run" / "checkpoints" / "step_00000010.ckpt").stat().st_size
    assert figures["disk"]["checkpoint"] == pytest.approx(saved, rel=0.01, abs=100_000)


def test_pairs_of_isolated_documents_are_close_to_those_there_are(
    plan_packs: PlanPacks, corpora: PackedCorpora
) -> None:
    # A whole pass at one grid, so that every pack counts once; heads x width x layers is 64.
    figures = figures_of(
        plan_packs(
            "resolution=tiny", "budget.steps=null", "data.global_batch=1", "data.micro_batch=1"
        )
    )
    pairs = 0
    for name in ("red", "blue"):
        folder = PackFolder(corpora.packs(name, 6))
        image, tokens = folder.manifest.spec.special.image, folder.manifest.spec.tokens_per_image
        packs = [folder.read(number) for number in range(len(folder))]
        pairs += sum(attention_pairs(document_lengths(p, image, tokens).tolist()) for p in packs)
    assert figures["flops"]["attention"] == pytest.approx(4 * 3 * 64 * pairs, rel=0.01)
    whole = figures_of(plan_packs("attention=packed"))
    assert whole["flops"]["attention"] > figures_of(plan_packs())["flops"]["attention"]


def test_checkpoints_that_do_not_fit_are_refused(plan_packs: PlanPacks) -> None:
    assert_one_message(plan_packs("disk=1000"), "disk has 0.00 GB", "callbacks.checkpoints.keep=1")


def test_a_probe_wants_enough_steps(plan_packs: PlanPacks) -> None:
    assert_one_message(plan_packs("probe=9"), "at least 10 steps")


@pytest.mark.slow
def test_a_probe_times_real_steps(plan_packs: PlanPacks, tmp_path: Path) -> None:
    figures = figures_of(plan_packs("probe=20", "budget.steps=1000"))
    low, high = figures["gpu_hours_range"]
    assert 0 < low <= figures["gpu_hours"] <= high
    assert figures["mfu"] is None
    assert figures["steps"] == 1000
    # Between a millisecond and ten seconds a step.
    assert 1000 * 1e-3 / 3600 < figures["gpu_hours"] < 1000 * 10 / 3600
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_probe_that_fails_says_so(plan_packs: PlanPacks) -> None:
    told = plan_packs("probe=10", "init_from=/nowhere")
    assert_one_message(told, "the steps of the probe failed")
