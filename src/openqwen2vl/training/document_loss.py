"""The loss of each document of a pack: what a model finds hard, by name."""

import torch

from openqwen2vl.formats.images import decode_image
from openqwen2vl.formats.manifest import PackSpec
from openqwen2vl.model.mllm import MLLM
from openqwen2vl.packing.batch import Decoder, collate, expand
from openqwen2vl.packing.reader import Pack
from openqwen2vl.training.loss import batch_losses


@torch.no_grad()
def document_losses(
    model: MLLM,
    pack: Pack,
    spec: PackSpec,
    isolate: bool = True,
    decode: Decoder = decode_image,
) -> list[float | None]:
    """Mean cross-entropy over the targets of each document.

    Args:
        model: at the packs' grid.
        pack: of that ``spec``.
        spec: from the folder's manifest.
        isolate: as the run had it.
        decode: likewise.

    Returns:
        One figure per document, in the pack's order; None where nothing is asked (a picture that
        cannot be decoded).
    """
    device = next(model.parameters()).device
    row = expand(pack, spec, model.vision.side, isolate, decode)
    batch = collate([row], spec, len(pack.documents))
    there = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    losses = batch_losses(model, there)
    owners = batch["document_ids"].flatten()[batch["target_positions"]].to(torch.int64)
    count = len(pack.documents)
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, owners, losses.cpu().double())
    targets = torch.bincount(owners, minlength=count)
    return [
        total / asked if asked else None
        for total, asked in zip(sums.tolist(), targets.tolist(), strict=True)
    ]
