"""Starts an ablation's unfinished jobs: one Hydra multirun, in a process of its own."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from rich.console import Console

from openqwen2vl.commands._ablate_children import run_child
from openqwen2vl.commands._ablate_plan import Plan
from openqwen2vl.evaluation.ablation.jobs import FAILED, SETTINGS, Job, read_record
from openqwen2vl.training.run_folder import RunFolder

PLAN = "ablation.json"


def read_plan(out: Path) -> dict[str, Any]:
    """Read the plan of an ablation's folder; empty when there is none.

    Raises:
        UserError: it is damaged.
    """
    return read_record(out, PLAN, ("mixtures", "seeds", "benchmarks"))


def prepare(plan: Plan, settings: Mapping[Job, Mapping[str, Any]], jobs: Sequence[Job]) -> None:
    """Write the plan, and for each job that will run its settings; says which are done.

    Mixtures of the last plan that are not in this one keep their folders; the report, which is
    this plan's alone, loses them, and that is said.
    """
    before = read_plan(plan.out).get("mixtures", [])
    left = [name for name in before if name not in plan.mixtures]
    if left:
        _say(f"not in this report, though they lie in {plan.out}: {', '.join(left)}")
    RunFolder(plan.out).write_json(
        PLAN,
        {
            "mixtures": list(plan.mixtures),
            "seeds": list(plan.seeds),
            "benchmarks": list(plan.benchmarks),
            "protocol": plan.protocol,
            "words": {key: list(words) for key, words in plan.words.items()},
        },
    )
    for job in jobs:
        folder = RunFolder(plan.out / job.name)
        folder.write_json(SETTINGS, dict(settings[job]))
        # What the last attempt died of must not be told of this one.
        (folder.path / FAILED).unlink(missing_ok=True)
    done = [job.name for job in plan.jobs if job not in jobs]
    if done:
        _say(f"done already: {', '.join(done)}")
    if jobs:
        _say(f"to do: {', '.join(job.name for job in jobs)}")


def sweep(plan: Plan, jobs: Sequence[Job]) -> None:
    """Run the jobs and wait for them; what became of each stands in its folder.

    Hydra cannot start a multirun within a job of its own, so it is another process, which gets
    this one's words, the launcher's among them.
    """
    if not jobs:
        return
    given = HydraConfig.get().overrides
    words = [word for word in given.hydra if not word.startswith("hydra.mode=")]
    words += [*given.task, "only=job", "json=false", f"job={','.join(job.name for job in jobs)}"]
    run_child([sys.executable, "-m", "openqwen2vl", "ablate", "-m", *plan.overlays, *words])


def _say(text: str) -> None:
    Console().print(text, soft_wrap=True, highlight=False, markup=False)
