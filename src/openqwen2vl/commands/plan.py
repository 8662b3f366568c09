"""Say before a launch what a run takes: FLOPs, memory, disk, hours; refuse what will not do."""

import json
import sys
from typing import Any

from omegaconf import DictConfig

from openqwen2vl.commands._plan_data import planned_data
from openqwen2vl.commands._plan_figures import make_plan, refuse
from openqwen2vl.commands._plan_model import meta_model
from openqwen2vl.commands._plan_probe import probe
from openqwen2vl.commands._plan_table import show
from openqwen2vl.commands.train import KEYS as TRAIN_KEYS
from openqwen2vl.commands.train import SCHEMA as TRAIN
from openqwen2vl.config import Schema
from openqwen2vl.packing.budget import Budget, GridPhase, fix_phases
from openqwen2vl.training.planning import Hardware

TYPES = {
    "tokens": float | None,
    "images": float | None,
    "documents": float | None,
    "context": int,
    "fill": float,
    "target_share": float,
    "image_bytes": float,
    "devices": int | None,
    "probe": int | None,
    "disk": float | None,
    "known": str,
}


def _rules() -> list[Any]:
    return [
        lambda config: Budget(**config.budget),
        lambda config: fix_phases([GridPhase(**p) for p in config.resolution.plan], 10**9),
        lambda config: Hardware(**config.hardware),
    ]


SCHEMA = Schema(
    keys=frozenset([*TRAIN_KEYS, *TYPES, "hardware"]),
    types={**TRAIN.types, **TYPES},
    groups={**TRAIN.groups, "hardware": Hardware},
    parts=TRAIN.parts,
    rules=_rules(),
)


def run(config: DictConfig) -> dict[str, object]:
    """Print what a run takes.

    Returns:
        The plan's figures: bytes, hours, FLOPs.

    Raises:
        ConfigError: memory or disk will not do; the figures are printed first.
    """
    data = planned_data(config)
    model = meta_model(config, data.vocab_size)
    data.check(model)
    probed = None if config.probe is None else probe(config, data)
    plan = make_plan(config, data, model, probed)
    show(f"plan of {config.stage}", plan.figures)
    if plan.refusals and config.json:
        sys.stdout.write(json.dumps(plan.figures, default=float) + "\n")
    refuse(plan)
    return plan.figures
