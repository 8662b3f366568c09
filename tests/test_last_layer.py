"""The last feed-forward leaves out rows that nobody reads, and nothing else changes."""

import pytest
import torch
from support.batches import lay_out, random_document, random_images
from support.models import tiny_llm, tiny_mllm
from torch import Tensor, nn

from openqwen2vl.model.last_layer import ReadRows, reads_rows
from openqwen2vl.model.mllm import MLLM

CONTEXT = 64
READ = torch.tensor([3, 12, 20, 21, 40])


def inputs() -> dict[str, object]:
    documents = [random_document(12, 0, 1), random_document(9, 1), random_document(7, 2, 2)]
    return lay_out([documents], random_images(3), CONTEXT)


def gradients(model: MLLM, rows: Tensor) -> dict[str, Tensor]:
    """Those of some scalar that treats each row and each channel differently."""
    weights = torch.linspace(0.5, 2, rows.numel(), dtype=rows.dtype).view_as(rows)
    (rows * weights).sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("checkpointing", ["none", "mlp", "full"])
def test_rows_and_gradients_are_those_of_the_whole(checkpointing: str) -> None:
    model = tiny_mllm().double().train()
    whole = model(**inputs()).flatten(0, 1)[READ]
    expected = gradients(model, whole)
    model.set_checkpointing(checkpointing)
    rows = model(**inputs(), read_positions=READ)
    torch.testing.assert_close(rows, whole)
    torch.testing.assert_close(gradients(model, rows), expected)


def test_only_the_rows_read_pass_the_last_feed_forward() -> None:
    model = tiny_mllm()
    seen: list[tuple[int, ...]] = []
    for layer in model.decoder_layers:
        layer.mlp.down_proj.register_forward_hook(lambda *call: seen.append(tuple(call[2].shape)))
    model(**inputs(), read_positions=READ)
    width = seen[0][-1]
    assert seen == [(1, CONTEXT, width)] * (len(seen) - 1) + [(1, len(READ), width)]


def test_a_call_that_reads_everything_comes_back_whole_after_one_that_did_not() -> None:
    model = tiny_mllm()
    before = model(**inputs())
    model(**inputs(), read_positions=READ)
    torch.testing.assert_close(model(**inputs()), before, rtol=0, atol=0)


def test_no_rows_at_all_still_reach_every_weight() -> None:
    model = tiny_mllm()
    nothing = torch.zeros(0, dtype=torch.long)
    rows = model(**inputs(), read_positions=nothing)
    assert rows.shape[0] == 0
    rows.sum().backward()
    trained = dict(model.llm.base_model.layers[-1].mlp.named_parameters())
    assert all(p.grad is not None and not p.grad.any() for p in trained.values())


def test_weights_keep_their_names() -> None:
    assert set(tiny_llm().state_dict()) == {
        key.removeprefix("llm.") for key in tiny_mllm().state_dict() if key.startswith("llm.")
    }


def test_experts_are_left_alone() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(4, 2)
            self.weights = nn.Parameter(torch.zeros(2, 4, 4))

    layer = nn.Module()
    layer.mlp = Experts()
    ReadRows(layer)
    assert not reads_rows(layer)
    assert not layer._forward_pre_hooks
    assert not layer.mlp._forward_hooks
    assert not reads_rows(nn.Linear(3, 3))
    layer.mlp = nn.Module()
    layer.mlp.experts = nn.ModuleList([nn.Linear(4, 4)])
    assert not reads_rows(layer)
