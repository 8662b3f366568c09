"""Train and evaluate data mixtures at equal tokens, and tell which differences are real."""

import json
import sys
from typing import Any

from omegaconf import DictConfig

from openqwen2vl.commands._ablate_config import JOB, REPORT, SCHEMA, tests_of
from openqwen2vl.commands._ablate_job import run_job
from openqwen2vl.commands._ablate_plan import plan_of, settings_of, unfinished
from openqwen2vl.commands._ablate_report import findings_of, write_report
from openqwen2vl.commands._ablate_sweep import prepare, sweep
from openqwen2vl.commands._ablate_words import reword
from openqwen2vl.evaluation.ablation.findings import check_any, find
from openqwen2vl.evaluation.ablation.jobs import Job

__all__ = ["SCHEMA", "reword", "run"]


def run(config: DictConfig) -> dict[str, Any]:
    """Run what is not done yet of mixtures x seeds, then compare and write the report.

    Returns:
        Scores, effects, what they mean, tokens and device-hours; the state of one job with
        ``only=job``. Leaves with code 1 when a job failed, after the report of the others.
    """
    if config.only == JOB:
        return run_job(plan_of(config), Job.parse(str(config.job)))
    if config.only == REPORT:
        findings = findings_of(config)
        check_any(findings)
    else:
        plan = plan_of(config)
        settings = settings_of(plan)
        jobs = unfinished(plan, settings)
        prepare(plan, settings, jobs)
        sweep(plan, jobs)
        # Of this plan, whatever another ablation has written to the folder meanwhile.
        tests = tests_of(config)
        findings = find(plan.out, plan.mixtures, plan.seeds, plan.benchmarks, tests)
    figures = write_report(findings)
    if findings.failed and config.only is None:
        if config.json:
            sys.stdout.write(json.dumps(figures, default=float) + "\n")
        raise SystemExit(1)
    return figures
