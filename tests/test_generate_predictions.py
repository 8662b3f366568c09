"""Asking all questions of a benchmark: in batches as one by one, and through every interruption."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.asking import HEADER, answer_all, asked_of, drawn_questions, tiny_subject
from support.shards import picture

from openqwen2vl.evaluation.asking import Asked
from openqwen2vl.evaluation.generate import Effort
from openqwen2vl.evaluation.pictures import BytesImage, FileImage
from openqwen2vl.evaluation.predictions import Header, read_predictions
from openqwen2vl.evaluation.subject import Subject
from openqwen2vl.formats.errors import UserError
from openqwen2vl.formats.images import decode_image
from openqwen2vl.formats.tokens import encode_text, special_tokens

OPTIONS = {"mode": "likelihood", "options": ("red", "A", "the circle is red")}


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return tiny_subject(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def asked(subject: Subject) -> list[Asked]:
    questions = drawn_questions(12)
    most = {q.id: 3 + 4 * (number % 2) for number, q in enumerate(questions)}
    return [one for q in questions for one in asked_of(subject, [q], max_new_tokens=most[q.id])]


def header(asked: list[Asked], **changes: Any) -> Header:
    return replace(HEADER, n=len(asked), **changes)


def pixels(subject: Subject, one: Asked) -> torch.Tensor:
    side = subject.model.vision.side
    images = [torch.from_numpy(decode_image(i.read(), side)) for i in one.prompt.images]
    return torch.stack(images) if images else torch.zeros(0, side, side, 3, dtype=torch.uint8)


def one_by_one(subject: Subject, asked: list[Asked]) -> list[str]:
    """The plain loop that batches are held against."""
    special = special_tokens(subject.tokenizer)
    outputs = []
    for one in asked:
        (ids,) = subject.model.generate(
            [one.ids],
            pixels(subject, one),
            image_id=special.image,
            pad_id=special.pad,
            eos_ids=one.end_ids,
            max_new_tokens=one.prompt.max_new_tokens,
        )
        outputs.append(subject.tokenizer.decode(ids, skip_special_tokens=True))
    return outputs


@pytest.fixture(scope="module")
def plain(subject: Subject, asked: list[Asked]) -> dict[str, str]:
    ids = [one.question.id for one in asked]
    return dict(zip(ids, one_by_one(subject, asked), strict=True))


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(size=st.integers(1, 13), tokens=st.sampled_from([1, 150, 10_000]), shuffle=st.randoms())
def test_a_batch_of_any_size_and_order_answers_as_one_by_one(
    subject: Subject,
    asked: list[Asked],
    plain: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    size: int,
    tokens: int,
    shuffle: random.Random,
) -> None:
    order = shuffle.sample(asked, len(asked))
    effort = Effort(batch_size=size, batch_tokens=tokens)
    rows = answer_all(subject, order, tmp_path_factory.mktemp("out"), effort, header(asked))
    assert [row.id for row in rows] == [one.question.id for one in order]
    assert {row.id: row.output for row in rows} == plain
    assert len(set(plain.values())) > 6


def test_options_are_judged_as_one_by_one(subject: Subject, tmp_path: Path) -> None:
    asked = asked_of(subject, drawn_questions(7), **OPTIONS)
    rows = answer_all(subject, asked, tmp_path, Effort(batch_size=3), header(asked))
    special = special_tokens(subject.tokenizer)
    for one, row in zip(asked, rows, strict=True):
        ids = [[*encode_text(subject.tokenizer, o), special.eos] for o in OPTIONS["options"]]
        images = pixels(subject, one)
        (expected,) = subject.model.option_logprobs([one.ids], [ids], images, special.image)
        assert row.logprobs == pytest.approx(expected, abs=1e-4)
        assert row.output == ""


def test_a_picture_that_cannot_be_decoded_costs_its_own_question(
    subject: Subject, tmp_path: Path
) -> None:
    questions = drawn_questions(6, max_images=1)
    questions[3] = replace(questions[3], images=(BytesImage(b"no picture"),))
    asked = asked_of(subject, questions)
    rows = answer_all(subject, asked, tmp_path, header=header(asked))
    assert [row.error is None for row in rows] == [True, True, True, False, True, True]
    assert rows[3].output == ""
    assert "cannot be decoded" in str(rows[3].error)
    others = [one for one in asked if one.question.id != "q3"]
    expected = one_by_one(subject, others)
    assert [row.output for row in rows if row.error is None] == expected
    assert read_predictions(tmp_path)[1] == rows


def test_a_picture_that_is_not_there_ends_the_run(subject: Subject, tmp_path: Path) -> None:
    questions = drawn_questions(3)
    gone = FileImage(str(tmp_path / "gone.png"))
    questions[1] = replace(questions[1], images=(gone,))
    with pytest.raises(UserError, match=r"question q1: .*gone.png cannot be read"):
        answer_all(subject, asked_of(subject, questions), tmp_path)


def test_a_prompt_that_the_model_cannot_hold_is_told(subject: Subject, tmp_path: Path) -> None:
    questions = drawn_questions(3)
    long = {"question": "circle " * 5000, "answer": "A"}
    asked = asked_of(subject, [questions[0], replace(questions[1], fields=long), questions[2]])
    rows = answer_all(subject, asked, tmp_path, header=header(asked))
    assert "the model holds 4,096" in str(rows[1].error)
    assert [row.error is None for row in rows] == [True, False, True]


def test_too_many_at_once_for_the_device_is_told(
    subject: Subject, asked: list[Asked], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any, **named: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(subject.model, "generate", full)
    with pytest.raises(UserError, match=r"6 questions of up to \d+ tokens .* lower batch_size"):
        answer_all(subject, asked, tmp_path, header=header(asked))


class Counted:
    """A picture that counts how often it is read."""

    def __init__(self, data: bytes) -> None:
        self.data, self.reads = data, 0

    def read(self) -> bytes:
        self.reads += 1
        return self.data


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(kept=st.integers(0, 8), cut=st.integers(0, 30), whole=st.booleans())
def test_finished_questions_are_not_asked_again(
    subject: Subject,
    tmp_path_factory: pytest.TempPathFactory,
    kept: int,
    cut: int,
    whole: bool,
) -> None:
    folder = tmp_path_factory.mktemp("out")
    questions = drawn_questions(8, max_images=1)
    rng = random.Random(0)
    pictures = [Counted(picture(rng)) for _ in questions]
    questions = [replace(q, images=(p,)) for q, p in zip(questions, pictures, strict=True)]
    asked = asked_of(subject, questions)
    expected = answer_all(subject, asked, folder, header=header(asked))
    path = folder / "predictions.jsonl"
    unbroken = path.read_bytes()
    lines = unbroken.splitlines(keepends=True)
    half = b"" if whole or kept == 8 else lines[kept + 1][: max(1, cut)]
    path.write_bytes(b"".join(lines[: kept + 1]) + half)
    for one in pictures:
        one.reads = 0
    rows = answer_all(subject, asked, folder, Effort(batch_size=2), header(asked))
    assert rows == expected
    assert path.read_bytes() == unbroken
    assert [one.reads for one in pictures] == [0] * kept + [1] * (8 - kept)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_hash": "1" * 16}, "model_hash 0000000000000000 there, 1111111111111111 here"),
        ({"benchmark": "mmstar"}, "benchmark drawn there, mmstar here"),
        ({"file_hash": "e" * 64}, "file_hash"),
        ({"decoding": {"method": "sampled"}}, "decoding"),
        ({"dtype": "bfloat16"}, "dtype None there, bfloat16 here"),
        ({"protocol": "oqvl-paper"}, "protocol standard there, oqvl-paper here"),
    ],
)
def test_answers_to_something_else_are_refused_or_overwritten(
    subject: Subject, asked: list[Asked], tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    few = asked[:2]
    answer_all(subject, few, tmp_path, header=header(few))
    before = (tmp_path / "predictions.jsonl").read_bytes()
    with pytest.raises(UserError, match=said) as caught:
        answer_all(subject, few, tmp_path, header=header(few, **change))
    assert "overwrite=true" in str(caught.value)
    assert (tmp_path / "predictions.jsonl").read_bytes() == before
    answer_all(subject, few, tmp_path, header=header(few, **change), overwrite=True)
    assert read_predictions(tmp_path)[0] == header(few, **change)


def test_a_moved_model_goes_on_and_other_prompts_do_not(
    subject: Subject, asked: list[Asked], tmp_path: Path
) -> None:
    few = asked[:2]
    answer_all(subject, few, tmp_path, header=header(few))
    answer_all(subject, few, tmp_path, header=header(few, model="elsewhere"))
    changed = [few[0], replace(few[1], prompt_hash="other")]
    with pytest.raises(UserError, match="1 prompts, the first of question q1"):
        answer_all(subject, changed, tmp_path, header=header(few))
