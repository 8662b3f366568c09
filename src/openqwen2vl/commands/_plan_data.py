"""What a planned run serves: from packs that exist, or from data described by a few numbers."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from math import ceil
from typing import cast

from hydra.utils import instantiate
from omegaconf import DictConfig

from openqwen2vl.commands._assemble import check_grids
from openqwen2vl.formats.errors import ConfigError, UserError
from openqwen2vl.model.mllm import MLLM
from openqwen2vl.packing.budget import Budget, GridPhase
from openqwen2vl.training.activations import MemorySpec, MicroBatch
from openqwen2vl.training.described import (
    Described,
    described_disk,
    described_loads,
    packs_per_step,
)
from openqwen2vl.training.planning import Disk, Load
from openqwen2vl.training.served import heaviest, served_disk, served_loads
from openqwen2vl.training.stream import PackedData

# A pack may hold more images and targets than the mean one: best-fit packing keeps them close.
_HEAVIER = 1.15


@dataclass(frozen=True)
class Planned:
    """Data of a planned run.

    Attributes:
        loads: what is served at each grid.
        global_batch: packs per optimizer step.
        pack: the heaviest.
        vocab_size: ids that the packs' tokenizer can make; 0 without packs.
        disk: given the model's sizes and the checkpoints that stay, what is taken up.
        check: whether the model can have the plan's grids.
        exists: whether there are packs.
    """

    loads: list[Load]
    global_batch: int
    pack: MicroBatch
    vocab_size: int
    disk: Callable[[MemorySpec, int], Disk]
    check: Callable[[MLLM], None]
    exists: bool


def planned_data(config: DictConfig) -> Planned:
    """Read or describe the data of a run.

    Raises:
        UserError: there are neither packs nor ``tokens``.
    """
    return _from_packs(config) if config.tokens is None else _described(config)


def _from_packs(config: DictConfig) -> Planned:
    if config.images is not None or config.documents is not None:
        raise ConfigError("images and documents describe data by numbers; give tokens, too")
    try:
        data = cast(PackedData, instantiate(config.data, _convert_="all"))
    except Exception as error:
        cause = error.__cause__ if isinstance(error.__cause__, UserError) else error
        if not isinstance(cause, UserError):
            raise
        raise type(cause)(
            f"{cause}\nwithout packs, describe the data: tokens=N images=N"
        ) from error
    images, targets = heaviest(data)
    grids = {phase.grid for phase in data.plan}
    context = data.mixture.folders[data.plan[0].grid][0].manifest.spec.context
    return Planned(
        loads=served_loads(data, config.attention.isolate),
        global_batch=data.global_batch,
        pack=MicroBatch(positions=context, targets=targets, images=images, grid=max(grids)),
        vocab_size=data.vocab_size,
        disk=lambda spec, keep: served_disk(data, spec, keep),
        check=lambda model: check_grids(data, model),
        exists=True,
    )


def _described(config: DictConfig) -> Planned:
    if config.images is None:
        raise ConfigError("tokens is given without images; give images=N (0 for text alone), too")
    data = Described(**{field.name: config[field.name] for field in fields(Described)})
    plan = [GridPhase(**phase) for phase in config.resolution.plan]
    size, documents = config.data.global_batch, config.data.documents_per_step
    if (size is None) == (documents is None):
        raise ConfigError(
            f"data.global_batch is {size} and data.documents_per_step {documents}; "
            "give exactly one of them; data.documents_per_step=null lets go of a stage's"
        )
    batch: int = packs_per_step(data, plan, documents) if size is None else size
    loads = described_loads(data, plan, Budget(**config.budget), batch, config.attention.isolate)
    return Planned(
        loads=loads,
        global_batch=batch,
        pack=max(
            (_heavy(load, data.context) for load in loads),
            key=lambda pack: pack.images * pack.grid**2,
        ),
        vocab_size=0,
        disk=lambda spec, keep: described_disk(data, plan, spec, keep),
        check=lambda model: _check(plan, model),
        exists=False,
    )


def _heavy(load: Load, context: int) -> MicroBatch:
    return MicroBatch(
        positions=context,
        targets=min(context, ceil(_HEAVIER * load.work.targets / load.packs)),
        images=min(context // load.grid**2, ceil(_HEAVIER * load.images / load.packs)),
        grid=load.grid,
    )


def _check(plan: list[GridPhase], model: MLLM) -> None:
    finest = max(phase.grid for phase in plan)
    if finest > model.vision.patch_grid:
        raise ConfigError(
            f"resolution.plan asks for grid {finest}, but the vision tower has only "
            f"{model.vision.patch_grid} x {model.vision.patch_grid} patches; nothing finer exists"
        )
