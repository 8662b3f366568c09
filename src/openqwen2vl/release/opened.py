"""Opening trained models in whatever form they lie there, recognised by their content."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from openqwen2vl.formats.errors import CheckpointError, UserError
from openqwen2vl.formats.templates import TEMPLATES
from openqwen2vl.formats.templates import template as named_template
from openqwen2vl.formats.tokens import load_tokenizer, tokenizer_hash
from openqwen2vl.release.built import check_facts, outline
from openqwen2vl.release.fitted import fitted
from openqwen2vl.release.folder import CONFIG, read_json, read_model_folder
from openqwen2vl.release.llava_folder import is_llava_folder, read_llava_folder
from openqwen2vl.release.llava_repository import is_llava_repository, read_llava_repository
from openqwen2vl.release.source import Source
from openqwen2vl.training.checkpoint import newest, read_facts, read_weights

KEY, FORMAT = "openqwen2vl", 1
"""What our folders add to their config, and which version of it this is."""

_SENSELESS = (
    *(ArithmeticError, AttributeError, KeyError, TypeError, ValueError),
    StrictDataclassError,
)
CHECKPOINT, FOLDER = "a checkpoint of openqwen2vl", "a model folder of openqwen2vl"


@dataclass(frozen=True)
class Opened:
    """A trained model with all that is needed to build it again.

    Attributes:
        layout: what was recognised, for people.
        facts: as a run writes them into its checkpoints; see ``built.NEEDED``.
        weights: under our names, in the numbers of the file.
        notes: what a user should know.
    """

    layout: str
    facts: dict[str, Any]
    weights: dict[str, Tensor]
    notes: list[str] = field(default_factory=list)


def open_trained(
    path: Path, tokenizer: str | None = None, template: str | None = None, tower: str | None = None
) -> Opened:
    """Open a run folder (its newest checkpoint), a checkpoint, or a model folder.

    Args:
        path: ours, or a folder of transformers' LLaVA or of the LLaVA repository.
        tokenizer: folder or hub name; ``None`` is where the model says it is.
        template: of the conversations; ``None`` is what the model says.
        tower: of a folder of the LLaVA repository; see ``read_llava_repository``.

    Raises:
        CheckpointError: nothing of that kind there, or it cannot be read.
        UserError: a folder of others without tokenizer or template.
    """
    if not is_folder(path):
        place = newest(path)
        facts, weights, layout = read_facts(place), read_weights(place), CHECKPOINT
    elif is_ours(path):
        facts, weights, layout = folder_facts(path), read_model_folder(path), FOLDER
    else:
        return _composed(read_source(path, tower), path, tokenizer, template)
    if template is not None:
        text = {**facts["text"], "template": named_template(template).hash}
        facts = {**facts, "text": text, "template": template}
    return Opened(layout, facts, weights)


def open_weights(path: Path) -> dict[str, Tensor]:
    """Give the weights of what ``open_trained`` opens, whatever tokenizer and template it has.

    Raises:
        CheckpointError: nothing of that kind there, or it cannot be read.
    """
    if not is_folder(path):
        return read_weights(newest(path))
    return read_model_folder(path) if is_ours(path) else read_source(path).weights


def known_facts(path: Path) -> dict[str, Any] | None:
    """Give what we wrote beside the weights; ``None`` for a folder of others.

    Raises:
        CheckpointError: nothing that can be opened.
    """
    if not is_folder(path):
        return read_facts(newest(path))
    return folder_facts(path) if is_ours(path) else None


def is_folder(path: Path) -> bool:
    """Tell a model folder, ours or not, from a run folder and from a checkpoint."""
    return (path / CONFIG).is_file() and not (path / "checkpoints").is_dir()


def is_ours(path: Path) -> bool:
    """Tell a model folder that ``export`` wrote from those of others."""
    return KEY in read_json(path / CONFIG)


def folder_facts(path: Path) -> dict[str, Any]:
    """Give the facts of a model folder that ``export`` wrote; its tokenizer lies beside them.

    Raises:
        CheckpointError: of another version, or not whole.
    """
    kept = read_json(path / CONFIG)[KEY]
    found = kept.get("format") if isinstance(kept, Mapping) else None
    if found != FORMAT:
        raise CheckpointError(
            f"{path / CONFIG} has {KEY} of format {found!r}, this version reads {FORMAT}"
        )
    facts, grid = dict(kept.get("facts") or {}), kept.get("grid")
    check_facts(facts, path / CONFIG)
    if not isinstance(grid, int):
        raise CheckpointError(f"{path / CONFIG} says grid {grid!r}; expected a whole number")
    facts["phases"] = [*facts["phases"][:-1], {**facts["phases"][-1], "grid": grid}]
    told = kept.get("provenance")
    earlier = told.get("stages") if isinstance(told, Mapping) else None
    return {**facts, "tokenizer": str(path), "init_from": None, "earlier": earlier or []}


def read_source(path: Path, tower: str | None = None) -> Source:
    """Read a model folder of others.

    Raises:
        CheckpointError: of no known layout, with what was found and what there is, or with values
            in its files that no such model has.
    """
    config = read_json(path / CONFIG)
    try:
        if is_llava_repository(config):
            return read_llava_repository(path, tower)
        if is_llava_folder(config):
            return read_llava_folder(path)
    except UserError:
        raise
    except _SENSELESS as error:
        # Whatever somebody wrote there meets transformers' configs and our arithmetic.
        raise CheckpointError(
            f"{path / CONFIG}, or another JSON file beside it, holds what no such model has "
            f"({type(error).__name__}: {' '.join(str(error).split())}); it is damaged"
        ) from error
    raise CheckpointError(
        f"{path / CONFIG} is of model_type {config.get('model_type')!r}; expected a folder that "
        "openqwen2vl export wrote, one of transformers' LLaVA (model_type llava) or one of the "
        "LLaVA repository (mm_vision_tower)"
    )


def _composed(source: Source, path: Path, tokenizer: str | None, template: str | None) -> Opened:
    """Add what a folder of others does not say in our terms, and make its weights fit."""
    name = tokenizer or str(path)
    try:
        found = load_tokenizer(name)
    except UserError as error:
        raise UserError(f"{error}; or give one (tokenizer=DIR_OR_NAME)") from error
    layout = template or source.template
    if layout is None:
        raise UserError(
            f"{path} does not tell how its conversations are laid out; give "
            f"template={'|'.join(TEMPLATES)}"
        )
    facts: dict[str, Any] = {
        "model": {
            "vision": source.vision,
            "projector": source.projector,
            "attention": {"backend": "auto", "isolate": True},
            "trainable": {"vision": False, "projector": True, "llm": True},
            "checkpointing": "none",
        },
        "llm_config": source.llm,
        "vocab_size": len(found),
        "tokenizer": name,
        "text": {"tokenizer": tokenizer_hash(found), "template": named_template(layout).hash},
        "tower": {"name": source.vision["name"], "hash": None},
        "init_from": None,
        "phases": [{"grid": source.grid}],
    }
    weights = fitted(source.weights, outline(facts, path), path)
    presumed = [] if template else [f"template {layout} is presumed; template=... says another"]
    return Opened(source.layout, facts, weights, [*source.notes, *presumed])
