"""Replays the data path of a run under two topologies and compares the global batches."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from openqwen2vl.commands._assemble import check_text
from openqwen2vl.commands._dry_run_figures import replay_figures, show
from openqwen2vl.commands._fit import resumable
from openqwen2vl.formats.errors import ConfigError, UserError
from openqwen2vl.packing.budget import accumulation
from openqwen2vl.packing.fingerprint import (
    FINGERPRINT_SIDE,
    Difference,
    GlobalBatch,
    difference,
    fingerprint,
)
from openqwen2vl.training.checkpoint import checkpoint_step
from openqwen2vl.training.dry_run import Record, Replay, Replayed, Topology, replay, windows
from openqwen2vl.training.launch import device_count, launched
from openqwen2vl.training.run_folder import RunFolder

NAMES = ("this run", "replay.against")
_ACCELERATORS = ("auto", "gpu", "cuda")  # of which `device_count` counts the GPUs


def plan_replay(config: DictConfig) -> tuple[Topology, Replay]:
    """Give the run's topology and what it is compared with.

    Raises:
        ConfigError: numbers that cannot be, twice the same topology, a launcher that started
            several processes, or as many devices as there are GPUs where there are none.
    """
    if launched():
        raise ConfigError("dry_run=true plays all ranks itself; start it without torchrun or srun")
    trainer, data = config.trainer, config.data
    counts = trainer.devices in ("auto", -1, "-1") and trainer.accelerator in _ACCELERATORS
    if counts and not torch.cuda.is_available():
        raise ConfigError(
            f"trainer.devices={trainer.devices} means as many as there are GPUs, and this machine "
            "has none; give trainer.devices the number of GPUs that a node of the run has"
        )
    mine = Topology(
        devices=device_count(trainer.accelerator, trainer.devices),
        num_nodes=trainer.num_nodes,
        micro_batch=data.micro_batch,
        num_workers=data.num_workers,
    )
    wanted = {**config.replay, "against": Topology(**config.replay.against)}
    if _same(mine, wanted["against"]):
        raise ConfigError(
            f"the run and replay.against are one topology ({mine}), so equal batches would prove "
            "nothing; give another, such as replay.against.devices=2"
        )
    return mine, Replay(**wanted)


def _same(one: Topology, other: Topology) -> bool:
    """Tell whether ranks get the same; loader processes count only where both are numbers."""
    if all(isinstance(topology.num_workers, int) for topology in (one, other)):
        return one == other
    return replace(one, num_workers=0) == replace(other, num_workers=0)


def dry_run(config: DictConfig) -> dict[str, object]:
    """Replay, compare, print.

    Returns:
        ``equal``, one ``digest`` of all batches, what was looked at, what each topology took, the
        ``first_difference`` if there is one, and why the launch would be ``refused`` if its folder
        holds a run already.

    Raises:
        UserError: as of ``train``: bad packs, a checkpoint that does not resume, topologies that
            cannot be.
    """
    mine, wanted = plan_replay(config)
    side = config.vision.image_side if wanted.decode else FINGERPRINT_SIDE
    if side is None:
        raise ConfigError("replay.decode=true resizes pictures; give vision.image_side")
    path, refused = _checkpoint(config)
    data = _open(config, mine, side, wanted.decode, config.data.preflight)
    other = _open(config, wanted.against, side, wanted.decode, preflight=False)
    _divides(data, wanted.against)
    start = wanted.start
    if path is None and config.init_from is not None:
        check_text(data, Path(config.init_from))
    if path is not None:
        for one in (data, other):
            resumable(path, config, one)
        start = checkpoint_step(path) if start is None else start
    chosen = windows(data.order, data.mixture.names, start or 0, wanted.steps)
    records = [replay(data, mine, chosen), replay(other, wanted.against, chosen)]
    steps = [step for window in chosen for step in range(window.start, window.stop)]
    found = _first_difference(records, steps)
    figures = replay_figures(data, chosen, records, found, wanted.decode)
    figures["refused"] = refused
    show(f"dry run of {config.stage}", figures)
    # Hydra made it; unless a run lies there, nothing is left behind.
    with suppress(OSError):
        Path(config.run_dir).rmdir()
    return figures


def _checkpoint(config: DictConfig) -> tuple[Path | None, str | None]:
    """Give what the launch would go on from, and why it would not begin afresh.

    A folder that holds a run is no mistake here: another topology may be tried beside it.
    """
    folder = RunFolder(Path(config.run_dir))
    if config.resume is not None:
        return folder.checkpoint(config.resume), None
    try:
        return folder.checkpoint(None), None
    except UserError as error:
        return None, str(error)


def _open(
    config: DictConfig, topology: Topology, side: int, decode: bool, preflight: bool
) -> Replayed:
    """Open the run's data as one topology loads them."""
    data = instantiate(
        config.data,
        micro_batch=topology.micro_batch,
        num_workers=topology.num_workers,
        pin_memory=False,  # there may be no GPU
        preflight=preflight,
        _convert_="all",
    )
    data.image_side = side
    if not decode:
        data.decode = fingerprint
    return cast(Replayed, data)


def _divides(data: Replayed, topology: Topology) -> None:
    """Refuse the other topology before anything is read; the run's own is refused by its keys.

    Raises:
        ConfigError: names the nearest global batch.
    """
    try:
        accumulation(data.global_batch, topology.micro_batch, topology.ranks)
    except ConfigError as error:
        raise ConfigError(f"replay.against ({topology}): {error}") from error


def _first_difference(records: Sequence[Record], steps: Sequence[int]) -> Difference | None:
    one, other = (record.batches for record in records)
    for step in steps:
        empty = GlobalBatch(step)
        found = difference(one.get(step, empty), other.get(step, empty), NAMES)
        if found is not None:
            return found
    return None
