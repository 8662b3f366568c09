"""What a run's folder tells: its small files read, each of them optional."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openqwen2vl.formats.errors import UserError
from openqwen2vl.training.report.metrics import Metrics, read_metrics
from openqwen2vl.training.run_folder import RunFolder

PLAN = "plan.json"
RECORD, CONFIG, CONSUMED = "run.json", "config.json", "consumed.json"
_PICTURES = 2 << 20  # bytes of a sample's picture that are still shown


@dataclass(frozen=True)
class Spike:
    """A step that spiked or changed no weight, without its documents.

    Attributes:
        figures: its line in spikes.jsonl, without them.
        sources: how many of its documents came from each source.
        traced: name of its page beside the report, if it was traced.
    """

    figures: Mapping[str, Any]
    sources: Mapping[str, int]
    traced: str | None

    @property
    def step(self) -> int:
        """Give the optimizer step, from 1."""
        return int(self.figures["step"])


@dataclass(frozen=True)
class RunFiles:
    """A run's folder without its checkpoints.

    Attributes:
        path: of the folder.
        metrics: of metrics.csv.
        record: of run.json.
        config: of config.json.
        consumed: of consumed.json, at the step that the record tells.
        plan: of plan.json: steps, and what the mixture is meant to take in each phase.
        spikes: of spikes.jsonl, by step.
        samples: of samples.jsonl, by step; of those told twice the later.
        pictures: of the samples, by name.
        written: whether a process writes to the folder now.
    """

    path: Path
    metrics: Metrics
    record: Mapping[str, Any]
    config: Mapping[str, Any]
    consumed: Mapping[str, Mapping[str, float]]
    plan: Mapping[str, Any]
    spikes: Sequence[Spike]
    samples: Sequence[Mapping[str, Any]]
    pictures: Mapping[str, bytes] = field(repr=False)
    written: bool

    @property
    def name(self) -> str:
        """Give the run's name: its folder's."""
        return self.path.resolve().name

    @property
    def step(self) -> int:
        """Give the last step that is known of."""
        steps = self.metrics.steps
        return int(steps[-1]) if len(steps) else int(self.record.get("step") or 0)

    @property
    def starts(self) -> list[Mapping[str, Any]]:
        """Give every start of the run, the first one first."""
        return [one for one in self.record.get("starts", []) if isinstance(one, dict)]

    @property
    def restarts(self) -> list[int]:
        """Give the steps after which the run was gone on with and whose rows still stand."""
        steps = [int(one["step"]) for one in self.starts]
        # Where a start goes back behind another, that one's rows are gone.
        kept = [s for n, s in enumerate(steps) if s and all(s <= later for later in steps[n + 1 :])]
        # A file of another logger may keep the rows of both.
        return sorted({*kept, *(step - 1 for step in self.metrics.again)})


def read_run(path: Path) -> RunFiles:
    """Read a run's folder, which may be under way, killed, or empty.

    Raises:
        UserError: no run's folder, or a damaged file, with its name.
    """
    if not any((path / name).is_file() for name in (RECORD, CONFIG, "metrics.csv")):
        raise UserError(
            f"{path} holds no run: none of {RECORD}, {CONFIG} and metrics.csv is there; give "
            "run=runs/NAME"
        )
    record, config, consumed, plan = (_json(path / n) for n in (RECORD, CONFIG, CONSUMED, PLAN))
    samples = _samples(path / "samples.jsonl")
    names = {str(one["picture"]) for one in samples if one.get("picture")}
    return RunFiles(
        path=path,
        metrics=read_metrics(path / "metrics.csv"),
        record=record,
        config=config,
        consumed=consumed,
        plan=plan,
        spikes=_spikes(path),
        samples=samples,
        pictures={name: found for name in names if (found := _picture(path, name))},
        written=RunFolder(path).written(),
    )


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}); it is damaged") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, expected an object; it is damaged")
    return found


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of lines; one that a kill cut off is left out."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict) and isinstance(found.get("step"), int):
                yield found


def _spikes(path: Path) -> list[Spike]:
    found: dict[int, Spike] = {}
    for line in _lines(path / "spikes.jsonl"):
        step, sources = line["step"], dict[str, int]()
        for document in line.pop("documents", []):
            name = str(document.get("source"))
            sources[name] = sources.get(name, 0) + 1
        page = f"trace-step-{step}.html"
        found[step] = Spike(line, sources, page if (path / page).is_file() else None)
    return [found[step] for step in sorted(found)]


def _samples(path: Path) -> list[dict[str, Any]]:
    found = {(line["step"], str(line.get("uid"))): line for line in _lines(path)}
    return sorted(found.values(), key=lambda one: one["step"])


def _picture(folder: Path, name: str) -> bytes | None:
    """Read a sample's picture, which lies within the folder whatever its file says."""
    file = (folder / name).resolve()
    inside = file.is_relative_to(folder.resolve()) and file.is_file()
    return file.read_bytes() if inside and file.stat().st_size <= _PICTURES else None
