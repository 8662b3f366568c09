"""Conversations about a picture in LLaVA's form, for instruction tuning."""

import random
import re
from collections.abc import Iterable, Sequence

from openqwen2vl.corpus.handwriting import Number
from openqwen2vl.corpus.questions import NO, YES, Question, choice_questions, yes_no_question
from openqwen2vl.corpus.scenes import Scene

LETTERS = "ABCDEFGH"
IMAGE_MARK = "<image>"
MOST_TURNS = 3
ARTICLES = frozenset({"a", "an"})
YES_NO_SHARE = 0.1
DESCRIBE_SHARE = 0.05
PLAIN_SHARE, OPTIONS_SHARE = 0.9, 0.05


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
    questions = choice_questions(picture, rng)
    if rng.random() < YES_NO_SHARE:
        questions.insert(rng.randrange(MOST_TURNS), yes_no_question(picture, rng))
    if rng.random() < DESCRIBE_SHARE:
        exchanges = [("Describe the picture.", caption)]
    else:
        exchanges = [_ask(question, rng) for question in untold(questions)[:MOST_TURNS]]
    turns: list[dict[str, str]] = []
    for number, (asked, answered) in enumerate(exchanges):
        mark = "" if number else f"{IMAGE_MARK}\n"
        turns.append({"from": "human", "value": mark + asked})
        turns.append({"from": "gpt", "value": answered})
    return turns


def untold(questions: Iterable[Question]) -> list[Question]:
    """Leave out every question that the turns before it answer, in part or in full.

    What an earlier turn tells need not be seen any more, and is then not learnt from the picture:
    a question stays if no word and no digit of its answer has occurred in those kept before it.
    """
    told: set[str] = set()
    kept = []
    for question in questions:
        answer = _words(question.answer)
        if told.isdisjoint(answer):
            kept.append(question)
            told |= answer | _words(question.text)
    return kept


def letter_prompt(question: str, options: Sequence[str]) -> str:
    """The question with its options, to be answered by a letter alone."""
    shown = (f"{mark}. {option}" for mark, option in zip(LETTERS, options, strict=False))
    lines = "\n".join(shown)
    return f"{question}\n{lines}\nAnswer with the letter."


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+|[0-9]", text.lower())) - ARTICLES


def _ask(question: Question, rng: random.Random) -> tuple[str, str]:
    """Mostly plain, yes/no always; else with the options shown, answered in words or by letter."""
    way = rng.random() if len(question.options) > len((YES, NO)) else 0.0
    if way < PLAIN_SHARE:
        return question.text, question.answer
    if way < PLAIN_SHARE + OPTIONS_SHARE:
        return f"{question.text}\nOptions: {', '.join(question.options)}", question.answer
    return letter_prompt(question.text, question.options), LETTERS[question.right]
