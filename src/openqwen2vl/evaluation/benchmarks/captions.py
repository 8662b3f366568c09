"""COCO captions, scored by CIDEr over the whole set."""

import contextlib
import importlib.util
import io
import shutil
from collections.abc import Sequence

from openqwen2vl.evaluation.answers import NOTHING
from openqwen2vl.evaluation.benchmarks.benchmark import Benchmark
from openqwen2vl.evaluation.benchmarks.choices import as_list
from openqwen2vl.evaluation.locate import Schema
from openqwen2vl.evaluation.predictions import Answered
from openqwen2vl.evaluation.prompts import asked
from openqwen2vl.evaluation.protocols import EvaluationProtocol
from openqwen2vl.evaluation.questions import Prompt, Question, Read, Row, Summary, Verdict
from openqwen2vl.evaluation.readers import Record
from openqwen2vl.evaluation.summaries import counted, percent
from openqwen2vl.formats.errors import ConfigError

_TOKENS = 64
_HIGHEST = 10.0  # CIDEr of a caption lies between 0 and 10


def _question(record: Record) -> Question:
    row = record.values
    given = [str(caption) for caption in as_list(row["answer"], record.place)]
    name = str(row["question_id"])
    return Question("coco_captions", name, name, record.pictures, {"answers": given})


def _ask(question: Question, protocol: EvaluationProtocol) -> Prompt:
    return asked(
        question, "Provide a one-sentence caption for the provided image.", protocol, _TOKENS
    )


def _needs() -> None:
    if importlib.util.find_spec("pycocoevalcap") is None:
        raise ConfigError("CIDEr needs pycocoevalcap: pip install pycocoevalcap")
    if shutil.which("java") is None:
        raise ConfigError("CIDEr's tokenizer runs on Java; install a Java runtime")


def _judge(prediction: Answered, protocol: EvaluationProtocol) -> Verdict:
    return _judge_all([prediction], protocol)[0]


def _judge_all(predictions: Sequence[Answered], protocol: EvaluationProtocol) -> list[Verdict]:
    """Score captions against those of people; how rare a word is, all references together tell.

    Raises:
        ConfigError: pycocoevalcap, or the Java that its tokenizer runs on, is missing.
    """
    _needs()
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    said = [" ".join(prediction.output.split()) for prediction in predictions]
    people = {n: [{"caption": c} for c in p.fields["answers"]] for n, p in enumerate(predictions)}
    model = {number: [{"caption": text}] for number, text in enumerate(said)}
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints how fast it was
            tokenizer = PTBTokenizer()
            _, scores = Cider().compute_score(tokenizer.tokenize(people), tokenizer.tokenize(model))
    except OSError as error:
        raise ConfigError(
            f"CIDEr's tokenizer could not run ({error}); it needs Java and to write beside itself"
        ) from error
    return [
        Verdict(min(1.0, float(score) / _HIGHEST), Read(text, "caption") if text else NOTHING)
        for text, score in zip(said, scores, strict=True)
    ]


def _summarise(rows: Sequence[Row], protocol: EvaluationProtocol) -> Summary:
    """CIDEr in the usual hundredths: the mean of the captions', times 100."""
    return Summary({"cider": _HIGHEST * percent(r.verdict.correct for r in rows)}, counted(rows))


COCO_CAPTIONS = Benchmark(
    name="coco_captions",
    title="COCO captions",
    schema=Schema(
        data="coco_captions",
        columns=("question_id", "answer"),
        splits=("val", "test", "validation"),
        counts=(40504, 5000),
        hub="lmms-lab-encoder/COCO-Caption",
    ),
    question=_question,
    ask=_ask,
    judge=_judge,
    summarise=_summarise,
    headline={"standard": "cider"},
    protocols=("standard",),
    judge_all=_judge_all,
    needs=_needs,
)
