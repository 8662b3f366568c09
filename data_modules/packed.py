"""LightningDataModule over packed WebDataset shards, resumable at any global batch."""

import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from openqwen2vl.formats.decoders import PictureDecoder
from openqwen2vl.formats.errors import CheckpointError, ConfigError
from openqwen2vl.packing.balance import spread
from openqwen2vl.packing.batch import Decoder
from openqwen2vl.packing.budget import Budget, GridPhase, extend_phases, fix_phases, total_steps
from openqwen2vl.packing.mixture import (
    Mixture,
    MixtureSpec,
    SourceSpec,
    consumed,
    open_folders,
    open_mixture,
)
from openqwen2vl.packing.order import Order, Phase
from openqwen2vl.packing.preflight import require_sound
from openqwen2vl.packing.reader import Packs
from openqwen2vl.training.launch import WARNINGS
from openqwen2vl.training.loading import auto_workers, check_loading, rank_cores

from .prompts import prompts
from .rows import PackedRows
from .sampling import MicroBatch, StepBatches, ValidationBatches

Loader = DataLoader[dict[str, Any]]


def _as_is(batch: Any) -> Any:
    return batch


def _quiet_worker(_: int) -> None:
    """Let loader processes outlive a signal to the whole group: the run has yet to save."""
    for number in (signal.SIGTERM, signal.SIGINT, *WARNINGS):
        signal.signal(number, signal.SIG_IGN)


