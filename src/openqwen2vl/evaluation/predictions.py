"""Predictions on disk: a header and one line a question."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import orjson

from openqwen2vl.evaluation.collector import uncollected
from openqwen2vl.evaluation.questions import Fields
from openqwen2vl.formats.errors import UserError

NAME = "predictions.jsonl"
KIND = "openqwen2vl.predictions"
VERSION = 1
_NEEDED = {"id": str, "cluster": str, "output": str, "fields": dict, "prompt_hash": str}


@dataclass(frozen=True, kw_only=True)
class Header:
    """What was asked of whom, and how: the first line of a file of predictions.

    Attributes:
        benchmark: its name.
        file_hash: sha256 of the benchmark's files.
        n: questions.
        protocol: in whose words they were put.
        protocol_version: of it.
        template_hash: of the layout that the model was trained in.
        decoding: how the next token was chosen.
        model_hash: of all weights and the grid.
        model: what the model was called; the one thing that may differ when a run goes on.
        dtype: the numbers that were reckoned in; None where a file does not say.
    """

    benchmark: str
    file_hash: str
    n: int
    protocol: str
    protocol_version: int
    template_hash: str
    decoding: Mapping[str, Any]
    model_hash: str
    model: str
    dtype: str | None = None

    def line(self) -> bytes:
        """Give the header as the file holds it."""
        return json_line({"kind": KIND, "version": VERSION, **asdict(self)})


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One question's line.

    Attributes:
        id: the question's.
        cluster: rows that are copies of one question share it.
        output: what the model said, as it came; empty where options were judged, and after an
            error.
        fields: what scoring needs of the question.
        prompt_hash: of all that the model was asked but the pictures.
        logprobs: of each option in order; empty where text was generated.
        error: why the question could not be put to the model, or None.
    """

    id: str
    cluster: str
    output: str
    fields: Fields
    prompt_hash: str
    logprobs: tuple[float, ...] = ()
    error: str | None = None

    def line(self) -> bytes:
        """Give the answer as the file holds it, without what it does not have."""
        record: dict[str, Any] = {
            "id": self.id,
            "cluster": self.cluster,
            "output": self.output,
            "fields": dict(self.fields),
            "prompt_hash": self.prompt_hash,
        }
        if self.logprobs:
            record["logprobs"] = list(self.logprobs)
        if self.error is not None:
            record["error"] = self.error
        return json_line(record)


@dataclass(frozen=True)
class Lines:
    """What a file holds, its whole lines alone.

    Attributes:
        records: one a line; the first may be a header.
        size: the bytes that these lines take; a killed process may leave a half one behind them.
    """

    records: list[dict[str, Any]]
    size: int


def read_predictions(path: Path) -> tuple[Header, list[Answered]]:
    """Read finished predictions.

    Args:
        path: the file, or the folder that holds it.

    Raises:
        UserError: no such file, one of something else or of another version, an id twice, or
            answers are missing because the run was interrupted.
    """
    path = path / NAME if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"no predictions at {path}; openqwen2vl evaluate only=generate makes them")
    with uncollected():
        lines = read_lines(path)
        header = read_header(path, lines.records)
        rows = [_answered(record) for record in lines.records[1:]]
    if lines.size < path.stat().st_size:
        raise UserError(
            f"{path} ends in half a line: its run was interrupted; go on with only=generate"
        )
    check_complete(path, len(rows), header.n)
    return header, rows


def read_lines(path: Path) -> Lines:
    """Read the whole lines of a file of predictions or of a rank's part of one.

    Raises:
        UserError: a line is no JSON object of ours, holds something of another type, or an id
            comes twice.
    """
    data = path.read_bytes()
    size = data.rfind(b"\n") + 1
    records = []
    for number, line in enumerate(data[:size].split(b"\n")[:-1], start=1):
        try:
            record = parse_line(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number} is not JSON ({error})") from error
        if not isinstance(record, dict):
            raise UserError(f"{path}, line {number} is {type(record).__name__}, no answer")
        if number > 1 or "kind" not in record:
            _check_answer(record, f"{path}, line {number}")
        records.append(record)
    ids = [record.get("id") for record in records]
    if len(set(ids)) < len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise UserError(f"{path} holds the id {twice!r} twice; each question is answered once")
    return Lines(records, size)


def _check_answer(record: Mapping[str, Any], place: str) -> None:
    if not record.keys() >= _NEEDED.keys():
        raise UserError(f"{place} lacks {', '.join(sorted(_NEEDED.keys() - record.keys()))}")
    for name, kind in _NEEDED.items():
        if not isinstance(record[name], kind):
            raise UserError(f"{place}: {name} is {record[name]!r}; expected {kind.__name__}")
    logprobs = record.get("logprobs", [])
    if not isinstance(logprobs, list) or not all(isinstance(p, int | float) for p in logprobs):
        raise UserError(f"{place}: logprobs is {logprobs!r}; expected a list of numbers")


def read_header(path: Path, records: Sequence[Mapping[str, Any]]) -> Header:
    """Give the header that a file's records begin with.

    Raises:
        UserError: they do not, or it is of another version.
    """
    first = own_dtype(records[0]) if records else {}
    if first.get("kind") != KIND or first.get("version") != VERSION:
        raise UserError(
            f"{path} does not begin as {KIND} of version {VERSION}; give a file that "
            "openqwen2vl evaluate wrote"
        )
    names = [item.name for item in fields(Header) if item.name != "dtype"]
    missing = [name for name in names if name not in first]
    if missing:
        raise UserError(f"the first line of {path} lacks {', '.join(missing)}")
    return Header(**{name: first[name] for name in names}, dtype=first.get("dtype"))


def check_complete(path: Path, there: int, expected: int) -> None:
    """Refuse a file that does not answer every question.

    Raises:
        UserError: with both numbers.
    """
    if there != expected:
        raise UserError(
            f"{path} holds {there:,} answers to {expected:,} questions; "
            "go on with only=generate and the same settings"
        )


def answers(records: Iterable[Mapping[str, Any]]) -> list[Answered]:
    """Give records, without the header, as answers."""
    return [_answered(record) for record in records]


def json_line(record: Mapping[str, Any]) -> bytes:
    """Give a record as a line of plain ASCII, so that no letter of an answer ends it early."""
    return (json.dumps(record) + "\n").encode()


def own_dtype(head: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give a header or the head of scores with ``dtype`` beside ``decoding``.

    Files of the first days name it in there. How answers are drawn parts scores; in which numbers
    they were reckoned does not.
    """
    decoding = head.get("decoding")
    if not isinstance(decoding, Mapping) or "dtype" not in decoding:
        return head
    others = {name: value for name, value in decoding.items() if name != "dtype"}
    return {**head, "decoding": others, "dtype": head.get("dtype", decoding["dtype"])}


def parse_line(line: bytes) -> Any:
    """Parse a line of JSON at several times the speed of the standard library, with its results.

    But for whole numbers beyond 64 bits, which become floats.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        # What that one refuses and json writes: NaN, infinities, and halves of surrogate pairs.
        return json.loads(line)


def _answered(record: Mapping[str, Any]) -> Answered:
    return Answered(
        id=record["id"],
        cluster=record["cluster"],
        output=record["output"],
        fields=record["fields"],
        prompt_hash=record["prompt_hash"],
        logprobs=tuple(record.get("logprobs", ())),
        error=record.get("error"),
    )
