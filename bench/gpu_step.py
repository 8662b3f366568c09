"""One way to take a training step, timed in this process; `gpu.py` starts it and reads its line.

python bench/gpu_step.py --packs-at DIR --model tiny --device cpu --ways '{"isolate": "varlen"}'
"""

import argparse
import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from shapes import random_model
from torch import Tensor
from torch.nn.functional import cross_entropy

from openqwen2vl.formats.manifest import PackSpec
from openqwen2vl.formats.tokens import IGNORE_INDEX
from openqwen2vl.model.compiled import programs
from openqwen2vl.model.mllm import MLLM
from openqwen2vl.model.vision import VisionTower
from openqwen2vl.packing.batch import collate, expand
from openqwen2vl.packing.reader import Pack, PackFolder
from openqwen2vl.training.flops import FlopSpec, Work, attention_pairs, palm_flops, strict_flops
from openqwen2vl.training.loss import batch_losses, read_rows
from openqwen2vl.training.loss_choices import choose_losses
from openqwen2vl.training.optim import adamw, decayed_names

Micro = dict[str, Any]
STEPS = 4  # different ones, which a run goes round and round
# What may replace a part of our step, to be measured beside it.
CHOICES: dict[str, dict[str, str]] = {
    "ours, flex attention": {"attention": "flex"},
    "ours, torch's linear_cross_entropy": {"loss": "linear_cross_entropy"},
    "ours, Liger's loss": {"loss": "liger"},
}


