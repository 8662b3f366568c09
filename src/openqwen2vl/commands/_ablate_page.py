"""The page of an ablation: what is shown, scores, tests, curves, shared data, costs."""

from collections.abc import Iterator, Sequence
from html import escape

from openqwen2vl.commands._ablate_tables import remarks, score_cells
from openqwen2vl.evaluation.ablation.findings import (
    Curve,
    Findings,
    common_sources,
    documents,
    held_out_curve,
    loss_curve,
    unequal_tokens,
)
from openqwen2vl.evaluation.ablation.jobs import PRETRAIN, SFT, TRAINED, Outcome
from openqwen2vl.evaluation.ablation.overlap import Shares, shared_documents, shared_sources
from openqwen2vl.evaluation.ablation.words import conclusions, sentence, verdict
from openqwen2vl.formats.errors import UserError
from openqwen2vl.pages.chart import Series, line_chart
from openqwen2vl.pages.page import Page

_STYLE = "li { max-width: 44rem; margin: .25rem 0; overflow-wrap: anywhere; }"
# Lines of a chart: the page has four colours.
_LINES = 4
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def build_page(findings: Findings) -> Page:
    """Compose the page from what the jobs gave; one at least."""
    num = len(findings.outcomes)
    page = Page(
        "Which data mixture is better",
        f"{len(findings.mixtures)} mixtures, {num} trained models: pre-training on each mixture "
        "with an equal budget, the same fine-tuning, the same questions.",
        _STYLE,
    )
    _conclusions(page, findings)
    _scores(page, findings)
    _tests(page, findings)
    _curves(page, findings)
    _shared(page, findings)
    _data(page, findings)
    _costs(page, findings)
    return page


def label(findings: Findings, mixture: str) -> str:
    """Give the letter that stands for a mixture in charts and column heads."""
    number = list(findings.mixtures).index(mixture)
    return _LETTERS[number] if number < len(_LETTERS) else str(number + 1)


def _named(findings: Findings, mixture: str) -> str:
    """Give the letter with the name, without what all names begin with."""
    names = [name.split("_") for name in findings.mixtures]
    shared = 0
    while all(name[: shared + 1] == names[0][: shared + 1] for name in names) and all(
        len(name) > shared + 1 for name in names
    ):
        shared += 1
    return f"{label(findings, mixture)}  {'_'.join(mixture.split('_')[shared:])}"


def _list(page: Page, lines: Sequence[str]) -> None:
    if lines:
        items = "".join(f"<li>{escape(line)}</li>" for line in lines)
        page.svg(f"<ul>{items}</ul>")


def _conclusions(page: Page, findings: Findings) -> None:
    page.section("What is shown")
    _list(page, conclusions(findings.effects, findings.settings))
    told = [(verdict(one), sentence(one, findings.settings)) for one in findings.effects]
    titles = {
        "mixtures": "Of the mixtures",
        "these models": "Of these trained models",
        "not shown": "Not shown",
    }
    for kind, title in titles.items():
        lines = [line for verdict_, line in told if verdict_ == kind]
        if lines:
            page.section(title)
            _list(page, lines)
    if findings.failed:
        page.section("Failed", "These jobs gave no scores; run the ablation again to go on.")
        _list(page, [f"{job.name}: {why}" for job, why in findings.failed.items()])


def _scores(page: Page, findings: Findings) -> None:
    page.section(
        "Scores",
        "Percent, the benchmark's usual figure; with several seeds their mean and range. "
        f"* this model differs from {findings.mixtures[0]}'s, ** the mixture does.",
    )
    columns = ["mixture", *findings.benchmarks, "mean"]
    rows = [[f"{label(findings, m)}  {m}", *score_cells(findings, m)] for m in findings.mixtures]
    page.table(columns, rows)


def _tests(page: Page, findings: Findings) -> None:
    methods = dict.fromkeys(one.comparison.interval_method for one in findings.effects)
    level = f"{100 * (1 - findings.settings.alpha):g} %"
    page.section(
        f"Differences from {findings.mixtures[0]}",
        f"In points of right answers, with {level} intervals ({'; '.join(methods)}), each by itself "
        "and, like p, of the choice of questions, not of seeds. p is that of "
        "the paired test named beside it; p (Holm) is corrected for all rows of this table. "
        f"Detectable: what {100 * findings.settings.power:g} % of such comparisons would find, "
        "each by itself.",
    )
    columns = ["mixture", "benchmark", "difference", "interval", "p (Holm)", "", "p", "by seed"]
    columns += ["detectable", "questions", "test"]
    rows = []
    for one in findings.effects:
        found = one.comparison
        rows.append(
            [
                _named(findings, one.mixture),
                one.benchmark,
                f"{found.difference:+.2f}",
                f"{found.interval[0]:.2f} to {found.interval[1]:.2f}",
                f"{found.p_holm:.2g}",
                verdict(one),
                f"{found.p:.2g}",
                ", ".join(f"{value:+.1f}" for value in one.by_seed),
                "" if found.detectable is None else f"{found.detectable:.2f}",
                f"{found.questions:,}",
                found.decided_by.replace("_", " "),
            ]
        )
    page.table(columns, rows)
    _list(page, remarks(findings))


