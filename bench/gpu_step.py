"""One way to take a training step, timed in this process; `gpu.py` starts it and reads its line.

python bench/gpu_step.py --packs-at DIR --model tiny --device cpu --ways '{"isolate": "varlen"}'
"""

import argparse
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from shapes import random_model
from torch import Tensor
from torch.nn.functional import cross_entropy

from openqwen2vl.formats.tokens import IGNORE_INDEX
from openqwen2vl.model.compiled import programs
from openqwen2vl.model.mllm import MLLM
from openqwen2vl.packing.batch import collate, expand
from openqwen2vl.packing.reader import PackFolder
from openqwen2vl.training.flops import FlopSpec, Work, attention_pairs, palm_flops, strict_flops
from openqwen2vl.training.loss import target_losses
from openqwen2vl.training.optim import adamw, decayed_names

Micro = dict[str, Any]
STEPS = 4  # different ones, which a run goes round and round


@dataclass(frozen=True)
class Ways:
    """What the variants differ in.

    Attributes:
        isolate: ``none`` (one causal document a pack), ``mask`` (transformers' own 4-D mask) or
            ``ours``.
        head: logits at ``all`` positions in float32, or at ``targets``.
        checkpointing: as of `MLLM.set_checkpointing`.
        compile: whether layers and tower blocks are compiled.
        all_blocks: whether the tower also runs the block whose output nobody reads.
        fused: whether AdamW is one kernel.
        packs: of a step.
    """

    isolate: str = "ours"
    head: str = "targets"
    checkpointing: str = "none"
    compile: bool = True
    all_blocks: bool = False
    fused: bool = True
    packs: int = 4


def main() -> None:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packs-at", type=Path, required=True)
    parser.add_argument("--model", default="2b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--ways", default="{}")
    parser.add_argument("--warm", type=int, default=4)
    parser.add_argument("--timed", type=int, default=12)
    options = parser.parse_args()
    runner = Runner(Ways(**json.loads(options.ways)), options)
    print(json.dumps(runner.measure(options.warm, options.timed)))


class Runner:
    """A model, its optimizer and batches that stay on the device."""

    def __init__(self, ways: Ways, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.ways, self.device = ways, torch.device(options.device)
        folder = PackFolder(options.packs_at)
        spec = folder.manifest.spec
        self.model = random_model(options.model, spec.grid, spec.vocab_size).to(self.device)
        self.model.train()
        self.flops = FlopSpec.of(self.model)
        self.model.set_checkpointing(ways.checkpointing)
        if ways.isolate != "ours":
            self.model.llm.set_attn_implementation("sdpa")
        if ways.compile:
            self.model.compile("inductor" if self.device.type == "cuda" else "aot_eager")
        self.optimizer = adamw(
            self.model.named_parameters(), decayed_names(self.model), lr=1e-5, fused=ways.fused
        )
        numbers = [n % len(folder) for n in range(STEPS * ways.packs)]
        self.batches, self.works = [], []
        for step in range(STEPS):
            chosen = numbers[step * ways.packs : (step + 1) * ways.packs]
            isolate = ways.isolate != "none"
            rows = [expand(folder.read(n), spec, self.model.vision.side, isolate) for n in chosen]
            apart = [expand(folder.read(n), spec, self.model.vision.side) for n in chosen]
            batch = dict(collate(rows, spec, folder.manifest.max_documents))
            self.batches.append(
                {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            )
            lengths = [
                int(b) - int(a)
                for row in apart
                for a, b in zip([0, *row.bounds[:-1]], row.bounds, strict=True)
                if a < row.tokens
            ]
            images = batch["images"].shape[0]
            self.works.append(
                Work(
                    tokens=batch["tokens"],
                    pairs=attention_pairs(lengths),
                    targets=int(batch["target_ids"].shape[0]),
                    images=images,
                    visual_tokens=images * spec.grid**2,
                )
            )
        self.context = spec.context

    def step(self, number: int) -> Tensor:
        """Forward, backward, update; gives the loss without waiting for it."""
        batch = self.batches[number % STEPS]
        cuda = self.device.type == "cuda"
        with torch.autocast("cuda", torch.bfloat16) if cuda else nullcontext():
            loss = self._loss()(self.model, batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def _loss(self) -> Callable[[MLLM, Micro], Tensor]:
        ours = self.ways.isolate == "ours"
        loss = _ours_at_targets if self.ways.head == "targets" else _ours_everywhere
        chosen: Callable[[MLLM, Micro], Tensor] = loss if ours else _transformers
        if not self.ways.all_blocks:
            return chosen

        def with_unread_block(model: MLLM, batch: Micro) -> Tensor:
            # The tower holds no such block any more; running its last one again costs the same.
            with torch.no_grad():
                model.vision.model.blocks[-1](model.vision(batch["images"]).detach())
            return chosen(model, batch)

        return with_unread_block

    def measure(self, warm: int, timed: int) -> dict[str, Any]:
        """Give speeds, memory and the loss after all steps."""
        first = float(self.step(0))
        for number in range(1, warm):
            self.step(number)
        self._wait()
        made = programs()
        seconds, done = [], []
        for number in range(warm, warm + timed):
            start = time.perf_counter()
            last = self.step(number)
            self._wait()
            seconds.append(time.perf_counter() - start)
            done.append(self.works[number % STEPS])
        total = sum(seconds)
        cuda = self.device.type == "cuda"
        edges = quantiles(seconds, n=10, method="inclusive") if len(seconds) > 1 else [seconds[0]]
        strict = sum(strict_flops(self.flops, work)["total"] for work in done)
        dense = palm_flops(self.flops, self.ways.packs * self.context, self.context) * timed
        return {
            "tokens_per_s": sum(work.tokens for work in done) / total,
            "images_per_s": sum(work.images for work in done) / total,
            "targets_per_s": sum(work.targets for work in done) / total,
            "ms": {"median": 1e3 * median(seconds), "p10": 1e3 * edges[0], "p90": 1e3 * edges[-1]},
            "strict_tflops": strict / total / 1e12,
            "palm_tflops": dense / total / 1e12,
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
            "programs_in_mid_run": programs() - made,
            "loss_first": first,
            "loss_last": float(last),
        }

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _ours_at_targets(model: MLLM, batch: Micro) -> Tensor:
    rows = _rows(model, batch, batch["target_positions"])
    return target_losses(rows, batch["target_ids"], model.head_weight).mean()


def _ours_everywhere(model: MLLM, batch: Micro) -> Tensor:
    rows = _rows(model, batch, None).flatten(0, 1)
    logits = model.head(rows).float()
    return cross_entropy(logits, batch["labels"].flatten(), ignore_index=IGNORE_INDEX)


def _rows(model: MLLM, batch: Micro, read: Tensor | None) -> Tensor:
    rows: Tensor = model(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        images=batch["images"],
        image_positions=batch["image_positions"],
        cu_seqlens=batch["cu_seqlens"],
        max_length=batch["max_length"],
        grid=batch["grid"],
        read_positions=read,
    )
    return rows


def _transformers(model: MLLM, batch: Micro) -> Tensor:
    """transformers' own forward pass and loss; its positions decide whether it isolates."""
    rows = model.image_rows(batch["images"])
    embeddings = model.embed(batch["input_ids"], rows, batch["image_positions"])
    loss: Tensor = model.llm(
        inputs_embeds=embeddings,
        position_ids=batch["position_ids"],
        attention_mask=None,
        labels=batch["labels"],
        shift_labels=batch["labels"],
        use_cache=False,
    ).loss
    return loss


if __name__ == "__main__":
    main()
