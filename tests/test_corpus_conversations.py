import random
import re

from openqwen2vl.corpus.conversations import LETTERS, conversation, letter_prompt, untold
from openqwen2vl.corpus.questions import Question
from openqwen2vl.corpus.scenes import caption, draw_scene
from openqwen2vl.formats.conversations import parse_turns


def drawn(number: int = 500):
    rng = random.Random(0)
    for _ in range(number):
        scene = draw_scene(rng, False)
        yield conversation(scene, caption(scene, rng), rng)


def test_conversations_are_what_the_packer_reads():
    for turns in drawn(50):
        parsed = parse_turns({"conversations": turns}, num_images=1)
        assert [turn.role for turn in parsed] == ["user", "assistant"] * (len(turns) // 2)
        assert parsed[0].num_images == 1


def test_the_picture_is_marked_once_at_the_beginning():
    for turns in drawn(50):
        assert [turn["value"].count("<image>") for turn in turns] == [1] + [0] * (len(turns) - 1)


def test_no_question_is_asked_twice_in_a_conversation():
    for turns in drawn():
        asked = [turn["value"].removeprefix("<image>\n") for turn in turns[::2]]
        assert len(set(asked)) == len(asked)


def test_no_turn_tells_what_a_later_one_asks():
    lengths = set()
    for turns in drawn():
        lengths.add(len(turns) // 2)
        told: set[str] = set()
        for asked, answered in zip(turns[::2], turns[1::2], strict=True):
            plain = "letter" not in asked["value"]
            answer = set(re.findall(r"[a-z]+|[0-9]", answered["value"])) - {"a", "an"}
            if plain and not asked["value"].endswith("Describe the picture."):
                assert told.isdisjoint(answer)
            told |= answer if plain else set()
            question = asked["value"].removeprefix("<image>\n").split("\n")[0]
            told |= set(re.findall(r"[a-z]+|[0-9]", question.lower()))
    assert lengths == {1, 2, 3}


def test_a_number_tells_its_digit():
    number = Question("number", "What number is written?", ("47", "12"), "47")
    digit = Question("digit", "What is the last digit?", ("7", "2"), "7")
    assert untold([number, digit]) == [number]
    assert untold([digit, number]) == [digit]


def test_every_way_to_ask_and_answer_occurs():
    asked = [
        (turns[at]["value"], turns[at + 1]["value"])
        for turns in drawn()
        for at in range(0, len(turns), 2)
    ]
    assert any("Options: " in question and answer in question for question, answer in asked)
    assert any(answer in ("yes", "no") for _, answer in asked)
    assert any(question.endswith("Describe the picture.") for question, _ in asked)
    for question, answer in asked:
        if question.endswith("letter."):
            assert f"\n{answer}. " in question


def test_the_letter_prompt_shows_an_option_a_line():
    prompt = letter_prompt("What colour?", ("red", "blue"))
    assert prompt == "What colour?\nA. red\nB. blue\nAnswer with the letter."
    assert len(LETTERS) == 8
