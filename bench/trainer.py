"""How much of a bare loop's speed does Lightning's `fit` keep, with the callbacks of a run?

    python bench/trainer.py

The same module, optimizer, packs and loader: once under the Trainer with every callback that adds
to a step (resume, resolution switch, throughput, ledger, spikes, rows, csv), once in a loop of ten
lines. Both take turns in one process; the first steps of each are left out.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import corpora
import figures
import lightning.pytorch as pl
import torch
from shapes import random_model

from openqwen2vl.callbacks.corrupt import CorruptLedger
from openqwen2vl.callbacks.resolution import ResolutionSwitch
from openqwen2vl.callbacks.resume import Resumable
from openqwen2vl.callbacks.spikes import LossSpikes
from openqwen2vl.callbacks.steps import StepMetrics
from openqwen2vl.callbacks.throughput import Throughput
from openqwen2vl.data_modules.packed import PackedDataModule
from openqwen2vl.training.csv_log import StepCSVLogger
from openqwen2vl.training.module import MLLMModule
from openqwen2vl.training.optim import adamw
from openqwen2vl.training.schedule import Schedule
from openqwen2vl.training.strategy import single

GOAL = 0.98
WARM = 3
GRID, CONTEXT = 6, 512


class Clock(pl.Callback):
    """Notes when the warm-up is over and when the last step is."""

    def __init__(self) -> None:
        self.start = self.stop = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
        """Look at the clock."""
        if trainer.global_step == WARM:
            self.start = time.perf_counter()
        self.stop = time.perf_counter()


def main() -> None:
    """Measure in turns, print the table, then the headline."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="two short rounds, for CI")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.rounds = 5, 2
    torch.set_num_threads(options.threads)
    ways: dict[str, Callable[[Path, Path, int], float]] = {"bare loop": _bare, "fit": _fit}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as root:
        packs = corpora.photo_packs(Path(root), 16, CONTEXT, GRID, (96, 96)).path
        for turn in range(options.rounds):
            for name, way in ways.items():
                out = Path(root) / f"{name}-{turn}"
                seconds[name].append(way(packs, out, options.steps + WARM) / options.steps)
    ratio = figures.ratios(seconds["bare loop"], seconds["fit"])
    table = [
        (name, f"{1e3 * figures.spread(found)['median']:.1f}") for name, found in seconds.items()
    ]
    figures.table(("", "ms/step"), table)
    report = {
        "bench": "trainer",
        "machine": figures.machine(),
        "seconds": {name: figures.spread(found) for name, found in seconds.items()},
        "ratio": ratio,
    }
    verdict = "met" if ratio["median"] >= GOAL else "missed"
    headline = f"fit keeps {figures.show(ratio)} of a bare loop; the goal is {GOAL}: {verdict}"
    figures.finish(report, headline, options.json)


def _data(packs: Path, steps: int) -> PackedDataModule:
    return PackedDataModule(
        mixture={"sources": {"photos": {"packs": str(packs)}}},
        resolution={"plan": [{"grid": GRID, "until": 1.0}]},
        budget={"steps": steps},
        image_side=84,
        global_batch=4,
        micro_batch=2,
        num_workers=0,
        preflight=False,
    )


def _module(data: PackedDataModule, steps: int) -> MLLMModule:
    torch.manual_seed(0)
    model = random_model("tiny", GRID, data.vocab_size)

    def optimizer(**groups: Any) -> torch.optim.Optimizer:
        return adamw(lr=1e-4, **groups)

    return MLLMModule(
        model, optim=optimizer, schedule=Schedule(), steps=steps, sources=data.mixture.names
    )


def _fit(packs: Path, out: Path, steps: int) -> float:
    out.mkdir()
    data, clock = _data(packs, steps), Clock()
    trainer = pl.Trainer(
        strategy=single("cpu"),
        accelerator="cpu",
        max_steps=steps,
        accumulate_grad_batches=2,
        callbacks=[
            Resumable(),
            ResolutionSwitch(),
            Throughput(),
            CorruptLedger(limit=10),
            LossSpikes(),
            StepMetrics(),
            clock,
        ],
        logger=StepCSVLogger(out / "metrics.csv"),
        default_root_dir=out,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(_module(data, steps), datamodule=data)
    return clock.stop - clock.start


def _bare(packs: Path, out: Path, steps: int) -> float:
    data = _data(packs, steps)
    module = _module(data, steps)
    stand_in: Any = SimpleNamespace(
        global_rank=0,
        world_size=1,
        global_step=0,
        accumulate_grad_batches=2,
        strategy=None,
    )
    data.trainer = module._trainer = stand_in
    optimizer = module.configure_optimizers()["optimizer"]
    start = 0.0
    for number, batch in enumerate(data.train_dataloader()):
        module.training_step(batch, number).div(2).backward()
        if number % 2:
            module.configure_gradient_clipping(optimizer)
            optimizer.step()
            optimizer.zero_grad()
            if number == 2 * WARM - 1:
                start = time.perf_counter()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
