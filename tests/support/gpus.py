"""Scorers that want a GPU and need none: they note when they score what, and what they see."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from openqwen2vl.curation.samples import Sample
from openqwen2vl.engine.placement import VISIBLE
from support.samples import LengthScorer


class Visit(NamedTuple):
    """One call of a scorer: when, in which process, with which GPUs in sight."""

    begun: float
    ended: float
    process: int
    seen: str | None


@dataclass
class NotingScorer(LengthScorer):
    """Scores a caption by its length, somewhat slowly, and notes its visits in a folder."""

    notes: str = ""
    device: str = "cpu"
    seconds: float = 0.0

    def score(self, samples: Sequence[Sample]) -> dict[str, list[Any]]:
        begun = time.monotonic()
        found = super().score(samples)
        time.sleep(self.seconds)
        told = [begun, time.monotonic(), os.getpid(), os.environ.get(VISIBLE)]
        name = f"{self.name}-{os.getpid()}-{time.monotonic_ns()}"
        (Path(self.notes) / name).write_text(json.dumps(told))
        return found


def visits(notes: Path, scorer: str) -> list[Visit]:
    """Read what a scorer noted, by its beginning."""
    found = [Visit(*json.loads(path.read_text())) for path in notes.glob(f"{scorer}-*")]
    return sorted(found)


def most_at_once(found: Sequence[Visit]) -> int:
    """Count the visits that overlapped, where most did."""
    return max(sum(v.begun <= at.begun < v.ended for v in found) for at in found)
