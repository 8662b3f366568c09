"""SEED-Bench, the questions about one image."""

from collections.abc import Sequence

from openqwen2vl.evaluation.answers import read_first_character
from openqwen2vl.evaluation.benchmarks.benchmark import Benchmark
from openqwen2vl.evaluation.benchmarks.choices import held, options_of, right_letter, verdict
from openqwen2vl.evaluation.locate import Schema
from openqwen2vl.evaluation.predictions import Answered
from openqwen2vl.evaluation.prompts import BY_LETTER, asked, lettered
from openqwen2vl.evaluation.protocols import EvaluationProtocol
from openqwen2vl.evaluation.questions import Prompt, Question, Row, Summary, Verdict
from openqwen2vl.evaluation.readers import Record
from openqwen2vl.evaluation.summaries import plain_summary


def _question(record: Record) -> Question | None:
    row = record.values
    if str(row.get("data_type") or "image") != "image":
        return None
    options = options_of([row[f"choice_{letter}"] for letter in "abcd"])
    fields = {
        "question": str(row["question"]),
        "options": options,
        "answer": right_letter(row["answer"], options, record.place),
        "category": str(row.get("question_type_id") or ""),
    }
    name = str(row["question_id"])
    return Question("seedbench", name, name, record.pictures[:1], fields)


def _ask(question: Question, protocol: EvaluationProtocol) -> Prompt:
    shown = lettered(question.fields["options"])
    text = f"{question.fields['question']}\n{shown}\n{BY_LETTER}"
    return asked(question, text if protocol.chat else f"{text}\nAnswer:", protocol)


def _judge(prediction: Answered, protocol: EvaluationProtocol) -> Verdict:
    if protocol.substring:
        return held(prediction, ignore_case=True)
    read = read_first_character(prediction.output, prediction.fields["options"])
    return verdict(read, prediction.fields["answer"])


def _summarise(rows: Sequence[Row], protocol: EvaluationProtocol) -> Summary:
    return plain_summary(rows, ("category",))


SEEDBENCH = Benchmark(
    name="seedbench",
    title="SEED-Bench image",
    schema=Schema(
        data="seedbench",
        columns=(
            "question_id|index",
            "question",
            "answer",
            *(f"choice_{letter}|{letter.upper()}" for letter in "abcd"),
        ),
        optional=("data_type", "question_type_id"),
        splits=("test",),
        counts=(14233,),
        hub="lmms-lab-encoder/SEED-Bench",
    ),
    question=_question,
    ask=_ask,
    judge=_judge,
    summarise=_summarise,
    headline={"standard": "accuracy", "oqvl-paper": "accuracy"},
)
