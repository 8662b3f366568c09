"""One variant's training steps in this process: model, optimizer, batches, clock, memory."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from corpora import Steps
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from variants import Micro, loss_function, micro_batches, prepare

from openqwen2vl.commands._assemble import build_model
from openqwen2vl.formats.manifest import PackSpec
from openqwen2vl.packing.reader import Pack
from openqwen2vl.training.flops import FlopSpec, Work, attention_pairs, strict_flops
from openqwen2vl.training.optim import decayed_names

OVERRIDES = {
    "tiny": ("model=tiny",),
    "2b": ("model=open_qwen2vl_2b", "llm.pretrained=false", "vision.pretrained=false"),
}
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all variants share.

    Attributes:
        device: ``cpu`` (float32) or ``cuda`` (bfloat16 autocast over float32 masters).
        model: a key of ``OVERRIDES``.
        grid: visual tokens along an image's side.
        threads: of torch, on the CPU.
        frozen_tower: as in the paper's stages; the tiny preset trains its random one.
        data: the documents of a round's steps.
    """

    device: str
    model: str
    grid: int
    threads: int
    frozen_tower: bool
    data: Steps


class Stepper:
    """Trains the shipped model on fixed batches, as one variant does it."""

    def __init__(self, variant: str, settings: Settings) -> None:
        torch.set_num_threads(settings.threads)
        torch.manual_seed(0)
        self.settings = settings
        self.device = torch.device(settings.device)
        config = _config(settings)
        self.model = build_model(config, settings.data.spec.vocab_size).to(self.device)
        self.flops = FlopSpec.of(self.model)
        prepare(self.model, variant)
        self.model.train()
        self.optimizer = instantiate(config.optim)(
            named_parameters=self.model.named_parameters(), decayed=decayed_names(self.model)
        )
        self.loss = loss_function(variant)
        spec, side = settings.data.spec, self.model.vision.side
        self.works = [_work(packs, spec) for packs in settings.data.steps]
        self.batches = [
            [_moved(micro, self.device) for micro in micro_batches(variant, packs, spec, side)]
            for packs in settings.data.steps
        ]
        self.start_mib = _resident_mib(self.device)
        self.loss_first = self.step(0)
        self.round()  # every shape of the data has then been seen

    def step(self, number: int) -> float:
        """Forward, loss, backward, AdamW; gives the mean loss of the targets.

        Reading the loss waits for the device, so a step's time is its own.
        """
        cuda = self.device.type == "cuda"
        total = torch.zeros((), device=self.device)
        for micro in self.batches[number]:
            with torch.autocast("cuda", torch.bfloat16) if cuda else nullcontext():
                loss = self.loss(self.model, micro) / self.works[number].targets
            loss.backward()
            total += loss.detach()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total.item()

    def round(self) -> float:
        """Seconds that one step on each step's documents takes."""
        _wait(self.device)
        start = time.perf_counter()
        for number in range(len(self.batches)):
            self.step(number)
        _wait(self.device)
        return time.perf_counter() - start

    def facts(self) -> dict[str, object]:
        """What a step holds on average, and the speed of this machine's matrix product."""
        threads = self.settings.threads
        cuda = self.device.type == "cuda"
        name = torch.cuda.get_device_name() if cuda else f"CPU, torch on {threads} core(s)"
        documents = [sum(len(p.documents) for p in packs) for packs in self.settings.data.steps]
        positions = [sum(m["input_ids"].numel() for m in micros) for micros in self.batches]
        return {
            "device": name,
            "tokens": fmean(work.tokens for work in self.works),
            "targets": fmean(work.targets for work in self.works),
            "images": fmean(work.images for work in self.works),
            "documents": fmean(documents),
            "positions": fmean(positions),
            "strict_flops": fmean(strict_flops(self.flops, w)["total"] for w in self.works),
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
    tower = ["trainable.vision=false"] if settings.frozen_tower else []
    with initialize_config_module("openqwen2vl.conf", version_base=None):
        return compose("train", ["stage=pretrain", *OVERRIDES[settings.model], plan, *tower])


def _work(packs: Sequence[Pack], spec: PackSpec) -> Work:
    """Count what a step cannot do without, whichever way it is done."""
    lengths = [
        document["length"] + document["images"] * (spec.tokens_per_image - 1)
        for pack in packs
        for document in pack.documents
    ]
    images = sum(len(pack.images) for pack in packs)
    return Work(
        tokens=sum(lengths),
        pairs=attention_pairs(lengths),
        targets=sum(int((pack.targets[:, 1] - pack.targets[:, 0]).sum()) for pack in packs),
        images=images,
        visual_tokens=images * spec.tokens_per_image,
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
    # Not ru_maxrss: that also remembers the process which this one was forked from.
    return _status("VmHWM") / 1024


def _status(key: str) -> int:
    """A figure of /proc/self/status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def _matmul_flops(device: torch.device) -> float:
    """FLOPs a second of a large matrix product in the dtype that the step multiplies in."""
    cuda = device.type == "cuda"
    side, dtype = (8192, torch.bfloat16) if cuda else (1024, torch.float32)
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(left)
    best = float("inf")
    for _ in range(10):
        _wait(device)
        start = time.perf_counter()
        torch.mm(left, right, out=product)
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best