class PackedDataModule(pl.LightningDataModule):
    """Blends packed sources into global batches; its state is one integer.

    Args:
        mixture: ``{mode, sources: {name: {packs, weight}}}``.
        resolution: ``{plan: [{grid, until}, ...]}``.
        budget: ``{passes | tokens | steps}``.
        image_side: pixels to which images are resized; the vision tower's, set before loading.
        seed: fixes the order.
        global_batch: packs per optimizer step.
        documents_per_step: instead of ``global_batch``: documents per optimizer step, turned
            into packs by the mean that the manifests state, rounded to a multiple of 8.
        micro_batch: packs that one rank processes at a time.
        num_workers: loader processes per rank; ``auto``: by need, see `auto_workers`.
        prefetch_factor: micro-batches that each worker reads ahead.
        isolate: documents of a pack do not see each other (False: the paper's own behaviour).
        pin_memory: page-locked batches, for copies to a GPU that overlap with its work; ``auto``:
            where the rank has one.
        decoder: of JPEGs, one of ``decoders.DECODERS``.
        draft: read JPEGs of twice the image side and more at a half, a quarter or an eighth of
            their size: faster, other pixels.
        preflight: look at a sample of the packs first, and refuse those that would teach the
            wrong thing.

    Raises:
        ConfigError: both or neither of ``global_batch`` and ``documents_per_step``, or loader
            settings that no loader could have.
        PackError: folders that do not fit the mixture or the plan, or fail the preflight.
    """

    def __init__(
        self,
        mixture: Mapping[str, Any],
        resolution: Mapping[str, Any],
        budget: Mapping[str, Any],
        image_side: int | None = None,
        seed: int = 7,
        global_batch: int | None = None,
        documents_per_step: int | None = None,
        micro_batch: int = 1,
        num_workers: int | str = 2,
        prefetch_factor: int = 2,
        isolate: bool = True,
        pin_memory: bool | str = False,
        decoder: str = "auto",
        draft: bool = False,
        preflight: bool = True,
    ) -> None:
        super().__init__()
        check_loading(num_workers, prefetch_factor, micro_batch, pin_memory)
        sources = {name: SourceSpec(**source) for name, source in mixture["sources"].items()}
        spec = MixtureSpec(sources=sources, mode=mixture.get("mode", "proportional"))
        self.plan = [GridPhase(**phase) for phase in resolution["plan"]]
        grids = [phase.grid for phase in self.plan]
        self.mixture = open_mixture(spec, grids, self.open_source)
        self.held_out = self.mixture.validation()
        if preflight:
            require_sound(folder for column in self.mixture.folders.values() for folder in column)
        self.image_side, self.seed = image_side, seed
        self.micro_batch, self.num_workers = micro_batch, num_workers
        self.prefetch_factor, self.isolate, self.pin_memory = prefetch_factor, isolate, pin_memory
        self.global_batch = self._global_batch(global_batch, documents_per_step)
        supply = {grid: self.mixture.supply(grid) for grid in grids}
        steps = total_steps(Budget(**budget), self.plan, supply, self.global_batch)
        self.order = self._order(fix_phases(self.plan, steps))
        self.start = 0
        self._decoder, self.pictures = decoder, PictureDecoder.chosen(decoder, draft)
        # A dry run needs no pixels and sets another.
        self.decode: Decoder = self.pictures

    def open_source(self, name: str, source: SourceSpec) -> Sequence[Packs]:
        """Open the packs of one source, one for each grid that it has."""
        return open_folders(name, source)

    def _global_batch(self, packs: int | None, documents: int | None) -> int:
        if (packs is None) == (documents is None):
            raise ConfigError(
                f"data.global_batch is {packs} and data.documents_per_step {documents}; "
                "give exactly one of them; data.documents_per_step=null lets go of a stage's"
            )
        if packs is not None:
            return packs
        assert documents is not None
        exact = documents / self.mixture.documents_per_pack(self.plan[0].grid)
        return max(1, round(exact)) if exact < 8 else round(exact / 8) * 8

    def _order(self, phases: Sequence[Phase]) -> Order:
        streams = {phase.grid: self.mixture.stream(self.seed, phase.grid) for phase in phases}
        return Order(tuple(phases), streams, self.global_batch)

    @property
    def vocab_size(self) -> int:
        """Give the number of ids that the packs' tokenizer can make."""
        return self.mixture.folders[self.plan[0].grid][0].manifest.spec.vocab_size

    def identity(self) -> dict[str, Any]:
        """Give what the order is a function of, in plain values: a resumed run compares it."""
        columns = self.mixture.folders.items()
        return {
            "seed": self.seed,
            "global_batch": self.global_batch,
            "sources": self.mixture.names,
            "mode": self.mixture.spec.mode,
            "weights": [source.weight for source in self.mixture.spec.sources.values()],
            "manifests": {
                str(grid): [folder.manifest.hash() for folder in column] for grid, column in columns
            },
        }

    def keep_phases(self, phases: Sequence[Phase]) -> None:
        """Take over the phases that a resumed run fixed at its start; the budget moves the end.

        Raises:
            ConfigError: the budget ends before the last switch.
        """
        self.order = self._order(extend_phases(phases, self.order.steps))

    def keep_pictures(self, facts: Mapping[str, Any] | None) -> None:
        """Go on decoding as a resumed run began to; see `PictureDecoder.resumed`."""
        kept = self.pictures.resumed(self._decoder, facts)
        if self.decode == self.pictures:
            self.decode = kept
        self.pictures = kept

    def train_dataloader(self) -> Loader:
        """Give this rank's micro-batches, from where the checkpoint left off.

        Raises:
            CheckpointError: the trainer resumed and this module did not.
        """
        trainer = self._trainer()
        if self.start != trainer.global_step:
            raise CheckpointError(
                f"the data would start at global batch {self.start}, the trainer is at step "
                f"{trainer.global_step}; the checkpoint was written by another data module"
            )
        world = (trainer.global_rank, trainer.world_size)
        sampler = StepBatches(self.order, self.mixture, self.start, self.micro_batch, world)
        return self._loader(self.mixture, sampler)

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Move a batch's tensors; all else stays where it is and is not looked into."""
        if device.type == "cpu":
            return batch
        return {
            key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }

    def validation_loader(self, grid: int) -> Loader | None:
        """Give this rank's share of the held-out packs at a grid; None when nothing is held out."""
        if self.held_out is None:
            return None
        trainer = self._trainer()
        world = (trainer.global_rank, trainer.world_size)
        sampler = ValidationBatches(self.held_out, grid, self.micro_batch, world)
        return self._loader(self.held_out, sampler)

    def val_dataloader(self) -> Loader | list[Any]:
        """Give the held-out packs at the plan's last grid (for `trainer.validate`)."""
        return self.validation_loader(self.plan[-1].grid) or []

    def validation_names(self) -> list[str]:
        """Name the sources of the held-out packs in their order."""
        return [] if self.held_out is None else self.held_out.names

    def held_out_documents(self, count: int, grid: int) -> list[dict[str, Any]]:
        """Give the first held-out documents that ask for something, as `prompts` has them."""
        found: list[dict[str, Any]] = []
        for folder in [] if self.held_out is None else self.held_out.folders[grid]:
            for number in range(len(folder)):
                if len(found) >= count:
                    return found
                here = prompts(folder, number, self.image_side or 0, self.pictures)
                found += here[: count - len(found)]
        return found

    def contents(self, step: int) -> dict[str, float]:
        """Count tokens, images and documents of a global batch, by the index.

        ``images_spread`` is how unevenly the ranks' micro-batches share the images; see
        `packing.balance.spread`.
        """
        keys = self.order.packs(step)
        folders = [self.mixture.folders[key.grid][key.source] for key in keys]
        pairs = list(zip(folders, keys, strict=True))
        counts = {
            name: [int(getattr(folder, name)[key.pack]) for folder, key in pairs]
            for name in ("tokens", "images", "documents")
        }
        uneven = spread(counts["images"], self.micro_batch, self._trainer().world_size)
        return {**{name: sum(column) for name, column in counts.items()}, "images_spread": uneven}

    def consumed(self, steps: int) -> dict[str, dict[str, float]]:
        """Count per source what the first ``steps`` global batches held, and in how many passes."""
        return consumed(self.mixture, self.order, steps)

    def _loader(self, mixture: Mixture, sampler: Sampler[MicroBatch]) -> Loader:
        if self.image_side is None:
            raise RuntimeError("set image_side to the vision tower's before asking for loaders")
        workers = self._processes()
        return DataLoader(
            PackedRows(mixture, self.image_side, self.isolate, self.decode),
            batch_sampler=sampler,  # type: ignore[arg-type]  # one MicroBatch, not a list of keys
            num_workers=workers,
            collate_fn=_as_is,
            pin_memory=self._on_gpu() if self.pin_memory == "auto" else bool(self.pin_memory),
            prefetch_factor=self.prefetch_factor if workers else None,
            worker_init_fn=_quiet_worker,
            # Workers share the index, half a gigabyte for the paper's corpus; Python 3.14 would by
            # itself send each one a copy.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        )

    def _processes(self) -> int:
        if self.num_workers != "auto":
            return int(self.num_workers)
        folders = [folder for column in self.mixture.folders.values() for folder in column]
        cores = rank_cores(self._trainer().num_devices)
        return auto_workers((folder.manifest for folder in folders), cores, self._on_gpu())

    def _on_gpu(self) -> bool:
        return torch.cuda.is_available() and self._trainer().strategy.root_device.type == "cuda"

    def _trainer(self) -> pl.Trainer:
        if self.trainer is None:
            raise RuntimeError("attach the data module to a Trainer before asking for loaders")
        return self.trainer

    def state_dict(self) -> dict[str, int]:
        """Give the position: gradients in mid accumulation are not saved, so steps are enough."""
        return {"global_batches": self._trainer().global_step}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on after the global batches that the checkpoint has seen."""
        self.start = state_dict["global_batches"]
