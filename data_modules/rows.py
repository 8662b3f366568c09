"""Reads, decodes and collates micro-batches, in loader processes that keep no state."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from openqwen2vl.formats.images import decode_image
from openqwen2vl.formats.tokens import IGNORE_INDEX
from openqwen2vl.packing.batch import Decoder, Row, collate, expand
from openqwen2vl.packing.mixture import Mixture
from openqwen2vl.packing.order import PackKey
from openqwen2vl.training.flops import attention_pairs

from .sampling import MicroBatch


class PackedRows(Dataset[dict[str, Any]]):
    """Map-style access to the packs of a mixture, one micro-batch a call."""

    def __init__(
        self, mixture: Mixture, image_side: int, isolate: bool, decode: Decoder = decode_image
    ) -> None:
        self.mixture = mixture
        self.image_side = image_side
        self.isolate = isolate
        self.decode = decode
        folders = [folder for column in mixture.folders.values() for folder in column]
        # The same for every batch, so that its index tensors always have the same shape.
        self.max_documents = max(folder.manifest.max_documents for folder in folders)

    def __getitems__(self, micro: MicroBatch) -> dict[str, Any]:
        """Read, decode and collate a micro-batch (`torch.utils.data` calls this name)."""
        rows = [self._row(key) for key in micro.keys]
        for index in range(len(rows) - micro.ghosts, len(rows)):
            silent = rows[index].labels.copy()
            silent[:] = IGNORE_INDEX
            rows[index] = replace(rows[index], labels=silent, corrupt=[])
        grid = micro.keys[0].grid
        spec = self.mixture.folders[grid][0].manifest.spec
        batch = collate(rows, spec, self.max_documents)
        return {
            **batch,
            "step": micro.step,
            "slot": micro.slot,
            "global_targets": micro.global_targets,
            "sources": torch.tensor([key.source for key in micro.keys]),
            "packs": [(key.source, key.turn, key.pack) for key in micro.keys],
            "ghosts": micro.ghosts,
            "pairs": sum(_pairs(row) for row in rows),
        }

    def _row(self, key: PackKey) -> Row:
        folder = self.mixture.folders[key.grid][key.source]
        pack, spec = folder.read(key.pack), folder.manifest.spec
        return expand(pack, spec, self.image_side, self.isolate, self.decode)


def _pairs(row: Row) -> int:
    """Count the query-key pairs that attention cannot do without; pads need none."""
    ends = np.minimum(row.bounds, row.tokens)
    return attention_pairs(np.diff(ends, prepend=0).tolist())
