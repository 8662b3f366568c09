"""How a run is spread over devices: Lightning's strategies by plain arguments."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision, ShardingStrategy
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.formats.files import publish, tell_full_disk
from openqwen2vl.training.launch import environment

# How the weights lie on the ranks, with one copy of the model and with several.
SHARDINGS = {
    "FULL_SHARD": (ShardingStrategy.FULL_SHARD, ShardingStrategy.HYBRID_SHARD),
    "SHARD_GRAD_OP": (ShardingStrategy.SHARD_GRAD_OP, ShardingStrategy._HYBRID_SHARD_ZERO2),
    "NO_SHARD": (ShardingStrategy.NO_SHARD, None),
}
SYNCS = ("step", "micro_batch")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class ShardedStrategy(FSDPStrategy):
    """`FSDPStrategy` that also runs on CPU and whose checkpoints appear whole or not at all.

    Stock Lightning hands FSDP ``root_device.index``, which is None on a CPU, makes every mesh of
    GPUs, and writes its folders in place: a kill between two files leaves weights of one step
    beside counters of another.

    Args:
        replicate: copies of the model; the ranks of each copy shard it among them.
        sync: ``step`` or ``micro_batch``; when gradients meet.
        options: of `FSDPStrategy`.
    """

    def __init__(self, replicate: int | Literal["nodes"], sync: str, **options: Any) -> None:
        super().__init__(**options)
        self._replicate, self._sync = replicate, sync
        # Gradients of earlier micro-batches on the host, where FSDP itself adds none up.
        self._held: list[tuple[nn.Parameter, Tensor]] = []

    def setup_environment(self) -> None:
        """Start the process group, then lay the ranks out: copies x shards.

        Raises:
            ConfigError: the copies do not divide the ranks, or there is no GPU to offload from.
        """
        if self.cpu_offload.offload_params:
            self._require_gpu()
        super().setup_environment()
        copies = self.num_nodes if self._replicate == "nodes" else self._replicate
        if self.world_size % copies:
            raise ConfigError(
                f"strategy.replicate is {copies}, which does not divide the {self.world_size} "
                "ranks; every copy of the model wants the same number of them"
            )
        if self.world_size == copies:
            # FSDP would leave ranks that hold a whole copy each without any exchange.
            self.sharding_strategy = ShardingStrategy.NO_SHARD
        elif copies > 1:
            shape = (copies, self.world_size // copies)
            # Neighbours in rank share a node, so it is they who share a copy.
            self.kwargs["device_mesh"] = init_device_mesh(
                self.root_device.type, shape, mesh_dim_names=("replicate", "shard")
            )
            several = SHARDINGS[self.sharding_strategy.name][1]
            assert several is not None
            self.sharding_strategy = several

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Leave gradients unreduced in all micro-batches but a step's last, if so wished.

        Unsharded weights computed in bf16 are the exception: FSDP cannot keep their unreduced
        gradients where weights are tied.
        """
        mixed = self.mixed_precision_config
        narrow = mixed is not None and mixed.param_dtype != torch.float32
        unsharded = self.sharding_strategy == ShardingStrategy.NO_SHARD
        if self._sync == "step" and not (unsharded and narrow):
            with super().block_backward_sync():
                yield
        else:
            yield
            if self.cpu_offload.offload_params:
                self._hold()

    def post_backward(self, closure_loss: Tensor) -> None:
        """Add what earlier micro-batches of the step left on the host."""
        super().post_backward(closure_loss)
        for parameter, before in self._held:
            assert parameter.grad is not None
            parameter.grad.add_(before)
        self._held = []

    def _require_gpu(self) -> None:
        if self.root_device.type == "cpu":
            raise ConfigError(
                "strategy.cpu_offload is true, but this run computes on the CPU, where its weights "
                "lie anyway; leave it out"
            )

    def _hold(self) -> None:
        """Put a micro-batch's gradients aside: offloaded ones are overwritten by the next's.

        Documented as a limit of FSDP. What is left in place is zero, so that a version which adds
        gradients up after all gives the same sum.
        """
        assert self.model is not None
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                self._held.append((parameter, parameter.grad.clone()))
                parameter.grad.zero_()

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
    strategy = SingleDeviceStrategy(device=torch.device(device))
    # The Trainer reads this of any strategy, though only those of several processes declare it.
    strategy.cluster_environment = environment()  # type: ignore[attr-defined]
    return strategy


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
        cluster_environment=environment(),
    )


def fsdp(
    sharding: str = "FULL_SHARD",
    replicate: int | Literal["nodes"] = 1,
    sync: str = "step",
    param_dtype: str = "bf16",
    reduce_dtype: str = "fp32",
    cpu_offload: bool = False,
    timeout_minutes: float = 30,
) -> Strategy:
    """Shard parameters, gradients and optimizer state, per decoder layer [paper: FSDP, bf16].

    Args:
        sharding: FULL_SHARD (weights are gathered for each pass), SHARD_GRAD_OP (they stay from
            forward to backward, and with ``sync=step`` until the step) or NO_SHARD.
        replicate: copies of the model, each sharded over its share of the ranks; ``nodes``: one
            on each node, so that weights never leave it.
        sync: ``step`` reduces gradients once a step and keeps them whole, in ``param_dtype``,
            until then; ``micro_batch`` reduces each micro-batch's and adds up shards in fp32, as
            does ``step`` where every rank has all weights and computes in bf16.
        param_dtype: of the computation, ``bf16`` or ``fp32``; masters stay fp32.
        reduce_dtype: of gradients on the wire (the official run used bf16).
        cpu_offload: keep weights, gradients and the optimizer's state in the host's memory; a
            GPU holds what it computes with, and AdamW runs on the host.
        timeout_minutes: a collective that takes longer ends the run.

    Raises:
        ConfigError: another name than these, or copies of what is not sharded.
    """
    for key, value, known in (
        ("sharding", sharding, SHARDINGS),
        ("sync", sync, SYNCS),
        ("param_dtype", param_dtype, DTYPES),
        ("reduce_dtype", reduce_dtype, DTYPES),
    ):
        if value not in known:
            raise ConfigError(f"strategy.{key} is {value!r}; expected one of {tuple(known)}")
    if replicate != "nodes" and (not isinstance(replicate, int) or replicate < 1):
        raise ConfigError(f"strategy.replicate is {replicate!r}; expected 1, 2, ... or nodes")
    if sharding == "NO_SHARD" and replicate != 1:
        raise ConfigError(
            f"strategy.replicate is {replicate!r}, but NO_SHARD has a copy on every rank already"
        )
    return ShardedStrategy(
        replicate=replicate,
        sync=sync,
        sharding_strategy=SHARDINGS[sharding][0],
        mixed_precision=MixedPrecision(
            param_dtype=DTYPES[param_dtype], reduce_dtype=DTYPES[reduce_dtype]
        ),
        cpu_offload=cpu_offload,
        state_dict_type="sharded",
        timeout=timedelta(minutes=timeout_minutes),
        cluster_environment=environment(),
    )
