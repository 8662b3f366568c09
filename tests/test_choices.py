import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.models import tiny_mllm

from openqwen2vl.evaluation.choices import (
    Item,
    Judged,
    accuracy,
    by_topic,
    chance,
    judge,
    read_items,
)
from openqwen2vl.formats.errors import ShardError
from openqwen2vl.formats.images import decode_image
from openqwen2vl.formats.templates import template
from openqwen2vl.formats.tokens import encode_text, special_tokens, train_tokenizer

LAYOUT = template("qwen2_5")
OPTIONS = ("red", "a very long option indeed", "blue", "green")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["What colour is it? red green blue yellow yes no"] * 3, 300)


@pytest.fixture(scope="module")
def items(tmp_path_factory) -> list[Item]:
    folder = tmp_path_factory.mktemp("pictures")
    found = []
    for number, colour in enumerate(("red", "blue", "green", "white", "black")):
        buffer = io.BytesIO()
        Image.new("RGB", (90, 100), colour).save(buffer, "PNG")
        path = folder / f"{number}.png"
        path.write_bytes(buffer.getvalue())
        found.append(Item(f"q{number}", path, "colour", "What colour is it?", OPTIONS, number % 4))
    return found


class Preferring:
    """Stands in for a model: the log-probability of an answer is read from a table of texts."""

    def __init__(self, tokenizer, table: dict[str, float]) -> None:
        self.tokenizer, self.table = tokenizer, table
        self.vision = type("Tower", (), {"side": 84})
        self.head_weight = torch.zeros(1, 1)
        self.prompts: list[str] = []
        self.ends: set[int] = set()

    def option_logprobs(self, prompts, options, images, image_id):
        assert len(images) == len(prompts)
        self.prompts += [self.tokenizer.decode(prompt) for prompt in prompts]
        self.ends |= {ids[-1] for choices in options for ids in choices}
        return [[self.table.get(self.tokenizer.decode(o[:-1]), -9.0) for o in c] for c in options]


def test_the_likeliest_option_is_chosen(tokenizer, items):
    model = Preferring(tokenizer, {"red": -3.0, "blue": -1.0, "green": -2.0})
    assert [one.chosen for one in judge(model, items, tokenizer, LAYOUT)] == [2] * 5


def test_ties_go_to_the_first_option(tokenizer, items):
    assert {one.chosen for one in judge(Preferring(tokenizer, {}), items, tokenizer, LAYOUT)} == {0}


def test_an_answer_counts_with_the_end_of_its_turn(tokenizer, items):
    model = Preferring(tokenizer, {})
    judge(model, items, tokenizer, LAYOUT)
    assert model.ends == {special_tokens(tokenizer).im_end}


def test_words_are_judged_without_showing_the_options_and_letters_with_them(tokenizer, items):
    model = Preferring(tokenizer, {"C": -1.0})
    judge(model, items[:1], tokenizer, LAYOUT)
    by_letter = judge(model, items[:1], tokenizer, LAYOUT, letters=True)
    assert by_letter[0].chosen == 2
    words, letters = model.prompts
    assert "What colour is it?<|im_end|>" in words
    assert "A. red\nB. a very long option indeed\nC. blue\nD. green" in letters
    assert words.endswith("<|im_start|>assistant\n")


def reference(model, item: Item, tokenizer) -> list[float]:
    """Every option run by itself through the whole model, with full logits."""
    special = special_tokens(tokenizer)
    grid = model.projector.grid
    system = encode_text(tokenizer, "system\n") + encode_text(tokenizer, LAYOUT.system)
    newline = encode_text(tokenizer, "\n")
    prompt = [special.im_start, *system, special.im_end, *newline]
    prompt += [special.im_start, *encode_text(tokenizer, "user\n")]
    first = len(prompt)
    prompt += [special.image] * grid**2 + encode_text(tokenizer, "\n" + item.question)
    prompt += [special.im_end, *newline, special.im_start, *encode_text(tokenizer, "assistant\n")]
    picture = torch.from_numpy(decode_image(item.image.read_bytes(), model.vision.side))[None]
    sums = []
    for text in item.options:
        answer = [*encode_text(tokenizer, text), special.im_end]
        ids = torch.tensor([prompt + answer])
        with torch.no_grad():
            hidden = model(
                input_ids=ids,
                position_ids=torch.arange(ids.shape[1])[None],
                images=picture,
                image_positions=torch.arange(first, first + grid**2),
                cu_seqlens=torch.tensor([0, ids.shape[1]], dtype=torch.int32),
                max_length=ids.shape[1],
                grid=grid,
            )
            logs = model.head(hidden[0]).log_softmax(-1)
        places = range(len(prompt) - 1, ids.shape[1] - 1)
        sums.append(sum(logs[at, token].item() for at, token in zip(places, answer, strict=True)))
    return sums


def test_choices_are_those_of_the_full_model_run_option_by_option(tokenizer, items):
    model = tiny_mllm(vocab_size=len(tokenizer)).eval()
    judged = judge(model, items, tokenizer, LAYOUT)
    for one in judged:
        sums = reference(model, one.item, tokenizer)
        assert one.chosen == max(range(4), key=sums.__getitem__)


def test_the_batch_size_changes_nothing(tokenizer, items):
    mixed = [
        replace(item, options=OPTIONS[at % 3 :] + OPTIONS[: at % 3])
        for at, item in enumerate(items)
    ]
    model = tiny_mllm(vocab_size=len(tokenizer)).eval()
    whole = judge(model, mixed, tokenizer, LAYOUT, batch=5)
    assert judge(model, mixed, tokenizer, LAYOUT, batch=2) == whole


def test_figures_over_judged_items(items):
    two = replace(items[0], options=("yes", "no"), topic="truth")
    judged = [Judged(two, two.answer), Judged(items[1], items[1].answer), Judged(items[2], 0)]
    assert accuracy(judged) == pytest.approx(2 / 3)
    assert chance([one.item for one in judged]) == pytest.approx((0.5 + 0.25 + 0.25) / 3)
    assert by_topic(judged) == {"colour": (1, 2), "truth": (1, 1)}


def test_items_are_read_with_their_pictures_beside_the_file(tmp_path):
    record = {
        "id": "q0",
        "image": "pictures/0.jpg",
        "topic": "colour",
        "question": "What colour?",
        "options": ["red", "blue"],
        "answer": 1,
        "description": "more than is asked for",
    }
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(record) + "\n")
    expected = Item("q0", tmp_path / "pictures/0.jpg", "colour", "What colour?", ("red", "blue"), 1)
    assert read_items(path) == [expected]


def test_a_line_without_an_answer_is_named(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text(
        '{"id": "q0", "image": "0.jpg", "topic": "t", "question": "?", "options": []}\n'
    )
    with pytest.raises(ShardError, match="line 1 lacks answer"):
        read_items(path)


def test_a_missing_file_of_questions_is_named(tmp_path):
    with pytest.raises(ShardError, match=r"no questions at .*nothing\.jsonl"):
        read_items(Path(tmp_path / "nothing.jsonl"))
