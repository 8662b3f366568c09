"""Figures of many scored rows, as exact sums."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import fsum

from openqwen2vl.evaluation.questions import Row, Summary


def percent(values: Iterable[float]) -> float:
    """Give the mean of values from 0 to 1, in percent; 0 when there is none."""
    listed = list(values)
    return 100 * fsum(listed) / len(listed) if listed else 0.0


def accuracy(rows: Sequence[Row]) -> float:
    """Give the mean worth of rows in percent."""
    return percent(row.verdict.correct for row in rows)


def grouped(rows: Iterable[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    """Part rows by what ``key`` says of them, groups in alphabetical order."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return dict(sorted(groups.items()))


def by_field(rows: Iterable[Row], field: str) -> dict[str, float]:
    """Give the accuracy of each value of a field; rows that lack it are under ``none``."""
    groups = grouped(rows, lambda row: str(row.fields.get(field) or "none"))
    return {name: accuracy(group) for name, group in groups.items()}


def counted(rows: Sequence[Row]) -> dict[str, int]:
    """Count rows, clusters, and outputs that could not be read."""
    return {
        "rows": len(rows),
        "clusters": len({row.cluster for row in rows}),
        "unread": sum(row.verdict.read.value is None for row in rows),
    }


def plain_summary(
    rows: Sequence[Row], fields: Sequence[str] = (), metrics: Mapping[str, float] | None = None
) -> Summary:
    """Sum up by ``accuracy``, and by the values of some fields.

    Args:
        rows: all of a benchmark's.
        fields: to break the accuracy down by; one that no row has is left out.
        metrics: more figures.
    """
    by = {
        field: by_field(rows, field) for field in fields if any(r.fields.get(field) for r in rows)
    }
    return Summary({"accuracy": accuracy(rows), **(metrics or {})}, counted(rows), by)
