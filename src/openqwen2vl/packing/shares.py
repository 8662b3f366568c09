"""What each source is meant to give to a run: the mixture's plan, before any pack is drawn."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from openqwen2vl.packing.mixture import Mixture
from openqwen2vl.packing.order import Phase
from openqwen2vl.packing.reader import Packs

_COUNTS = ("tokens", "targets", "images", "documents")


def planned_shares(
    mixture: Mixture, phases: Sequence[Phase], global_batch: int
) -> list[dict[str, Any]]:
    """Say what a mean global batch of each phase takes of each source.

    Under ``mode=weights`` a source has its weight's share of the tokens, else its share of the
    packs that there are. What a run really takes differs a little: its packs are whole and drawn.

    Args:
        mixture: with its folders opened.
        phases: of the run.
        global_batch: packs of a global batch.

    Returns:
        For each phase ``grid``, ``start``, ``stop`` and ``per_step``: by source the mean numbers
        of packs, tokens, targets, images and documents.
    """
    weights = np.array([source.weight for source in mixture.spec.sources.values()])
    planned = []
    for phase in phases:
        folders = mixture.folders[phase.grid]
        means = [{name: _mean(folder, name) for name in _COUNTS} for folder in folders]
        if mixture.spec.mode == "weights":
            parts = weights / np.maximum(1e-9, [mean["tokens"] for mean in means])
        else:
            parts = np.array([float(len(folder)) for folder in folders])
        packs = global_batch * parts / max(1e-9, float(parts.sum()))
        per_step = {
            source: {"packs": float(n), **{name: float(n) * mean[name] for name in _COUNTS}}
            for source, n, mean in zip(mixture.names, packs, means, strict=True)
        }
        told = {"grid": phase.grid, "start": phase.start, "stop": phase.stop}
        planned.append({**told, "per_step": per_step})
    return planned


def _mean(folder: Packs, name: str) -> float:
    return float(np.asarray(getattr(folder, name)).sum()) / max(1, len(folder))
