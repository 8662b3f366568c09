"""AdamW with the paper's decay groups."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from openqwen2vl.formats.errors import ConfigError

# What FSDP and activation checkpointing put into parameter names.
_WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")

# What a config says of a group of parameters; the rate itself is the schedule's.
_TOLD = ("initial_lr", "betas", "eps", "momentum", "weight_decay")


def plain_name(name: str) -> str:
    """Give a parameter's name as it was before any wrapping."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def decayed_names(module: nn.Module) -> frozenset[str]:
    """Name the parameters that weight decay pulls on: matrices, embeddings included.

    Biases and norms (one dimension) are left alone, as in the official code (`fsdp.py`). Asked
    for before FSDP wraps the module, since a sharded parameter no longer knows its shape.
    """
    return frozenset(
        plain_name(name)
        for name, parameter in module.named_parameters()
        if parameter.ndim > 1 and not name.endswith(".bias")
    )


def adamw(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    decayed: frozenset[str],
    lr: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    fused: bool = True,
) -> torch.optim.AdamW:
    """Build AdamW over the trainable parameters in two groups, decayed and not.

    Args:
        named_parameters: of the module, wrapped or not.
        decayed: names that `decayed_names` gave.
        lr: peak learning rate.
        weight_decay: decoupled decay of the first group.
        betas: decay of the first and second moments.
        eps: added to the denominator.
        fused: one kernel for all parameters.

    Raises:
        ConfigError: a rate or a decay below 0.
    """
    if lr < 0 or weight_decay < 0:
        raise ConfigError(
            f"optim.lr is {lr} and optim.weight_decay {weight_decay}; neither may be below 0"
        )
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            groups[plain_name(name) in decayed].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=lr,
        betas=(betas[0], betas[1]),
        eps=eps,
        fused=fused,
    )


def told_rates(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Give of each group what a config says of it, once a schedule has noted the peak rates."""
    return [{key: group[key] for key in _TOLD if key in group} for group in optimizer.param_groups]


def keep_rates(
    optimizer: torch.optim.Optimizer, scheduler: LambdaLR, told: list[dict[str, Any]]
) -> None:
    """Go on with the rates and decays of this run's config, whatever a checkpoint brought.

    PyTorch takes them from the checkpoint, so that a run which is resumed with a lower
    ``optim.lr`` would train on with the old one.

    Args:
        optimizer: as a checkpoint left it, or new.
        scheduler: of its rate.
        told: of `told_rates`, before any checkpoint.
    """
    scheduler.base_lrs = [one["initial_lr"] for one in told]
    for group, one, curve in zip(optimizer.param_groups, told, scheduler.lr_lambdas, strict=True):
        group.update(one)
        group["lr"] = one["initial_lr"] * curve(scheduler.last_epoch)


def skip_update(optimizer: torch.optim.Optimizer, skip: Tensor) -> None:
    """Let the step that comes leave weights and moments as they are, if ``skip`` says so.

    A fused optimizer decides on the device, as it does for loss scaling; any other makes the host
    wait for the answer, as do parameters that lie there.

    Args:
        optimizer: about to step.
        skip: bool ().
    """
    if all(group.get("fused") for group in optimizer.param_groups):
        fused: Any = optimizer
        (first, *_) = (p for group in optimizer.param_groups for p in group["params"])
        fused.found_inf = skip.to(first.device, torch.float32)
    elif skip:
        optimizer.zero_grad(set_to_none=True)
