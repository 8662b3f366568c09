"""POPE: is a thing in the picture? Three ways to choose the things that are not."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torchmetrics.functional.classification import binary_stat_scores

from openqwen2vl.evaluation.answers import read_yes_no
from openqwen2vl.evaluation.benchmarks.benchmark import Benchmark
from openqwen2vl.evaluation.benchmarks.choices import verdict
from openqwen2vl.evaluation.locate import Schema
from openqwen2vl.evaluation.predictions import Answered
from openqwen2vl.evaluation.prompts import IN_A_WORD, MOST_TOKENS, asked, short_question
from openqwen2vl.evaluation.protocols import EvaluationProtocol
from openqwen2vl.evaluation.questions import Prompt, Question, Row, Summary, Verdict
from openqwen2vl.evaluation.readers import Record
from openqwen2vl.evaluation.summaries import accuracy, counted, grouped, percent
from openqwen2vl.formats.errors import ShardError

_STRIPPED = ".,"  # what the paper's harness leaves out of an answer


def _question(record: Record) -> Question:
    row = record.values
    answer = str(row["answer"]).strip().lower()
    if answer not in ("yes", "no"):
        raise ShardError(f"{record.place}: the answer is {row['answer']!r}; expected yes or no")
    part = str(row.get("category") or "all")
    question = str(row["question"]).strip()
    # The three parts ask the same of a thing that is there: these rows are copies.
    shown = row.get("image_source")
    name = f"{part}/{row['question_id']}"
    fields = {"question": question, "answer": answer, "category": part}
    return Question("pope", name, f"{shown}/{question}" if shown else name, record.pictures, fields)


def _ask(question: Question, protocol: EvaluationProtocol) -> Prompt:
    if not protocol.chat:
        return asked(question, short_question(question), protocol)
    text = f"{question.fields['question']}\n{IN_A_WORD}"
    return asked(question, text, protocol, MOST_TOKENS)


def _judge(prediction: Answered, protocol: EvaluationProtocol) -> Verdict:
    read = read_yes_no(prediction.output, _STRIPPED if protocol.substring else "")
    return verdict(read, prediction.fields["answer"])


@dataclass(frozen=True)
class _Found:
    """How well yes was told, in percent; what is neither yes nor no counts as no."""

    precision: float
    recall: float
    f1: float
    said_yes: float


def _found(rows: Sequence[Row]) -> _Found:
    if not rows:
        return _Found(0.0, 0.0, 0.0, 0.0)
    said = torch.tensor([row.verdict.read.value == "yes" for row in rows], dtype=torch.int8)
    true = torch.tensor([row.fields["answer"] == "yes" for row in rows], dtype=torch.int8)
    # Its counts, not its ratios: those are of 32 bits.
    found, wrong, _, missed, _ = binary_stat_scores(said, true, validate_args=False).tolist()
    return _Found(
        precision=_percent(found, found + wrong),
        recall=_percent(found, found + missed),
        f1=_percent(2 * found, 2 * found + wrong + missed),
        said_yes=100 * (found + wrong) / len(rows),
    )


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else 0.0


def _summarise(rows: Sequence[Row], protocol: EvaluationProtocol) -> Summary:
    parts = grouped(rows, lambda row: row.fields["category"])
    right = {part: accuracy(group) for part, group in parts.items()}
    f1 = {part: _found(group).f1 for part, group in parts.items()}
    whole = _found(rows)
    metrics = {
        "accuracy": accuracy(rows),
        "accuracy_mean": percent(value / 100 for value in right.values()),
        "f1": whole.f1,
        "f1_mean": percent(value / 100 for value in f1.values()),
        "precision": whole.precision,
        "recall": whole.recall,
        "said_yes": whole.said_yes,
    }
    return Summary(metrics, counted(rows), {"accuracy": right, "f1": f1})


POPE = Benchmark(
    name="pope",
    title="POPE",
    schema=Schema(
        data="pope",
        columns=("question_id|index", "question", "answer"),
        optional=("category", "image_source"),
        splits=("test",),
        counts=(9000, 8910),
        hub="lmms-lab-encoder/POPE",
    ),
    question=_question,
    ask=_ask,
    judge=_judge,
    summarise=_summarise,
    headline={"standard": "accuracy", "oqvl-paper": "f1_mean"},
)
