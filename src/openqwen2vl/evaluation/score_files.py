"""Scores of one benchmark as they lie on disk: `scores.json` and, row by row, `scored.jsonl`."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openqwen2vl.evaluation.predictions import own_dtype, parse_line
from openqwen2vl.formats.errors import UserError

ROWS = "scored.jsonl"
HEAD = "scores.json"
KNOWN = (ROWS, HEAD, "predictions.jsonl")
# What two scores must share to be comparable, and so what a head must say.
LIKENESS = (
    "benchmark",
    "protocol",
    "protocol_version",
    "file_hash",
    "n",
    "decoding",
    "template_hash",
)


@dataclass(frozen=True)
class Scored:
    """One model on one benchmark.

    Attributes:
        path: the file of rows.
        head: what `scores.json` says, at least the names of ``LIKENESS``; ``dtype`` beside them.
        ids: (R,) of the rows, none twice.
        clusters: (R,) which question each row is a copy of.
        correct: (R,) float64, from 0 to 1.
    """

    path: Path
    head: Mapping[str, Any]
    ids: NDArray[np.str_]
    clusters: NDArray[np.str_]
    correct: NDArray[np.float64]


def find_scores(path: Path) -> list[Path]:
    """Give the files of rows that a path means, sorted.

    Args:
        path: a `scored.jsonl`, a file that lies beside one, or a folder that holds some at any
            depth.

    Raises:
        UserError: there is none.
    """
    if path.is_dir():
        found = sorted(path.rglob(ROWS))
    else:
        rows = path.with_name(ROWS)
        found = [rows] if path.name in KNOWN and rows.is_file() else []
    if not found:
        raise UserError(
            f"no {ROWS} at {path}; give one, or a folder that holds some; predictions are scored "
            "by openqwen2vl evaluate only=score"
        )
    return found


def read_scores(path: Path) -> Scored:
    """Read a file of rows and the head beside it.

    Raises:
        UserError: no head, or one that does not say what was scored; an empty file, a line that is
            cut off or lacks something, an id twice, or another number of rows than the head says.
    """
    head = _read_head(path.with_name(HEAD))
    rows = list(_rows(path))
    if not rows:
        raise UserError(f"{path} is empty; score the predictions again")
    ids, clusters, correct = zip(*rows, strict=True)
    (name, times), *_ = Counter(ids).most_common(1)
    if times > 1:
        raise UserError(
            f"{path} holds the id {name!r} {times} times; each row of a benchmark is scored once"
        )
    if len(rows) != head["n"]:
        raise UserError(
            f"{path} holds {len(rows)} rows where {HEAD} beside it says {head['n']}; "
            "score the predictions again"
        )
    return Scored(path, head, np.array(ids), np.array(clusters), np.array(correct, np.float64))


def _read_head(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UserError(f"no {path}: scores that do not say their protocol are not compared")
    try:
        head = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); score the predictions again") from error
    told = head if isinstance(head, dict) else {}
    missing = [name for name in LIKENESS if name not in told]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; score the predictions again")
    return own_dtype(told)


def _rows(path: Path) -> Iterator[tuple[str, str, float]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}, line {number}"
            try:
                record = parse_line(line)
            except ValueError as error:
                fault = "is not JSON" if line.endswith(b"\n") else "is cut off"
                raise UserError(f"{place} {fault}; score the predictions again") from error
            fields = record if isinstance(record, dict) else {}
            missing = [name for name in ("id", "cluster", "correct") if name not in fields]
            if missing:
                raise UserError(f"{place} lacks {', '.join(missing)}; is it a {ROWS}?")
            correct = fields["correct"]
            if not (isinstance(correct, (int, float)) and 0 <= correct <= 1):
                raise UserError(f"{place}: correct is {correct!r}; expected a number from 0 to 1")
            yield str(fields["id"]), str(fields["cluster"]), float(correct)
