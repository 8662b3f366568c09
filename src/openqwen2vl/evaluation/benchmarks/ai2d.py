"""AI2D: questions about school diagrams, answered by letter or judged by likelihood.

The public test file has the labels in its pictures replaced by letters ("masked"); a file without
that is another benchmark, which no column tells. Options come as a list with the right one's number,
or in columns with its letter, as in VLMEvalKit's files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from openqwen2vl.evaluation.answers import read_leading_letter
from openqwen2vl.evaluation.benchmarks.benchmark import Benchmark
from openqwen2vl.evaluation.benchmarks.choices import (
    COLUMNS,
    as_list,
    column_options,
    likeliest,
    options_of,
    right_letter,
    verdict,
)
from openqwen2vl.evaluation.locate import Schema
from openqwen2vl.evaluation.predictions import Answered
from openqwen2vl.evaluation.prompts import BY_LETTER, asked, lettered
from openqwen2vl.evaluation.protocols import EvaluationProtocol
from openqwen2vl.evaluation.questions import Prompt, Question, Row, Summary, Verdict
from openqwen2vl.evaluation.readers import Record
from openqwen2vl.evaluation.summaries import plain_summary
from openqwen2vl.formats.errors import ShardError


def _question(record: Record) -> Question:
    row = record.values
    if "A" in row:
        options = column_options(row)
        answer = right_letter(row["answer"], options, record.place)
    else:
        options = options_of(as_list(row["options"], record.place))
        answer = _numbered(row["answer"], options, record.place)
    fields = {"question": str(row["question"]), "options": options, "answer": answer}
    name = str(row.get("index", record.number))
    return Question("ai2d", name, name, record.pictures, fields)


def _numbered(value: Any, options: Mapping[str, str], place: str) -> str:
    """Give the letter of the option whose number, from 0 on, is the known answer."""
    number, letters = str(value).strip(), list(options)
    if not number.isdigit() or int(number) >= len(letters):
        raise ShardError(
            f"{place}: the answer is {number!r}; expected the number of one of "
            f"{len(letters)} options, from 0 on"
        )
    return letters[int(number)]


def _ask(question: Question, protocol: EvaluationProtocol) -> Prompt:
    shown = lettered(question.fields["options"])
    text = f"{question.fields['question']}\n{shown}\n{BY_LETTER}"
    if protocol.chat:
        return asked(question, text, protocol)
    raw = asked(question, f"{text}\nAnswer:", protocol)
    options = tuple(question.fields["options"])
    return replace(raw, mode="likelihood", options=options, first_token=True)


def _ask_likelihood(question: Question, protocol: EvaluationProtocol) -> Prompt:
    options = tuple(question.fields["options"])
    return replace(_ask(question, protocol), mode="likelihood", options=options)


def _judge(prediction: Answered, protocol: EvaluationProtocol) -> Verdict:
    if not protocol.chat:
        return likeliest(prediction)
    read = read_leading_letter(prediction.output, prediction.fields["options"])
    return verdict(read, prediction.fields["answer"])


def _judge_likelihood(prediction: Answered, protocol: EvaluationProtocol) -> Verdict:
    return likeliest(prediction)


def _summarise(rows: Sequence[Row], protocol: EvaluationProtocol) -> Summary:
    return plain_summary(rows)


AI2D = Benchmark(
    name="ai2d",
    title="AI2D test",
    schema=Schema(
        data="ai2d",
        columns=("question", "options|A", "answer"),
        optional=("index", *COLUMNS),
        splits=("test",),
        counts=(3088,),
        hub="lmms-lab-encoder/ai2d",
    ),
    question=_question,
    ask=_ask,
    judge=_judge,
    summarise=_summarise,
    headline={"standard": "accuracy", "oqvl-paper": "accuracy"},
)

AI2D_LIKELIHOOD = replace(
    AI2D,
    name="ai2d_likelihood",
    title="AI2D test, by likelihood",
    ask=_ask_likelihood,
    judge=_judge_likelihood,
    protocols=("standard",),
)
