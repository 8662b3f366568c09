"""TextVQA, VQAv2, OK-VQA, VizWiz and GQA: a word or two, compared with what people said."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from openqwen2vl.evaluation.answers import NOTHING, plain
from openqwen2vl.evaluation.benchmarks.benchmark import Benchmark
from openqwen2vl.evaluation.benchmarks.choices import as_list, present, verdict
from openqwen2vl.evaluation.locate import Schema
from openqwen2vl.evaluation.predictions import Answered
from openqwen2vl.evaluation.prompts import (
    FEW_TOKENS,
    IN_A_WORD,
    MOST_TOKENS,
    asked,
    continued,
    short_question,
)
from openqwen2vl.evaluation.protocols import EvaluationProtocol
from openqwen2vl.evaluation.questions import (
    CHUNK_END,
    Prompt,
    Question,
    Read,
    Row,
    Summary,
    Verdict,
)
from openqwen2vl.evaluation.readers import Record
from openqwen2vl.evaluation.summaries import plain_summary
from openqwen2vl.evaluation.vqa import normalised, normalised_vqav2, soft_accuracy

_UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
_OCR = "\nReference OCR token: "
_CUT = str.maketrans("", "", "\n.,")  # what the paper's harness takes out of an output
SHOTS = 8


def _answers(value: Any, place: str) -> list[str]:
    """Give people's answers, each a text or VQAv2's ``{"answer": text, ...}``."""
    listed = as_list(value, place)
    return [str(one["answer"] if isinstance(one, Mapping) else one) for one in listed]


def _question(record: Record, data: str, id_column: str = "question_id") -> Question:
    row = record.values
    given = _answers(row["answers"], record.place)
    common = Counter(given).most_common(1)
    fields: dict[str, Any] = {
        "question": str(row["question"]),
        "answers": given,
        "answer": common[0][0] if common else "",
    }
    if present(row.get("category")):
        fields["category"] = str(row["category"])
    if "ocr_tokens" in row:
        tokens = as_list(row["ocr_tokens"], record.place)
        fields["ocr_tokens"] = [str(token) for token in tokens]
    name = str(row[id_column])
    return Question(data, name, name, record.pictures, fields)


def _asking(
    last: str = IN_A_WORD, capitalised: bool = False, ocr: bool = False, most: int = MOST_TOKENS
) -> Callable[[Question, EvaluationProtocol], Prompt]:
    def ask(question: Question, protocol: EvaluationProtocol) -> Prompt:
        text: str = question.fields["question"]
        tokens = _OCR + ", ".join(question.fields["ocr_tokens"]) if ocr else ""
        if not protocol.chat:
            shown = replace(question, fields={**question.fields, "question": text + tokens})
            return asked(question, short_question(shown), protocol)
        text = text.capitalize() if capitalised else text
        return asked(question, f"{text}{tokens}\n{last}", protocol, most)

    return ask


def _judging(
    normal: Callable[[str], str],
) -> Callable[[Answered, EvaluationProtocol], Verdict]:
    def judge(prediction: Answered, protocol: EvaluationProtocol) -> Verdict:
        text = _said(prediction.output, protocol)
        if not text:
            return Verdict(0.0, NOTHING)
        answer = normal(text)
        given = [normal(one) for one in prediction.fields["answers"]]
        return Verdict(soft_accuracy(answer, given), Read(answer, "normalised"))

    return judge


def _said(output: str, protocol: EvaluationProtocol) -> str:
    if protocol.substring:
        output = output.split(CHUNK_END)[0].translate(_CUT).lower()
    return output.strip()


def _judge_exact(prediction: Answered, protocol: EvaluationProtocol) -> Verdict:
    said = _said(prediction.output, protocol)
    read = Read(plain(said), "words") if said else NOTHING
    return verdict(read, plain(prediction.fields["answer"]))


def _summarise(rows: Sequence[Row], protocol: EvaluationProtocol) -> Summary:
    return plain_summary(rows, ("category",))


def _ask_few_shot(question: Question, protocol: EvaluationProtocol) -> Prompt:
    return continued(question, protocol)


def few_shot(benchmark: Benchmark, shots: int) -> Benchmark:
    """Give the benchmark as a base model is asked it, after ``shots`` solved questions."""
    return replace(
        benchmark,
        name=f"{benchmark.name}_{shots}shot",
        title=f"{benchmark.title}, {shots}-shot",
        ask=_ask_few_shot,
        shots=shots,
    )


def _gqa_question(record: Record) -> Question:
    row = record.values
    fields = {"question": str(row["question"]), "answer": str(row["answer"])}
    name = str(row["id"])
    return Question("gqa", name, name, record.pictures, fields)


def _people(
    name: str,
    title: str,
    hub: str,
    counts: tuple[int, ...],
    splits: tuple[str, ...],
    ask: Callable[[Question, EvaluationProtocol], Prompt],
    normal: Callable[[str], str] = normalised,
    optional: tuple[str, ...] = (),
    train: str | None = None,
) -> Benchmark:
    """Make a benchmark whose answers were given by several people."""
    return Benchmark(
        name=name,
        title=title,
        schema=Schema(
            data=name,
            columns=("question_id", "question", "answers"),
            optional=optional,
            splits=splits,
            counts=counts,
            hub=hub,
            train=train,
        ),
        question=lambda record: _question(record, name),
        ask=ask,
        judge=_judging(normal),
        summarise=_summarise,
        headline={"standard": "accuracy", "oqvl-paper": "accuracy"},
    )


_VALIDATION = ("validation", "val")
TEXTVQA = _people(
    "textvqa",
    "TextVQA val",
    "lmms-lab-encoder/textvqa",
    (5000,),
    _VALIDATION,
    _asking(capitalised=True),
)
TEXTVQA_OCR = replace(
    TEXTVQA,
    name="textvqa_ocr",
    title="TextVQA val, with OCR tokens",
    schema=replace(TEXTVQA.schema, columns=(*TEXTVQA.schema.columns, "ocr_tokens")),
    ask=_asking(capitalised=True, ocr=True),
)
VQAV2 = _people(
    "vqav2",
    "VQAv2 val",
    "lmms-lab-encoder/VQAv2",
    (214354,),
    _VALIDATION,
    _asking(most=FEW_TOKENS),
    normalised_vqav2,
    train="visualqa.org's v2 files",
)
OKVQA = _people(
    "okvqa",
    "OK-VQA val",
    "lmms-lab-encoder/OK-VQA",
    (5046,),
    ("val2014", *_VALIDATION),
    _asking(f"{_UNANSWERABLE}\n{IN_A_WORD}"),
    train="okvqa.allenai.org's files",
)
VIZWIZ = _people(
    "vizwiz",
    "VizWiz val",
    "lmms-lab-encoder/VizWiz-VQA",
    (4319,),
    ("val", "validation"),
    _asking(f"{_UNANSWERABLE}\n{IN_A_WORD}", capitalised=True),
    optional=("category",),
    train="vizwiz.org's files",
)
GQA = Benchmark(
    name="gqa",
    title="GQA testdev-balanced",
    schema=Schema(
        data="gqa",
        columns=("id", "question", "answer"),
        splits=("testdev",),
        folders=("testdev_balanced_instructions", "train_balanced_instructions"),
        picture_id="imageId",
        counts=(12578,),
        hub="lmms-lab-encoder/GQA",
    ),
    question=_gqa_question,
    ask=_asking(most=FEW_TOKENS),
    judge=_judge_exact,
    summarise=_summarise,
    headline={"standard": "accuracy", "oqvl-paper": "accuracy"},
)
