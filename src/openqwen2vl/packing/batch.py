"""Batches: packs expanded to what the model reads, with labels, positions and documents.

Shapes: B rows, T tokens of a row (the context), K images, S image side, N targets.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openqwen2vl.formats.decoders import PictureDecoder
from openqwen2vl.formats.errors import ImageError, PackError
from openqwen2vl.formats.manifest import PackSpec
from openqwen2vl.formats.tokens import IGNORE_INDEX
from openqwen2vl.packing.reader import Pack

Decoder = Callable[[bytes, int], NDArray[np.uint8]]
"""Turns an image's bytes and a side S into uint8 (S, S, 3)."""

PLAIN = PictureDecoder()
"""Pillow, in full."""


@dataclass(frozen=True)
class Row:
    """One pack, expanded and padded to the context.

    Attributes:
        input_ids: int64 (T,); each visual token holds the image id, the tail the pad id.
        labels: int64 (T,), shifted: the token wanted after a position, or ``IGNORE_INDEX``.
        position_ids: int64 (T,).
        document_ids: int32 (T,), -1 on pads.
        bounds: int64 (segments,), where each segment of attention ends; the last is T.
        images: uint8 (K, S, S, 3).
        image_side: S.
        grid: visual tokens along an image's side.
        tokens: how many positions are not pads.
        documents: as in ``Pack``.
        corrupt: uid and reason of each image that could not be decoded.
    """

    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    document_ids: NDArray[np.int32]
    bounds: NDArray[np.int64]
    images: NDArray[np.uint8]
    image_side: int
    grid: int
    tokens: int
    documents: list[dict[str, Any]]
    corrupt: list[tuple[str, str]] = field(default_factory=list)


class Batch(TypedDict):
    """What one micro-batch gives the model and the loss.

    ``image_positions`` and ``target_positions`` count over the flattened B*T positions.
    ``cu_seqlens`` holds the bounds of the segments that attend to themselves alone: documents
    and pad tails; it is filled up with B*T to a length that depends on B only.
    """

    input_ids: Tensor  # int64 (B, T)
    labels: Tensor  # int64 (B, T), already shifted
    position_ids: Tensor  # int64 (B, T)
    document_ids: Tensor  # int32 (B, T), -1 on pads
    images: Tensor  # uint8 (K, S, S, 3)
    image_positions: Tensor  # int64 (K * grid * grid,)
    target_positions: Tensor  # int64 (N,)
    target_ids: Tensor  # int64 (N,)
    target_rows: Tensor  # int64 (N,), the row of each target
    cu_seqlens: Tensor  # int32 (B * (max_documents + 1) + 1,)
    max_length: int  # T
    grid: int
    tokens: int  # not pads
    corrupt: list[tuple[str, str]]


def expand(
    pack: Pack,
    spec: PackSpec,
    image_side: int,
    isolate: bool = True,
    decode: Decoder = PLAIN,
) -> Row:
    """Expand a pack's image marks and decode its images.

    An image that cannot be decoded becomes zeros and its document asks for nothing; shapes and
    order stay as they are, and the ledger ``corrupt`` names it.

    Args:
        pack: from ``PackFolder.read``.
        spec: of that folder's manifest.
        image_side: S.
        isolate: whether documents are kept apart: positions restart and each is a segment. False
            is the paper's own behaviour, one segment with positions that run on.
        decode: turns the images' bytes into pixels.

    Raises:
        PackError: the pack does not fit ``spec``: too many tokens, or marks that are not as many
            as the images.
    """
    marks = pack.ids == spec.special.image
    repeats = np.where(marks, spec.tokens_per_image, 1)
    tokens = int(repeats.sum())
    num_marks = int(np.count_nonzero(marks))
    if tokens > spec.context or num_marks != len(pack.images):
        raise PackError(
            f"a pack of {tokens} tokens, {num_marks} image marks and {len(pack.images)} images "
            f"does not fit context {spec.context} at grid {spec.grid}; run pack again"
        )
    owners = np.repeat(np.arange(len(pack.documents)), [d["images"] for d in pack.documents])
    images, failures = _decode(pack.images, image_side, decode)
    corrupt = [(int(owners[i]), reason) for i, reason in failures]
    at = np.cumsum(repeats) - repeats
    starts = at[[d["start"] for d in pack.documents]]
    input_ids = np.full(spec.context, spec.special.pad, np.int64)
    input_ids[:tokens] = np.repeat(pack.ids, repeats)
    labels = np.full(spec.context, IGNORE_INDEX, np.int64)
    asked = _asked(pack, marks, {owner for owner, _ in corrupt})
    labels[at[asked] - 1] = pack.ids[asked]
    ends = np.append(starts[1:], tokens)
    document_ids = np.full(spec.context, -1, np.int32)
    document_ids[:tokens] = np.repeat(np.arange(len(starts), dtype=np.int32), ends - starts)
    if isolate and tokens < spec.context:
        ends = np.append(ends, spec.context)
    bounds = ends if isolate else np.array([spec.context])
    return Row(
        input_ids=input_ids,
        labels=labels,
        position_ids=_positions(bounds),
        document_ids=document_ids,
        bounds=bounds,
        images=images,
        image_side=image_side,
        grid=spec.grid,
        tokens=tokens,
        documents=pack.documents,
        corrupt=[(pack.documents[owner]["uid"], reason) for owner, reason in corrupt],
    )


