"""What a run serves of packs that exist, from their index and a look at a few of them."""

import numpy as np
from numpy.typing import NDArray

from openqwen2vl.packing.reader import Packs
from openqwen2vl.packing.space import packed_bytes
from openqwen2vl.packing.summary import document_lengths, spread
from openqwen2vl.training.activations import MemorySpec
from openqwen2vl.training.flops import Work, attention_pairs
from openqwen2vl.training.planning import Disk, Load, checkpoint_bytes
from openqwen2vl.training.stream import PackedData

_SAMPLE = 32  # packs of a folder that are read for their documents' lengths


def served_loads(data: PackedData, isolate: bool) -> list[Load]:
    """Say what a run serves of opened packs, by grid.

    All but the query-key pairs is exact. Pairs follow from the number of documents in each pack,
    and from how unequal the documents of a sample are.

    Args:
        data: of the run.
        isolate: whether documents of a pack see each other.
    """
    loads = []
    for grid, folders in data.mixture.folders.items():
        span = data.order.served(grid, data.order.steps)
        columns = ("tokens", "targets", "images", "documents")
        totals, pairs = dict.fromkeys(columns, 0), 0.0
        for number, folder in enumerate(folders):
            times = np.bincount(span.pack[span.source == number], minlength=len(folder))
            for column in columns:
                totals[column] += int((getattr(folder, column) * times).sum())
            pairs += float((_pairs(folder, isolate) * times).sum())
        steps = sum(phase.stop - phase.start for phase in data.order.phases if phase.grid == grid)
        loads.append(
            Load(
                grid=grid,
                steps=steps,
                packs=steps * data.global_batch,
                documents=totals["documents"],
                images=totals["images"],
                work=Work(
                    tokens=totals["tokens"],
                    pairs=round(pairs),
                    targets=totals["targets"],
                    images=totals["images"],
                    visual_tokens=totals["images"] * grid**2,
                ),
            )
        )
    return loads


def heaviest(data: PackedData) -> tuple[int, int]:
    """Give the most images and the most targets that a pack holds."""
    folders = [folder for column in data.mixture.folders.values() for folder in column]
    return (
        max(int(folder.images.max(initial=0)) for folder in folders),
        max(int(folder.targets.max(initial=0)) for folder in folders),
    )


def served_disk(data: PackedData, spec: MemorySpec, keep: int) -> Disk:
    """Say what packs take up, what the samples in them took up raw, and a run's checkpoints.

    Args:
        data: of the run.
        spec: of the model.
        keep: checkpoints that stay.
    """
    packed = raw = 0
    for folders in data.mixture.folders.values():
        for folder in folders:
            size = sum(shard.bytes for shard in folder.manifest.shards)
            documents, images = int(folder.documents.sum()), int(folder.images.sum())
            marks = images * (folder.manifest.spec.tokens_per_image - 1)
            ids = int(folder.tokens.sum()) - marks
            packed += size
            # Each sample's caption and JSON have members of their own in a raw shard.
            raw += size - packed_bytes(len(folder), documents, ids, 0) + documents * 2560
    checkpoint = checkpoint_bytes(spec)
    return Disk(
        raw=max(0, raw),
        packed=packed,
        checkpoint=checkpoint,
        checkpoints=(keep + 1) * checkpoint,
    )


def _pairs(folder: Packs, isolate: bool) -> NDArray[np.float64]:
    """Query-key pairs of each pack."""
    tokens, documents = folder.tokens.astype(np.float64), folder.documents
    if not isolate:
        return tokens * (tokens + 1) / 2
    equal = tokens * (tokens / np.maximum(1, documents) + 1) / 2
    spec = folder.manifest.spec
    sample = spread(len(folder), _SAMPLE)
    real = sum(
        attention_pairs(
            document_lengths(folder.read(n), spec.special.image, spec.tokens_per_image).tolist()
        )
        for n in sample
    )
    return equal * (real / max(1.0, float(equal[sample].sum())))
