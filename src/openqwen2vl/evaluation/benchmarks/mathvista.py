"""MathVista testmini, read by rules where its own scripts ask another model."""

from collections.abc import Sequence
from typing import Any

from openqwen2vl.evaluation.benchmarks.benchmark import Benchmark
from openqwen2vl.evaluation.benchmarks.choices import as_list, options_of, present, verdict
from openqwen2vl.evaluation.benchmarks.mmmu import judge_open
from openqwen2vl.evaluation.locate import Schema
from openqwen2vl.evaluation.open_answers import read_math, spelt
from openqwen2vl.evaluation.predictions import Answered
from openqwen2vl.evaluation.prompts import BY_LETTER, IN_A_WORD, MOST_TOKENS, asked, lettered
from openqwen2vl.evaluation.protocols import EvaluationProtocol
from openqwen2vl.evaluation.questions import Fields, Prompt, Question, Row, Summary, Verdict
from openqwen2vl.evaluation.readers import Record
from openqwen2vl.evaluation.summaries import plain_summary

_DECIMALS = {1: "one decimal place", 2: "two decimal places"}


def _question(record: Record) -> Question:
    row = record.values
    choices = [str(choice) for choice in as_list(row["choices"], record.place)]
    answer = str(row["answer"])
    precision = row["precision"] if present(row["precision"]) else 0
    fields: dict[str, Any] = {
        "question": str(row["question"]),
        "choices": choices,
        "unit": str(row["unit"]) if present(row["unit"]) else None,
        "precision": int(float(precision)),
        "answer": answer,
        "question_type": str(row["question_type"]),
        "answer_type": str(row["answer_type"]),
    }
    told = row.get("metadata")
    if isinstance(told, str):
        told = spelt(told)
    if isinstance(told, dict):
        fields["category"] = str(told.get("task") or "none")
    name = str(row["pid"])
    return Question("mathvista", name, name, record.pictures[:1], fields)


def _ask(question: Question, protocol: EvaluationProtocol) -> Prompt:
    fields = question.fields
    shown = fields["question"]
    options = options_of(fields["choices"])
    if not protocol.chat:
        # The kind of question is looked up under the wrong name, yet its options are shown.
        rest = f"\n{lettered(options)}\n{BY_LETTER}" if options else f"\n{IN_A_WORD}"
        return asked(question, f"{shown}{rest}\nAnswer:", protocol)
    if fields["unit"]:
        shown += f" (Unit: {fields['unit']})"
    lines = [shown, *([lettered(options)] if options else []), _wanted(fields)]
    return asked(question, "\n".join(lines), protocol, MOST_TOKENS)


def _wanted(fields: Fields) -> str:
    kind = fields["answer_type"]
    if fields["question_type"] == "multi_choice":
        return BY_LETTER
    if kind == "integer":
        return "Answer the question using a single integer number."
    if kind == "list":
        return "Answer the question using a Python list."
    decimals = _DECIMALS.get(fields["precision"], f"{fields['precision']} decimal places")
    return f"Answer the question using a single floating-point number with {decimals}."


def _judge(prediction: Answered, protocol: EvaluationProtocol) -> Verdict:
    fields = prediction.fields
    if protocol.substring:
        known = fields["answer"]
        if known in fields["choices"]:
            known = chr(ord("A") + fields["choices"].index(known))
        return judge_open(prediction.output.strip(), {**fields, "answer": known})
    return verdict(read_math(prediction.output, fields), fields["answer"].strip())


def _summarise(rows: Sequence[Row], protocol: EvaluationProtocol) -> Summary:
    return plain_summary(rows, ("question_type", "answer_type", "category"))


MATHVISTA = Benchmark(
    name="mathvista",
    title="MathVista testmini, rule-based",
    schema=Schema(
        data="mathvista",
        columns=(
            "pid",
            "question",
            "choices",
            "unit",
            "precision",
            "answer",
            "question_type",
            "answer_type",
        ),
        optional=("metadata",),
        images=("decoded_image|image",),
        splits=("testmini",),
        counts=(1000,),
        hub="AI4Math/MathVista",
    ),
    question=_question,
    ask=_ask,
    judge=_judge,
    summarise=_summarise,
    headline={"standard": "accuracy", "oqvl-paper": "accuracy"},
)
