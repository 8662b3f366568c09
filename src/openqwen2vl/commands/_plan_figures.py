"""Puts a plan's figures together and says what will not do."""

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from openqwen2vl.commands._plan_data import Planned
from openqwen2vl.commands._plan_memory import Knobs, Need, device_count, micro_batches
from openqwen2vl.commands._plan_table import said
from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.model.mllm import MLLM
from openqwen2vl.packing.budget import accumulation
from openqwen2vl.training.activations import MemorySpec
from openqwen2vl.training.flops import FlopSpec, executed_flops
from openqwen2vl.training.memory import Footprint, moved_bytes
from openqwen2vl.training.planning import Disk, Hardware, device_hours, run_flops

Hours = tuple[float, float, float]
"""Device-hours: least, expected, most."""


@dataclass(frozen=True)
class Plan:
    """A planned run.

    Attributes:
        figures: plain values, as JSON has them; sizes are bytes, times hours.
        refusals: what will not do, each with the knobs that would.
    """

    figures: dict[str, Any]
    refusals: list[str]


def make_plan(config: DictConfig, data: Planned, model: MLLM, probed: Hours | None) -> Plan:
    """Work out what a run takes.

    Args:
        config: of the command.
        data: what is served.
        model: its shapes.
        probed: device-hours by a probe; None: by the hardware's profile.
    """
    hardware = Hardware(**config.hardware)
    devices = device_count(config, hardware)
    turns = accumulation(data.global_batch, config.data.micro_batch, devices)
    flops, spec = FlopSpec.of(model), MemorySpec.of(model)
    knobs = Knobs.of(config, data.global_batch, devices)
    need = Need(spec=spec, pack=data.pack, hardware=hardware, available=_memory(hardware, devices))
    work = run_flops(flops, data.loads)
    hours = probed or device_hours(work["total"], hardware)
    held, disk = need.footprint(knobs), data.disk(spec, _keep(config))
    figures = {
        **_served(data),
        "steps": sum(load.steps for load in data.loads),
        "global_batch": data.global_batch,
        "micro_batch": config.data.micro_batch,
        "accumulation": turns,
        "parameters": {name: part._asdict() for name, part in model.trainable_summary().items()},
        "flops": work,
        "flops_executed": sum(
            executed_flops(flops, load.work, config.checkpointing) for load in data.loads
        ),
        "hardware": hardware.name,
        "kind": hardware.kind,
        "devices": devices,
        "mfu": hardware.mfu if probed is None else None,
        "gpu_hours": hours[1],
        "gpu_hours_range": [hours[0], hours[2]],
        "wall_hours": hours[1] / devices,
        "wall_hours_range": [hours[0] / devices, hours[2] / devices],
        "memory": {**_on_device(held), "available": need.available},
        "host": {
            "memory": _host(need, knobs, held),
            "moved_a_step": moved_bytes(spec, knobs.setup(hardware), turns),
        },
        "micro_batches": list(micro_batches(need, knobs)),
        "disk": asdict(disk),
    }
    refusals = [*_short_memory(need, knobs, held), *_short_disk(config, data, disk)]
    return Plan({**figures, "fits": not refusals, "refusals": refusals}, refusals)


def _served(data: Planned) -> dict[str, Any]:
    loads = data.loads
    return {
        "tokens": sum(load.work.tokens for load in loads),
        "targets": sum(load.work.targets for load in loads),
        "images": sum(load.images for load in loads),
        "documents": sum(load.documents for load in loads),
        "packs": sum(load.packs for load in loads),
        "grids": {str(load.grid): {"steps": load.steps, "images": load.images} for load in loads},
    }


def _memory(hardware: Hardware, devices: int) -> int:
    """Bytes that a device has for the run; processes on a CPU share the machine's."""
    if hardware.memory_gib is None:
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // devices
    else:
        whole = round(hardware.memory_gib * 2**30)
    return whole - round(hardware.reserve_gib * 2**30)


def _keep(config: DictConfig) -> int:
    checkpoints = config.callbacks.get("checkpoints")
    return 0 if checkpoints is None else int(checkpoints.keep)


def _short_memory(need: Need, knobs: Knobs, held: Footprint) -> list[str]:
    if held.peak <= need.available:
        return []
    ways = need.remedies(knobs)
    told = [f"{words} ({_size(need, changed)})" for words, changed in ways.items()]
    todo = (
        f"these would do: {'; '.join(told)}"
        if ways
        else "no micro-batch, checkpointing, sharding or offload of it would do: take devices "
        "with more memory, more of them, or a smaller model"
    )
    return [
        f"memory: a device needs {said(held.peak)}, {need.hardware.name} has "
        f"{said(need.available)} without its reserve; {todo}"
    ]


def _on_device(held: Footprint) -> dict[str, int]:
    return {name: size for name, size in asdict(held).items() if name != "host"}


def _size(need: Need, knobs: Knobs) -> str:
    held = need.footprint(knobs)
    if not held.host:
        return said(held.peak)
    return f"{said(held.peak)}, and {said(_host(need, knobs, held))} of each host's memory"


def _host(need: Need, knobs: Knobs, held: Footprint) -> int:
    """Bytes in the memory of a node's host, which its devices share."""
    return held.host * min(knobs.devices, need.hardware.devices)


def _short_disk(config: DictConfig, data: Planned, disk: Disk) -> list[str]:
    """Compare with what is free; described data may go anywhere, so only ``disk`` judges it."""
    written = disk.checkpoints + (0 if data.exists else disk.raw + disk.packed)
    if config.disk is not None:
        free, place = int(config.disk), "disk"
    elif data.exists:
        folder = Path(config.run_dir).absolute()
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free, place = shutil.disk_usage(there).free, str(there)
    else:
        return []
    if written <= free:
        return []
    keep = _keep(config)
    fewer = f"callbacks.checkpoints.keep={keep - 1} saves {said(disk.checkpoint)}"
    less = f"{fewer}; or " if keep > 1 else ""
    more = (
        ""
        if data.exists
        else "a smaller budget or selection, smaller pictures (img2dataset's image_size), "
    )
    return [
        f"disk: {said(written)} are to be written, {place} has {said(free)}; {less}{more}"
        "another disk (run_dir=, packs_root=)"
    ]


def refuse(plan: Plan) -> None:
    """Stop where a run would not do.

    Raises:
        ConfigError: with all reasons and the knobs that would do.
    """
    if plan.refusals:
        raise ConfigError("\n  ".join(["this run will not do:", *plan.refusals]))
