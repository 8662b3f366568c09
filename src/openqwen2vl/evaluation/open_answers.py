"""Answers that are numbers or a few words: found in an output, and compared with the known one."""

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

from openqwen2vl.evaluation.answers import NOTHING, read_letter
from openqwen2vl.evaluation.questions import Read

Value = str | float

_TELLING = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = frozenset(":,.!?;'")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)
_NUMBER = re.compile(r"(?:(?<![\d)])-)?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d*\.?\d+)")
_LIST = re.compile(r"\[[^\[\]]*\]")
_BRACKETED = re.compile(r"\(([a-zA-Z])\)")
_ANSWER_IS = "answer is"


def candidates(text: str) -> list[Value]:
    """Give the texts and numbers that an output may mean as its answer [MMMU's own parser].

    Of each line what follows the last telling word ("is", "so", in the last line also "="), the
    shortest of these; the whole output when no line has one; and every number in what was found.
    """
    whole = text.strip().strip(".").lower()
    lines = whole.split("\n")
    kept = []
    for number, line in enumerate(lines, 1):
        telling = (*_TELLING, "=") if number == len(lines) else _TELLING
        tails = [line.split(word)[-1].strip() for word in telling if word in line]
        if tails:
            # An empty tail is replaced by whatever comes next, as in the parser followed here.
            shortest = ""
            for tail in tails:
                if not shortest or len(tail) < len(shortest):
                    shortest = tail
            if shortest and shortest not in _TRIVIAL:
                kept.append(shortest)
    kept = kept or [whole]
    numbers = [found for part in kept for form in _NUMBERS for found in form.findall(part)]
    return list(dict.fromkeys(value for part in (*kept, *numbers) for value in _comparable(part)))


def matches(found: Sequence[Value], answers: str | Sequence[str]) -> bool:
    """Whether a candidate is an answer: an equal number to two decimals, or a text that holds it.

    Args:
        found: from ``candidates``.
        answers: the known one, or several of which any counts.
    """
    several = [answers] if isinstance(answers, str) else answers
    known = [value for answer in several for value in _comparable(answer)]
    texts = [value for value in known if isinstance(value, str)]
    for value in found:
        if isinstance(value, str):
            if any(text in value for text in texts):
                return True
        elif value in known:
            return True
    return False


def _comparable(text: str) -> list[Value]:
    """A number rounded to two decimals, or the text in lower case; a lone letter needs a space."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def listed(answer: str) -> str | list[str]:
    """Give the answers of a text that is a Python list of several, else the text."""
    if answer.startswith("[") and answer.endswith("]"):
        try:
            return [str(item) for item in ast.literal_eval(answer)]
        except (ValueError, SyntaxError):
            return answer
    return answer


def read_math(text: str, fields: Mapping[str, Any]) -> Read:
    """Read a MathVista answer by rules, which stand in for the judge that its own scripts ask.

    A choice is read as its own text, a letter, or the option nearest by edits; a number as the
    whole output, else the first after "answer is", else the last; a list as the first in brackets.

    Args:
        text: the output.
        fields: ``question_type``, ``answer_type``, ``choices``, ``precision``.

    Returns:
        The answer in the form of the known one: an option's text, a number with the decimals that
        are asked for, a list.
    """
    text = text.strip()
    if not text:
        return NOTHING
    if fields["question_type"] == "multi_choice":
        return _choice(text, fields["choices"])
    kind = fields["answer_type"]
    if kind == "list":
        found = _LIST.search(text)
        return Read(str(spelt(found.group())) if found else text, "list")
    if kind not in ("integer", "float"):
        return Read(text, "text")
    number, how = _number(text)
    if number is None:
        return NOTHING
    if kind == "integer":
        return Read(str(int(number)), how)
    return Read(str(round(number, int(fields["precision"] or 0))), how)


def spelt(text: str) -> Any:
    """Give the list, dictionary or number that a text spells in Python, else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        # A set of dictionaries is a TypeError, many brackets are the last two.
        return text


def _choice(text: str, choices: Sequence[str]) -> Read:
    if text in choices:
        return Read(text, "option text")
    letters = [chr(ord("A") + number) for number in range(len(choices))]
    bracketed = _BRACKETED.search(text)
    if bracketed and bracketed.group(1).upper() in letters:
        return Read(choices[letters.index(bracketed.group(1).upper())], "(X)")
    letter = read_letter(text, letters)
    if letter.value is not None:
        return Read(choices[letters.index(letter.value)], letter.how)
    return Read(min(choices, key=lambda choice: edits(text, choice)), "nearest option")


def _number(text: str) -> tuple[float | None, str]:
    try:
        whole = float(text)
    except ValueError:
        whole = float("nan")
    if abs(whole) < float("inf"):
        return whole, "number"
    after = text.lower().rfind(_ANSWER_IS)
    found = _NUMBER.findall(text, after + len(_ANSWER_IS)) if after >= 0 else []
    if found:
        return float(found[0].replace(",", "")), "answer is"
    found = _NUMBER.findall(text)
    return (float(found[-1].replace(",", "")), "last number") if found else (None, "")


def edits(one: str, other: str) -> int:
    """Count the fewest insertions, deletions and replacements that turn one text into the other."""
    row = list(range(len(other) + 1))
    for number, letter in enumerate(one, 1):
        before, row[0] = row[0], number
        for place, against in enumerate(other, 1):
            here = min(row[place] + 1, row[place - 1] + 1, before + (letter != against))
            before, row[place] = row[place], here
    return row[-1]
