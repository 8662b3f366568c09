"""Small sharded runs on 1, 2 and 4 processes, made once for all tests that look at them."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from support.ranks import train_in_ranks
from support.runs import PackedCorpora

STEPS = 3
_COMMON: dict[str, object] = {
    "strategy": "fsdp",
    "strategy.param_dtype": "fp32",
    "resolution": "tiny",
    "budget.steps": STEPS,
    "data.micro_batch": 1,
    "data.preflight": "false",
    "callbacks.validation": "null",
    "callbacks.checkpoints.every_n_steps": 1000,
}
_SAVED = {"callbacks.checkpoints.every_n_steps": 1}
TWO: dict[str, dict[str, object]] = {
    "full": {"data.micro_batch": 2, **_SAVED},
    "accumulated": {},
    "kept": {"strategy.sharding": "SHARD_GRAD_OP"},
    "each": {"strategy.sync": "micro_batch"},
    "whole": {"strategy.sharding": "NO_SHARD"},
    "copies": {"strategy.replicate": 2},
    "narrow": {"strategy.param_dtype": "bf16"},
    "narrow_whole": {"strategy.param_dtype": "bf16", "strategy.sharding": "NO_SHARD"},
    "frozen": {"trainable.llm": "false", "trainable.vision": "false"},
}
FOUR: dict[str, dict[str, object]] = {
    "hybrid": {"strategy.replicate": 2, **_SAVED},
    "hybrid_kept": {
        "strategy.replicate": 2,
        "strategy.sharding": "SHARD_GRAD_OP",
        "data.global_batch": 8,
        "budget.steps": 2,
    },
}


@cache
def sharded_runs(corpora: PackedCorpora) -> Path:
    """Train them all; each has its counted collectives in ``NAME/rankN.json``.

    ``A_on_N`` is ``A`` resumed from its first step on N processes.
    """
    root = corpora.root / "sharded"
    assert not root.exists(), "the runs failed; the first test that wanted them says how"
    root.mkdir()

    def go(processes: int, runs: Mapping[str, Mapping[str, object]]) -> None:
        for name in runs:
            (root / name).mkdir()
        settings = {name: {**_COMMON, **_count(root / name), **runs[name]} for name in runs}
        kept = {
            root / name / "run": {k: v for k, v in one.items() if v is not None}
            for name, one in settings.items()
        }
        train_in_ranks(corpora, processes, kept)

    def from_first(name: str) -> dict[str, object]:
        return {"resume": root / name / "run" / "checkpoints" / "step_00000001.ckpt"}

    ddp = {"strategy": "ddp", "strategy.param_dtype": None}
    again = from_first("full") | TWO["full"]
    go(2, {**TWO, "ddp": ddp, "full_on_2": again})
    go(4, {**FOUR, "full_on_4": from_first("full")})
    go(2, {"hybrid_on_2": from_first("hybrid")})
    single = {"strategy": "single", "strategy.param_dtype": None}
    alone = {"strategy.param_dtype": "bf16"}
    go(1, {"one": single, "narrow_alone": alone, "full_on_1": from_first("full")})
    return root


def _count(out: Path) -> dict[str, object]:
    target = "support.collectives.CountCollectives"
    return {"+callbacks.count": f"{{_target_: {target}, out: {out}}}"}
