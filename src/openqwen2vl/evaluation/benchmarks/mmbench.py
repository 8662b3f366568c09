"""MMBench dev-en: each question in as many rows as it has options, moved round by one each time."""

from collections.abc import Sequence

from openqwen2vl.evaluation.answers import read_option
from openqwen2vl.evaluation.benchmarks.benchmark import Benchmark
from openqwen2vl.evaluation.benchmarks.choices import held, present, right_letter, verdict
from openqwen2vl.evaluation.locate import Schema
from openqwen2vl.evaluation.predictions import Answered
from openqwen2vl.evaluation.prompts import BY_LETTER, MOST_TOKENS, asked, lettered
from openqwen2vl.evaluation.protocols import EvaluationProtocol
from openqwen2vl.evaluation.questions import Prompt, Question, Row, Summary, Verdict
from openqwen2vl.evaluation.readers import Record
from openqwen2vl.evaluation.summaries import accuracy, by_field, counted, grouped, percent
from openqwen2vl.formats.errors import ShardError

_LETTERS = "ABCD"
_COPY = 1_000_000  # what a copy's index is above that of the row before it


def _question(record: Record) -> Question:
    row = record.values
    try:
        index = int(row["index"])
    except (TypeError, ValueError) as error:
        raise ShardError(f"{record.place}: index is {row['index']!r}, not a number") from error
    options = {letter: str(row[letter]) for letter in _LETTERS if present(row.get(letter))}
    fields = {
        "question": str(row["question"]),
        "hint": str(row["hint"]) if present(row.get("hint")) else None,
        "options": options,
        "answer": right_letter(row["answer"], options, record.place),
        "category": str(row.get("category") or ""),
        "l2_category": str(row.get("L2-category") or row.get("l2-category") or ""),
    }
    return Question("mmbench", str(index), str(index % _COPY), record.pictures, fields)


def _ask(question: Question, protocol: EvaluationProtocol) -> Prompt:
    fields = question.fields
    if not protocol.chat:
        shown = lettered({letter: fields["options"].get(letter, "nan") for letter in _LETTERS})
        text = f"{fields['question']}\n{shown}\n{BY_LETTER}\nAnswer:"
        return asked(question, text, protocol)
    hint = f"{fields['hint']} " if fields["hint"] else ""
    shown = lettered(fields["options"])
    text = f"{hint}{fields['question']} There are several options:\n{shown}\n\n{BY_LETTER}"
    return asked(question, text, protocol, MOST_TOKENS)


def _judge(prediction: Answered, protocol: EvaluationProtocol) -> Verdict:
    if protocol.substring:
        return held(prediction, ignore_case=True)
    read = read_option(prediction.output.strip(), prediction.fields["options"])
    return verdict(read, prediction.fields["answer"])


def _summarise(rows: Sequence[Row], protocol: EvaluationProtocol) -> Summary:
    """Rows by themselves; questions all of whose copies are right; first copies alone."""
    questions = grouped(rows, lambda row: row.cluster)
    first = [min(copies, key=lambda row: int(row.id)) for copies in questions.values()]
    all_right = {
        cluster: float(all(row.verdict.correct == 1 for row in copies))
        for cluster, copies in questions.items()
    }
    metrics = {
        "circular": percent(all_right.values()),
        "row": accuracy(rows),
        "pass_0": accuracy(first),
    }
    by = {field: _by(first, all_right, field) for field in ("category", "l2_category")}
    return Summary(metrics, counted(rows), {**by, "category_rows": by_field(rows, "category")})


def _by(first: Sequence[Row], all_right: dict[str, float], field: str) -> dict[str, float]:
    groups = grouped(first, lambda row: row.fields[field] or "none")
    return {
        name: percent(all_right[row.cluster] for row in group) for name, group in groups.items()
    }


MMBENCH = Benchmark(
    name="mmbench",
    title="MMBench dev-en",
    schema=Schema(
        data="mmbench",
        columns=("index", "question", "answer", "A", "B"),
        optional=("hint", "C", "D", "category", "L2-category", "l2-category", "source", "split"),
        splits=("dev",),
        folders=("en",),
        counts=(4377, 4329),  # of July and of October 2023
        hub="lmms-lab-encoder/MMBench",
    ),
    question=_question,
    ask=_ask,
    judge=_judge,
    summarise=_summarise,
    headline={"standard": "circular", "oqvl-paper": "row"},
)
