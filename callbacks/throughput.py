"""Tokens and images per second, model FLOPs utilisation, share of time spent waiting for data."""

import time
from dataclasses import fields
from typing import Any

import lightning.pytorch as pl
import torch

from openqwen2vl.model.compiled import programs
from openqwen2vl.training.flops import FlopSpec, Work, palm_flops, strict_flops
from openqwen2vl.training.metrics import sum_over_ranks
from openqwen2vl.training.module import MLLMModule

from .boundary import ends_step

# Dense bf16 peaks in TFLOP/s by the makers' data sheets; the first that is part of a
# device's name counts, so a longer name stands before its beginning.
PEAKS = {
    "A100": 312.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.5,
    "H100": 989.4,
    "H200 NVL": 835.5,
    "H200": 989.4,
    "L40S": 362.0,
    "RTX 4090": 165.2,
}


class Throughput(pl.Callback):
    """Adds speed figures to each step's row.

    The FLOPs are those that the step cannot do without (`training.flops`): isolated documents,
    logits at targets only, the tower per image. ``mfu_palm`` counts as reports on language models
    do, for comparing with them. On a GPU the seconds of one step are the host's, which runs ahead;
    they are right over many steps.

    Args:
        peak_tflops: of one device; None: looked up by the GPU's name, and no MFU when unknown.
    """

    def __init__(self, peak_tflops: float | None = None) -> None:
        self.peak_tflops = peak_tflops
        self._spec: FlopSpec | None = None
        self._work = dict.fromkeys((field.name for field in fields(Work)), 0)
        self._positions = 0
        self._waited = 0.0
        self._batch_end = self._step_end = time.perf_counter()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Read the sizes before a strategy shards the weights."""
        assert isinstance(pl_module, MLLMModule)
        self._spec = FlopSpec.of(pl_module.model)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clocks and look the device up."""
        self._batch_end = self._step_end = time.perf_counter()
        if self.peak_tflops is None and pl_module.device.type == "cuda":
            name = torch.cuda.get_device_name(pl_module.device)
            self.peak_tflops = next((peak for key, peak in PEAKS.items() if key in name), None)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note how long the loader kept this rank waiting."""
        self._waited += time.perf_counter() - self._batch_end

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Add up this micro-batch; at the end of the global batch, give the rates."""
        images = batch["images"].shape[0]
        done = {
            "tokens": batch["tokens"],
            "pairs": batch["pairs"],
            "targets": batch["target_ids"].shape[0],
            "images": images,
            "visual_tokens": images * batch["grid"] ** 2,
        }
        for key, value in done.items():
            self._work[key] += value
        self._positions += batch["input_ids"].numel()
        self._context = batch["input_ids"].shape[1]
        if ends_step(trainer, batch_idx):
            self._rates(trainer, pl_module)
        self._batch_end = time.perf_counter()

    def _rates(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, MLLMModule)
        assert self._spec is not None
        now = time.perf_counter()
        seconds, self._step_end = now - self._step_end, now
        flops = strict_flops(self._spec, Work(**self._work))["total"]
        palm = palm_flops(self._spec, self._positions, self._context)
        mine = torch.tensor(
            [self._work["tokens"], self._work["targets"], self._work["images"], flops, palm],
            dtype=torch.float64,
        )
        moved = mine.to(module.device, non_blocking=True)
        tokens, targets, images, total, dense = sum_over_ranks(moved).unbind()
        tflops = total / seconds / trainer.world_size / 1e12
        module.row |= {
            "tokens_per_second": tokens / seconds,
            "target_tokens_per_second": targets / seconds,
            "images_per_second": images / seconds,
            "tflops_per_device": tflops,
            "data_wait": self._waited / seconds,
        }
        if self.peak_tflops is not None:
            module.row["mfu"] = tflops / self.peak_tflops
            share = dense / seconds / trainer.world_size / 1e12
            module.row["mfu_palm"] = share / self.peak_tflops
        if module.device.type == "cuda":
            module.row["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if programs():
            module.row["programs"] = programs()
        self._waited = 0.0
        self._positions = 0
        self._work = dict.fromkeys(self._work, 0)
