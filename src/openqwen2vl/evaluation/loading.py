"""Pictures of the questions, read and decoded in loader processes while the model answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from openqwen2vl.evaluation.asking import Asked
from openqwen2vl.formats.errors import ImageError
from openqwen2vl.formats.images import decode_image


@dataclass
class Batch:
    """Questions to ask at once.

    Attributes:
        asked: those whose pictures could be decoded.
        images: uint8 (K, S, S, 3), all pictures of these in order.
        unanswerable: those that cannot be put to the model, and why.
        missing: what to say where a picture is not there at all; a fault of the whole run.
    """

    asked: list[Asked]
    images: Tensor
    unanswerable: list[tuple[Asked, str]] = field(default_factory=list)
    missing: str | None = None


class Batches(Dataset[Batch]):
    """Batches of questions by their number.

    Args:
        batches: of questions.
        side: pixels of the pictures' sides.
    """

    def __init__(self, batches: Sequence[Sequence[Asked]], side: int) -> None:
        self.batches = batches
        self.side = side

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Batch:
        batch = Batch([], torch.empty(0))
        pixels: list[Tensor] = []
        for one in self.batches[number]:
            if one.fault is not None:
                batch.unanswerable.append((one, one.fault))
                continue
            try:
                files = [image.read() for image in one.prompt.images]
            except ImageError as error:
                # Told as data: an exception would come out of a loader process with its traceback.
                batch.missing = f"question {one.question.id}: {error}"
                return batch
            try:
                pixels += [torch.from_numpy(decode_image(data, self.side)) for data in files]
            except ImageError as error:
                batch.unanswerable.append((one, f"picture {error}"))
                continue
            batch.asked.append(one)
        blank = torch.zeros(0, self.side, self.side, 3, dtype=torch.uint8)
        batch.images = torch.stack(pixels) if pixels else blank
        return batch


def load(batches: Sequence[Sequence[Asked]], side: int, num_workers: int) -> DataLoader[Any]:
    """Give a loader of batches in their order.

    Args:
        batches: of questions.
        side: pixels of the pictures' sides.
        num_workers: loader processes; 0 decodes between the model's steps.
    """
    return DataLoader(Batches(batches, side), batch_size=None, num_workers=num_workers)
