"""Prompt files are checked to the last word, and captions stay short text."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.shards import tiny_tokenizer
from transformers import PreTrainedTokenizerFast

from openqwen2vl.curation.scorers.captions import plain, shorten
from openqwen2vl.curation.scorers.prompts import METRICS, prompts_hash, read_prompts
from openqwen2vl.formats.errors import ConfigError

ITM = "image_text_matching"


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_ours_ask_for_every_metric_and_end_behind_the_caption() -> None:
    prompts = read_prompts(None, METRICS)
    assert list(prompts) == list(METRICS)
    for prompt in prompts.values():
        assert prompt.before.endswith("Caption: ")
        assert "0 to 100" in prompt.after
        assert "first line" in prompt.after
        assert prompt.answer_start == ""
    assert len({prompt.after for prompt in prompts.values()}) == len(METRICS)


@pytest.mark.parametrize("write", [json.dumps, lambda content: f"{ITM}: 'A {{caption}} {{b}}'\n"])
def test_a_file_of_ones_own_is_read_as_yaml_and_json(tmp_path: Path, write: object) -> None:
    assert callable(write)
    path = written(tmp_path / "own.yaml", write({ITM: "A {caption} {b}"}))
    prompt = read_prompts(path, [ITM])[ITM]
    assert (prompt.before, prompt.after, prompt.answer_start) == ("A ", " {b}", "")


def test_an_answer_may_be_begun(tmp_path: Path) -> None:
    path = written(tmp_path / "own.yaml", f'answer_start: " "\n{ITM}: "{{caption}}"\n')
    assert read_prompts(path, [ITM])[ITM].answer_start == " "


def test_the_hash_changes_with_any_word_and_with_the_metrics(tmp_path: Path) -> None:
    texts = ["a {caption}", "b {caption}", "{caption} a"]
    paths = [written(tmp_path / f"{i}.json", json.dumps({ITM: t})) for i, t in enumerate(texts)]
    hashes = [prompts_hash(read_prompts(path, [ITM])) for path in paths]
    assert len(set(hashes)) == 3
    assert prompts_hash(read_prompts(paths[0], [ITM])) == hashes[0]
    assert prompts_hash(read_prompts(None, METRICS)) != prompts_hash(read_prompts(None, [ITM]))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[1, 2]", "holds list; expected a text for each metric"),
        ("", "holds NoneType"),
        ("a: b: c", "neither YAML nor JSON"),
        ("image_text_machting: '{caption}'", "did you mean image_text_matching"),
        (f"{ITM}: 7", "is 7; expected a text"),
        (f"{ITM}: no place", "0 times; expected once"),
        (f"{ITM}: '{{caption}} {{caption}}'", "2 times; expected once"),
        ("semantic_understanding: '{caption}'", "has no prompt for image_text_matching"),
        (f"answer_start: [1]\n{ITM}: '{{caption}}'", "answer_start is [1]; expected a text"),
    ],
)
def test_a_faulty_file_is_told_with_its_name(tmp_path: Path, text: str, told: str) -> None:
    path = written(tmp_path / "own.yaml", text)
    with pytest.raises(ConfigError) as caught:
        read_prompts(path, [ITM])
    assert told in str(caught.value)
    assert path in str(caught.value)


def test_missing_files_and_metrics_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no prompt file .*none\.yaml"):
        read_prompts(str(tmp_path / "none.yaml"), [ITM])
    with pytest.raises(ConfigError, match="did you mean semantic_understanding"):
        read_prompts(None, ["semantic_understandin"])
    for metrics in ([], [ITM, ITM]):
        with pytest.raises(ConfigError, match="one or more of"):
            read_prompts(None, metrics)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return tokenizer


@given(st.text(max_size=30), st.integers(0, 40))
def test_a_caption_is_cut_to_its_first_tokens_and_no_character_is_split(
    tokenizer: PreTrainedTokenizerFast, caption: str, most: int
) -> None:
    short = shorten(tokenizer, caption, most)
    assert caption.startswith(short)
    tokens = tokenizer.encode(caption, add_special_tokens=False)
    if len(tokens) <= most:
        assert short == caption
    else:
        kept = tokenizer.decode(tokens[:most]).rstrip("\N{REPLACEMENT CHARACTER}")
        assert short.rstrip("\N{REPLACEMENT CHARACTER}") == kept


MARKS = ["<image>", "<|im_end|>", "<|image_pad|>", "<s>", "<|endoftext|>", "[IMG]", "<", "|>", " "]


@given(st.lists(st.sampled_from([*MARKS, "im_end", "a dog"]), max_size=12))
def test_whatever_a_caption_holds_is_text(
    tokenizer: PreTrainedTokenizerFast, words: list[str]
) -> None:
    caption = "".join(words)
    text = plain(tokenizer, caption, ["[IMG]"])
    assert "[IMG]" not in text
    special = set(tokenizer.all_special_ids)
    assert special.isdisjoint(tokenizer.encode(text, add_special_tokens=False))
    assert text.replace(" ", "") == caption.replace(" ", "")


def test_an_ordinary_caption_stays_as_it_is(tokenizer: PreTrainedTokenizerFast) -> None:
    caption = "a < b, [x] and \N{SNOWMAN} <imagine>"
    assert plain(tokenizer, caption, ["<image>"]) == caption
