"""Answers: a batch gives what one by one gives, with any number of images per prompt."""

import pytest
import torch
from support.batches import IMAGE_ID, lay_out, random_document, random_images
from support.models import tiny_mllm
from transformers import GenerationConfig

from openqwen2vl.model.decoding import Sampling
from openqwen2vl.model.mllm import MLLM

EOS = 7


def prompts() -> list[list[int]]:
    """Prompts of several lengths with one, no and two images."""
    return [random_document(4, 0, 1), random_document(11, 1), random_document(6, 2, 2)]


def ask(
    model: MLLM, asked: list[list[int]], images: torch.Tensor, **options: object
) -> list[list[int]]:
    settings: dict[str, object] = {"max_new_tokens": 8, "eos_ids": [EOS], "pad_id": 0, **options}
    return model.generate(asked, images, image_id=IMAGE_ID, **settings)


@pytest.fixture
def model() -> MLLM:
    return tiny_mllm().eval()


def test_a_batch_answers_as_one_by_one(model: MLLM) -> None:
    images = random_images(3)
    together = ask(model, prompts(), images)
    slices = [images[:1], images[1:1], images[1:]]
    apart = [ask(model, [p], i)[0] for p, i in zip(prompts(), slices, strict=True)]
    assert together == apart
    assert any(together)


def test_greedy_answers_take_the_likeliest_token_without_a_cache_too(model: MLLM) -> None:
    images = random_images(1)
    prompt = prompts()[0]
    answer = ask(model, [prompt], images, eos_ids=[])[0]
    assert len(answer) == 8
    for number, token in enumerate(answer):
        document = [*prompt, *answer[:number]]
        length = len(document) + 8
        logits = model.head(model(**lay_out([[document]], images, length))[0, -1:])
        assert int(logits.argmax()) == token


def test_an_answer_ends_before_the_end_of_turn(model: MLLM) -> None:
    free = ask(model, [prompts()[1]], random_images(0), eos_ids=[])[0]
    stop = free[3]
    assert (
        ask(model, [prompts()[1]], random_images(0), eos_ids=[stop])[0] == free[: free.index(stop)]
    )


def test_sampling_repeats_with_its_seed_and_leaves_the_global_generator(model: MLLM) -> None:
    def draw(seed: int) -> list[list[int]]:
        sampling = Sampling(temperature=3.0, top_p=0.95, seed=seed)
        return ask(model, prompts(), random_images(3), eos_ids=[], sampling=sampling)

    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    one = draw(1)
    torch.testing.assert_close(torch.rand(2), expected, rtol=0, atol=0)
    assert one == draw(1)
    assert one != draw(2)


def test_generation_leaves_the_model_as_it_was(model: MLLM) -> None:
    model.train()
    inputs = lay_out([[prompts()[0]]], random_images(1), 16)
    before = model(**inputs)
    ask(model, prompts(), random_images(3))
    assert model.training
    torch.testing.assert_close(model(**inputs), before, rtol=0, atol=0)


def test_settings_that_a_released_model_brings_do_not_bend_an_answer(model: MLLM) -> None:
    plain = ask(model, prompts(), random_images(3), eos_ids=[])
    settings = GenerationConfig(repetition_penalty=5.0, do_sample=True, temperature=9.0)
    model.llm.generation_config = settings
    assert ask(model, prompts(), random_images(3), eos_ids=[]) == plain
    assert model.llm.generation_config is settings


def test_options_are_judged_by_the_sum_of_their_log_probabilities(model: MLLM) -> None:
    images = random_images(3)
    options = [[[9, 10], [11]], [[12, 13, 14]], [[9], [15], [16, 17]]]
    found = model.option_logprobs(prompts(), options, images, IMAGE_ID)
    slices = [images[:1], images[1:1], images[1:]]
    for prompt, choices, own, scores in zip(prompts(), options, slices, found, strict=True):
        for choice, score in zip(choices, scores, strict=True):
            document = [*prompt, *choice]
            length = len(document) + 8 * len(own)
            logits = model.head(model(**lay_out([[document]], own, length))[0]).log_softmax(-1)
            places = range(length - len(choice) - 1, length - 1)
            expected = sum(logits[p, t].item() for p, t in zip(places, choice, strict=True))
            assert score == pytest.approx(expected, abs=1e-4)


def test_marks_and_images_must_be_as_many(model: MLLM) -> None:
    with pytest.raises(ValueError, match="image"):
        ask(model, prompts(), random_images(2))
    with pytest.raises(ValueError, match=r"3 prompts came with options for 1"):
        model.option_logprobs(prompts(), [[[1]]], random_images(3), IMAGE_ID)
