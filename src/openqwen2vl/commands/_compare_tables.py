"""The tables of `compare`, and the same figures as plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from openqwen2vl.evaluation.comparison import Comparison, Settings
from openqwen2vl.evaluation.conclusion import is_below_detectable, is_real, sentence
from openqwen2vl.evaluation.pairing import Paired

_TESTS = {
    "mcnemar_exact": "McNemar, exact",
    "mcnemar_midp": "McNemar, mid-p",
    "chi2": "chi-square",
    "chi2_corrected": "chi-square, corrected",
    "sign_flip": "sign flip",
}
# What the mean of a pair's rows is.
_METRICS = {"accuracy": "the mean over rows", "circular": "questions right in all copies"}


def figures_of(found: Sequence[Comparison], settings: Settings) -> dict[str, object]:
    """Give all figures as what JSON knows, and what they mean."""
    comparisons = [
        {
            **asdict(one),
            "real": is_real(one, settings),
            "below_detectable": is_below_detectable(one),
            "sentence": sentence(one, settings),
        }
        for one in found
    ]
    return {**asdict(settings), "correction": "holm", "comparisons": comparisons}


def remarks(found: Sequence[Comparison], paired: Paired) -> list[str]:
    """Say what is to be known beside the figures: how they were made, and what was left out.

    Args:
        found: the comparisons.
        paired: what was compared; empty where counts were given.
    """
    told = []
    for method in dict.fromkeys(one.interval_method for one in found):
        names = ", ".join(one.name for one in found if one.interval_method == method)
        told.append(f"interval of {names}: {method}")
    if not paired.pairs:
        told.append(
            "the counts do not say which rows are copies of one question; if some are, the "
            "interval is too narrow and p too small: give a= and b="
        )
    for pair in paired.pairs:
        if pair.headline != pair.metric:
            hint = ": set circular=true" if pair.headline == "circular" else ""
            told.append(
                f"{pair.benchmark}: compared is {_METRICS[pair.metric]}, its usual figure is "
                f"{pair.headline}{hint}"
            )
    if same := [pair.benchmark for pair in paired.pairs if pair.one_model]:
        told.append(f"{', '.join(same)}: a and b are answers of one and the same model")
    told += _numbers(paired)
    for side, alone in (("a", paired.only_a), ("b", paired.only_b)):
        if alone:
            told.append(f"not compared, only in {side}: {', '.join(alone)}")
    return told


def _numbers(paired: Paired) -> list[str]:
    """Say where the two were not reckoned in the same numbers, in a line for each two."""
    unlike: dict[tuple[str, str], list[str]] = {}
    for pair in paired.pairs:
        a, b = (dtype or "numbers that its scores do not name" for dtype in pair.dtypes)
        if pair.dtypes[0] != pair.dtypes[1]:
            unlike.setdefault((a, b), []).append(pair.benchmark)
    return [
        f"{', '.join(names)}: a was reckoned in {a}, b in {b}, which alone may change a few answers"
        for (a, b), names in unlike.items()
    ]


def show(
    found: Sequence[Comparison],
    settings: Settings,
    given: Mapping[str, str],
    beside: Sequence[str],
) -> None:
    """Print effects first, then the tests, a sentence a benchmark, and the remarks."""
    console = Console()
    for side, path in given.items():
        _say(console, f"{side}: {path}")
    console.print(_effects(found, settings))
    console.print(_tests(found))
    for line in [*(sentence(one, settings) for one in found), *beside]:
        _say(console, line)


def _effects(found: Sequence[Comparison], settings: Settings) -> Table:
    level = f"{100 * (1 - settings.alpha):g} % intervals"
    title = f"scores in percent of n questions, {level}, p by Holm"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    table.add_column("", overflow="fold")
    for name in ("n", "a", "b", "b - a", "interval", "p", "detectable"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in found:
        low, high = one.interval
        table.add_row(
            escape(one.name),
            f"{one.questions:,}",
            f"{one.a:.2f}",
            f"{one.b:.2f}",
            f"{one.difference:+.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{one.p_holm:.2g}",
            "" if one.detectable is None else f"{one.detectable:.2f}",
        )
    return table


def _tests(found: Sequence[Comparison]) -> Table:
    table = Table(box=None, pad_edge=False, title="paired tests", title_justify="left")
    for name in ("", "test", "statistic", "p", ""):
        table.add_column(name, justify="right" if name in ("statistic", "p") else "left")
    for one in found:
        for number, (name, outcome) in enumerate(one.tests.items()):
            naive = one.questions < one.rows and name != "sign_flip"
            table.add_row(
                escape(one.name) if number == 0 else "",
                _TESTS[name],
                "" if outcome.statistic is None else f"{outcome.statistic:,.6g}",
                f"{outcome.p:.4g}",
                "decides" if name == one.decided_by else "counts copies" if naive else "",
            )
    return table


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
