"""Trained models, ready to be asked or trained on."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from openqwen2vl.curation.scorers.mllm_judge import MllmJudge, TrainedModel
from openqwen2vl.formats.errors import CheckpointError
from openqwen2vl.formats.templates import TEMPLATES
from openqwen2vl.formats.tokens import load_tokenizer, tokenizer_hash
from openqwen2vl.model.mllm import MLLM
from openqwen2vl.release.built import build
from openqwen2vl.release.opened import known_facts, open_trained, open_weights
from openqwen2vl.training.checkpoint import load_weights, newest


def trained_judge(
    model: str,
    tokenizer: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    caption_tokens: int = 512,
    template: str | None = None,
) -> MllmJudge:
    """Give a judge that loads a trained model when it is first asked.

    Args:
        model: a run folder, whose newest checkpoint counts, a checkpoint, or a model folder.
        tokenizer: folder or hub name; ``None`` is where the model says it is.
        device: as of ``MllmJudge``.
        dtype: likewise.
        caption_tokens: likewise.
        template: of its conversations; ``None`` is what the model says.
    """
    load = partial(load_trained, Path(model), tokenizer, template)
    return MllmJudge(load, device=device, dtype=dtype, caption_tokens=caption_tokens)


def load_trained(
    path: Path, tokenizer: str | None = None, template: str | None = None
) -> TrainedModel:
    """Load a trained model with its tokenizer and the template of its conversations.

    Args:
        path: a run folder, a checkpoint or a model folder.
        tokenizer: folder or hub name; ``None`` is where the model says it is.
        template: its name; ``None`` is what the model says.

    Raises:
        CheckpointError: nothing of that kind there, or another tokenizer than it was trained with.
    """
    model, facts = load_model(path, tokenizer, template)
    name = tokenizer or facts["tokenizer"]
    found = load_tokenizer(str(name))
    learnt, here = facts["text"]["tokenizer"], tokenizer_hash(found)
    if learnt != here:
        raise CheckpointError(
            f"{path} was trained with tokenizer {learnt}, {name} is {here}; give the tokenizer of "
            "that run (tokenizer=DIR)"
        )
    layouts = {layout.hash: layout for layout in TEMPLATES.values()}
    layout = layouts.get(facts["text"]["template"])
    if layout is None:
        raise CheckpointError(
            f"{path} was trained with a template of hash {facts['text']['template']}, which this "
            f"version does not have; it has {', '.join(TEMPLATES)}"
        )
    return TrainedModel(model, found, layout, path.name)


def load_model(
    path: Path, tokenizer: str | None = None, template: str | None = None
) -> tuple[MLLM, dict[str, Any]]:
    """Rebuild a trained model.

    Args:
        path: a run folder, whose newest checkpoint counts, a checkpoint, or a model folder.
        tokenizer: of a folder of others that has none; see ``open_trained``.
        template: likewise.

    Returns:
        The model with its weights, its projector at its last grid, and the facts beside them.

    Raises:
        CheckpointError: nothing of that kind there, its frozen tower is another one here, or its
            grid is finer than its tower's patches.
    """
    opened = open_trained(path, tokenizer, template)
    facts, weights = opened.facts, opened.weights
    path = newest(path)
    # Weights that hold the tower hold every weight, so nothing else is looked up.
    holds_tower = any(name.startswith("vision.") for name in weights)
    model = build(facts, path, holds_tower)
    load_weights(model, weights, path)
    _load_tower(model, weights, path)
    check_tower(model, facts, path)
    grid = facts["phases"][-1]["grid"]
    if not 1 <= grid <= model.vision.patch_grid:
        raise CheckpointError(
            f"{path} says grid {grid}, but its vision tower has {model.vision.patch_grid} x "
            f"{model.vision.patch_grid} patches; expected a grid from 1 to that"
        )
    model.projector.grid = grid
    return model, facts


def check_tower(model: MLLM, facts: Mapping[str, Any], path: Path) -> None:
    """Refuse a checkpoint that was trained on another frozen tower.

    A tower that an earlier stage trained and this run froze lies in that stage's checkpoint; it
    is fetched from there.

    Raises:
        CheckpointError: with both names and hashes.
    """
    there = facts["tower"]
    if there["hash"] is None or model.vision.trainable:
        return
    if model.vision.weights_hash() != there["hash"] and facts["init_from"] is not None:
        _load_tower(model, open_weights(Path(facts["init_from"])), Path(facts["init_from"]))
    here = model.vision.weights_hash()
    if here != there["hash"]:
        raise CheckpointError(
            f"{path} was trained on the frozen tower {there['name']} with weights "
            f"{there['hash']}, here they are {here}; compose that tower (vision=...)"
        )


def initial_weights(model: MLLM, path: Path) -> None:
    """Start from another model's weights (`init_from`).

    Args:
        model: that takes them.
        path: a checkpoint, a run folder (its newest checkpoint) or a model folder.

    Raises:
        CheckpointError: nothing loadable there, or another model.
    """
    weights = open_weights(path)
    if not _load_tower(model, weights, path):
        facts = known_facts(path)
        if facts is not None:
            check_tower(model, facts, path)
    load_weights(model, weights, path)


def _load_tower(model: MLLM, weights: Mapping[str, Tensor], source: Path) -> bool:
    """Fill a tower that is frozen here from weights that hold one; tells whether they did."""
    prefix = "vision."
    found = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    if not found or model.vision.trainable:
        return bool(found)
    load_weights(model.vision, found, source)
    return True
