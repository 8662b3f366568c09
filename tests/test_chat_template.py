"""The Jinja of a folder lays conversations out as training did."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.shards import tiny_tokenizer
from transformers import PreTrainedTokenizerFast

from openqwen2vl.formats.documents import IMAGE, Turn
from openqwen2vl.formats.templates import TEMPLATES, prompt_ids
from openqwen2vl.formats.tokens import load_tokenizer
from openqwen2vl.release.chat_template import chat_template

# Texts that begin or end with white space are encoded together with what stands around them.
TEXT = st.text("abc .,?<|>\u00e9\u4e16{%}'\"", min_size=1, max_size=12).map(str.strip).filter(bool)


@st.composite
def conversations(draw: st.DrawFn) -> list[Turn]:
    """User and assistant in turn, a user at the end, images in front of users' texts."""
    turns = [Turn("system", (draw(TEXT),))] if draw(st.booleans()) else []
    for number in range(draw(st.integers(0, 2)) * 2 + 1):
        if number % 2:
            turns.append(Turn("assistant", (draw(TEXT),)))
        else:
            images = draw(st.integers(0, 2))
            text = draw(TEXT)
            turns.append(Turn("user", (*[IMAGE] * images, "\n" + text if images else text)))
    return turns


def messages(turns: list[Turn], plain: bool) -> list[dict[str, object]]:
    """Say a conversation in the words of transformers; ``plain`` texts are no lists."""
    found = []
    for turn in turns:
        parts = [
            {"type": "text", "text": part.removeprefix("\n")}
            if isinstance(part, str)
            else {"type": "image"}
            for part in turn.parts
        ]
        text = len(parts) == 1 and "text" in parts[0]
        content: object = parts[0]["text"] if plain and text else parts
        found.append({"role": turn.role, "content": content})
    return found


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer(folder)
    return load_tokenizer(str(folder))


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@settings(max_examples=60, deadline=None)
@given(turns=conversations(), plain=st.booleans())
def test_prompts_have_the_ids_of_training(
    tokenizer: PreTrainedTokenizerFast, name: str, turns: list[Turn], plain: bool
) -> None:
    tokenizer.chat_template = chat_template(TEMPLATES[name])
    text = tokenizer.apply_chat_template(
        messages(turns, plain), add_generation_prompt=True, tokenize=False
    )
    found = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert found == prompt_ids(turns, tokenizer, TEMPLATES[name]), text


def test_a_newline_that_is_there_already_is_not_doubled(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer.chat_template = chat_template(TEMPLATES["qwen2_5"])
    told = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}],
            tokenize=False,
        )
        for text in ("Why?", "\nWhy?")
    ]
    assert told[0] == told[1]
    assert "<|image_pad|>\nWhy?<|im_end|>\n" in told[0]
    assert not told[0].endswith("assistant\n")
