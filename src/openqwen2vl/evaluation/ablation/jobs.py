"""Jobs of an ablation as they lie on disk: MIXTURE/seed-N with its settings and its outcome."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from openqwen2vl.evaluation.score_files import ROWS, Scored, find_scores, read_scores
from openqwen2vl.formats.errors import UserError
from openqwen2vl.training.run_folder import RunFolder

SETTINGS, DONE, FAILED, SECONDS = "config.json", "job.json", "failed.json", "seconds.json"
PRETRAIN, SFT, SCORES = "pretrain", "sft", "scores"
TRAINED = (PRETRAIN, SFT)
VERSION = 1
_NAME = re.compile(r"(.+)/seed-(\d+)")
# Differences that are told one by one.
_LISTED = 6


@dataclass(frozen=True, order=True)
class Job:
    """One mixture under one seed."""

    mixture: str
    seed: int

    @property
    def name(self) -> str:
        """Give the name of its folder, without a clock: a restart means the same one."""
        return f"{self.mixture}/seed-{self.seed}"

    @classmethod
    def parse(cls, name: str) -> Self:
        """Read a name.

        Raises:
            UserError: it is none.
        """
        found = _NAME.fullmatch(name)
        if found is None:
            raise UserError(f"job is {name!r}; expected MIXTURE/seed-N")
        return cls(found[1], int(found[2]))


@dataclass(frozen=True)
class Outcome:
    """A job that is done.

    Attributes:
        job: which.
        folder: its own.
        record: what `job.json` says.
    """

    job: Job
    folder: Path
    record: Mapping[str, Any]

    def scores(self, benchmarks: Sequence[str]) -> list[Scored]:
        """Read the scored answers of some benchmarks, row by row.

        Raises:
            UserError: they are gone or cannot be read.
        """
        folders = [self.folder / SCORES / name / ROWS for name in benchmarks]
        return [read_scores(path) for folder in folders for path in find_scores(folder)]


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Give 16 hex digits that change with any setting."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def read_outcome(out: Path, job: Job) -> Outcome | None:
    """Read what a job gave; None when it is not done.

    Raises:
        UserError: the record is damaged, or of another version.
    """
    record = read_record(out / job.name, DONE, ("version", "scores", "consumed"))
    if record and record["version"] != VERSION:
        raise UserError(
            f"{out / job.name / DONE} is of version {record['version']}, this is version {VERSION};"
            " delete it and run the ablation again"
        )
    return Outcome(job, out / job.name, record) if record else None


def read_record(folder: Path, name: str, keys: Sequence[str]) -> dict[str, Any]:
    """Read a file of an ablation; empty when there is none.

    Raises:
        UserError: it is damaged, or lacks one of the keys.
    """
    path = folder / name
    try:
        record = RunFolder(folder).read_json(name)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run again") from error
    missing = [key for key in keys if record and key not in record]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; delete it and run again")
    return record


def read_failure(out: Path, job: Job) -> str:
    """Say why a job is not done."""
    if RunFolder(out / job.name).written():
        return "another process is at it"
    told = RunFolder(out / job.name).read_json(FAILED)
    if told:
        return f"{told['stage']}: {told['message']}"
    return "it was broken off" if _begun(out, job) else "it was never started"


def _begun(out: Path, job: Job) -> bool:
    """Tell whether anything of a job is there; being made ready alone is nothing."""
    return (out / job.name / PRETRAIN).is_dir()


def is_done(out: Path, job: Job, benchmarks: Sequence[str]) -> bool:
    """Tell whether a job is done, with scores of all these benchmarks."""
    found = read_outcome(out, job)
    return found is not None and set(benchmarks) <= set(found.record["scores"])


def check_unchanged(out: Path, job: Job, settings: Mapping[str, Any]) -> None:
    """Refuse to take a job, done or begun, for one of other settings.

    Its evaluation is begun when there are answers: without them its models may be asked otherwise.

    Raises:
        UserError: it was begun with other settings; the message names the keys.
    """
    folder = out / job.name
    before = RunFolder(folder).read_json(SETTINGS)
    if not before or not _begun(out, job):
        return
    told = list(differences(before, settings))
    asked = [one for one in told if one.startswith("evaluate.")]
    if len(asked) == len(told):
        told = asked if (folder / SCORES).is_dir() else []
        ways = f"delete {SCORES} and {DONE} in every job's folder to ask the trained models again"
    else:
        ways = "delete the folder"
    if told:
        more = [f"and {len(told) - _LISTED} more"] if len(told) > _LISTED else []
        raise UserError(
            f"{folder} was begun with other settings: {'; '.join([*told[:_LISTED], *more])}; "
            f"restore them, give another out=, or {ways}"
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield each key whose value differs, dotted, with both values."""
    old, new = dict(_flat(before)), dict(_flat(now))
    for key in sorted(old.keys() | new.keys()):
        one, other = old.get(key, "absent"), new.get(key, "absent")
        if one != other:
            yield f"{key} is {one} there and {other} here"


def _flat(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def write_outcome(out: Path, job: Job, heads: Mapping[str, Mapping[str, Any]]) -> Outcome:
    """Write `job.json`, the last thing that a job does.

    Args:
        out: of the ablation.
        job: all of whose stages are done.
        heads: what each benchmark's `scores.json` says.
    """
    folder = RunFolder(out / job.name)
    runs = {stage: RunFolder(folder.path / stage) for stage in TRAINED}
    costs = {stage: run.read_json("run.json") for stage, run in runs.items()}
    record = {
        "version": VERSION,
        "mixture": job.mixture,
        "seed": job.seed,
        "settings": fingerprint(folder.read_json(SETTINGS)),
        "scores": {
            name: {
                "headline": head["headline"],
                "value": head["metrics"][head["headline"]],
                "n": head["n"],
            }
            for name, head in heads.items()
        },
        "consumed": {stage: run.read_json("consumed.json") for stage, run in runs.items()},
        "steps": {stage: cost["step"] for stage, cost in costs.items()},
        "device": costs[PRETRAIN]["device"],
        "devices": costs[PRETRAIN]["devices"],
        "device_hours": {stage: cost["device_hours"] for stage, cost in costs.items()},
        "seconds": folder.read_json(SECONDS),
    }
    folder.write_json(DONE, record)
    (folder.path / FAILED).unlink(missing_ok=True)
    return Outcome(job, folder.path, record)
