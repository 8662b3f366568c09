"""RealWorldQA: photographs, with the instruction inside each question."""

from collections.abc import Sequence

from openqwen2vl.evaluation.answers import NOTHING, read_letter
from openqwen2vl.evaluation.benchmarks.benchmark import Benchmark
from openqwen2vl.evaluation.benchmarks.choices import present, verdict
from openqwen2vl.evaluation.locate import Schema
from openqwen2vl.evaluation.predictions import Answered
from openqwen2vl.evaluation.prompts import asked
from openqwen2vl.evaluation.protocols import EvaluationProtocol
from openqwen2vl.evaluation.questions import Prompt, Question, Read, Row, Summary, Verdict
from openqwen2vl.evaluation.readers import Record
from openqwen2vl.evaluation.summaries import plain_summary
from openqwen2vl.formats.errors import ShardError

_LETTERS = "ABCD"
_COLUMNS = ("A", "B")


def _question(record: Record) -> Question:
    row = record.values
    if any(present(row.get(letter)) for letter in _COLUMNS):
        raise ShardError(
            f"{record.place} has options in columns of their own, which would not be asked; give "
            "the public file, whose questions hold theirs"
        )
    answer = str(row["answer"]).strip()
    kind = "letter" if answer.upper() in tuple(_LETTERS) else "words"
    fields = {"question": str(row["question"]).strip(), "answer": answer, "category": kind}
    name = str(record.number)
    return Question("realworldqa", name, name, record.pictures, fields)


def _ask(question: Question, protocol: EvaluationProtocol) -> Prompt:
    return asked(question, question.fields["question"], protocol)


def _judge(prediction: Answered, protocol: EvaluationProtocol) -> Verdict:
    answer = prediction.fields["answer"]
    if prediction.fields["category"] == "letter":
        return verdict(read_letter(prediction.output, _LETTERS), answer.upper())
    said = prediction.output.lower().strip().rstrip(".")
    return verdict(Read(said, "words") if said else NOTHING, answer.lower())


def _summarise(rows: Sequence[Row], protocol: EvaluationProtocol) -> Summary:
    return plain_summary(rows, ("category",))


REALWORLDQA = Benchmark(
    name="realworldqa",
    title="RealWorldQA",
    schema=Schema(
        data="realworldqa",
        columns=("question", "answer"),
        optional=_COLUMNS,
        splits=("test",),
        counts=(765,),
        hub="lmms-lab-encoder/RealWorldQA",
    ),
    question=_question,
    ask=_ask,
    judge=_judge,
    summarise=_summarise,
    headline={"standard": "accuracy"},
    protocols=("standard",),
)
