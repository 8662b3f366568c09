"""Conversations about a picture in LLaVA's form, for instruction tuning."""

import random
from collections.abc import Sequence

from openqwen2vl.corpus.handwriting import Number
from openqwen2vl.corpus.questions import Question, choice_questions, yes_no_question
from openqwen2vl.corpus.scenes import Scene

LETTERS = "ABCDEFGH"
IMAGE_MARK = "<image>"
NUMBERS_OF_TURNS = (1, 1, 1, 2)
YES_NO_SHARE = 0.2
DESCRIBE_SHARE = 0.05
PLAIN_SHARE, OPTIONS_SHARE = 0.8, 0.1


def conversation(picture: Scene | Number, caption: str, rng: random.Random) -> list[dict[str, str]]:
    """Some questions about one picture, each in one of the ways to ask and to answer.

    Args:
        picture: what the questions are about.
        caption: its clean caption, the answer to a request to describe it.
        rng: decides which questions and which ways.

    Returns:
        LLaVA's ``conversations``: turns ``{"from": "human" | "gpt", "value": text}``; the first
        human turn begins with the image mark.
    """
    exchanges = [_ask(question, rng) for question in choice_questions(picture, rng)]
    # Mostly one: what an earlier turn tells need not be seen any more, and is not learnt to be.
    exchanges = exchanges[: rng.choice(NUMBERS_OF_TURNS)]
    if rng.random() < YES_NO_SHARE:
        yes_no = yes_no_question(picture, rng)
        exchanges[-1] = (yes_no.text, yes_no.answer)
    if rng.random() < DESCRIBE_SHARE:
        exchanges[0] = ("Describe the picture.", caption)
    rng.shuffle(exchanges)
    turns: list[dict[str, str]] = []
    for number, (asked, answered) in enumerate(exchanges):
        mark = "" if number else f"{IMAGE_MARK}\n"
        turns.append({"from": "human", "value": mark + asked})
        turns.append({"from": "gpt", "value": answered})
    return turns


def letter_prompt(question: str, options: Sequence[str]) -> str:
    """The question with its options, to be answered by a letter alone."""
    shown = (f"{mark}. {option}" for mark, option in zip(LETTERS, options, strict=False))
    lines = "\n".join(shown)
    return f"{question}\n{lines}\nAnswer with the letter."


def _ask(question: Question, rng: random.Random) -> tuple[str, str]:
    """Mostly plain, else with the options shown and answered in words or by letter."""
    way = rng.random()
    if way < PLAIN_SHARE:
        return question.text, question.answer
    if way < PLAIN_SHARE + OPTIONS_SHARE:
        return f"{question.text}\nOptions: {', '.join(question.options)}", question.answer
    return letter_prompt(question.text, question.options), LETTERS[question.right]
