"""What a reader of somebody's layout finds: a model in our terms, before it is put together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from openqwen2vl.formats.errors import CheckpointError
from openqwen2vl.release.folder import listed

EMBEDDING, HEAD = "llm.model.embed_tokens.weight", "llm.lm_head.weight"
# Tables that old versions stored and that follow from the config.
_DERIVED = "rotary_emb.inv_freq"


@dataclass(frozen=True)
class Source:
    """A model of others in our terms.

    Attributes:
        layout: what was recognised, for people.
        vision: what ``VisionTower`` is built from.
        projector: what the projector is built from.
        llm: ``model_type`` and the fields of the language model's config.
        grid: visual tokens along an image's side.
        weights: under our names.
        template: of its conversations, as far as can be told.
        notes: what a user should know.
    """

    layout: str
    vision: dict[str, Any]
    projector: dict[str, Any]
    llm: dict[str, Any]
    grid: int
    weights: dict[str, Tensor]
    template: str | None
    notes: list[str] = field(default_factory=list)


def projector_node(kind: str, grid: int) -> dict[str, Any]:
    """Give what a projector of ``openqwen2vl.model.projector`` is built from."""
    name = f"openqwen2vl.model.projector.{kind}"
    return {"_target_": name, "_partial_": True, "grid": grid, "seed": 0}


def language_model(fields: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """Give the fields of a language model's config that its class knows, and no others.

    Raises:
        CheckpointError: transformers has no such language model.
    """
    given = dict(fields)
    kind = str(given.pop("model_type", None))
    try:
        known = {*AutoConfig.for_model(kind).to_dict(), "rope_theta", "rope_scaling"}
        unwanted = {"transformers_version", "architectures", "torch_dtype", "dtype"}
        plain = {k: v for k, v in given.items() if k in known - unwanted and k[:1] != "_"}
        built = AutoConfig.for_model(kind, **plain)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{source} has a language model of the kind {kind}, whose config cannot be built: "
            f"{(str(error).strip() or type(error).__name__).splitlines()[0]}"
        ) from error
    return {**built.to_diff_dict(), "model_type": kind, "vocab_size": built.vocab_size}


def tie_head(weights: dict[str, Tensor], llm: dict[str, Any], tied: bool) -> None:
    """Fill in an output embedding that is the input embedding; says which it is in ``llm``.

    Args:
        weights: under our names; changed.
        llm: its ``tie_word_embeddings`` is set.
        tied: what the source says; a head of other values in its file is kept all the same.
    """
    embedding, head = weights.get(EMBEDDING), weights.get(HEAD)
    if embedding is None:
        return
    same = head is None or (head.shape == embedding.shape and torch.equal(head, embedding))
    llm["tie_word_embeddings"] = head is None or (tied and same)
    if llm["tie_word_embeddings"]:
        weights[HEAD] = embedding


def is_derived(name: str) -> bool:
    """Tell whether a stored value follows from the config, so that we have none of its name."""
    return name.endswith(_DERIVED)


def refuse_unknown(unknown: Sequence[str], source: Path, layout: str) -> None:
    """Stop at weights that have no place in our model.

    Raises:
        CheckpointError: with the first names and the count.
    """
    if unknown:
        raise CheckpointError(
            f"{source} holds {len(unknown)} weights that {layout} does not have: {listed(unknown)}; "
            "it is another model"
        )
