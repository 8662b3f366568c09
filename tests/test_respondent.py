"""What another harness asks is answered as our own questions are."""

import io
import math

import pytest
import torch
from PIL import Image
from support.asking import answer_all, drawn_questions, plain_prompt, tiny_subject

from openqwen2vl.evaluation.asking import put
from openqwen2vl.evaluation.generate import Effort
from openqwen2vl.evaluation.pictures import OpenedImage
from openqwen2vl.evaluation.respondent import Respondent, user_turn
from openqwen2vl.formats.images import decode_image

A, B = (Image.new("RGB", (8, 6), colour) for colour in ("red", "blue"))
OPTIONS = ("A", "a red circle")


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    torch.set_num_threads(1)
    return tiny_subject(tmp_path_factory.mktemp("tokenizer"))


def opened(question):
    return [Image.open(io.BytesIO(image.read())).convert("RGB") for image in question.images]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([A, "What?"], "<image>\nWhat?"),
        ([A, B, "What?"], "<image><image>\nWhat?"),
        (["Of", A, "and", B, "which?"], "Of<image>\nand<image>\nwhich?"),
        (["Look:", A, ""], "Look:<image>"),
        (["What?"], "What?"),
        ([A, B, "Is <image> in <image>?"], "Is <image> in <image>?"),
        ([A, "<image> Look."], "<image> Look."),
        ([A, "Of <image> and <image>?"], "<image>\nOf <image> and <image>?"),
        (["What is <image>?"], "What is <image>?"),
    ],
)
def test_pictures_stand_where_they_are_put(content, text):
    prompt = user_turn(content, 5)
    assert prompt.text == text
    assert [image.picture for image in prompt.images] == [c for c in content if c in (A, B)]
    assert (prompt.max_new_tokens, prompt.mode, prompt.raw) == (5, "generate", False)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_answer_is_that_of_evaluate(subject, tmp_path, batch_size):
    questions = drawn_questions(9)
    asked = put(questions, plain_prompt, subject)
    ours = answer_all(subject, asked, tmp_path)
    prompts = [user_turn([*opened(q), q.fields["question"]], 6) for q in questions]
    prompts = [p if q.images else plain_prompt(q) for p, q in zip(prompts, questions, strict=True)]
    found = Respondent(subject, Effort(batch_size=batch_size)).texts(prompts)
    assert found == [one.output for one in ours]
    assert len(set(found)) > 1


def test_options_are_judged_as_by_evaluate(subject, tmp_path):
    questions = [question for question in drawn_questions(9) if question.images]

    def judged(question):
        return plain_prompt(question, mode="likelihood", options=OPTIONS)

    ours = answer_all(subject, put(questions, judged, subject), tmp_path)
    prompts = [user_turn([*opened(q), q.fields["question"]], 6, OPTIONS) for q in questions]
    for found, one in zip(Respondent(subject, Effort()).logprobs(prompts), ours, strict=True):
        assert found == pytest.approx(one.logprobs, abs=1e-5)
        assert all(-100 < value < 0 for value in found)


def test_a_question_that_cannot_be_asked_stops_no_other(subject):
    thin = Image.new("RGB", (1, 9))
    respondent = Respondent(subject, Effort(batch_size=3))
    with pytest.warns(UserWarning, match=r"unanswered: picture 1 x 9 pixels"):
        texts = respondent.texts([user_turn([p, "What?"], 4) for p in (A, thin, B)])
    assert texts[1] == ""
    assert texts[0]
    with pytest.warns(UserWarning, match=r"unanswered"):
        judged = respondent.logprobs([user_turn([p, "What?"], 4, OPTIONS) for p in (thin, A)])
    assert judged[0] == (-math.inf, -math.inf)
    assert all(math.isfinite(value) for value in judged[1])


def test_a_decoded_picture_loses_nothing(subject):
    for question in drawn_questions(6):
        for image, picture in zip(question.images, opened(question), strict=True):
            there = decode_image(OpenedImage(picture).read(), 56)
            assert (there == decode_image(image.read(), 56)).all()
