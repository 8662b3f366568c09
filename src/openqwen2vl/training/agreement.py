"""Whether all ranks train the same: one with other settings, packs or software spoils a run unseen."""

import hashlib
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from openqwen2vl import __version__
from openqwen2vl.formats.errors import ConfigError

PACKAGES = ("torch", "lightning", "transformers", "timm", "webdataset")
_TOLD = 5
_SAMPLED = 64
_CALLED = "host"


def require_agreement(facts: Mapping[str, Any]) -> None:
    """Compare what every rank is about to do; all ranks call this, before the first collective step.

    Nodes that were started with another override, hold another copy of the packs, or found no
    checkpoint on their disk would otherwise train on, each its own way.

    Args:
        facts: plain values, nested by text. Paths are not compared, since local disks are mounted
            where a node likes; what lies there is told by its hash.

    Raises:
        ConfigError: on all ranks, with the first facts that differ, and where.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    mine = {**dict(flat(facts)), **_software(), _CALLED: platform.node()}
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, mine)
    found = list(disagreements(gathered))
    if found:
        more = f"; and {len(found) - _TOLD} more" if len(found) > _TOLD else ""
        raise ConfigError(
            f"the ranks do not agree on the run: {'; '.join(found[:_TOLD])}{more}. Start all of "
            "them by one command, on one installation, with the same packs and run folder"
        )


def disagreements(ranks: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Say of each fact that differs what it is on rank 0, and what on the first rank that differs.

    Args:
        ranks: the facts of each rank, by name; ``host`` is where it runs, and may differ.
    """
    names = sorted({name for one in ranks for name in one} - {_CALLED})
    for name in names:
        values = [one.get(name, "missing") for one in ranks]
        other = next((k for k, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            like = sum(value == values[other] for value in values)
            rest = f" and {like - 1} more" if like > 1 else ""
            yield (
                f"{name} is {values[0]} on rank 0 ({ranks[0].get(_CALLED)}) and {values[other]} on "
                f"rank {other} ({ranks[other].get(_CALLED)}){rest}"
            )


def flat(facts: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Give nested plain values as pairs of a dotted name and a text, without paths."""
    for key, value in facts.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}.")
        elif os.sep not in (text := str(value)):
            yield name, text


def weights_sample(model: nn.Module) -> str:
    """Give 16 hex digits of some values of every weight: enough to tell two models apart.

    Any training, another seed or another release changes nearly all values, so a few of each
    tensor will do; a whole hash takes seconds a rank.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype} ".encode())
        values = value.detach().flatten()
        some = values[:: max(1, values.numel() // _SAMPLED)].to("cpu", torch.float64)
        digest.update(some.numpy().tobytes())
    return digest.hexdigest()[:16]


def _software() -> dict[str, str]:
    packages = {name: version(name) for name in PACKAGES}
    return {f"versions.{k}": v for k, v in {"openqwen2vl": __version__, **packages}.items()}
