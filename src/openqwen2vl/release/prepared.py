"""A checkpoint opened for export: its facts, its weights one by one, its tower and its texts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from openqwen2vl.formats.errors import CheckpointError, UserError
from openqwen2vl.formats.templates import TEMPLATES, Template
from openqwen2vl.formats.tokens import load_tokenizer, tokenizer_hash
from openqwen2vl.model.mllm import MLLM
from openqwen2vl.release.built import NEEDED, build, frozen_tower
from openqwen2vl.release.filled import without_values
from openqwen2vl.release.opened import is_folder
from openqwen2vl.release.question import Texts
from openqwen2vl.release.streams import WeightStream, open_weights
from openqwen2vl.release.trained import check_tower
from openqwen2vl.training.checkpoint import newest, read_facts

# What a model folder keeps of a run's facts: all that the model is built from again.
_KEPT = (
    *("model", "llm_config", "vocab_size", "tokenizer", "text", "tower", "stage", "licences"),
    "steps",
)


@dataclass(frozen=True)
class Prepared:
    """A checkpoint that can be exported.

    Attributes:
        path: of the checkpoint itself.
        facts: that its run wrote.
        weights: as they lie there.
        texts: the tokenizer and the template that the model was trained with.
        grid: visual tokens on each side of an image.
        build: as of ``Export``.
    """

    path: Path
    facts: Mapping[str, Any]
    weights: WeightStream
    texts: Texts
    grid: int
    build: Callable[[], MLLM]

    def kept_facts(self) -> dict[str, Any]:
        """Give what reading the model folder needs to know, in the words of a run's facts."""
        facts = {key: self.facts[key] for key in _KEPT if key in self.facts}
        model = dict(self.facts["model"])
        # The folder holds all of it: where things lay while training is no matter of its readers.
        model["vision"] = {**model["vision"], "weights": None}
        if "llm" in model:
            model["llm"] = {**model["llm"], "path": self.llm or "not recorded"}
        here = {"model": model, "tokenizer": ".", "init_from": None}
        last = {**self.facts["phases"][-1], "grid": self.grid}
        return {**facts, **here, "template": self.texts.template.name, "phases": [last]}

    @property
    def llm(self) -> str | None:
        """Name the language model that training started from, where the run says it."""
        path = self.facts["model"].get("llm", {}).get("path")
        if not path:
            return None
        return Path(path).name if Path(path).is_absolute() else str(path)


def prepare(path: Path, tokenizer: str | None = None, grid: int | None = None) -> Prepared:
    """Open a checkpoint without building anything large.

    Args:
        path: a checkpoint, one file or a sharded folder, or a run folder (its newest one).
        tokenizer: folder or hub name; ``None`` is where the run found it.
        grid: ``None`` is that of the run's last phase.

    Raises:
        CheckpointError: no checkpoint there, half of one, one that could run code, or another
            tokenizer or template than it was trained with.
        UserError: there is no such tokenizer.
    """
    if is_folder(path):
        raise CheckpointError(
            f"{path} is a model folder already; give a checkpoint or a run folder"
        )
    path = newest(path)
    weights, facts = open_weights(path), read_facts(path)
    missing = [name for name in NEEDED if name not in facts]
    if missing:
        raise CheckpointError(f"{path} does not tell its {', '.join(missing)}; it is not whole")
    texts = _texts(path, facts, tokenizer)
    chosen = int(facts["phases"][-1]["grid"]) if grid is None else grid

    def built() -> MLLM:
        with without_values():
            model = build(facts, path, holds_tower=True)
        _fill_tower(model, facts, weights)
        check_tower(model, facts, path)
        model.projector.grid = chosen
        return model.eval()

    return Prepared(path, facts, weights, texts, chosen, built)


def _texts(path: Path, facts: Mapping[str, Any], tokenizer: str | None) -> Texts:
    name = tokenizer or str(facts["tokenizer"])
    try:
        found = load_tokenizer(name)
    except UserError as error:
        hint = "" if tokenizer else "; give the tokenizer of that run (tokenizer=DIR_OR_NAME)"
        raise UserError(f"{error}{hint}") from error
    learnt, here = facts["text"]["tokenizer"], tokenizer_hash(found)
    if learnt != here:
        raise CheckpointError(
            f"{path} was trained with tokenizer {learnt}, {name} is {here}; give the tokenizer of "
            "that run (tokenizer=DIR)"
        )
    return Texts(found, _template(path, facts["text"]["template"]))


def _template(path: Path, wanted: str) -> Template:
    for layout in TEMPLATES.values():
        if layout.hash == wanted:
            return layout
    raise CheckpointError(
        f"{path} was trained with a template of hash {wanted}, which this version does not have; "
        f"it has {', '.join(TEMPLATES)}"
    )


def _fill_tower(model: MLLM, facts: Mapping[str, Any], weights: WeightStream) -> None:
    """Give the tower its values: the checkpoint's, or those that are to be had by its name."""
    prefix = "vision."
    held = [name for name in weights.shapes if name.startswith(prefix)]
    values = {name.removeprefix(prefix): weights.read(name) for name in held}
    if not held:
        values = dict(frozen_tower(facts, weights.path).state_dict())
    own = model.vision.state_dict()
    unlike = [k for k in sorted(own | values) if k not in own or k not in values]
    unlike += [k for k in own if k in values and own[k].shape != values[k].shape]
    if unlike:
        raise CheckpointError(
            f"{weights.path} does not hold the vision tower that it describes: {unlike[0]} differs"
        )
    model.vision.load_state_dict({k: v.to(torch.float32) for k, v in values.items()}, assign=True)
