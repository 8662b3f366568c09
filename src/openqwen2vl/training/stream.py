"""What a training run asks of its data module, whichever it is."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import lightning.pytorch as pl
from torch.utils.data import DataLoader

from openqwen2vl.formats.decoders import PictureDecoder
from openqwen2vl.packing.budget import GridPhase
from openqwen2vl.packing.mixture import Mixture
from openqwen2vl.packing.order import Order, Phase


class PackedData(Protocol):
    """The face of `PackedDataModule`: only conf/ names the class itself.

    Attributes:
        plan: the resolution plan.
        mixture: the opened sources.
        order: global batches of the run.
        global_batch: packs per optimizer step.
        micro_batch: packs that one rank processes at a time.
        image_side: pixels to which images are resized; set to the tower's before loading.
        pictures: how they are decoded.
        vocab_size: ids that the packs' tokenizer can make.
    """

    plan: Sequence[GridPhase]
    mixture: Mixture
    order: Order
    global_batch: int
    micro_batch: int
    image_side: int | None
    pictures: PictureDecoder

    @property
    def vocab_size(self) -> int:
        """Give the number of ids that the packs' tokenizer can make."""

    def identity(self) -> dict[str, Any]:
        """Give what the order is a function of, in plain values."""

    def keep_phases(self, phases: Sequence[Phase]) -> None:
        """Take over the phases that a resumed run fixed at its start."""

    def keep_pictures(self, facts: Mapping[str, Any] | None) -> None:
        """Go on decoding as a resumed run began to, by the facts that it recorded."""

    def contents(self, step: int) -> Mapping[str, float]:
        """Count tokens, images and documents of a global batch, and say how ranks share it."""

    def consumed(self, steps: int) -> Mapping[str, Mapping[str, float]]:
        """Count per source what the first ``steps`` global batches held."""

    def validation_loader(self, grid: int) -> DataLoader[Any] | None:
        """Give this rank's share of the held-out packs."""

    def validation_names(self) -> Sequence[str]:
        """Name the sources of the held-out packs in their order."""

    def held_out_documents(self, count: int, grid: int) -> list[dict[str, Any]]:
        """Give some held-out documents: uid, prompt, images, answer, tokenizer_hash."""


def packed_data(trainer: pl.Trainer) -> PackedData:
    """Give the run's data module."""
    return cast(PackedData, trainer.datamodule)  # type: ignore[attr-defined]
