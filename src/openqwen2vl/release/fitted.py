"""Weights of others made to fit our model: checked by name and shape, filled up where they end."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from openqwen2vl.formats.errors import CheckpointError
from openqwen2vl.model.mllm import MLLM
from openqwen2vl.release.folder import listed
from openqwen2vl.release.source import EMBEDDING, HEAD


def fitted(weights: Mapping[str, Tensor], model: MLLM, source: Path) -> dict[str, Tensor]:
    """Give weights that a model takes, all of them.

    Rows for tokens that the source's tokenizer lacks are drawn, as for any new token.

    Args:
        weights: under our names; a tower's may be absent as a whole.
        model: which needs no memory for its own weights.
        source: for messages.

    Raises:
        CheckpointError: names or shapes differ, or values are no plain numbers.
    """
    own = model.weights()
    found = dict(weights)
    if not any(name.startswith("vision.") for name in found):
        own = {name: value for name, value in own.items() if not name.startswith("vision.")}
    _grow(found, own, model)
    faults = [
        *_told("are missing there", set(own) - set(found)),
        *_told("are unknown here", set(found) - set(own)),
        *_told("are not of this shape here", _unlike(found, own)),
        *_told("hold no plain numbers", (n for n, v in found.items() if not v.is_floating_point())),
    ]
    if faults:
        raise CheckpointError(
            f"{source} does not fit the model that was composed for it: {'; '.join(faults)}"
        )
    return found


def _grow(found: dict[str, Tensor], own: Mapping[str, Tensor], model: MLLM) -> None:
    """Add rows to the embeddings; one that is tied stays so."""
    tied = found.get(HEAD) is found.get(EMBEDDING)
    for name in (EMBEDDING, HEAD):
        rows, wanted = found.get(name), own.get(name)
        if rows is None or wanted is None or rows.shape[1:] != wanted.shape[1:]:
            continue
        more = len(wanted) - len(rows)
        if more > 0:
            drawn = torch.empty(more, *rows.shape[1:]).normal_(
                std=getattr(model.llm.config, "initializer_range", 0.02),
                generator=torch.Generator().manual_seed(0),
            )
            found[name] = torch.cat([rows, drawn.to(rows.dtype)])
    if tied and EMBEDDING in found:
        found[HEAD] = found[EMBEDDING]


def _unlike(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{name} {tuple(found[name].shape)} for {tuple(own[name].shape)}"
        for name in set(found) & set(own)
        if found[name].shape != own[name].shape
    ]


def _told(what: str, names: object) -> list[str]:
    every = list(names)  # type: ignore[call-overload]
    return [f"{len(every)} weights {what} ({listed(every)})"] if every else []
