"""Model inputs laid out by hand, so that the model's tests do not lean on the collator."""

from typing import TypedDict

import torch
from torch import Tensor

IMAGE_ID = 299
PAD_ID = 0


class ModelInputs(TypedDict):
    input_ids: Tensor
    position_ids: Tensor
    images: Tensor
    image_positions: Tensor
    cu_seqlens: Tensor
    max_length: int
    grid: int


def random_images(count: int, side: int = 84, seed: int = 0) -> Tensor:
    """uint8 (count, side, side, 3)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, side, side, 3), generator=generator, dtype=torch.uint8)


def lay_out(
    rows: list[list[list[int]]], images: Tensor, context: int, grid: int = 3
) -> ModelInputs:
    """Rows of documents whose ids hold one IMAGE_ID for each image; trailing boundaries repeat."""
    ids = torch.full((len(rows), context), PAD_ID)
    positions = torch.zeros_like(ids)
    edges = [0]
    for number, documents in enumerate(rows):
        start = 0
        for document in [*documents, None]:
            if document is None:
                expanded = [PAD_ID] * (context - start)
            else:
                counts = [grid * grid if token == IMAGE_ID else 1 for token in document]
                expanded = [t for t, n in zip(document, counts, strict=True) for _ in range(n)]
            stop = start + len(expanded)
            ids[number, start:stop] = torch.tensor(expanded, dtype=torch.int64)
            positions[number, start:stop] = torch.arange(len(expanded))
            edges.append(number * context + stop)
            start = stop
    edges += [edges[-1]] * 3
    return ModelInputs(
        input_ids=ids,
        position_ids=positions,
        images=images,
        image_positions=(ids.flatten() == IMAGE_ID).nonzero()[:, 0],
        cu_seqlens=torch.tensor(edges, dtype=torch.int32),
        max_length=context,
        grid=grid,
    )


def random_document(length: int, seed: int, images: int = 0) -> list[int]:
    """Ordinary ids, with the image marks behind the first one."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(5, IMAGE_ID, (length,), generator=generator).tolist()
    return text[:1] + [IMAGE_ID] * images + text[1:]
