"""From predictions to scores: a pure function of what a model said and what scoring needs of it."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openqwen2vl.evaluation.benchmarks.benchmark import Benchmark
from openqwen2vl.evaluation.benchmarks.known import benchmark
from openqwen2vl.evaluation.collector import uncollected
from openqwen2vl.evaluation.predictions import Answered, Header
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
    with uncollected():
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


def write_scores(folder: Path, scores: Scores) -> None:
    """Write both files; the figures last, so that they never speak of other rows."""
    with atomic_file(folder / ROWS) as file:
        file.writelines(_lines(scores.rows))
    with atomic_file(folder / HEAD) as file:
        file.write(json.dumps(scores.head, indent=2, ensure_ascii=False).encode() + b"\n")


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
