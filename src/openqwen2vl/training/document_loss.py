"""The loss of each document of a pack: what a model finds hard, by name."""

import torch

from openqwen2vl.formats.manifest import PackSpec
from openqwen2vl.model.mllm import MLLM
from openqwen2vl.packing.batch import collate, expand
from openqwen2vl.packing.reader import Pack
from openqwen2vl.training.loss import target_losses


@torch.no_grad()
def document_losses(
    model: MLLM, pack: Pack, spec: PackSpec, isolate: bool = True
) -> list[float | None]:
    """Mean cross-entropy over the targets of each document.

    Args:
        model: at the packs' grid.
        pack: of that ``spec``.
        spec: from the folder's manifest.
        isolate: as the run had it.

    Returns:
        One figure per document, in the pack's order; None where nothing is asked (a picture that
        cannot be decoded).
    """
    device = next(model.parameters()).device
    row = expand(pack, spec, model.vision.side, isolate)
    batch = collate([row], spec, len(pack.documents))
    rows = model(
        input_ids=batch["input_ids"].to(device),
        position_ids=batch["position_ids"].to(device),
        images=batch["images"].to(device),
        image_positions=batch["image_positions"].to(device),
        cu_seqlens=batch["cu_seqlens"].to(device),
        max_length=batch["max_length"],
        grid=batch["grid"],
        read_positions=batch["target_positions"].to(device),
    )
    losses = target_losses(rows, batch["target_ids"].to(device), model.head_weight)
    owners = batch["document_ids"].flatten()[batch["target_positions"]].to(torch.int64)
    count = len(pack.documents)
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, owners, losses.cpu().double())
    targets = torch.bincount(owners, minlength=count)
    return [
        total / asked if asked else None
        for total, asked in zip(sums.tolist(), targets.tolist(), strict=True)
    ]
