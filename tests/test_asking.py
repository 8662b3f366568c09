"""Questions as token ids: prompts under a protocol, ends of answers, options, batches."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.asking import asked_of, drawn_questions, tiny_subject
from support.shards import tiny_tokenizer
from transformers import PreTrainedTokenizerFast

from openqwen2vl.evaluation.asking import Asked, batches, put
from openqwen2vl.evaluation.questions import CHUNK_END, Prompt
from openqwen2vl.evaluation.subject import Subject
from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.formats.tokens import encode_text, special_tokens

OPTIONS: dict[str, Any] = {"mode": "likelihood", "options": ("red", "A", "the circle is red")}


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return tiny_subject(tmp_path_factory.mktemp("tokenizer"))


def test_the_first_token_can_be_judged_alone(subject: Subject) -> None:
    letters = {"mode": "likelihood", "options": ("A", "B"), "first_token": True}
    (asked,) = asked_of(subject, drawn_questions(1), **letters)
    assert [len(option) for option in asked.options] == [1, 1]
    same = {**letters, "options": ("the circle", "the square")}
    with pytest.raises(ConfigError, match="begin with the same token"):
        asked_of(subject, drawn_questions(1), **same)


def test_a_raw_prompt_has_no_turns_and_ends_at_its_stops(subject: Subject) -> None:
    (question,) = drawn_questions(1, seed=2)
    (asked,) = asked_of(subject, [question], raw=True, stop=(".", ",", "\n"))
    special = special_tokens(subject.tokenizer)
    text = encode_text(subject.tokenizer, "\n" + question.fields["question"])
    assert asked.ids == [special.bos, *[special.image] * len(question.images), *text]
    assert asked.end_ids == tuple(encode_text(subject.tokenizer, s)[0] for s in (".", ",", "\n"))
    (turns,) = asked_of(subject, [question], system="Answer briefly.")
    assert turns.end_ids == (special.eos,)
    system = encode_text(subject.tokenizer, "Answer briefly.")
    at = turns.ids.index(system[0])
    assert turns.ids[at : at + len(system)] == system
    (named,) = asked_of(subject, [question], stop=("\n", "<|im_end|>"))
    assert named.end_ids[1:] == (special.im_end,)
    with pytest.raises(ConfigError, match="ends answers at 'the end'"):
        asked_of(subject, [question], stop=("the end",))


def test_no_question_copies_the_vocabulary(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of Qwen2.5's size it takes 0.1 s: a benchmark's prompts would take an hour."""
    monkeypatch.delattr(PreTrainedTokenizerFast, "get_vocab")
    for settings in ({}, OPTIONS, {"raw": True, "stop": (".",)}):
        asked_of(subject, drawn_questions(2), **settings)


def test_a_part_that_is_a_token_is_that_token_and_words_that_hold_it_are_not(
    subject: Subject, tmp_path: Path
) -> None:
    (question,) = drawn_questions(1, max_images=0)
    parts = ("red", CHUNK_END, f"blue {CHUNK_END}")
    prompt = Prompt(parts, (), raw=True)
    with pytest.raises(ConfigError, match="choose protocol=standard"):
        put([question], lambda q: prompt, subject)
    tokenizer = tiny_tokenizer(tmp_path)
    tokenizer.add_special_tokens({"additional_special_tokens": [CHUNK_END]})
    (asked,) = put([question], lambda q: prompt, replace(subject, tokenizer=tokenizer))
    assert asked.ids.count(tokenizer.convert_tokens_to_ids(CHUNK_END)) == 1
    assert asked.ids[2 + len(encode_text(tokenizer, "red")) - 1] == len(tokenizer) - 1


def test_everything_but_the_pictures_is_in_the_prompts_hash(subject: Subject) -> None:
    questions = drawn_questions(1)
    ways: list[dict[str, Any]] = [
        {},
        {"max_new_tokens": 7},
        {"raw": True},
        {"system": "Hi."},
        {"stop": (".",)},
        OPTIONS,
        {**OPTIONS, "options": ("A", "B")},
        {**OPTIONS, "options": ("A", "B"), "first_token": True},
    ]
    hashes = {asked_of(subject, questions, **way)[0].prompt_hash for way in ways}
    assert len(hashes) == len(ways)
    assert hashes == {asked_of(subject, questions, **way)[0].prompt_hash for way in ways}


@given(
    lengths=st.lists(st.integers(1, 500), max_size=40),
    kinds=st.lists(st.integers(1, 2), min_size=40, max_size=40),
    size=st.integers(1, 9),
    tokens=st.integers(1, 2000),
)
def test_batches_hold_every_question_once_within_the_limits(
    lengths: list[int], kinds: list[int], size: int, tokens: int
) -> None:
    (question,) = drawn_questions(1)
    prompts = {kind: Prompt(("?",), (), max_new_tokens=kind) for kind in (1, 2)}
    asked = [
        Asked(replace(question, id=str(n)), prompts[kind], "", [], (9,), (), length)
        for n, (length, kind) in enumerate(zip(lengths, kinds, strict=False))
    ]
    found = list(batches(asked, size, tokens))
    assert sorted(int(o.question.id) for b in found for o in b) == list(range(len(asked)))
    for batch in found:
        assert len(batch) <= size
        assert len(batch) == 1 or max(o.tokens for o in batch) * len(batch) <= tokens
        assert len({o.prompt.max_new_tokens for o in batch}) == 1
    for kind in (1, 2):
        widths = [o.tokens for b in found for o in b if o.prompt is prompts[kind]]
        # The longest first, but for an eighth of an octave.
        assert all(b <= a * 2 ** (1 / 8) for a, b in pairwise(widths))
