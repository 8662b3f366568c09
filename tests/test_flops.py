"""FLOPs by formula equal those that torch counts."""

from dataclasses import replace

import pytest
import torch
from support.batches import lay_out, random_document, random_images
from support.models import tiny_mllm
from torch.utils.flop_counter import FlopCounterMode

from openqwen2vl.model.mllm import MLLM
from openqwen2vl.training.flops import (
    FlopSpec,
    Work,
    attention_pairs,
    palm_flops,
    strict_flops,
)
from openqwen2vl.training.loss import target_losses

CONTEXT = 40
TRAINABLE = [(True, True, True), (False, True, True), (False, True, False), (False, False, True)]


def work(lengths: list[int], targets: int, images: int) -> Work:
    return Work(
        tokens=sum(lengths),
        pairs=attention_pairs(lengths),
        targets=targets,
        images=images,
        visual_tokens=9 * images,
    )


def _nothing(*args: object, **options: object) -> int:
    return 0


def counted(model: MLLM, images: int) -> int:
    """What torch counts of a step, but for attention: its versions count that differently."""
    document = random_document(CONTEXT - 9 * images, 0, images)
    inputs = lay_out([[document]], random_images(images), CONTEXT)
    targets = torch.arange(10)
    kernels = torch.ops.aten
    attention = {
        kernels._scaled_dot_product_flash_attention_for_cpu: _nothing,
        kernels._scaled_dot_product_flash_attention_for_cpu_backward: _nothing,
    }
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        rows = model(**inputs, read_positions=targets)
        target_losses(rows, targets, model.head_weight).sum().backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize(("tower", "projector", "llm"), TRAINABLE)
def test_linear_parts_equal_torchs_count(tower: bool, projector: bool, llm: bool) -> None:
    model = tiny_mllm(trainable_tower=tower)
    model.freeze(projector=not projector, llm=not llm)
    spec = FlopSpec.of(model)
    patches, width, blocks = 36, model.vision.width, len(model.vision.model.blocks)
    # The tower's attention is part of its formula, and out of the count.
    spec = replace(spec, tower=spec.tower - 2 * patches**2 * width * blocks)
    parts = strict_flops(spec, work([CONTEXT], 10, 2))
    expected = parts["total"] - parts["llm_attention"]
    # The loss works its logits out a second time in backward: hardware's work, not the model's.
    assert counted(model, images=2) == expected + 2 * spec.head * 10


def test_pairs_are_those_under_the_diagonal() -> None:
    assert attention_pairs([3, 1, 0]) == 6 + 1
    mask = torch.block_diag(*(torch.ones(n, n).tril() for n in (5, 7, 2)))
    assert attention_pairs([5, 7, 2]) == int(mask.sum())


def test_the_2b_model_has_the_flops_of_the_paper_pack() -> None:
    # 4096 tokens of 23.76 captions, 675 targets: 48.65 TFLOP by hand with every row in every layer
    # (see docs/paper.md); 3421 rows of the last feed-forward, forward and backward, are 0.85.
    spec = FlopSpec(
        llm_linear=28 * 46_792_704,
        llm_last_forward=3 * 1536 * 8960,
        llm_attention=28 * 1536,
        head=151_936 * 1536,
        projector_first=1152 * 1536,
        projector_rest=1536 * 1536,
        tower=729 * 588 * 1152 + 26 * (729 * (4 * 1152**2 + 2 * 1152 * 4304) + 2 * 729**2 * 1152),
        tower_input=729 * 588 * 1152,
        llm_trains=True,
        projector_trains=True,
        tower_trains=False,
    )
    assert 2 * spec.tower == pytest.approx(641.80e9, rel=1e-4)
    total = strict_flops(
        spec,
        Work(
            tokens=4096,
            pairs=attention_pairs([172] * 23 + [140]),
            targets=675,
            images=24,
            visual_tokens=24 * 144,
        ),
    )["total"]
    assert total == pytest.approx(48.65e12 - 0.85e12, rel=0.01)
    assert palm_flops(spec, 4096, 4096) == pytest.approx(46.67e12, rel=0.01)
