"""What a training step costs in numbers that no busy neighbour changes: FLOPs, bytes, programs."""

from typing import Any

import torch
from stepper import Settings, Stepper
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from openqwen2vl.model import attention
from openqwen2vl.model.attention_op import by_document_op
from openqwen2vl.model.compiled import programs

# Operators whose result the host must wait for.
READS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2"}
# Traces and differentiates as the real backend does, without making machine code.
TRACED = "aot_eager"


def linear_flops(variant: str, settings: Settings) -> float:
    """FLOPs of matrix products and convolutions for one useful token, forward and backward.

    PyTorch's counter does not see attention on a CPU, so that is left out of all alike.
    """
    stepper = Stepper(variant, settings)
    with FlopCounterMode(display=False) as counter:
        for number in range(len(stepper.batches)):
            stepper.step(number)
    tokens = sum(work.tokens for work in stepper.works)
    return float(counter.get_total_flops()) / float(tokens)


def saved_bytes(settings: Settings, checkpointing: str) -> float:
    """Bytes that one forward pass keeps for backward, for one useful token; weights left out."""
    stepper = Stepper("ours", settings)
    stepper.model.set_checkpointing(checkpointing)
    own = {p.untyped_storage().data_ptr() for p in stepper.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = stepper.loss(stepper.model, stepper.batches[0][0])
    loss.backward()
    return sum(kept.values()) / stepper.works[0].tokens


def compiled_programs(settings: Settings) -> tuple[int, int]:
    """Programs after the first step, and those that all other steps add."""
    torch._dynamo.reset()
    stepper = Stepper("ours", settings)
    before = programs()
    stepper.model.compile(TRACED)
    stepper.step(0)
    first = programs()
    for number in range(len(stepper.batches)):
        stepper.step(number)
    return first - before, programs() - first


def host_reads(settings: Settings) -> int:
    """How often forward and backward of a step wait for a value from the device.

    The CPU's attention reads the boundaries, so here it stands as one operator, as CUDA's does.
    """
    stepper = Stepper("ours", settings)
    plain: Any = attention.by_document
    attention.by_document = by_document_op
    try:
        with _Reads() as reads:
            stepper.loss(stepper.model, stepper.batches[0][0]).backward()
    finally:
        attention.by_document = plain
    return reads.count


class _Reads(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in READS
        return func(*args, **(kwargs or {}))
