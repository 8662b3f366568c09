"""RealWorldQA: photographs, with the instruction inside each question."""

from collections.abc import Sequence

from openqwen2vl.evaluation.answers import NOTHING, read_letter
from openqwen2vl.evaluation.benchmarks.benchmark import Benchmark
from openqwen2vl.evaluation.benchmarks.choices import verdict
from openqwen2vl.evaluation.locate import Schema
from openqwen2vl.evaluation.predictions import Answered
from openqwen2vl.evaluation.prompts import asked
from openqwen2vl.evaluation.protocols import EvaluationProtocol
from openqwen2vl.evaluation.questions import Prompt, Question, Read, Row, Summary, Verdict
from openqwen2vl.evaluation.readers import Record
from openqwen2vl.evaluation.summaries import plain_summary

_LETTERS = "ABCD"


def _question(record: Record) -> Question:
    row = record.values
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
