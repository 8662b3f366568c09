"""One variant's training steps in this process: model, optimizer, batches, clock, memory."""

import resource
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from variants import Micro, loss_function, micro_batches, prepare

from openqwen2vl.commands._assemble import build_model
from openqwen2vl.packing.reader import Pack, PackFolder
from openqwen2vl.training.flops import FlopSpec, Work, attention_pairs, strict_flops
from openqwen2vl.training.optim import decayed_names

OVERRIDES = {
    "tiny": ("model=tiny",),
    "2b": ("model=open_qwen2vl_2b", "llm.pretrained=false", "vision.pretrained=false"),
}
STEPS_OF_DATA = 4
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all variants share.

    Attributes:
        device: ``cpu`` (float32) or ``cuda`` (bfloat16 autocast over float32 masters).
        model: a key of ``OVERRIDES``.
        grid: visual tokens along an image's side.
        threads: of torch, on the CPU.
        packs: the documents.
        packs_per_step: how many of them a step takes.
        steps: in a round.
    """

    device: str
    model: str
    grid: int
    threads: int
    packs: PackFolder
    packs_per_step: int
    steps: int


class Stepper:
    """Trains the shipped model on fixed batches, as one variant does it."""

    def __init__(self, variant: str, settings: Settings) -> None:
        torch.set_num_threads(settings.threads)
        torch.manual_seed(0)
        self.settings = settings
        self.device = torch.device(settings.device)
        config = _config(settings)
        self.model = build_model(config, settings.packs.manifest.spec.vocab_size).to(self.device)
        self.flops = FlopSpec.of(self.model)
        prepare(self.model, variant)
        self.model.train()
        self.optimizer = instantiate(config.optim)(
            named_parameters=self.model.named_parameters(), decayed=decayed_names(self.model)
        )
        self.loss = loss_function(variant)
        self.data = _draw(settings)
        spec, side = settings.packs.manifest.spec, self.model.vision.side
        self.batches = [
            [_moved(micro, self.device) for micro in micro_batches(variant, packs, spec, side)]
            for packs in self.data
        ]
        self.done = 0
        self.start_mib = _resident_mib(self.device)
        self.loss_first = self.step()
        for _ in range(STEPS_OF_DATA - 1):
            self.step()

    def step(self) -> float:
        """Forward, loss, backward, AdamW; gives the mean loss of the targets.

        Reading the loss waits for the device, so a step's time is its own.
        """
        packs, batches = (x[self.done % STEPS_OF_DATA] for x in (self.data, self.batches))
        targets = _work(packs, self.settings).targets
        cuda = self.device.type == "cuda"
        total = torch.zeros((), device=self.device)
        for micro in batches:
            with torch.autocast("cuda", torch.bfloat16) if cuda else nullcontext():
                loss = self.loss(self.model, micro) / targets
            loss.backward()
            total += loss.detach()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.done += 1
        return total.item()

    def round(self) -> float:
        """Seconds that ``steps`` steps take; every round sees the same documents."""
        self.done = 0
        _wait(self.device)
        start = time.perf_counter()
        for _ in range(self.settings.steps):
            self.step()
        _wait(self.device)
        return time.perf_counter() - start

    def facts(self) -> dict[str, object]:
        """What a step holds, on average over a round, and this machine's matrix product."""
        steps = range(self.settings.steps)
        works = [_work(self.data[i % STEPS_OF_DATA], self.settings) for i in steps]
        positions = [
            sum(micro["input_ids"].numel() for micro in self.batches[i % STEPS_OF_DATA]) for i in steps
        ]
        cuda = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name() if cuda else f"CPU, {self.settings.threads} thread",
            "tokens": fmean(work.tokens for work in works),
            "targets": fmean(work.targets for work in works),
            "images": fmean(work.images for work in works),
            "documents": fmean(
                sum(len(pack.documents) for pack in self.data[i % STEPS_OF_DATA]) for i in steps
            ),
            "positions": fmean(positions),
            "strict_flops": fmean(strict_flops(self.flops, work)["total"] for work in works),
            "loss_first": self.loss_first,
            "matmul_flops": _matmul_flops(self.device),
        }

    def memory(self) -> dict[str, object]:
        """Peak memory, and how far it lies above the built model with its data."""
        peak = _peak_mib(self.device)
        return {"peak_mib": peak, "step_mib": peak - self.start_mib}


def _config(settings: Settings) -> DictConfig:
    """Compose what ``openqwen2vl train`` would, so that the model measured is the one shipped."""
    plan = f"resolution.plan=[{{grid: {settings.grid}, until: 1.0}}]"
    with initialize_config_module("openqwen2vl.conf", version_base=None):
        return compose("train", ["stage=pretrain", *OVERRIDES[settings.model], plan])


def _draw(settings: Settings) -> list[list[Pack]]:
    """Packs for a few steps, in random order as training reads them."""
    folder, size = settings.packs, settings.packs_per_step
    order = np.random.default_rng(0).permutation(len(folder))
    if len(order) < STEPS_OF_DATA * size:
        raise ValueError(f"{len(order)} packs, but {STEPS_OF_DATA} steps take {size} each")
    return [
        [folder.read(int(k)) for k in order[i * size : (i + 1) * size]]
        for i in range(STEPS_OF_DATA)
    ]


def _work(packs: Sequence[Pack], settings: Settings) -> Work:
    """Count what a step cannot do without, whichever way it is done."""
    per_image = settings.packs.manifest.spec.tokens_per_image
    lengths = [
        document["length"] + document["images"] * (per_image - 1)
        for pack in packs
        for document in pack.documents
    ]
    images = sum(len(pack.images) for pack in packs)
    return Work(
        tokens=sum(lengths),
        pairs=attention_pairs(lengths),
        targets=sum(int((stop - start)) for pack in packs for start, stop in pack.targets),
        images=images,
        visual_tokens=images * per_image,
    )


def _moved(micro: Micro, device: torch.device) -> Micro:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in micro.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _resident_mib(device: torch.device) -> float:
    """Memory held now; on a GPU, what tensors hold."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / MIB
    return _status("VmRSS") / 1024


def _peak_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _status(key: str) -> int:
    """A figure of /proc/self/status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def _matmul_flops(device: torch.device) -> float:
    """FLOPs a second of a large matrix product in the dtype that the step multiplies in."""
    cuda = device.type == "cuda"
    side, dtype = (8192, torch.bfloat16) if cuda else (1024, torch.float32)
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        _wait(device)
        start = time.perf_counter()
        _product: Any = left @ right
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best
