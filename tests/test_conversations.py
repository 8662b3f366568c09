import pytest

from openqwen2vl.formats.conversations import parse_turns
from openqwen2vl.formats.documents import IMAGE, Turn
from openqwen2vl.formats.rejects import Unusable

ASK = {"from": "human", "value": "<image>\nWhat is it?"}
ANSWER = {"from": "gpt", "value": "A cat."}


def reason(fields, num_images=1):
    with pytest.raises(Unusable) as verdict:
        parse_turns(fields, num_images)
    return verdict.value.reason


def test_llavas_image_word_is_the_place_of_the_image():
    assert parse_turns({"conversations": [ASK, ANSWER]}, 1) == (
        Turn("user", (IMAGE, "\nWhat is it?")),
        Turn("assistant", ("A cat.",)),
    )


def test_an_image_at_the_end_of_a_question_stays_there():
    ask = {"from": "human", "value": "What is it?\n<image>"}
    turns = parse_turns({"conversations": [ask, ANSWER]}, 1)
    assert turns[0].parts == ("What is it?\n", IMAGE)


def test_chat_messages_with_typed_parts_give_the_same_turns():
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "A cat."}]
    assert parse_turns({"messages": messages}, 1) == parse_turns(
        {"conversations": [ASK, ANSWER]}, 1
    )


def test_several_images_keep_their_places():
    ask = {"from": "human", "value": "<image>\n<image>\nSame?"}
    assert parse_turns({"conversations": [ask, ANSWER]}, 2)[0].parts == (
        IMAGE,
        "\n",
        IMAGE,
        "\nSame?",
    )


@pytest.mark.parametrize("num_images", [0, 2])
def test_marks_that_are_not_as_many_as_images_are_rejected(num_images):
    assert reason({"conversations": [ASK, ANSWER]}, num_images) == "image_count"


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([ASK], "no_answer"),
        ([ASK, {"from": "gpt", "value": "  "}], "no_answer"),
        ([], "bad_conversation"),
        ("text", "bad_conversation"),
        (["text"], "bad_conversation"),
        ([{"from": "narrator", "value": "x"}], "bad_conversation"),
        ([{"from": "human", "value": 3}], "bad_conversation"),
        ([{"from": "human", "value": [{"type": "video"}]}], "bad_conversation"),
        ([ASK, ANSWER, {"from": "system", "value": "x"}], "bad_conversation"),
    ],
)
def test_a_conversation_that_cannot_be_used_says_why(turns, expected):
    assert reason({"conversations": turns}) == expected


def test_many_turns_without_an_image_are_a_conversation():
    turns = parse_turns({"conversations": [{"from": "human", "value": "Hi"}, ANSWER] * 3}, 0)
    assert [turn.role for turn in turns] == ["user", "assistant"] * 3


def test_images_of_later_turns_keep_their_turn():
    conversation = [ASK, ANSWER, {"from": "human", "value": "And <image>?"}, ANSWER]
    turns = parse_turns({"conversations": conversation}, 2)
    assert [turn.num_images for turn in turns] == [1, 0, 1, 0]
    assert turns[2].parts == ("And ", IMAGE, "?")
