"""The GPU bench's rows, on the tiny model and the CPU: that they run and agree, not their speed."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from support.runs import environment

BENCH = Path(__file__).parents[1] / "bench"

pytestmark = pytest.mark.slow


def test_the_ladder_runs_and_its_rungs_compute_the_same_loss(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    rows = ["--row", "official", "--row", "mask", "--row", "varlen", "--row", "fused"]
    words = [sys.executable, BENCH / "gpu.py", "--quick", "--json", out, *rows]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    assert len(figures["rows"]) == 4
    assert not [row for row in figures["rows"].values() if "error" in row], figures["rows"]
    assert figures["disagreeing"] == []
    # One causal document a pack is another loss: the gate could tell.
    first = {name: row["loss_first"] for name, row in figures["rows"].items()}
    assert first["official step"] != pytest.approx(first["3 isolated by varlen"], rel=1e-5)
    assert first["2 isolated by transformers' mask"] == pytest.approx(
        first["3 isolated by varlen"], rel=1e-4
    )


def test_baselines_train_on_the_same_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import corpora
    from gpu_baselines import PACKED, Padded, TrainerLoop
    from gpu_step import Runner, Ways

    packs = corpora.photo_packs(tmp_path, 4, 256, 3, (96, 96)).path
    options = Namespace(device="cpu", model="tiny", packs_at=packs)
    ours = Runner(Ways(compile=False, packs=1), options)
    loss = ours.loss(ours.batches[0]).item()
    for way in (Padded, TrainerLoop):
        theirs = way(Ways(**PACKED, packs=1), options)
        assert theirs.works == ours.works
        assert theirs.loss(theirs.batches[0]).item() == pytest.approx(loss, rel=1e-5)
        found = theirs.measure(1, 1)
        assert found["loss_first"] == pytest.approx(loss, rel=1e-5)
        assert found["tokens_per_s"] > 0


def test_the_unread_block_costs_one_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import corpora
    from gpu_step import Runner, Ways
    from torch.utils.flop_counter import FlopCounterMode

    packs = corpora.photo_packs(tmp_path, 4, 256, 3, (96, 96)).path
    options = Namespace(device="cpu", model="tiny", packs_at=packs)

    def programs_run() -> int:
        runner = Runner(Ways(packs=1, all_blocks=True), options)
        block, made = runner.model.vision.model.blocks[-1], []
        program = block._compiled_call_impl
        block._compiled_call_impl = lambda *given: made.append(1) or program(*given)
        runner.model.vision(runner.batches[0]["images"])
        return len(made)

    def flops(all_blocks: bool) -> int:
        runner = Runner(Ways(compile=False, packs=1, all_blocks=all_blocks), options)
        with FlopCounterMode(display=False) as counter:
            runner.model.vision(runner.batches[0]["images"])
        blocks = len(runner.model.vision.model.blocks)
        return counter.get_total_flops() * (blocks if all_blocks else blocks + 1)

    # A block more than the tower has; the patches are embedded once.
    assert flops(True) == pytest.approx(flops(False), rel=0.05)
    # A program of its own: within the block's, compilation leaves out what nobody reads.
    assert programs_run() == 2


def test_the_gate_is_kept_and_sees_documents_that_see_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import corpora
    import gpu_gate
    from gpu_step import Runner, Ways

    packs = corpora.photo_packs(tmp_path, 4, 256, 3, (96, 96)).path
    options = Namespace(device="cpu", model="tiny", packs_at=packs)
    found = gpu_gate.checks(options)
    assert found.keys() == gpu_gate.BOUNDS.keys()
    assert all(one["kept"] for one in found.values()), found
    runner = Runner(Ways(compile=False, packs=1), options)
    batch = runner.batches[0]
    last = torch.tensor([0] + [batch["input_ids"].numel()] * (len(batch["cu_seqlens"]) - 1))
    runner.batches[0] = {**batch, "cu_seqlens": last.to(torch.int32), "max_length": 256}
    assert gpu_gate.leak(runner) > 0
