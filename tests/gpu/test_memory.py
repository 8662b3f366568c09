"""Peak memory by formula against what the GPU's allocator saw; deselected where there is no GPU."""

from functools import partial

import pytest
import torch
from support.batches import IMAGE_ID, lay_out, random_images
from torch import Tensor

from openqwen2vl.model.llm import load_llm
from openqwen2vl.model.mllm import MLLM
from openqwen2vl.model.projector import AvgPoolProjector
from openqwen2vl.model.vision import VisionTower
from openqwen2vl.training.activations import MemorySpec, MicroBatch, Setup
from openqwen2vl.training.loss import target_losses
from openqwen2vl.training.memory import footprint
from openqwen2vl.training.optim import adamw, decayed_names

pytestmark = pytest.mark.gpu

CONTEXT, GRID, IMAGES = 2048, 12, 8


def build(checkpointing: str) -> MLLM:
    """Half a billion weights of Qwen2.5's shape, and four blocks of the shipped tower."""
    config = {
        "model_type": "qwen2",
        "vocab_size": 151_936,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 16,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    }
    model = MLLM(
        vision=VisionTower(
            "vit_so400m_patch14_siglip_384",
            pretrained=False,
            image_side=384,
            overrides={"depth": 5},
        ),
        projector=partial(AvgPoolProjector, grid=GRID),
        llm=load_llm(config=config, pretrained=False),
    ).cuda()
    model.set_checkpointing(checkpointing)
    return model


def on_gpu(value: object) -> object:
    return value.cuda() if isinstance(value, Tensor) else value


@pytest.mark.parametrize("targets", [300, 1500])
@pytest.mark.parametrize("checkpointing", ["none", "mlp", "full"])
@pytest.mark.parametrize("turns", [1, 2])
def test_peak_memory_is_within_a_tenth(checkpointing: str, targets: int, turns: int) -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    model = build(checkpointing)
    optimizer = adamw(model.named_parameters(), decayed_names(model), lr=1e-4)
    text = CONTEXT // IMAGES - GRID**2
    documents = [[5, IMAGE_ID, *range(10, 10 + text - 1)] for _ in range(IMAGES)]
    batch = lay_out([documents], random_images(IMAGES, side=384), CONTEXT, grid=GRID)
    inputs = {key: on_gpu(value) for key, value in batch.items()}
    rows = torch.arange(targets, device="cuda")
    for _ in range(2):  # the second step has the optimizer's state
        torch.cuda.reset_peak_memory_stats()
        for _ in range(turns):
            with torch.autocast("cuda", torch.bfloat16):
                hidden = model(**inputs, read_positions=rows)
                loss = target_losses(hidden, rows, model.head_weight).sum()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    found = torch.cuda.max_memory_allocated() - before
    micro = MicroBatch(positions=CONTEXT, targets=targets, images=IMAGES, grid=GRID)
    setup = Setup(precision="mixed", checkpointing=checkpointing, accumulates=turns > 1, cuda=True)
    told = footprint(MemorySpec.of(model), micro, setup).peak
    assert told == pytest.approx(found, rel=0.1)