@dataclass(frozen=True)
class Ways:
    """What the variants differ in.

    Attributes:
        isolate: ``none`` (one causal document a pack), ``mask`` (transformers' own 4-D mask) or
            ``ours``.
        head: logits at ``all`` positions in float32, or at ``targets``.
        attention: of ``ours``, as `MLLM` takes it.
        loss: of ``targets``, as `choose_losses` takes it.
        checkpointing: as of `MLLM.set_checkpointing`.
        compile: whether layers and tower blocks are compiled.
        all_blocks: whether the tower also runs the block whose output nobody reads.
        fused: whether AdamW is one kernel.
        packs: of a step.
    """

    isolate: str = "ours"
    head: str = "targets"
    attention: str = "auto"
    loss: str = "auto"
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
        self.model = self._made(options.model, spec)
        self.flops = FlopSpec.of(self.model)
        self.optimizer = adamw(
            self.model.named_parameters(), decayed_names(self.model), lr=1e-5, fused=ways.fused
        )
        numbers = [n % len(folder) for n in range(STEPS * ways.packs)]
        self.batches, self.works = [], []
        for step in range(STEPS):
            chosen = numbers[step * ways.packs : (step + 1) * ways.packs]
            packs = [folder.read(n) for n in chosen]
            batch = self.lay_out(packs, spec, folder.manifest.max_documents)
            self.batches.append(
                {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            )
            self.works.append(self._work(packs, spec, images=batch["images"].shape[0]))
        self.context = spec.context

    def _made(self, name: str, spec: PackSpec) -> MLLM:
        """Give the model as the ways want it."""
        ways = self.ways
        # Made where it computes: a host takes half a minute to draw the 2B model's weights.
        with self.device:
            model = random_model(name, spec.grid, spec.vocab_size)
        model = model.to(self.device)
        model.train()
        model.set_checkpointing(ways.checkpointing)
        model.attention = ways.attention
        if ways.isolate != "ours":
            model.llm.set_attn_implementation("sdpa")
        if ways.all_blocks:
            # The tower holds no such block any more; running its last one again costs the same.
            model.vision.register_forward_hook(_again)
        if ways.compile:
            model.compile("inductor" if self.device.type == "cuda" else "aot_eager")
        return model

    def _work(self, packs: Sequence[Pack], spec: PackSpec, images: int) -> Work:
        """Count what a step must compute, whatever way it is laid out."""
        apart = [expand(pack, spec, self.model.vision.side) for pack in packs]
        lengths = [
            int(b) - int(a)
            for row in apart
            for a, b in zip([0, *row.bounds[:-1]], row.bounds, strict=True)
            if a < row.tokens
        ]
        return Work(
            tokens=sum(row.tokens for row in apart),
            pairs=attention_pairs(lengths),
            targets=sum(int((row.labels != IGNORE_INDEX).sum()) for row in apart),
            images=images,
            visual_tokens=images * spec.grid**2,
        )

    def lay_out(self, packs: Sequence[Pack], spec: PackSpec, max_documents: int) -> Micro:
        """Make a step's batch of some packs."""
        isolate = self.ways.isolate != "none"
        rows = [expand(pack, spec, self.model.vision.side, isolate) for pack in packs]
        return dict(collate(rows, spec, max_documents))

    def step(self, number: int) -> Tensor:
        """Forward, backward, update; gives the loss without waiting for it."""
        batch = self.batches[number % STEPS]
        cuda = self.device.type == "cuda"
        with torch.autocast("cuda", torch.bfloat16) if cuda else nullcontext():
            loss = self.loss(batch)
        loss.backward()
        self.update()
        return loss.detach()

    def update(self) -> None:
        """Move the weights, and let the gradients go."""
        self.optimizer.step()
        self.optimizer.zero_grad()

    def loss(self, batch: Micro) -> Tensor:
        """Give the mean loss of a batch's targets, the way that was asked for."""
        if self.ways.isolate != "ours":
            return transformers_loss(self.model, batch)
        if self.ways.head == "all":
            return _ours_everywhere(self.model, batch)
        losses = choose_losses(self.ways.loss, self.device.type)
        return batch_losses(self.model, batch, losses).mean()

    def measure(self, warm: int, timed: int) -> dict[str, Any]:
        """Give speeds, memory and the loss after all steps."""
        first = float(self.step(0))
        for number in range(1, warm):
            self.step(number)
        self.wait()
        made = programs()
        seconds, done = [], []
        for number in range(warm, warm + timed):
            start = time.perf_counter()
            last = self.step(number)
            self.wait()
            seconds.append(time.perf_counter() - start)
            done.append(self.works[number % STEPS])
        return self.figures(seconds, done, made, (first, float(last)))

    def figures(
        self,
        seconds: Sequence[float],
        done: Sequence[Work],
        made: int,
        losses: tuple[float, float],
    ) -> dict[str, Any]:
        """Give a row of some steps that were timed.

        Args:
            seconds: of each step.
            done: in each step.
            made: compiled programs there were before them.
            losses: of the very first and of the last step.
        """
        timed = len(seconds)
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
            "loss_first": losses[0],
            "loss_last": losses[1],
        }

    def wait(self) -> None:
        """Let the device finish what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _again(tower: VisionTower, images: tuple[Tensor], features: Tensor) -> None:
    """Outside of any compiled program, which would leave out what nobody reads."""
    block = tower.model.blocks[-1]
    with torch.no_grad():
        block(features.to(next(block.parameters()).dtype))


def _ours_everywhere(model: MLLM, batch: Micro) -> Tensor:
    logits = model.head(read_rows(model, batch, None).flatten(0, 1)).float()
    return cross_entropy(logits, batch["labels"].flatten(), ignore_index=IGNORE_INDEX)


def transformers_loss(model: MLLM, batch: Micro, mask: Tensor | None = None) -> Tensor:
    """Give transformers' own forward pass and loss: logits at every position, in float32.

    Args:
        model: whose attention is one of transformers'.
        batch: without a mask its positions decide whether documents are isolated.
        mask: (B, T) of rows that hold one document and pads.
    """
    rows = model.image_rows(batch["images"])
    embeddings = model.embed(batch["input_ids"], rows, batch["image_positions"])
    loss: Tensor = model.llm(
        inputs_embeds=embeddings,
        position_ids=None if mask is not None else batch["position_ids"],
        attention_mask=mask,
        labels=batch["labels"],
        shift_labels=batch["labels"],
        use_cache=False,
    ).loss
    return loss


if __name__ == "__main__":
    main()
