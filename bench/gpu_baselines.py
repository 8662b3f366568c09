"""Steps that others take on the same module, packs and device; `gpu.py` starts them by name.

python bench/gpu_baselines.py --packs-at DIR --model tiny --device cpu --way padded
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpu_step import STEPS, Micro, Runner, Ways, transformers_loss
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from transformers import Trainer, TrainerCallback, TrainingArguments
from variants import micro_batches

from openqwen2vl.formats.manifest import PackSpec
from openqwen2vl.model.compiled import programs
from openqwen2vl.model.mllm import MLLM
from openqwen2vl.packing.reader import Pack

# transformers' own packed way, and its Trainer's defaults.
PACKED = {"isolate": "mask", "head": "all", "compile": False}


def main() -> None:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packs-at", type=Path, required=True)
    parser.add_argument("--model", default="2b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--way", choices=tuple(WAYS), required=True)
    parser.add_argument("--packs", type=int, default=4)
    parser.add_argument("--warm", type=int, default=4)
    parser.add_argument("--timed", type=int, default=12)
    options = parser.parse_args()
    runner = WAYS[options.way](Ways(**PACKED, packs=options.packs), options)
    print(json.dumps(runner.measure(options.warm, options.timed)))


class Padded(Runner):
    """One caption a row, padded to the longest; transformers' mask, loss and logits everywhere."""

    def lay_out(self, packs: Sequence[Pack], spec: PackSpec, max_documents: int) -> Micro:
        """Put the packs' documents into rows of their own."""
        (micro,) = micro_batches("padded", packs, spec, self.model.vision.side)
        return micro

    def loss(self, batch: Micro) -> Tensor:
        """Let transformers mask the pads."""
        return transformers_loss(self.model, batch, batch["attention_mask"])


class TrainerLoop(Runner):
    """What `transformers.Trainer` does in a step, written out: autocast, clip, update."""

    by = "its loop, written out: accelerate is not installed"

    def update(self) -> None:
        """Clip first."""
        clip_grad_norm_(self.model.parameters(), 1.0)
        super().update()

    def measure(self, warm: int, timed: int) -> dict[str, Any]:
        """Say beside the figures whose loop it was."""
        return {**super().measure(warm, timed), "by": self.by}


class HuggingFace(TrainerLoop):
    """`transformers.Trainer.train` itself."""

    by = "transformers.Trainer.train"

    def measure(self, warm: int, timed: int) -> dict[str, Any]:
        """Train, with a callback that looks at the clock."""
        cuda = self.device.type == "cuda"
        module, clock = _Module(self.model), _Clock(self, warm)
        with tempfile.TemporaryDirectory() as out:
            arguments = TrainingArguments(
                output_dir=out,
                max_steps=warm + timed,
                per_device_train_batch_size=1,
                bf16=cuda,
                use_cpu=not cuda,
                max_grad_norm=1.0,
                lr_scheduler_type="constant",
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
                dataloader_pin_memory=False,
                remove_unused_columns=False,
            )
            trainer = Trainer(
                model=module,
                args=arguments,
                train_dataset=[n % STEPS for n in range(warm + timed)],
                data_collator=lambda numbers: {"batch": self.batches[numbers[0]]},
                optimizers=(self.optimizer, None),
                callbacks=[clock],
            )
            trainer._get_train_sampler = lambda *_: None  # the steps in their order
            trainer.train()
        done = [self.works[number % STEPS] for number in range(warm, warm + timed)]
        losses = float(module.losses[0]), float(module.losses[-1])
        return {**self.figures(clock.seconds, done, clock.made, losses), "by": self.by}


class _Module(nn.Module):
    """Takes a batch as the Trainer hands it on."""

    def __init__(self, model: MLLM) -> None:
        super().__init__()
        self.model = model
        self.losses: list[Tensor] = []

    def forward(self, batch: Micro) -> dict[str, Tensor]:
        """Give the loss under the name that the Trainer looks for."""
        loss = transformers_loss(self.model, batch)
        self.losses.append(loss.detach())
        return {"loss": loss}


class _Clock(TrainerCallback):
    """Times the steps after the warm-up."""

    def __init__(self, runner: Runner, warm: int) -> None:
        self._runner, self._warm = runner, warm
        self.seconds: list[float] = []
        self.made = 0
        self._before = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._runner.wait()
        now = time.perf_counter()
        if state.global_step == self._warm:
            self.made = programs()
        elif state.global_step > self._warm:
            self.seconds.append(now - self._before)
        self._before = now


WAYS = {
    "padded": Padded,
    "trainer": HuggingFace if find_spec("accelerate") else TrainerLoop,
}


if __name__ == "__main__":
    main()
