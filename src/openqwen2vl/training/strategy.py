"""How a run is spread over devices: Lightning's strategies by plain arguments."""

import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy, Strategy
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.formats.files import publish, tell_full_disk

SHARDINGS = ("FULL_SHARD", "SHARD_GRAD_OP", "HYBRID_SHARD", "NO_SHARD")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class ShardedStrategy(FSDPStrategy):
    """`FSDPStrategy` that also runs on CPU and whose checkpoints appear whole or not at all.

    Stock Lightning hands FSDP ``root_device.index``, which is None on a CPU, and writes its
    folders in place: a kill between two files leaves weights of one step beside counters of
    another.
    """

    def _setup_model(self, model: nn.Module) -> FullyShardedDataParallel:
        classes = model.wrapped_classes()  # type: ignore[operator]  # an MLLMModule
        return FullyShardedDataParallel(
            module=model,
            device_id=self.root_device,
            cpu_offload=self.cpu_offload,
            mixed_precision=self.mixed_precision_config,
            sharding_strategy=self.sharding_strategy,
            auto_wrap_policy=ModuleWrapPolicy(classes),
            **self.kwargs,
        )

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        """Write the shards to a hidden folder on all ranks, then give it its name on one."""
        path = Path(self.broadcast(str(filepath)))
        temporary = path.with_name(f".{path.name}.tmp")
        if self.is_global_zero:
            shutil.rmtree(temporary, ignore_errors=True)
        self.barrier()
        with tell_full_disk(path):
            super().save_checkpoint(checkpoint, temporary, storage_options)
        self.barrier()
        if self.is_global_zero:
            publish(temporary, path)
        self.barrier()


def single(device: str = "auto") -> Strategy:
    """Train on one device, without a process group.

    Args:
        device: ``auto`` (the first GPU, else the CPU), ``cpu`` or ``cuda:0``.

    Raises:
        ConfigError: no such device here.
    """
    if device == "auto":
        device = "cuda:0" if torch.cuda.is_available() else "cpu"
    here = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if device not in here:
        raise ConfigError(
            f"strategy.device is {device!r}; there are auto, {', '.join(here)} on this machine"
        )
    return SingleDeviceStrategy(device=torch.device(device))


def ddp(timeout_minutes: float = 30) -> Strategy:
    """Replicate the model on every rank and sum gradients (gloo on CPU, NCCL on GPUs).

    Args:
        timeout_minutes: a collective that takes longer ends the run.
    """
    return DDPStrategy(
        # Frozen parts are known before wrapping, so no search for unused parameters is needed.
        find_unused_parameters=False,
        gradient_as_bucket_view=True,
        timeout=timedelta(minutes=timeout_minutes),
    )


def fsdp(
    sharding: str = "FULL_SHARD",
    param_dtype: str = "bf16",
    reduce_dtype: str = "fp32",
    timeout_minutes: float = 30,
) -> Strategy:
    """Shard parameters, gradients and optimizer state, per decoder layer [paper: FSDP, bf16].

    Args:
        sharding: FULL_SHARD, SHARD_GRAD_OP, HYBRID_SHARD (over nodes) or NO_SHARD.
        param_dtype: of the computation, ``bf16`` or ``fp32``; masters stay fp32.
        reduce_dtype: of gradients on the wire (the official run used bf16).
        timeout_minutes: a collective that takes longer ends the run.

    Raises:
        ConfigError: another name than these.
    """
    if sharding not in SHARDINGS:
        raise ConfigError(f"strategy.sharding is {sharding!r}; expected one of {SHARDINGS}")
    for key, value in (("param_dtype", param_dtype), ("reduce_dtype", reduce_dtype)):
        if value not in DTYPES:
            raise ConfigError(f"strategy.{key} is {value!r}; expected one of {tuple(DTYPES)}")
    return ShardedStrategy(
        sharding_strategy=sharding,  # type: ignore[arg-type]  # checked above
        mixed_precision=MixedPrecision(
            param_dtype=DTYPES[param_dtype], reduce_dtype=DTYPES[reduce_dtype]
        ),
        state_dict_type="sharded",
        timeout=timedelta(minutes=timeout_minutes),
    )
