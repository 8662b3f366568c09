"""Train one stage (align, pretrain, sft), fresh or resumed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig

from openqwen2vl.commands._assemble import check_batches
from openqwen2vl.commands._dry_run import dry_run, plan_replay
from openqwen2vl.commands._fit import fit, run_processes
from openqwen2vl.commands._sweep import named_by_what_varies
from openqwen2vl.config import Schema
from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.model.attention import refuse_flex
from openqwen2vl.packing.budget import Budget, GridPhase, fix_phases
from openqwen2vl.packing.mixture import MixtureSpec
from openqwen2vl.training.dry_run import Replay
from openqwen2vl.training.launch import launched, world_size
from openqwen2vl.training.loss_choices import LOSSES, choose_losses

PRECISIONS = ("auto", "32-true", "bf16-mixed")


@dataclass(frozen=True)
class Trainable:
    """Which parts of the model train."""

    vision: bool
    projector: bool
    llm: bool


@dataclass(frozen=True)
class Resolution:
    """The resolution plan."""

    plan: list[GridPhase]


@dataclass(frozen=True)
class Attention:
    """Which kernel computes attention, and whether documents of a pack see each other."""

    backend: str
    isolate: bool


def reword(words: Sequence[str]) -> list[str]:
    """Give the command line as Hydra takes it: a sweep's folders go by what varies."""
    return named_by_what_varies(words)


def ranks(config: DictConfig) -> int:
    """Give the number of processes of the run."""
    trainer = config.trainer
    return world_size(trainer.accelerator, trainer.devices, trainer.num_nodes)


def _clips(config: DictConfig) -> None:
    clip = config.clip
    if isinstance(clip, bool) or not isinstance(clip, int | float) or clip <= 0:
        raise ConfigError(f"clip is {clip!r}; expected the gradient's largest norm, above 0")


def _rounds(config: DictConfig) -> None:
    if config.precision not in PRECISIONS:
        raise ConfigError(f"precision is {config.precision!r}; there are {', '.join(PRECISIONS)}")


def _compiles(config: DictConfig) -> None:
    known = ("auto", "none", *torch.compiler.list_backends(exclude_tags=()))
    if config.compile not in known:
        raise ConfigError(f"compile is {config.compile!r}; there are {', '.join(known)}")


def _runs_here(config: DictConfig) -> None:
    """What a CPU cannot do; what a GPU lacks is told when training begins."""
    if config.loss not in LOSSES:
        raise ConfigError(f"loss is {config.loss!r}; there are {', '.join(LOSSES)}")
    if config.trainer.accelerator == "cpu":
        choose_losses(config.loss, "cpu")
        if config.attention.backend == "flex":
            refuse_flex("cpu", trains=True)


def _spreads(config: DictConfig) -> None:
    processes = ranks(config)
    if processes > 1 and config.strategy._target_.endswith(".single"):
        raise ConfigError(
            f"trainer.devices and num_nodes give {processes} processes, but strategy=single trains "
            "one, so each would train alone; choose strategy=ddp or fsdp, or trainer.devices=1"
        )
    check_batches(config, processes)


def _replays(config: DictConfig) -> None:
    if config.dry_run:
        plan_replay(config)


def _rules() -> list[Any]:
    return [
        lambda config: Budget(**config.budget),
        lambda config: fix_phases([GridPhase(**p) for p in config.resolution.plan], 10**9),
        _spreads,
        _clips,
        _rounds,
        _compiles,
        _runs_here,
        _replays,
    ]


KEYS = [
    "stage",
    "name",
    "run_dir",
    "seed",
    "json",
    "vision",
    "llm",
    "projector",
    "attention",
    "trainable",
    "checkpointing",
    "compile",
    "loss",
    "tokenizer",
    "resolution",
    "data",
    "mixture",
    "licences",
    "packs_root",
    "optim",
    "schedule",
    "clip",
    "strategy",
    "trainer",
    "callbacks",
    "logger",
    "budget",
    "resume",
    "init_from",
    "precision",
    "dry_run",
    "replay",
]

SCHEMA = Schema(
    keys=frozenset(KEYS),
    types={"seed": int, "clip": float, "json": bool, "dry_run": bool},
    groups={
        "budget": Budget,
        "trainable": Trainable,
        "resolution": Resolution,
        "attention": Attention,
        "mixture": MixtureSpec,
        "replay": Replay,
    },
    parts=[
        "vision",
        "llm",
        "projector",
        "attention",
        "data",
        "optim",
        "schedule",
        "strategy",
        "trainer",
        "callbacks",
        "logger",
    ],
    rules=_rules(),
)


def run(config: DictConfig) -> dict[str, object]:
    """Train; several processes on one machine are started here unless a launcher did.

    Returns:
        The last step's figures and where the run lies; of a dry run what it compared.

    Raises:
        UserError: several nodes without a launcher that spans them, or a mistake found on the way.
    """
    if config.dry_run:
        return dry_run(config)
    processes = ranks(config)
    if config.trainer.num_nodes > 1 and not launched():
        raise ConfigError(
            f"trainer.num_nodes is {config.trainer.num_nodes}, but this process was started alone; "
            "start it on every node with torchrun or srun, or set trainer.num_nodes=1"
        )
    if processes > 1 and not launched():
        return run_processes(config, processes)
    return fit(config, processes)


def exit_code(figures: Mapping[str, object]) -> int:
    """Give 1 for a dry run whose topologies serve other batches, else 0."""
    return int(figures.get("equal") is False)
