"""Ways to train on the same documents: ours, padded rows, packs that leak.

Shapes: B rows, T tokens of a row.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from openqwen2vl.formats.manifest import PackSpec
from openqwen2vl.formats.tokens import IGNORE_INDEX
from openqwen2vl.model.mllm import MLLM
from openqwen2vl.packing.batch import Batch, Row, collate, expand
from openqwen2vl.packing.reader import Pack
from openqwen2vl.training.loss import batch_losses

Micro = dict[str, Any]
"""What one forward pass takes; the tensors among them go to the device."""

DESCRIPTIONS = {
    "ours": "packed, isolated, head on targets",
    "padded": "one caption a row, padded to the longest",
    "grouped": "the same, rows of like length together",
    "full": "packed, one causal row, logits everywhere",
}


def micro_batches(variant: str, packs: Sequence[Pack], spec: PackSpec, side: int) -> list[Micro]:
    """Lay the documents of some packs out as a variant reads them.

    ``padded`` puts all documents into one batch: the rows a loader draws at random. ``grouped`` is
    the best a padded loader can do: it sorts by length and cuts as many batches as there are packs.
    """
    if variant == "full":
        rows = [expand(pack, spec, side, isolate=False) for pack in packs]
        return [_causal(collate(rows, spec, max(len(pack.documents) for pack in packs)))]
    rows = [expand(pack, spec, side) for pack in packs]
    if variant == "ours":
        return [dict(collate(rows, spec, max(len(pack.documents) for pack in packs)))]
    documents = [document for row in rows for document in _documents(row)]
    if variant == "padded":
        return [_padded(documents, spec)]
    documents.sort(key=lambda document: len(document["input_ids"]))
    size = -(-len(documents) // len(packs))
    return [_padded(documents[i : i + size], spec) for i in range(0, len(documents), size)]


def loss_function(variant: str) -> Callable[[MLLM, Micro], Tensor]:
    """Give what turns a micro-batch into the sum of its targets' losses."""
    return _ours if variant == "ours" else _transformers


def prepare(model: MLLM, variant: str) -> None:
    """Give the language model the attention that a variant runs with."""
    if variant != "ours":
        model.llm.set_attn_implementation("sdpa")


def _ours(model: MLLM, batch: Micro) -> Tensor:
    """As ``MLLMModule.losses``: hidden states of target rows, chunks of logits."""
    return batch_losses(model, batch).sum()


def _transformers(model: MLLM, batch: Micro) -> Tensor:
    """transformers' own forward pass, mask and loss: logits at every position."""
    rows = model.image_rows(batch["images"])
    embeddings = model.embed(batch["input_ids"], rows, batch["image_positions"])
    loss: Tensor = model.llm(
        inputs_embeds=embeddings,
        attention_mask=batch["attention_mask"],
        labels=batch["labels"],
        shift_labels=batch["labels"],
        num_items_in_batch=torch.ones((), device=embeddings.device),
        use_cache=False,
    ).loss
    return loss


def _causal(batch: Batch) -> Micro:
    """Drop what says where documents end; transformers counts positions through the row."""
    kept = ("input_ids", "labels", "images", "image_positions", "tokens")
    return {**{key: value for key, value in batch.items() if key in kept}, "attention_mask": None}


def _documents(row: Row) -> list[Micro]:
    """Cut an expanded pack into its documents."""
    found = []
    images = iter(row.images)
    start = 0
    for stop, document in zip(row.bounds, row.documents, strict=False):
        found.append(
            {
                "input_ids": torch.from_numpy(row.input_ids[start:stop]),
                "labels": torch.from_numpy(row.labels[start:stop]),
                "images": [next(images) for _ in range(document["images"])],
            }
        )
        start = stop
    return found


def _padded(documents: Sequence[Micro], spec: PackSpec) -> Micro:
    """One document a row, padded on the right to the longest."""
    pad = torch.nn.utils.rnn.pad_sequence
    ids = [document["input_ids"] for document in documents]
    input_ids = pad(ids, batch_first=True, padding_value=spec.special.pad)
    images = [torch.from_numpy(image) for document in documents for image in document["images"]]
    return {
        "input_ids": input_ids,
        "labels": pad(
            [d["labels"] for d in documents], batch_first=True, padding_value=IGNORE_INDEX
        ),
        "attention_mask": pad([torch.ones_like(one) for one in ids], batch_first=True),
        "images": torch.stack(images),
        "image_positions": (input_ids.flatten() == spec.special.image).nonzero()[:, 0],
        "tokens": sum(len(one) for one in ids),
    }