def _decode(
    images: Sequence[bytes], side: int, decode: Decoder
) -> tuple[NDArray[np.uint8], list[tuple[int, str]]]:
    """Decode images; those that fail are zeros and are listed with the reason."""
    # NumPy asks for huge pages, torch does not: writing fresh memory is several times cheaper.
    pixels = np.empty((len(images), side, side, 3), np.uint8)
    failures: list[tuple[int, str]] = []
    for number, data in enumerate(images):
        try:
            if isinstance(decode, PictureDecoder):
                decode(data, side, out=pixels[number])
            else:
                pixels[number] = decode(data, side)
        except ImageError as error:
            pixels[number] = 0
            failures.append((number, str(error)))
    return pixels, failures


def _asked(pack: Pack, marks: NDArray[np.bool_], corrupt: set[int]) -> NDArray[np.int64]:
    """Give the compact positions of the tokens that the model is asked for.

    A document's first token has nothing before it in its document, so it is never asked for.
    """
    starts, stops = pack.targets.T
    lengths = stops - starts
    skipped = np.cumsum(lengths) - lengths
    asked = np.arange(int(lengths.sum())) + np.repeat(starts - skipped, lengths)
    allowed = ~marks
    for number, document in enumerate(pack.documents):
        first = document["start"]
        allowed[first] = False
        if number in corrupt:
            allowed[first : first + document["length"]] = False
    permitted: NDArray[np.int64] = asked[allowed[asked]]
    return permitted


def _positions(bounds: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count from 0 in each segment; the last bound is T."""
    starts = np.concatenate([[0], bounds[:-1]])
    positions: NDArray[np.int64] = np.arange(int(bounds[-1])) - np.repeat(starts, bounds - starts)
    return positions


def collate(rows: Sequence[Row], spec: PackSpec, max_documents: int) -> Batch:
    """Put rows together into one micro-batch; nothing is padded beyond the context.

    Args:
        rows: expanded with the same ``spec`` and image side.
        spec: what the packs were made for.
        max_documents: the most documents that any pack may hold (``Manifest.max_documents``, the
            largest over the sources); it fixes the length of ``cu_seqlens``.

    Raises:
        PackError: a row of another grid or context, or of too many documents.
    """
    for row in rows:
        _check(row, rows[0].image_side, spec, max_documents)
    size, context = len(rows), spec.context
    input_ids = np.stack([row.input_ids for row in rows])
    labels = np.stack([row.labels for row in rows])
    flat_labels = labels.reshape(-1)
    target_positions = np.flatnonzero(flat_labels != IGNORE_INDEX)
    bounds = np.concatenate([row.bounds + b * context for b, row in enumerate(rows)])
    cu_seqlens = np.full(size * (max_documents + 1) + 1, size * context, np.int32)
    cu_seqlens[0] = 0
    cu_seqlens[1 : 1 + len(bounds)] = bounds
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        labels=torch.from_numpy(labels),
        position_ids=torch.from_numpy(np.stack([row.position_ids for row in rows])),
        document_ids=torch.from_numpy(np.stack([row.document_ids for row in rows])),
        # One row's are already together.
        images=torch.from_numpy(
            rows[0].images if size == 1 else np.concatenate([row.images for row in rows])
        ),
        image_positions=torch.from_numpy(
            np.flatnonzero(input_ids.reshape(-1) == spec.special.image)
        ),
        target_positions=torch.from_numpy(target_positions),
        target_ids=torch.from_numpy(flat_labels[target_positions]),
        target_rows=torch.from_numpy(target_positions // context),
        cu_seqlens=torch.from_numpy(cu_seqlens),
        max_length=context,
        grid=spec.grid,
        tokens=sum(row.tokens for row in rows),
        corrupt=[entry for row in rows for entry in row.corrupt],
    )


def _check(row: Row, image_side: int, spec: PackSpec, max_documents: int) -> None:
    if row.grid != spec.grid or len(row.input_ids) != spec.context:
        raise PackError(
            f"a row of grid {row.grid} and context {len(row.input_ids)} in a batch of grid "
            f"{spec.grid} and context {spec.context}"
        )
    if row.image_side != image_side:
        raise PackError(f"images of side {row.image_side} and {image_side} in one batch")
    if len(row.documents) > max_documents:
        raise PackError(
            f"a pack holds {len(row.documents)} documents, max_documents is {max_documents}; "
            "take the largest of the manifests"
        )
