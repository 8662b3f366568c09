"""Mantis-Eval: questions over several pictures."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from openqwen2vl.evaluation.answers import NOTHING
from openqwen2vl.evaluation.benchmarks.benchmark import Benchmark
from openqwen2vl.evaluation.benchmarks.choices import RIGHT, WRONG, as_list, held, verdict
from openqwen2vl.evaluation.locate import Schema
from openqwen2vl.evaluation.predictions import Answered
from openqwen2vl.evaluation.prompts import BY_LETTER, IN_A_WORD, asked, placed
from openqwen2vl.evaluation.protocols import EvaluationProtocol
from openqwen2vl.evaluation.questions import Prompt, Question, Read, Row, Summary, Verdict
from openqwen2vl.evaluation.readers import Record
from openqwen2vl.evaluation.summaries import plain_summary
from openqwen2vl.formats.documents import IMAGE, Part
from openqwen2vl.formats.errors import ShardError

_MARK = "<image>"
_TOKENS = 64
_SAID = ("final answer:", "the answer is", "answer:")
_BRACKETED = re.compile(r"\(([A-E])\)")


def _question(record: Record) -> Question:
    row = record.values
    kind = str(row["question_type"])
    options = [str(option) for option in as_list(row["options"], record.place)]
    answer = str(row["answer"]).strip("()\n ")
    if kind == "multi-choice":
        answer = next((letter for letter in answer if letter.isalpha()), "").upper()
        if not answer:
            raise ShardError(f"{record.place}: the answer is {row['answer']!r}; expected a letter")
    fields = {
        "question": str(row["question"]),
        "shown": options,
        "answer": answer,
        "question_type": kind,
        "category": str(row.get("category") or "none"),
    }
    name = str(row["id"])
    return Question("mantis", name, name, record.pictures, fields)


def _ask(question: Question, protocol: EvaluationProtocol) -> Prompt:
    fields = question.fields
    chosen = fields["question_type"] == "multi-choice"
    shown = fields["question"]
    if not protocol.chat:
        lines = "".join("\n" + _BRACKETED.sub(r"\1.", option) for option in fields["shown"])
        text = f"{shown}{lines}\n{BY_LETTER}" if chosen else f"{shown}\n{IN_A_WORD}"
        return _place(question, f"{text}\nAnswer:", protocol)
    if chosen:
        # The options come as Python prints a list of them: that is how the task file has it.
        return _place(question, f"{shown}\n{BY_LETTER}{fields['shown']}", protocol)
    text = (
        f"Given the images, answer the following short answer vqa question:\nQ: {shown}\n"
        'You can first give your analysis, and then give your final answer as "Final Answer:"'
    )
    return _place(question, text, protocol)


def _place(question: Question, text: str, protocol: EvaluationProtocol) -> Prompt:
    """Put the pictures at their marks; where these are not as many, in front."""
    pieces = text.split(_MARK)
    if len(pieces) - 1 != len(question.images):
        return asked(question, text.replace(_MARK, ""), protocol, _TOKENS)
    parts: list[Part] = [pieces[0]] if pieces[0] else []
    for piece in pieces[1:]:
        parts += [IMAGE, piece] if piece else [IMAGE]
    return placed(parts, question.images, protocol, _TOKENS)


def _judge(prediction: Answered, protocol: EvaluationProtocol) -> Verdict:
    if protocol.substring:
        return held(prediction, ignore_case=False)
    fields = prediction.fields
    raw = prediction.output.strip()
    said = _after_phrase(raw)
    if not said:
        return Verdict(WRONG, NOTHING)
    if fields["question_type"] != "multi-choice":
        return verdict(Read(said.lower(), "words"), fields["answer"].lower())
    first = next((letter for letter in said if letter.isalpha()), "").upper()
    if first and ord(first[0]) - ord("A") < len(fields["shown"]):
        return verdict(Read(first, "first letter"), fields["answer"])
    right = raw == _text_of(fields)
    return (
        Verdict(RIGHT, Read(fields["answer"], "option text")) if right else Verdict(WRONG, NOTHING)
    )


def _after_phrase(raw: str) -> str:
    """Give what follows the words that announce an answer, else the whole output."""
    lower = raw.lower()
    for phrase in _SAID:
        place = lower.find(phrase)
        if place >= 0:
            return raw[place + len(phrase) :].strip()
    return raw


def _text_of(fields: Mapping[str, Any]) -> str | None:
    """Give the right option without its letter, or None when the file has no such option."""
    letter, shown = fields["answer"], fields["shown"]
    number = ord(letter) - ord("A")
    if number >= len(shown):
        return None
    option: str = shown[number]
    for mark in (f"{letter}.", f"{letter}:", f"({letter})"):
        if option.startswith(mark):
            return option[len(mark) :].strip()
    return option.strip()


def _summarise(rows: Sequence[Row], protocol: EvaluationProtocol) -> Summary:
    return plain_summary(rows, ("question_type", "category"))


MANTIS = Benchmark(
    name="mantis",
    title="Mantis-Eval",
    schema=Schema(
        data="mantis",
        columns=("id", "question_type", "question", "options", "answer"),
        optional=("category",),
        images=("images",),
        splits=("test",),
        counts=(217,),
        hub="TIGER-Lab/Mantis-Eval",
    ),
    question=_question,
    ask=_ask,
    judge=_judge,
    summarise=_summarise,
    headline={"standard": "accuracy", "oqvl-paper": "accuracy"},
)
