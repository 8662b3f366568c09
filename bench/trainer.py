"""How much of a bare loop's speed does Lightning's `fit` keep, with the callbacks of a run?

    python bench/trainer.py

The same module, optimizer, packs and loader: under the Trainer with every callback that adds to a
step (resume, resolution switch, throughput, ledger, spikes, rows, csv), and in a loop of ten lines.
The loop takes one step each time that `fit` has taken one, so that what slows the machine slows
both, and the figure is the median over pairs of steps. On a CPU processor time is measured. On a
GPU it is the clock, and each step is waited for: what the host does between steps counts in full.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
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
from openqwen2vl.packing.reader import PackFolder
from openqwen2vl.training.csv_log import StepCSVLogger
from openqwen2vl.training.module import MLLMModule
from openqwen2vl.training.optim import adamw
from openqwen2vl.training.schedule import Schedule
from openqwen2vl.training.strategy import single

GOAL = 0.98
WARM = 3
TURNS = 2  # micro-batches a step
GRID, CONTEXT = 6, 512


class Pairs(pl.Callback):
    """Lets the bare loop take a step after each of `fit`'s, and times both.

    Attributes:
        seconds: of steps after the warm-up, by way.
    """

    def __init__(self, device: torch.device, bare: Iterator[None]) -> None:
        self.seconds: dict[str, list[float]] = {"bare loop": [], "fit": []}
        self._device, self._bare = device, bare
        self._start = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._start = self._now()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, number: int
    ) -> None:
        """Hand over after a step's last micro-batch."""
        if number % TURNS != TURNS - 1:
            return
        between = self._now()
        next(self._bare)
        end = self._now()
        if trainer.global_step > WARM:
            self.seconds["fit"].append(between - self._start)
            self.seconds["bare loop"].append(end - between)
        self._start = self._now()

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()


@dataclass(frozen=True)
class Settings:
    """What both ways share.

    Attributes:
        packs: folder.
        model: a key of `shapes.PARTS`.
        device: of torch.
        micro_batch: packs.
        workers: loader processes.
        steps: warm-up included.
    """

    packs: Path
    model: str
    device: torch.device
    micro_batch: int
    workers: int
    steps: int


def main() -> None:
    """Measure pairs of steps, print the table, then the headline."""
    options = _options()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as root:
        settings = _settings(options, Path(root))
        pairs = Pairs(settings.device, _bare(settings))
        _fit(settings, Path(root), pairs)
    bare, fit = pairs.seconds["bare loop"], pairs.seconds["fit"]
    ratios = sorted(a / b for a, b in zip(bare, fit, strict=True))
    keeps = median(ratios)
    # Half of all pairs lie between these.
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    more = 1e3 * median(b - a for a, b in zip(bare, fit, strict=True))
    table = [(name, f"{1e3 * median(found):.2f}") for name, found in pairs.seconds.items()]
    figures.table(("", "ms/step"), table)
    report = {
        "bench": "trainer",
        "machine": figures.machine(),
        "device": str(settings.device),
        "pairs": len(ratios),
        "ms_per_step": {name: 1e3 * median(found) for name, found in pairs.seconds.items()},
        "keeps": keeps,
        "quartiles": [low, high],
        "more_ms": more,
    }
    verdict = "met" if keeps >= GOAL else "missed"
    headline = (
        f"fit keeps {keeps:.3f} of a bare loop (half of {len(ratios)} pairs: {low:.3f} to "
        f"{high:.3f}; {more:.2f} ms a step); the goal is {GOAL}: {verdict}"
    )
    figures.finish(report, headline, options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--packs-at", type=Path, help="packs; default: some are made")
    parser.add_argument("--micro-batch", type=int, default=2, help="packs")
    parser.add_argument("--workers", type=int, default=0, help="loader processes")
    parser.add_argument("--quick", action="store_true", help="a few steps, for CI")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.quick:
        options.steps = 8
    return options


def _settings(options: argparse.Namespace, root: Path) -> Settings:
    packs = options.packs_at or corpora.photo_packs(root, 16, CONTEXT, GRID, (96, 96)).path
    return Settings(
        packs=packs,
        model=options.model,
        device=torch.device(options.device),
        micro_batch=options.micro_batch,
        workers=options.workers,
        steps=options.steps + WARM,
    )


def _data(settings: Settings) -> PackedDataModule:
    return PackedDataModule(
        mixture={"sources": {"photos": {"packs": str(settings.packs)}}},
        resolution={
            "plan": [{"grid": PackFolder(settings.packs).manifest.spec.grid, "until": 1.0}]
        },
        budget={"steps": settings.steps},
        global_batch=TURNS * settings.micro_batch,
        micro_batch=settings.micro_batch,
        num_workers=settings.workers,
        pin_memory=settings.device.type == "cuda",
        preflight=False,
    )


def _module(data: PackedDataModule, settings: Settings) -> MLLMModule:
    torch.manual_seed(0)
    with settings.device:
        model = random_model(settings.model, data.plan[0].grid, data.vocab_size)
    data.image_side = model.vision.side

    def optimizer(**groups: Any) -> torch.optim.Optimizer:
        return adamw(lr=1e-4, **groups)

    names = data.mixture.names
    return MLLMModule(
        model, optim=optimizer, schedule=Schedule(), steps=settings.steps, sources=names
    )


def _fit(settings: Settings, out: Path, pairs: Pairs) -> None:
    data = _data(settings)
    gpu = settings.device.type == "cuda"
    trainer = pl.Trainer(
        strategy=single(str(settings.device)),
        accelerator="gpu" if gpu else "cpu",
        precision="bf16-mixed" if gpu else "32-true",
        max_steps=settings.steps,
        accumulate_grad_batches=TURNS,
        callbacks=[
            Resumable(),
            ResolutionSwitch(),
            Throughput(),
            CorruptLedger(limit=10),
            LossSpikes(),
            StepMetrics(),
            pairs,
        ],
        logger=StepCSVLogger(out / "metrics.csv"),
        default_root_dir=out,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(_module(data, settings), datamodule=data)


def _bare(settings: Settings) -> Iterator[None]:
    """Train in a plain loop, one step each time it is asked to go on."""
    data = _data(settings)
    module = _module(data, settings).to(settings.device)
    stand_in: Any = SimpleNamespace(
        global_rank=0,
        world_size=1,
        global_step=0,
        accumulate_grad_batches=TURNS,
        strategy=None,
    )
    data.trainer = module._trainer = stand_in
    optimizer = module.configure_optimizers()["optimizer"]
    gpu = settings.device.type == "cuda"
    for number, batch in enumerate(data.train_dataloader()):
        if gpu:
            batch = {k: v.cuda(non_blocking=True) if _is_tensor(v) else v for k, v in batch.items()}
        with torch.autocast("cuda", torch.bfloat16) if gpu else nullcontext():
            loss = module.training_step(batch, number)
        loss.div(TURNS).backward()
        if number % TURNS == TURNS - 1:
            module.configure_gradient_clipping(optimizer)
            optimizer.step()
            optimizer.zero_grad()
            yield


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


if __name__ == "__main__":
    main()
