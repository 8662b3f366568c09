"""What torch's fused flex kernel costs beside speed; deselected where there is no GPU."""

import pytest
import torch
from torch import Tensor, nn

from openqwen2vl.model.attention import packed_attention
from openqwen2vl.model.compiled import uncompiled
from openqwen2vl.model.flex import document_mask

pytestmark = pytest.mark.gpu


def test_once_compiled_nothing_waits_and_other_documents_make_no_program() -> None:
    packings = [
        torch.tensor(edges, dtype=torch.int32, device="cuda")
        for edges in ([0, 100, 130, 512, 900, 1024, 1024], [0, 7, 300, 512, 640, 1000, 1024])
    ]
    query, key, value = (
        torch.randn(2, h, 512, 128, device="cuda", requires_grad=True, dtype=torch.bfloat16)
        for h in (12, 2, 2)
    )

    def run(edges: Tensor) -> None:
        given = {"cu_seq_lens_q": edges, "max_length_q": 512, "attention_backend": "flex"}
        mixed, _ = packed_attention(nn.Identity(), query, key, value, None, **given)
        mixed.float().square().mean().backward()

    run(packings[0])
    made = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(packings[1])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == made


def test_a_held_out_batch_holds_no_scores() -> None:
    """Uncompiled layers still run the fused kernel: the scores of 8,192 positions were 3.2 GB."""
    edges = torch.tensor([0, 5000, 8192], dtype=torch.int32, device="cuda")
    query, key, value = (
        torch.randn(1, h, 8192, 128, device="cuda", dtype=torch.bfloat16) for h in (12, 2, 2)
    )
    mask = document_mask(edges, 1, 8192)
    given = {"cu_seq_lens_q": edges, "attention_backend": "flex", "document_mask": mask}
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.no_grad(), uncompiled():
        packed_attention(nn.Identity(), query, key, value, None, **given)
    assert torch.cuda.max_memory_allocated() - before < 2**28
