"""From predictions to scores: a pure function of what a model said and what scoring needs of it."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openqwen2vl.evaluation.benchmarks.benchmark import Benchmark, Reading
from openqwen2vl.evaluation.benchmarks.known import benchmark
from openqwen2vl.evaluation.predictions import Answered, Header, read_predictions
from openqwen2vl.evaluation.protocols import EvaluationProtocol, protocol
from openqwen2vl.evaluation.questions import Row
from openqwen2vl.evaluation.score_files import HEAD, ROWS
from openqwen2vl.formats.errors import UserError
from openqwen2vl.formats.files import atomic_file


@dataclass(frozen=True)
class Scores:
    """What a model reached on one benchmark.

    Attributes:
        head: what ``scores.json`` says: what was scored and under which protocol, ``headline``
            (the metric that stands for all), ``metrics``, ``counts`` and ``by``.
        rows: every prediction with its worth, sorted by id.
    """

    head: dict[str, Any]
    rows: list[Row]


def score_predictions(header: Header, answered: Sequence[Answered]) -> Scores:
    """Score predictions, whatever their order.

    Args:
        header: of their file.
        answered: each question once.

    Raises:
        UserError: an unknown benchmark or protocol, another version of the protocol, another
            number of predictions than the header says, or a prediction that lacks what scoring
            needs.
    """
    chosen, words = benchmark(header.benchmark), _protocol(header)
    if len(answered) != header.n:
        raise UserError(
            f"{len(answered)} predictions where the header says {header.n}; generate the rest"
        )
    rows, summary = _score(chosen, answered, words)
    failed = sum(one.error is not None for one in answered)
    head = {
        **asdict(header),
        "decoding": dict(header.decoding),
        "headline": chosen.headline[words.name],
        "metrics": summary.metrics,
        "counts": {**summary.counts, "failed": failed},
        "by": summary.by,
        "remarks": list(words.remarks),
    }
    return Scores(head, rows)


def score_file(path: Path) -> Scores:
    """Score a file of predictions, or that of a folder, and write the scores beside it.

    ``scores.json`` takes the figures and ``scored.jsonl`` one line a row. Scoring again writes the
    same bytes.

    Raises:
        UserError: as ``read_predictions`` and ``score_predictions`` raise it.
    """
    scores = score_predictions(*read_predictions(path))
    write_scores(path if path.is_dir() else path.parent, scores)
    return scores


def write_scores(folder: Path, scores: Scores) -> None:
    """Write both files; the figures last, so that they never speak of other rows."""
    with atomic_file(folder / ROWS) as file:
        file.writelines(_lines(scores.rows))
    with atomic_file(folder / HEAD) as file:
        file.write(json.dumps(scores.head, indent=2, ensure_ascii=False).encode() + b"\n")


def check_belongs(
    header: Header, answered: Iterable[Answered], asked: Benchmark, reading: Reading
) -> None:
    """Refuse predictions of other questions than those that were read.

    Args:
        header: of the predictions.
        answered: the predictions.
        asked: the benchmark.
        reading: its questions.

    Raises:
        UserError: another benchmark, another file, or an id that is none of the questions'.
    """
    if header.benchmark != asked.name:
        raise UserError(f"these are predictions of {header.benchmark}; {asked.name} was expected")
    if header.file_hash != reading.file_hash:
        raise UserError(
            f"these predictions answer another file of {asked.name} (sha256 "
            f"{header.file_hash[:12]}, here {reading.file_hash[:12]}); generate again or give the "
            "data they were made with"
        )
    known = {question.id for question in reading.questions}
    unknown = [one.id for one in answered if one.id not in known]
    if unknown:
        raise UserError(
            f"{len(unknown)} predictions are of no question of {asked.name}, the first is "
            f"{unknown[0]}"
        )


def _protocol(header: Header) -> EvaluationProtocol:
    words = protocol(header.protocol)
    if header.protocol_version != words.version:
        raise UserError(
            f"the predictions were asked for by protocol {words.name} version "
            f"{header.protocol_version}; this is version {words.version}: generate again"
        )
    return words


def _score(
    chosen: Benchmark, answered: Sequence[Answered], words: EvaluationProtocol
) -> tuple[list[Row], Any]:
    try:
        return chosen.score(answered, words)
    except KeyError as error:
        raise UserError(
            f"a prediction of {chosen.name} lacks {error}, which scoring needs; generate again"
        ) from error


def _lines(rows: Iterable[Row]) -> Iterable[bytes]:
    encode = json.JSONEncoder().encode
    for row in rows:
        verdict = row.verdict
        record = {
            "id": row.id,
            "cluster": row.cluster,
            "correct": verdict.correct,
            "read": verdict.read.value,
            "how": verdict.read.how,
        }
        yield f"{encode(record)}\n".encode()
