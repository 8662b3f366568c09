"""A look at packs before a run: mistakes that would train for days and teach the wrong thing."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openqwen2vl.formats.errors import PackError
from openqwen2vl.formats.manifest import PackSpec
from openqwen2vl.formats.templates import TEMPLATES
from openqwen2vl.packing.reader import Pack, Packs
from openqwen2vl.packing.summary import spread


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What packs have to be like; None where nothing is known.

    Attributes:
        tokenizer_hash: of the model's tokenizer.
        template_hash: of the template that the model is to learn or has learnt.
        target_share: the least share of tokens that are targets. Captions of web pictures have
            about a fifth at 144 visual tokens and a twentieth at 729.
        sample: packs that are read.
    """

    tokenizer_hash: str | None = None
    template_hash: str | None = None
    target_share: float = 0.002
    sample: int = 32


def preflight(folder: Packs, expected: Expected | None = None) -> list[str]:
    """Look for faults in the whole index and in a sample of packs, spread evenly.

    Args:
        folder: the packs.
        expected: what they have to be like; None: as by default.

    Returns:
        A sentence for each kind of fault; none when the packs are sound.

    Raises:
        ShardError: a shard does not hold what the index says.
    """
    expected = expected or Expected()
    return [
        *_unlike(folder.manifest.spec, expected),
        *_by_index(folder, expected.target_share),
        *_by_sample(folder, expected.sample),
    ]


def require_sound(folders: Iterable[Packs], expected: Expected | None = None) -> None:
    """Stop before a run when any of its folders has a fault.

    Raises:
        PackError: with all faults of all folders.
    """
    faults = [
        f"{folder.path}: {fault}" for folder in folders for fault in preflight(folder, expected)
    ]
    if faults:
        title = "the packs are not fit to train on (data.preflight=false trains all the same):"
        raise PackError("\n  ".join([title, *faults]))


def _unlike(spec: PackSpec, expected: Expected) -> Iterator[str]:
    """Compare tokenizer and template with the model's, and the template with ours."""
    for name in ("tokenizer_hash", "template_hash"):
        wanted, found = getattr(expected, name), getattr(spec, name)
        if wanted is not None and found != wanted:
            yield f"{name} is {found}, the model's is {wanted}; pack again with the model's own"
    ours = TEMPLATES.get(spec.template)
    if ours is None or ours.hash != spec.template_hash:
        yield (
            f"template {spec.template} has the hash {spec.template_hash}, here it is "
            f"{ours.hash if ours else 'unknown'}; pack again with this version"
        )


def _by_index(folder: Packs, floor: float) -> Iterator[str]:
    spec, tokens, targets = folder.manifest.spec, folder.tokens, folder.targets
    share = int(targets.sum()) / max(1, int(tokens.sum()))
    if len(folder) and share < floor:
        yield f"{share:.3%} of the tokens are targets, expected at least {floor:.3%}"
    checks = {
        "ask for nothing": targets < 1,
        f"hold more than the context of {spec.context} tokens": tokens > spec.context,
        "hold more visual tokens than tokens": folder.images * spec.tokens_per_image >= tokens,
        "ask for more tokens than they hold": targets > tokens,
    }
    for said, mask in checks.items():
        if mask.any():
            first = int(np.flatnonzero(mask)[0])
            yield f"{int(mask.sum())} of {len(mask)} packs {said}, pack {first} first"


def _by_sample(folder: Packs, sample: int) -> Iterator[str]:
    found: dict[str, list[str]] = {}
    documents = 0
    for number in spread(len(folder), sample):
        pack = folder.read(number)
        documents += len(pack.documents)
        for kind, where in _pack_faults(pack, folder.manifest.spec):
            found.setdefault(kind, []).append(f"{where} in pack {number}")
    for kind, places in found.items():
        yield f"of {documents} documents looked at {len(places)} {kind}, {places[0]} first"


def _pack_faults(pack: Pack, spec: PackSpec) -> Iterator[tuple[str, str]]:
    """Give kind of fault and document of each fault of a pack."""
    images = sum(document["images"] for document in pack.documents)
    if images != len(pack.images):
        yield (
            "say of images what their pack does not hold",
            f"{images} of {len(pack.images)} images",
        )
    asked = np.zeros(len(pack.ids), bool)
    for start, stop in pack.targets.tolist():
        asked[start:stop] = True
    for document in pack.documents:
        part = slice(document["start"], document["start"] + document["length"])
        spans = int(((pack.targets[:, 0] >= part.start) & (pack.targets[:, 0] < part.stop)).sum())
        name = f"{document['shard']}/{document['key']}"
        for kind in _document_faults(pack.ids[part], asked[part], document, spans, spec):
            yield kind, name


def _document_faults(
    ids: NDArray[np.int64],
    asked: NDArray[np.bool_],
    document: dict[str, Any],
    spans: int,
    spec: PackSpec,
) -> Iterator[str]:
    special = spec.special
    marks, starts, ends, opens = (
        int((ids == mark).sum())
        for mark in (special.image, special.im_start, special.eos, special.bos)
    )
    template = TEMPLATES.get(spec.template)
    if marks != document["images"]:
        yield "have more or fewer images than marks"
    if len(ids) and (ids.min() < 0 or ids.max() >= spec.vocab_size):
        yield f"hold ids that a vocabulary of {spec.vocab_size} does not have"
    if (ids == special.pad).any():
        yield "hold the token that fills packs up"
    if not asked[1:].any():  # a document's first token has nothing before it
        yield "ask for nothing"
    elif not (asked & (ids == special.eos)).any():
        yield "never ask for <|im_end|>, so that answers would not end"
    if (asked & (ids == special.image)).any():
        yield "ask for an image"
    if template is None:
        return
    # A conversation has turns; a caption and a web page are opened and ended once.
    wanted = int(template.bos) if starts else 1
    if opens != wanted:
        yield f"hold <s> more or less often than the {template.name} template writes it"
    answers = 0 if template.assistant_mark else spans
    if ends != (starts + answers if starts else 1):
        yield f"hold <|im_end|> more or less often than the {template.name} template writes it"
