"""Memory of a planned run on each device, and which knobs would make it fit."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations, islice
from math import ceil

from omegaconf import DictConfig

from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.training.activations import MemorySpec, MicroBatch, Setup
from openqwen2vl.training.memory import Footprint, footprint
from openqwen2vl.training.planning import Hardware

_MICRO_BATCH = re.compile(r"data\.micro_batch=\d+")
_TOLD = 6  # remedies at most
_GATHERS = {"FULL_SHARD": "units", "SHARD_GRAD_OP": "all", "NO_SHARD": "units"}


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """What a user may turn to change the memory.

    Attributes:
        strategy: ``single``, ``ddp`` or ``fsdp``.
        sharding: of fsdp.
        sync: of fsdp.
        replicate: of fsdp: copies of the model, or ``nodes``.
        param_dtype: of fsdp.
        cpu_offload: of fsdp.
        precision: of the Trainer.
        checkpointing: ``none``, ``mlp`` or ``full``.
        micro_batch: packs.
        global_batch: packs.
        devices: all of them.
    """

    strategy: str
    sharding: str
    sync: str
    replicate: int | str
    param_dtype: str
    cpu_offload: bool
    precision: str
    checkpointing: str
    micro_batch: int
    global_batch: int
    devices: int

    @classmethod
    def of(cls, config: DictConfig, global_batch: int, devices: int) -> "Knobs":
        """Read them from a composed config."""
        strategy = config.strategy
        return cls(
            strategy=strategy._target_.rpartition(".")[2],
            sharding=strategy.get("sharding", "FULL_SHARD"),
            sync=strategy.get("sync", "step"),
            replicate=strategy.get("replicate", 1),
            param_dtype=strategy.get("param_dtype", "bf16"),
            cpu_offload=strategy.get("cpu_offload", False),
            precision=config.precision,
            checkpointing=config.checkpointing,
            micro_batch=config.data.micro_batch,
            global_batch=global_batch,
            devices=devices,
        )

    def setup(self, hardware: Hardware) -> Setup:
        """Say what each rank computes and holds."""
        sharded = self.strategy == "fsdp"
        copies = ceil(self.devices / hardware.devices) if self.replicate == "nodes" else 1
        copies = copies if self.replicate == "nodes" else int(self.replicate)
        ranks = max(1, self.devices // copies)
        shares = sharded and self.sharding != "NO_SHARD" and ranks > 1
        offloads = sharded and self.cpu_offload and hardware.kind == "gpu"
        # Whole bf16 weights reduce each micro-batch; see `ShardedStrategy.block_backward_sync`.
        whole = shares or (offloads and self.param_dtype == "fp32")
        return Setup(
            precision=self._arithmetic(hardware, sharded),
            checkpointing=self.checkpointing,
            ranks=ranks if shares else 1,
            gathers=_GATHERS[self.sharding] if sharded else "nothing",
            accumulates=self.global_batch > self.micro_batch * self.devices,
            whole_gradients=whole and self.sync == "step",
            offloads=offloads,
            cuda=hardware.kind == "gpu",
        )

    def _arithmetic(self, hardware: Hardware, sharded: bool) -> str:
        if sharded:
            return self.param_dtype
        by_default = "bf16-mixed" if hardware.kind == "gpu" else "32-true"
        chosen = by_default if self.precision == "auto" else self.precision
        return "mixed" if chosen == "bf16-mixed" else "fp32"


@dataclass(frozen=True, kw_only=True)
class Need:
    """Memory of one device against what a run takes.

    Attributes:
        spec: sizes of the model.
        pack: the heaviest pack.
        hardware: of the devices.
        available: bytes of a device without its reserve.
    """

    spec: MemorySpec
    pack: MicroBatch
    hardware: Hardware
    available: int

    def footprint(self, knobs: Knobs) -> Footprint:
        """Say what a device holds under some knobs."""
        packs = knobs.micro_batch
        micro = replace(
            self.pack,
            positions=packs * self.pack.positions,
            targets=packs * self.pack.targets,
            images=packs * self.pack.images,
        )
        return footprint(self.spec, micro, knobs.setup(self.hardware))

    def remedies(self, knobs: Knobs) -> dict[str, Knobs]:
        """Give the changes that make it fit, each by itself; two together where none does.

        Of several micro-batches that do, the largest is given.
        """
        known = dict(_changes(knobs, self.hardware.kind == "gpu"))
        for count in (1, 2, 3):
            found: dict[str, Knobs] = {}
            keys: set[str] = set()
            for words in combinations(known, count):
                key = _MICRO_BATCH.sub("data.micro_batch", " ".join(words))
                changed = _changed(knobs, [known[word] for word in words])
                if key not in keys and self.footprint(changed).peak <= self.available:
                    found[" ".join(words)] = changed
                    keys.add(key)
            if found:
                return dict(islice(found.items(), _TOLD))
        return {}


def micro_batches(need: Need, knobs: Knobs) -> Iterator[dict[str, object]]:
    """Yield activations and peak of likely micro-batches with and without checkpointing."""
    sizes = sorted({1, 2, 4, 8, knobs.micro_batch})
    for packs in sizes:
        for checkpointing in ("none", "mlp", "full"):
            other = replace(knobs, micro_batch=packs, checkpointing=checkpointing)
            held = need.footprint(other)
            yield {
                "micro_batch": packs,
                "checkpointing": checkpointing,
                "activations": held.activations,
                "peak": held.peak,
                "fits": held.peak <= need.available,
            }


def _changes(knobs: Knobs, gpu: bool) -> Iterator[tuple[str, dict[str, object]]]:
    if knobs.checkpointing == "none":
        yield "checkpointing=mlp", {"checkpointing": "mlp"}
    if knobs.checkpointing != "full":
        yield "checkpointing=full", {"checkpointing": "full"}
    per_device = knobs.global_batch // knobs.devices
    smaller = [n for n in range(knobs.micro_batch - 1, 0, -1) if per_device % n == 0]
    for packs in smaller:
        yield f"data.micro_batch={packs}", {"micro_batch": packs}
    if knobs.strategy != "fsdp" and knobs.devices > 1:
        yield "strategy=fsdp", {"strategy": "fsdp", "sharding": "FULL_SHARD", "sync": "step"}
    if knobs.strategy == "fsdp" and knobs.devices > 1:
        if knobs.sharding != "FULL_SHARD":
            yield "strategy.sharding=FULL_SHARD", {"sharding": "FULL_SHARD"}
        if knobs.sync == "step":
            yield "strategy.sync=micro_batch", {"sync": "micro_batch"}
        if knobs.replicate != 1:
            yield "strategy.replicate=1", {"replicate": 1}
    if gpu and knobs.strategy == "fsdp" and not knobs.cpu_offload:
        yield "strategy.cpu_offload=true", {"cpu_offload": True}
    if gpu and knobs.strategy == "single":
        # Of the shipped defaults but for the offload; it would plan for a whole node.
        words = "strategy=fsdp strategy.cpu_offload=true devices=1"
        yield words, {"strategy": "fsdp", "cpu_offload": True}
    for times in (2, 4, 8):
        devices = knobs.devices * times
        if knobs.strategy == "fsdp" and knobs.global_batch % (devices * knobs.micro_batch) == 0:
            yield f"devices={devices}", {"devices": devices}


def _changed(knobs: Knobs, changes: list[dict[str, object]]) -> Knobs:
    merged: dict[str, object] = {}
    for change in changes:
        merged |= change
    return replace(knobs, **merged)  # type: ignore[arg-type]


def device_count(config: DictConfig, hardware: Hardware) -> int:
    """Give the devices of a plan: as asked, else a node's; one process trains one.

    Raises:
        ConfigError: fewer than 1, or several of a strategy for one.
    """
    alone = config.strategy._target_.endswith(".single")
    given: int | None = config.devices
    devices = (1 if alone else hardware.devices) if given is None else given
    if devices < 1 or (alone and devices > 1):
        raise ConfigError(
            f"devices is {devices}; expected "
            f"{'1 with strategy=single: choose strategy=ddp or fsdp' if alone else 'at least 1'}"
        )
    return devices
