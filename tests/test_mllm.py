"""Laws 3 and 4 on the model: isolation, and what a batch must and must not hold."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from support.batches import IMAGE_ID, lay_out, random_document, random_images
from support.models import tiny_llm, tiny_mllm, tiny_tower
from torch import Tensor

from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.model.mllm import MLLM
from openqwen2vl.model.projector import AvgPoolProjector
from openqwen2vl.training.loss import target_losses

CONTEXT = 64
MODES: dict[str, Callable[[MLLM], object]] = {
    "eval": lambda model: model.eval(),
    "train": lambda model: model.train(),
    "checkpointed": lambda model: (model.train(), model.set_checkpointing("full")),
}


def documents() -> list[list[int]]:
    """Three documents: with one image, with none, with two."""
    return [random_document(12, 0, 1), random_document(9, 1), random_document(7, 2, 2)]


@pytest.fixture
def model() -> MLLM:
    return tiny_mllm()


@pytest.mark.parametrize("mode", MODES)
def test_changing_one_document_does_not_move_another_by_a_bit(model: MLLM, mode: str) -> None:
    MODES[mode](model)
    first, second, third = documents()
    images = random_images(3)
    other_images = images.clone()
    other_images[0] = random_images(1, seed=9)[0]
    changed = random_document(12, 77, 1)
    before = model(**lay_out([[first, second, third]], images, CONTEXT))
    after = model(**lay_out([[changed, second, third]], other_images, CONTEXT))
    border = len(first) + 8
    assert not torch.equal(before[0, :border], after[0, :border])
    torch.testing.assert_close(before[0, border:], after[0, border:], rtol=0, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_a_document_in_a_pack_is_as_it_is_alone(model: MLLM, mode: str) -> None:
    MODES[mode](model)
    images = random_images(3)
    packed = model(**lay_out([documents()], images, CONTEXT))[0]
    start, image = 0, 0
    for document in documents():
        count = document.count(IMAGE_ID)
        alone = model(**lay_out([[document]], images[image : image + count], CONTEXT))[0]
        length = len(document) + 8 * count
        torch.testing.assert_close(
            packed[start : start + length], alone[:length], rtol=1e-4, atol=1e-5
        )
        start, image = start + length, image + count


def losses_of(model: MLLM, rows: list[list[list[int]]], images: Tensor) -> Tensor:
    """Cross-entropy of every text token after the first of each document."""
    inputs = lay_out(rows, images, CONTEXT)
    hidden = model(**inputs).flatten(0, 1)
    ids, positions = inputs["input_ids"].flatten(), inputs["position_ids"].flatten()
    wanted = ((ids != IMAGE_ID) & (ids != 0) & (positions > 0)).nonzero()[:, 0]
    return target_losses(hidden[wanted - 1], ids[wanted], model.head_weight)


def test_the_loss_of_a_pack_is_that_of_its_documents_alone_and_so_are_the_gradients() -> None:
    model = tiny_mllm().double()
    images = random_images(3)
    losses_of(model, [documents()], images).sum().backward()
    packed = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    image = 0
    for document in documents():
        count = document.count(IMAGE_ID)
        losses_of(model, [[document]], images[image : image + count]).sum().backward()
        image += count
    assert len(packed) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(packed[name], parameter.grad, rtol=1e-6, atol=1e-9)


def test_documents_spread_over_rows_give_the_same_losses(model: MLLM) -> None:
    first, second, third = documents()
    images = random_images(3)
    one = losses_of(model, [[first, second, third]], images)
    two = losses_of(model, [[first], [second, third]], images)
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_without_isolation_the_first_document_moves_the_second(model: MLLM) -> None:
    images = random_images(3)

    def run(first: list[int]) -> Tensor:
        inputs = lay_out([[first, *documents()[1:]]], images, CONTEXT)
        inputs["cu_seqlens"] = torch.tensor([0, CONTEXT], dtype=torch.int32)
        inputs["position_ids"] = torch.arange(CONTEXT)[None]
        hidden: Tensor = model(**inputs)
        return hidden[0, 20:]

    assert not torch.allclose(run(documents()[0]), run(random_document(12, 77, 1)), atol=1e-3)


def test_logits_equal_transformers_own(model: MLLM) -> None:
    document = random_document(30, 5)
    inputs = lay_out([[document]], random_images(0), 30)
    ours = model.head(model(**inputs)[0])
    reference = tiny_llm()
    theirs = reference(input_ids=torch.tensor([document]), use_cache=False).logits[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_batch_without_images_still_trains_the_projector(model: MLLM) -> None:
    losses_of(model, [[random_document(9, 1)]], random_images(0)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    assert all(not p.grad.any() for p in model.projector.parameters() if p.grad is not None)


def test_a_frozen_tower_is_nobodys_parameter() -> None:
    model = tiny_mllm(trainable_tower=False)
    names = [name for name, _ in model.named_parameters()]
    assert not any(name.startswith("vision") for name in [*names, *model.state_dict()])
    assert model.vision not in list(model.modules())
    model.train()
    assert not model.vision.training
    trainable = tiny_mllm(trainable_tower=True)
    assert any(name.startswith("vision.") for name in trainable.state_dict())
    assert model.weights().keys() == trainable.weights().keys()


def test_a_frozen_and_a_trainable_tower_compute_the_same() -> None:
    images = random_images(3)
    inputs = lay_out([documents()], images, CONTEXT)
    frozen, trainable = (tiny_mllm(trainable_tower=t).eval() for t in (False, True))
    torch.testing.assert_close(frozen(**inputs), trainable(**inputs), rtol=0, atol=0)


def test_building_a_model_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    tiny_mllm()
    torch.testing.assert_close(torch.rand(4), expected, rtol=0, atol=0)


def test_freezing_and_what_trains_are_told(model: MLLM) -> None:
    model.freeze(projector=False, llm=True)
    told = model.trainable_summary()
    assert told["llm"].trainable == 0
    assert told["llm"].total == sum(p.numel() for p in model.llm.parameters())
    assert told["projector"].trainable == told["projector"].total > 0


def test_another_grid_is_refused_with_both_numbers(model: MLLM) -> None:
    inputs = lay_out([documents()], random_images(3), CONTEXT)
    model.projector.grid = 2
    with pytest.raises(ValueError, match="made for grid 3, the projector stands at grid 2"):
        model(**inputs)


def test_images_without_places_are_refused_with_both_numbers(model: MLLM) -> None:
    inputs = lay_out([documents()], random_images(3), CONTEXT)
    inputs["images"] = random_images(2)
    with pytest.raises(ValueError, match=r"2 images at grid 3 make 18 .* names 27 positions"):
        model(**inputs)


def test_an_unknown_attention_or_checkpointing_is_refused(model: MLLM) -> None:
    with pytest.raises(ConfigError, match="fast"):
        MLLM(tiny_tower(), partial(AvgPoolProjector, grid=3), tiny_llm(), attention="fast")
    with pytest.raises(ConfigError, match="half"):
        model.set_checkpointing("half")


def test_checkpointing_gives_the_same_gradients() -> None:
    images = random_images(3)
    gradients = []
    for mode in ("none", "mlp", "full"):
        model = tiny_mllm().train()
        model.set_checkpointing(mode)
        losses_of(model, [documents()], images).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for again in gradients[1:]:
        torch.testing.assert_close(again, gradients[0], rtol=1e-5, atol=1e-6)
