"""Predictions under way: one writer or several, and nothing lost when they are killed."""

import fcntl
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from openqwen2vl.evaluation.predictions import (
    NAME,
    Answered,
    Header,
    Lines,
    answers,
    check_complete,
    json_line,
    read_header,
    read_lines,
)
from openqwen2vl.evaluation.score_files import HEAD, ROWS
from openqwen2vl.formats.errors import UserError
from openqwen2vl.formats.files import atomic_file, tell_full_disk

_PARTS = ".predictions.rank-*.jsonl"


class Unfinished:
    """``predictions.jsonl`` of one benchmark while its questions are asked.

    One rank alone appends to the file itself; of several each appends to a hidden file beside it,
    and ``start`` and ``finish`` take in whatever lies in these. Only rank 0 calls those two.

    Args:
        folder: takes the file; made when missing.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._lock: BinaryIO | None = None
        self._file: BinaryIO | None = None

    def start(self, header: Header, prompts: Mapping[str, str], overwrite: bool = False) -> None:
        """Become the only writer and make the file ready to go on with.

        Args:
            header: of this run.
            prompts: the hash of each question's prompt by its id.
            overwrite: whether answers to something else may go, and the scores made of them.

        Raises:
            UserError: another process writes here, or the file holds something else.
        """
        self._take()
        there = [path for path in (self.path, *self._parts()) if path.exists()]
        try:
            for path in there:
                _check(path, read_lines(path), header, prompts)
        except UserError:
            if not overwrite:
                raise
            for path in (*there, *(self.path.with_name(name) for name in (HEAD, ROWS))):
                path.unlink(missing_ok=True)
        lines = read_lines(self.path) if self.path.exists() else Lines([], 0)
        if lines.records:
            os.truncate(self.path, lines.size)
        else:
            with atomic_file(self.path) as file:
                file.write(header.line())
        self._absorb()

    def finished(self) -> set[str]:
        """Give the ids that have an answer; call it while no rank is writing."""
        return {record["id"] for record in read_lines(self.path).records[1:]}

    def open(self, header: Header, rank: int, ranks: int) -> None:
        """Open this rank's file for ``add``; a part says by its own header what it belongs to."""
        own = self.path.with_name(_PARTS.replace("*", str(rank)))
        self._file = (self.path if ranks == 1 else own).open("ab")
        if self._file.tell() == 0:
            self._file.write(header.line())

    def add(self, rows: Iterable[Answered]) -> None:
        """Append answers and hand them to the system, so that a kill leaves them behind.

        Raises:
            UserError: the disk is full.
        """
        assert self._file is not None
        with tell_full_disk(self.path):
            self._file.writelines(row.line() for row in rows)
            self._file.flush()

    def close(self) -> None:
        """Close this rank's file and let the next writer in."""
        for file in (self._file, self._lock):
            if file is not None:
                file.close()
        self._file = self._lock = None

    def finish(self, order: Sequence[str]) -> list[Answered]:
        """Take in all parts and put the answers into the questions' order.

        So the finished file is the same, however many ranks and restarts it took.

        Raises:
            UserError: a question has no answer.
        """
        self._absorb()
        header, *records = read_lines(self.path).records
        check_complete(self.path, len(records), len(order))
        by_id = {record["id"]: record for record in records}
        ordered = [by_id[name] for name in order]
        with atomic_file(self.path) as file:
            file.writelines(json_line(record) for record in (header, *ordered))
        return answers(ordered)

    def _take(self) -> None:
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / ".lock").open("ab")
        except OSError as error:
            raise UserError(
                f"nothing can be written to {folder} ({error.strerror}); give another out"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise UserError(
                f"another process is writing to {folder}; wait for it, stop it, or give another out"
            ) from error
        self._lock = lock

    def _parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(_PARTS))

    def _absorb(self) -> None:
        """Append the parts' new answers; a kill before a part is removed doubles none of them."""
        done = self.finished()
        for part in self._parts():
            new = [r for r in read_lines(part).records[1:] if r["id"] not in done]
            done.update(record["id"] for record in new)
            with tell_full_disk(self.path), self.path.open("ab") as file:
                file.writelines(json_line(record) for record in new)
                file.flush()
                os.fsync(file.fileno())
            part.unlink()


def _check(path: Path, lines: Lines, header: Header, prompts: Mapping[str, str]) -> None:
    """Refuse to go on with answers to other questions, or of another model."""
    if not lines.records:
        return
    there, here = asdict(read_header(path, lines.records)), asdict(header)
    unlike = [
        f"{name} {there[name]} there, {here[name]} here"
        for name in here
        if name != "model" and there[name] != here[name]
    ]
    asked = {record["id"]: record["prompt_hash"] for record in lines.records[1:]}
    changed = [name for name, prompt in asked.items() if prompts.get(name) != prompt]
    if changed and not unlike:
        unlike = [f"{len(changed)} prompts, the first of question {changed[0]}"]
    if unlike:
        raise UserError(
            f"{path} holds answers to something else ({'; '.join(unlike)}); give another out, or "
            "overwrite=true"
        )
