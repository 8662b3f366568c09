"""The LightningModule: one loss over the global batch, whatever the ranks and micro-batches."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.model.mllm import MLLM
from openqwen2vl.packing.order import mix_seed
from openqwen2vl.training.agreement import require_agreement, weights_sample
from openqwen2vl.training.loss import batch_losses
from openqwen2vl.training.loss_choices import choose_losses
from openqwen2vl.training.metrics import SourceLoss
from openqwen2vl.training.optim import decayed_names, keep_rates, skip_update, told_rates
from openqwen2vl.training.schedule import Schedule

OptimizerFactory = Callable[..., torch.optim.Optimizer]


class MLLMModule(pl.LightningModule):
    """Trains an `MLLM` on packed batches.

    Args:
        model: with its parts frozen or not.
        optim: given ``named_parameters`` and ``decayed``, builds the optimizer.
        schedule: the learning rate's curve.
        steps: optimizer steps of the run; the curve's length unless the schedule says its own.
        sources: names of the mixture's sources, for the log.
        clip: largest norm of the global gradient; larger ones are scaled down.
        loss: which implementation works out the losses; as of `loss_choices.choose_losses`.
        seed: of whatever randomness a step has (dropout): a function of the place in the stream.
        facts: plain values that a checkpoint carries, for resuming and for rebuilding the model.
        agreed: what must be the same on all ranks, beside the weights; see
            `agreement.require_agreement`.

    Raises:
        ConfigError: nothing is trainable.
    """

    def __init__(
        self,
        model: MLLM,
        optim: OptimizerFactory,
        schedule: Schedule,
        steps: int,
        sources: Sequence[str],
        clip: float = 1.0,
        loss: str = "auto",
        seed: int = 7,
        facts: Mapping[str, Any] | None = None,
        agreed: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ConfigError("nothing is trainable; set one of trainable.{vision,projector,llm}")
        self.model = model
        self.sources = list(sources)
        self.source_loss = SourceLoss(len(self.sources))
        self.validation_loss = SourceLoss(len(self.sources))
        self.facts = dict(facts or {})
        self._agreed = dict(agreed or {})
        self.grad_norm: Tensor | None = None
        # Whether the last step left the weights alone: bool (), on the device.
        self.skipped: Tensor | bool = False
        # Asked with the gradient's norm whether to leave a step out; told each row once written.
        self.judges: list[Callable[[Tensor], Tensor]] = []
        self.readers: list[Callable[[int, dict[str, float]], None]] = []
        # Figures of the step under way, from the callbacks, and the last step's finished row.
        self.row: dict[str, float | Tensor] = {}
        self.last_row: dict[str, float] = {}
        self._optim, self._schedule, self._steps = optim, schedule, steps
        self._clip, self._loss, self._seed = clip, loss, seed
        self._decayed = decayed_names(self)
        self._told: list[dict[str, Any]] = []

    def setup(self, stage: str) -> None:
        """Compare with the other ranks what is to be done, before anything is sharded or read.

        Raises:
            ConfigError: they do not agree.
        """
        if self.trainer.world_size > 1:
            require_agreement({**self._agreed, "weights": weights_sample(self.model)})

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """Give this micro-batch's part of the global batch's mean loss.

        The divisor is the planned number of targets of the whole global batch, so no collective
        is needed. Lightning divides by the accumulation and the strategy by the ranks; both are
        undone here.
        """
        # Nothing random to save: a resumed run draws what the unbroken one would have drawn.
        _seed(mix_seed(self._seed, batch["step"], batch["slot"]), self.device)
        losses = self.losses(batch)
        self.source_loss.update(losses, batch["sources"][batch["target_rows"]])
        scale = self.trainer.world_size * self.trainer.accumulate_grad_batches
        loss: Tensor = losses.sum() * (scale / batch["global_targets"])
        return loss

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Add a held-out micro-batch to `validation_loss`."""
        losses = self.losses(batch)
        self.validation_loss.update(losses, batch["sources"][batch["target_rows"]])

    def predict_step(self, batch: dict[str, Any], batch_index: int = 0) -> list[list[int]]:
        """Continue prompts; ``batch`` holds the arguments of `MLLM.generate`.

        A step of the Trainer, since a sharded model gathers its weights only within one; every
        rank must ask the same.
        """
        return self.model.generate(**batch)

    def losses(self, batch: dict[str, Any]) -> Tensor:
        """Give the cross-entropy of each target: float32 (N,)."""
        losses = choose_losses(self._loss, batch["input_ids"].device.type)
        return batch_losses(self.model, batch, losses)

    def configure_optimizers(self) -> Any:
        """Build the optimizer and the per-step schedule."""
        optimizer = self._optim(named_parameters=self.named_parameters(), decayed=self._decayed)
        length = self._schedule.length or self._steps
        scheduler = LambdaLR(optimizer, lambda step: self._schedule.factor(step, length))
        self._told = told_rates(optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_train_start(self) -> None:
        """Take rates and decays from the config: by now a checkpoint has brought its own."""
        optimizer, scheduler = self.trainer.optimizers[0], self.lr_schedulers()
        keep_rates(optimizer, cast(LambdaLR, scheduler), self._told)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        """Step, and let the gradients go: Lightning would keep them through the next forward."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()

    def on_fit_start(self) -> None:
        """Put the metrics where the losses are: FSDP moves parameters only, and narrows sums.

        Raises:
            ConfigError: this machine lacks what the chosen loss takes.
        """
        choose_losses(self._loss, self.device.type)
        for metric in (self.source_loss, self.validation_loss):
            metric.to(self.device)
            metric.set_dtype(torch.float64)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the global norm; a step whose norm is no number, or a judge's, changes nothing.

        Norm and decision stay on the device, for the log: reading them would wait. The norm is
        that of all ranks, so all decide alike.
        """
        strategy = self.trainer.strategy
        if isinstance(strategy, FSDPStrategy) and strategy.model is not None:
            sharded = cast(FullyShardedDataParallel, strategy.model)
            # Of offloaded gradients it comes back on the host.
            self.grad_norm = sharded.clip_grad_norm_(self._clip).to(self.device)
        else:
            trainable = [p for p in self.parameters() if p.requires_grad]
            self.grad_norm = nn.utils.clip_grad_norm_(trainable, self._clip)
        self.skipped = ~torch.isfinite(self.grad_norm)
        for judge in self.judges:
            self.skipped = self.skipped | judge(self.grad_norm)
        skip_update(optimizer, self.skipped)

    def wrapped_classes(self) -> set[type[nn.Module]]:
        """Name the layers that FSDP shards one by one: decoder layers, trainable tower blocks."""
        layers: list[nn.Module] = list(self.model.decoder_layers)
        if self.model.vision.trainable:
            layers += list(self.model.vision.model.blocks)
        return {type(layer) for layer in layers}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the facts of the run: plain values, so that a weights-only load reads them."""
        checkpoint["openqwen2vl"] = self.facts


def _seed(seed: int, device: torch.device) -> None:
    """Seed the generators of the host and of a device.

    `torch.manual_seed` also notes the seed for each kind of device that is not in use, each time
    with the whole stack as text.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
