"""What only commands may gather for a model card: scores of evaluations, figures of curations."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openqwen2vl.curation.funnel import funnel
from openqwen2vl.evaluation.score_files import find_scores, read_scores
from openqwen2vl.formats.errors import UserError
from openqwen2vl.release.card import Card
from openqwen2vl.release.prepared import Prepared

_CURATION = "curation.json"  # what curate leaves in its folder


def make_card(
    prepared: Prepared,
    stages: Sequence[dict[str, Any]],
    *,
    name: str,
    licence: str,
    scores: Sequence[Path] = (),
    curation: Sequence[Path] = (),
) -> Card:
    """Put a card together.

    Args:
        prepared: what is exported.
        stages: that led to it.
        name: of the model.
        licence: of its weights.
        scores: `scores.json` files, or folders that hold some.
        curation: folders that `curate` wrote.

    Raises:
        UserError: scores or figures that cannot be read, or scores of another template or grid.
    """
    return Card(
        name=name,
        tower=str(prepared.facts["tower"]["name"]),
        llm=prepared.llm,
        template=prepared.texts.template,
        stages=stages,
        scores=[head for path in scores for head in _heads(path, prepared)],
        curation={k: v for path in curation for k, v in _conditions(path).items()},
        licence=licence,
    )


def _heads(path: Path, prepared: Prepared) -> list[dict[str, Any]]:
    heads = [dict(read_scores(rows).head) for rows in find_scores(path)]
    for head in heads:
        here = (prepared.texts.template.hash, str(prepared.grid))
        there = (head["template_hash"], str(head.get("model_hash", "")).rpartition("-g")[2])
        if here != there:
            raise UserError(
                f"{path} scores {head['benchmark']} of a model with template {there[0]} at grid "
                f"{there[1]}, the one exported has {here[0]} and {here[1]}; give its own scores"
            )
        if not {"metrics", "headline"} <= head.keys():
            raise UserError(f"{path} has no metrics; score the predictions again")
    return heads


def _conditions(path: Path) -> dict[str, dict[str, Any]]:
    """Give by source what was demanded of samples, and how many there were and are."""
    file = path if path.is_file() else path / _CURATION
    try:
        found = json.loads(file.read_bytes())
        selected = found["select"]["sources"]
        told = {name: funnel(found, name) for name in selected}
        return {
            name: {
                "conditions": dict(selected[name]["terms"]),
                "delivered": told[name]["delivered"]["samples"],
                "kept": told[name]["kept"]["samples"],
            }
            for name in selected
        }
    except OSError as error:
        raise UserError(f"no {file}; give a folder that curate wrote (curation=DIR)") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} holds no figures of a selection ({type(error).__name__}: {error}); give a "
            "folder that curate wrote"
        ) from error
