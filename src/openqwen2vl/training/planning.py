"""What a run will take before it is launched: work, time, disk. Pure arithmetic.

Hours are work over speed: FLOPs by ``flops.model_flops``, speed as a share of the device's peak.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.training.activations import MemorySpec
from openqwen2vl.training.flops import FlopSpec, Work, forward_flops, model_flops


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """A profile of the devices that a run is planned for (config group ``hardware``).

    Attributes:
        name: as people call it.
        kind: ``gpu`` or ``cpu``.
        peak_tflops: dense bf16 by the maker's data sheet; of a CPU: what one process reaches.
        memory_gib: of one device, as its driver tells; None: all of this machine's.
        reserve_gib: of it, what the driver, collectives and the allocator's gaps take.
        devices: in a node.
        mfu: share of the peak that runs reach; the FLOPs are ``flops.model_flops``.
        spread: how far the hours may lie to both sides, as a share: loader, stragglers, restarts.
    """

    name: str
    kind: Literal["gpu", "cpu"]
    peak_tflops: float
    memory_gib: float | None
    reserve_gib: float
    devices: int
    mfu: float
    spread: float

    def __post_init__(self) -> None:
        if not 0 < self.mfu <= 1 or not 0 <= self.spread < 1 or self.peak_tflops <= 0:
            raise ConfigError(
                f"hardware: mfu {self.mfu}, spread {self.spread}, peak_tflops {self.peak_tflops}; "
                "expected 0 < mfu <= 1, 0 <= spread < 1 and a peak above 0"
            )


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a run serves at one grid.

    Attributes:
        grid: visual tokens along an image's side.
        steps: optimizer steps.
        packs: served, repeats included.
        documents: in them; likewise below.
        images: likewise.
        work: likewise, as FLOPs are counted.
    """

    grid: int
    steps: int
    packs: int
    documents: int
    images: int
    work: Work


def run_flops(spec: FlopSpec, loads: Iterable[Load]) -> dict[str, int]:
    """FLOPs of a run by part, every token through every layer.

    Returns:
        ``llm_forward`` and ``llm_backward`` (linear maps of the decoder layers), ``attention``,
        ``head`` (on target positions), ``tower``, ``projector``, and their ``total``.
    """
    sums = dict.fromkeys(
        ("llm_forward", "llm_backward", "attention", "head", "tower", "projector"), 0
    )
    for load in loads:
        whole, forward = model_flops(spec, load.work), forward_flops(spec, load.work)
        sums["llm_forward"] += forward["llm_linear"]
        sums["llm_backward"] += whole["llm_linear"] - forward["llm_linear"]
        sums["attention"] += whole["llm_attention"]
        for part in ("head", "tower", "projector"):
            sums[part] += whole[part]
    return sums | {"total": sum(sums.values())}


def device_hours(flops: float, hardware: Hardware) -> tuple[float, float, float]:
    """Give the device-hours of some FLOPs: least, expected, most."""
    expected = flops / (hardware.peak_tflops * 1e12 * hardware.mfu) / 3600
    return expected * (1 - hardware.spread), expected, expected * (1 + hardware.spread)


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Bytes that a run and its data take up.

    Attributes:
        raw: shards as they were downloaded.
        packed: packs.
        checkpoint: one of them.
        checkpoints: as many as are kept, and one that is being written.
    """

    raw: int
    packed: int
    checkpoint: int
    checkpoints: int


def checkpoint_bytes(spec: MemorySpec) -> int:
    """Size of a checkpoint: fp32 weights (no frozen tower's), and AdamW's two moments."""
    return 12 * spec.trainable + 4 * spec.standing
