"""Converting: models of others as checkpoints of ours."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from openqwen2vl.formats.errors import CheckpointError, ConfigError
from openqwen2vl.formats.files import atomic_file
from openqwen2vl.release.built import frozen_tower, outline
from openqwen2vl.release.fitted import fitted
from openqwen2vl.release.opened import Opened
from openqwen2vl.release.prismatic import LAYOUT, read_prismatic
from openqwen2vl.release.source import tie_head
from openqwen2vl.training.checkpoint import PREFIX


def open_prismatic(path: Path, facts: Mapping[str, Any]) -> Opened:
    """Open a prismatic ``.pt`` as the model that was composed for it.

    Args:
        path: the file.
        facts: see ``built.NEEDED``; the file tells none of them.

    Raises:
        CheckpointError: another file, one that could run code, or weights that do not fit.
    """
    blocks = len(outline(facts, path).vision.model.blocks)
    weights = read_prismatic(path, blocks)
    llm = dict(facts["llm_config"])
    tie_head(weights, llm, bool(llm.get("tie_word_embeddings", False)))
    facts = {**facts, "llm_config": llm}
    weights = fitted(weights, outline(facts, path), path)
    notes = []
    if not any(name.startswith("vision.") for name in weights):
        # Kept by name and hash, as the frozen tower of every run of ours.
        tower = frozen_tower(facts, path)
        facts["tower"] = {"name": tower.name, "hash": tower.weights_hash()}
        notes.append(f"the file holds no vision tower: {tower.name} is taken by name, as in runs")
    return Opened(LAYOUT, facts, weights, notes)


def at_grid(opened: Opened, grid: int | None, source: Path) -> Opened:
    """Give a model at another grid than its own, or at its own.

    Raises:
        ConfigError: a grid that its tower does not have.
    """
    *before, last = opened.facts["phases"]
    own = int(last["grid"])
    patches = outline(opened.facts, source).vision.patch_grid
    wanted = own if grid is None else grid
    if not 1 <= wanted <= patches:
        raise ConfigError(
            f"grid is {wanted}, but the vision tower of {source} has {patches} x {patches} "
            f"patches; give a grid from 1 to {patches}"
        )
    return replace(opened, facts={**opened.facts, "phases": [*before, {**last, "grid": wanted}]})


def write_checkpoint(opened: Opened, source: Path, out: Path) -> None:
    """Write a model as a checkpoint that `init_from`, `evaluate` and `export` take.

    The weights stay in the numbers that they came in; whoever loads them widens them.

    Args:
        opened: the model.
        source: where it came from, for the record.
        out: the file to write, complete or not at all.

    Raises:
        CheckpointError: the weights are not those of the model.
        UserError: the disk is full, or nothing may be written there.
    """
    weights = fitted(opened.weights, outline(opened.facts, source), source)
    facts = {**opened.facts, "converted": {"source": str(source), "layout": opened.layout}}
    checkpoint = {
        "state_dict": {PREFIX + name: value for name, value in weights.items()},
        "global_step": 0,
        "openqwen2vl": facts,
    }
    with atomic_file(out) as file:
        torch.save(checkpoint, file)


def refuse_existing(out: Path) -> None:
    """Stop before anything that is there is replaced.

    Raises:
        CheckpointError: there is something.
    """
    if out.exists() or out.is_symlink():
        raise CheckpointError(f"{out} exists; choose another out=, or remove it")