def _curves(page: Page, findings: Findings) -> None:
    firsts = {m: findings.of(m)[0] for m in findings.mixtures if findings.of(m)}
    page.section(
        "Learning curves",
        "Loss of pre-training, each mixture on its own data, so that levels do not compare; the "
        "first seed of each.",
    )
    _charts(page, findings, {m: loss_curve(one) for m, one in firsts.items()}, "loss")
    for source in common_sources(findings):
        curves = {m: held_out_curve(one, source) for m, one in firsts.items()}
        curves = {m: curve for m, curve in curves.items() if curve}
        if curves:
            page.section(
                f"Held-out {source}", "Loss on the same held-out documents for every mixture."
            )
            _charts(page, findings, curves, f"held-out loss, {source}")


def _charts(page: Page, findings: Findings, curves: dict[str, Curve], y: str) -> None:
    for group in _groups([mixture for mixture in findings.mixtures if mixture in curves]):
        series = [Series(label(findings, mixture), curves[mixture]) for mixture in group]
        page.svg(line_chart(series, "optimizer step", y))


def _groups(mixtures: Sequence[str]) -> Iterator[list[str]]:
    """Give as many at a time as a chart has colours, the baseline in each."""
    first, *others = mixtures
    for start in range(0, max(1, len(others)), _LINES - 1):
        yield [first, *others[start : start + _LINES - 1]]


def _shared(page: Page, findings: Findings) -> None:
    try:
        shares = shared_documents(documents(findings))
        page.section(
            "Shared documents",
            "Share of the row's documents that the column's mixture holds, too, by uid.",
        )
        _matrix(page, findings, shares)
    except UserError as error:
        page.section("Shared documents", f"Not known: {error}")
    done = [mixture for mixture in findings.mixtures if findings.of(mixture)]
    tokens = {mixture: findings.consumed(mixture, PRETRAIN, "tokens") for mixture in done}
    page.section(
        "Shared sources", "Share of the pre-training's tokens that both took from the same sources."
    )
    _matrix(page, findings, shared_sources(tokens))


def _matrix(page: Page, findings: Findings, shares: Shares) -> None:
    names = [mixture for mixture in findings.mixtures if (mixture, mixture) in shares]
    columns = ["mixture", *(label(findings, name) for name in names)]
    rows = [
        [_named(findings, one), *(f"{shares[one, other]:.0%}" for other in names)] for one in names
    ]
    page.table(columns, rows)


def _data(page: Page, findings: Findings) -> None:
    more = unequal_tokens(findings)
    page.section(
        "Data of pre-training",
        f"The mean over seeds. The largest exceeds the smallest by {more:.2%} of its tokens.",
    )
    done = [mixture for mixture in findings.mixtures if findings.of(mixture)]
    tokens = {mixture: findings.consumed(mixture, PRETRAIN, "tokens") for mixture in done}
    sources = list(dict.fromkeys(source for one in tokens.values() for source in one))
    rows = []
    for mixture in done:
        total = sum(tokens[mixture].values())
        seen = sum(findings.consumed(mixture, PRETRAIN, "documents").values())
        shares = [tokens[mixture].get(source, 0) / max(1, total) for source in sources]
        parts = [f"{share:.0%}" if share else "" for share in shares]
        rows.append([_named(findings, mixture), f"{total:,.0f}", f"{seen:,.0f}", *parts])
    page.table(["mixture", "tokens", "documents", *sources], rows)
    passes = {mixture: findings.consumed(mixture, PRETRAIN, "passes") for mixture in done}
    cells = [
        [_named(findings, m), *(f"{passes[m][s]:.2f}" if s in passes[m] else "" for s in sources)]
        for m in done
    ]
    page.section("Passes over each source")
    page.table(["mixture", *sources], cells)


def _costs(page: Page, findings: Findings) -> None:
    devices = dict.fromkeys(
        f"{one.record['devices']} x {one.record['device']}" for one in findings.outcomes
    )
    total = sum(sum(findings.device_hours(mixture).values()) for mixture in findings.mixtures)
    page.section(
        "Cost",
        f"Device-hours of training over all seeds and restarts: {total:.3f} in all, on "
        f"{', '.join(devices)}. Minutes are of the clock, with start-up, "
        "without what was killed outright.",
    )
    stages = [*TRAINED, "evaluate"]
    columns = ["job", *(f"{stage} hours" for stage in TRAINED), *(f"{s} min" for s in stages)]
    page.table([*columns, f"{SFT} tokens"], [_cost(one, stages) for one in findings.outcomes])


def _cost(one: Outcome, stages: Sequence[str]) -> list[str]:
    hours = [f"{one.record['device_hours'][stage]:.3f}" for stage in TRAINED]
    minutes = [f"{one.record['seconds'].get(stage, 0) / 60:.1f}" for stage in stages]
    tokens = sum(source["tokens"] for source in one.record["consumed"][SFT].values())
    return [one.job.name, *hours, *minutes, f"{tokens:,.0f}"]
