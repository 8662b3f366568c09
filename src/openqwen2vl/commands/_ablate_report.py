"""The report of an ablation, made of what lies in its folder."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from openqwen2vl.commands._ablate_config import REPORT, tests_of
from openqwen2vl.commands._ablate_page import build_page
from openqwen2vl.commands._ablate_sweep import read_plan
from openqwen2vl.commands._ablate_tables import figures_of, show, write_csv
from openqwen2vl.evaluation.ablation.findings import Findings, find
from openqwen2vl.formats.errors import ConfigError

PAGE, TABLE = "report.html", "report.csv"


def findings_of(config: DictConfig) -> Findings:
    """Read what the jobs of the last plan gave.

    Raises:
        UserError: no ablation there, no such baseline, or scores that are not alike.
    """
    out = Path(str(config.out))
    plan = read_plan(out)
    if not plan:
        raise ConfigError(f"{out} holds no ablation; run one there first, without only={REPORT}")
    names = list(plan["mixtures"])
    baseline = names[0] if config.baseline is None else str(config.baseline)
    if baseline not in names:
        raise ConfigError(f"baseline is {baseline!r}; {out} holds {', '.join(names)}")
    ordered = [baseline, *(name for name in names if name != baseline)]
    return find(out, ordered, plan["seeds"], plan["benchmarks"], tests_of(config))


def write_report(findings: Findings) -> dict[str, Any]:
    """Print the findings, write them as CSV and, when there are any, as a page; gives them."""
    show(findings)
    write_csv(findings, findings.out / TABLE)
    if findings.outcomes:
        build_page(findings).save(findings.out / PAGE)
        Console().print(f"see {findings.out / PAGE}", soft_wrap=True, highlight=False)
    else:
        # That of an earlier plan would be taken for this one's.
        (findings.out / PAGE).unlink(missing_ok=True)
    return figures_of(findings)
