"""MMStar: questions that cannot be answered without the picture, in 18 categories of equal size.

VLMEvalKit's file has the options in columns; they are then put into the question.
"""

from collections.abc import Mapping, Sequence

from openqwen2vl.evaluation.answers import read_letter
from openqwen2vl.evaluation.benchmarks.benchmark import Benchmark
from openqwen2vl.evaluation.benchmarks.choices import (
    COLUMNS,
    column_options,
    held,
    right_letter,
    verdict,
)
from openqwen2vl.evaluation.locate import Schema
from openqwen2vl.evaluation.predictions import Answered
from openqwen2vl.evaluation.prompts import BY_LETTER, asked
from openqwen2vl.evaluation.protocols import EvaluationProtocol
from openqwen2vl.evaluation.questions import Prompt, Question, Row, Summary, Verdict
from openqwen2vl.evaluation.readers import Record
from openqwen2vl.evaluation.summaries import by_field, percent, plain_summary

_LETTERS = "ABCD"
_SHOWN = "Options: "
_YES_OR_NO = " Please answer yes or no."


def _question(record: Record) -> Question:
    row = record.values
    fields = {
        "question": _with_options(str(row["question"]), column_options(row)),
        "answer": right_letter(row["answer"], dict.fromkeys(_LETTERS, ""), record.place),
        "category": str(row["category"]),
        "l2_category": str(row["l2_category"]),
    }
    name = str(row["index"])
    return Question("mmstar", name, name, record.pictures, fields)


def _with_options(question: str, options: Mapping[str, str]) -> str:
    """Write options that stand in columns behind the question, as the public file has them."""
    if not options or _SHOWN in question:
        return question
    return f"{question}\n{_SHOWN}" + ", ".join(f"{name}: {text}" for name, text in options.items())


def _ask(question: Question, protocol: EvaluationProtocol) -> Prompt:
    """Ask; the options are part of the question."""
    if not protocol.chat:
        text = f"Question: {question.fields['question']}\n{BY_LETTER}\nAnswer:"
    else:
        shown = question.fields["question"].strip().replace(_YES_OR_NO, "")
        text = f"{shown}\n{BY_LETTER.removesuffix('.')}"
    return asked(question, text, protocol)


def _judge(prediction: Answered, protocol: EvaluationProtocol) -> Verdict:
    if protocol.substring:
        return held(prediction, ignore_case=False)
    return verdict(read_letter(prediction.output, _LETTERS), prediction.fields["answer"])


def _summarise(rows: Sequence[Row], protocol: EvaluationProtocol) -> Summary:
    """``macro`` is the mean over the finer categories, ``accuracy`` that over questions."""
    finer = by_field(rows, "l2_category")
    macro = percent(value / 100 for value in finer.values())
    return plain_summary(rows, ("category", "l2_category"), {"macro": macro})


MMSTAR = Benchmark(
    name="mmstar",
    title="MMStar",
    schema=Schema(
        data="mmstar",
        columns=("index", "question", "answer", "category", "l2_category|l2-category"),
        optional=COLUMNS,
        splits=("mmstar", "val"),
        counts=(1500,),
        hub="Lin-Chen/MMStar",
    ),
    question=_question,
    ask=_ask,
    judge=_judge,
    summarise=_summarise,
    headline={"standard": "macro", "oqvl-paper": "accuracy"},
)
