"""An answer token by token is the answer that ``generate`` gives at once."""

from collections.abc import Iterator

import pytest
import torch
from support.batches import IMAGE_ID, random_document, random_images
from support.models import tiny_mllm
from transformers import GenerationConfig

from openqwen2vl.model.decoding import Decoding, Sampling
from openqwen2vl.model.mllm import MLLM
from openqwen2vl.model.streaming import stream

PROMPTS = ((4, 0, 1), (11, 1, 0), (6, 2, 2))
"""Text tokens, a seed, and images of a prompt."""


@pytest.fixture(scope="module")
def model() -> MLLM:
    return tiny_mllm().eval()


def ask(
    model: MLLM, which: int, most: int = 24, sampling: Sampling | None = None, eos: int = -1
) -> tuple[Iterator[int], list[int]]:
    """Give the stream, and what generation answers at once."""
    prompt = random_document(*PROMPTS[which])
    images = random_images(PROMPTS[which][2])
    sampling = sampling or Sampling()
    ends = [eos] if eos >= 0 else []
    decoding = Decoding(pad_id=0, eos_ids=ends, max_new_tokens=most, sampling=sampling)
    whole = model.generate([prompt], images, IMAGE_ID, 0, ends, most, sampling)[0]
    return stream(model, prompt, images, IMAGE_ID, decoding), whole


@pytest.mark.parametrize("which", range(len(PROMPTS)))
def test_greedy_answers_are_equal_token_for_token(model: MLLM, which: int) -> None:
    tokens, whole = ask(model, which)
    assert list(tokens) == whole
    assert len(whole) == 24


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_drawn_answers_are_equal_too_and_leave_the_global_generator(
    model: MLLM, top_p: float
) -> None:
    found = []
    for seed in (1, 2):
        sampling = Sampling(temperature=3.0, top_p=top_p, seed=seed)
        tokens, whole = ask(model, 2, sampling=sampling)
        state = torch.get_rng_state()
        found.append(list(tokens))
        assert found[-1] == whole
        assert torch.equal(torch.get_rng_state(), state)
    assert found[0] != found[1]


def test_an_answer_ends_before_the_end_of_turn(model: MLLM) -> None:
    free = ask(model, 1)[1]
    tokens, whole = ask(model, 1, eos=free[5])
    assert list(tokens) == whole == free[: free.index(free[5])]


def test_no_token_more_than_asked_for(model: MLLM) -> None:
    tokens, whole = ask(model, 0, most=1)
    assert list(tokens) == whole
    assert len(whole) == 1


def test_an_answer_given_up_leaves_the_model_as_it_was(model: MLLM) -> None:
    settings = GenerationConfig(repetition_penalty=5.0)
    attention = model.llm.config._attn_implementation
    model.train()
    model.llm.generation_config = settings
    tokens, _ = ask(model, 0)
    next(tokens)
    assert not model.training
    tokens.close()
    assert model.training
    assert model.llm.generation_config is settings
    assert model.llm.config._attn_implementation == attention
    model.eval()


def test_marks_and_images_must_be_as_many(model: MLLM) -> None:
    decoding = Decoding(pad_id=0, eos_ids=[], max_new_tokens=4, sampling=Sampling())
    with pytest.raises(ValueError, match="image marks"):
        next(stream(model, random_document(4, 0, 1), random_images(2), IMAGE_ID, decoding))
