"""MMMU val: college questions of thirty subjects, some with several pictures, some without options."""

import re
from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

from openqwen2vl.evaluation.answers import NOTHING, read_candidates
from openqwen2vl.evaluation.benchmarks.benchmark import Benchmark
from openqwen2vl.evaluation.benchmarks.choices import as_list, options_of, right_letter, verdict
from openqwen2vl.evaluation.locate import Schema
from openqwen2vl.evaluation.open_answers import candidates, listed, matches
from openqwen2vl.evaluation.predictions import Answered
from openqwen2vl.evaluation.prompts import BY_LETTER, IN_A_WORD, MOST_TOKENS, lettered, placed
from openqwen2vl.evaluation.protocols import EvaluationProtocol
from openqwen2vl.evaluation.questions import (
    Fields,
    ImageSource,
    Prompt,
    Question,
    Read,
    Row,
    Summary,
    Verdict,
)
from openqwen2vl.evaluation.readers import Record
from openqwen2vl.evaluation.summaries import plain_summary
from openqwen2vl.formats.documents import IMAGE, Part
from openqwen2vl.formats.errors import ShardError

_MARK = re.compile(r"<image (\d+)>")
_SUBJECT = re.compile(r"[^_]+_(.+)_\d+")
_DOMAINS = {
    "Art and Design": "Art Art_Theory Design Music",
    "Business": "Accounting Economics Finance Manage Marketing",
    "Science": "Biology Chemistry Geography Math Physics",
    "Health and Medicine": (
        "Basic_Medical_Science Clinical_Medicine Diagnostics_and_Laboratory_Medicine Pharmacy "
        "Public_Health"
    ),
    "Humanities and Social Science": "History Literature Sociology Psychology",
    "Tech and Engineering": (
        "Agriculture Architecture_and_Engineering Computer_Science Electronics Energy_and_Power "
        "Materials Mechanical_Engineering"
    ),
}
_DOMAIN_OF = {
    subject: domain for domain, subjects in _DOMAINS.items() for subject in subjects.split()
}


def _question(record: Record) -> Question:
    row = record.values
    name = str(row["id"])
    chosen = row["question_type"] == "multiple-choice"
    options = options_of(as_list(row["options"], record.place)) if chosen else {}
    subject = _SUBJECT.fullmatch(name)
    category = subject.group(1) if subject else "none"
    fields: dict[str, Any] = {
        "question": str(row["question"]),
        "options": options,
        "answer": str(row["answer"]),
        "category": category,
        "domain": _DOMAIN_OF.get(category, "none"),
        "subfield": str(row.get("subfield") or category),
        "question_type": str(row["question_type"]),
    }
    if chosen:
        fields["answer"] = right_letter(row["answer"], options, record.place)
    text = "\n".join([fields["question"], *options.values()])
    fields["pictures"] = sorted({int(number) for number in _MARK.findall(text)} or {1})
    return Question("mmmu", name, name, _pictures(record, fields["pictures"]), fields)


def _pictures(record: Record, numbers: Sequence[int]) -> tuple[ImageSource, ...]:
    found: list[ImageSource] = []
    for number in numbers:
        images = record.images.get(f"image_{number}", ())
        if not images:
            raise ShardError(
                f"{record.place} names <image {number}> and has no picture in image_{number}"
            )
        found.append(images[0])
    return tuple(found)


def _ask(question: Question, protocol: EvaluationProtocol) -> Prompt:
    fields = question.fields
    how = BY_LETTER if fields["options"] else IN_A_WORD
    shown = [fields["question"], *([lettered(fields["options"])] if fields["options"] else [])]
    if protocol.chat:
        return _place(question, "\n".join(shown) + f"\n\n{how}", protocol)
    head = f"The following are multiple choice questions about {fields['subfield']}.\n\n"
    return _place(question, head + "\n".join(shown) + f"\n{how}\nAnswer:", protocol)


def _place(question: Question, text: str, protocol: EvaluationProtocol) -> Prompt:
    """Put each picture where the text names it, every time it does.

    The paper's harness takes the pictures in the order of their numbers instead, and starts again
    when there are more places.
    """
    numbers = question.fields["pictures"]
    by_number = dict(zip(numbers, question.images, strict=True))
    pieces = _MARK.split(text)
    texts, named = pieces[::2], [int(number) for number in pieces[1::2]]
    if not named:
        texts, named = ["", text], numbers[:1]
    images = [by_number[number] for number in named]
    if not protocol.chat:
        images = list(islice(cycle(question.images), len(named)))
    parts: list[Part] = []
    for number, piece in enumerate(texts):
        if number:
            parts.append(IMAGE)
        kept = piece.strip() if protocol.chat else piece
        if number and (kept or not protocol.chat):
            kept = "\n" + kept
        if kept:
            parts.append(kept)
    return placed(parts, images, protocol, MOST_TOKENS)


def _judge(prediction: Answered, protocol: EvaluationProtocol) -> Verdict:
    fields, text = prediction.fields, prediction.output.strip()
    if fields["options"]:
        return verdict(read_candidates(text, fields["options"]), fields["answer"])
    return judge_open(text, fields)


def judge_open(text: str, fields: Fields) -> Verdict:
    """Judge words or a number: right when any of the things it may mean is a known answer."""
    if not text:
        return Verdict(0.0, NOTHING)
    found = candidates(text)
    right = matches(found, listed(fields["answer"]))
    return Verdict(float(right), Read(str(found[0]), "words or number"))


def _summarise(rows: Sequence[Row], protocol: EvaluationProtocol) -> Summary:
    return plain_summary(rows, ("domain", "category", "question_type"))


MMMU = Benchmark(
    name="mmmu",
    title="MMMU val",
    schema=Schema(
        data="mmmu",
        columns=("id", "question", "options", "answer", "question_type"),
        optional=("subfield",),
        images=tuple(f"image_{number}" for number in range(1, 8)),
        splits=("validation", "val"),
        counts=(900,),
        hub="lmms-lab-encoder/MMMU",
    ),
    question=_question,
    ask=_ask,
    judge=_judge,
    summarise=_summarise,
    headline={"standard": "accuracy", "oqvl-paper": "accuracy"},
)
