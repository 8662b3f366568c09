"""How the figures that a selection looked at are spread, and where it cut."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import polars as pl

from openqwen2vl.curation.selection.expression import Expression, column_name, parse_expression
from openqwen2vl.curation.selection.select import Rule
from openqwen2vl.curation.selection.tables import Column, SourceTables

BINS = 40
PIECES = 4
"""Parts of a source that are looked at, of 64 shards each: enough to see how figures are spread."""

_SIGNS = {ast.Gt: ">", ast.GtE: ">=", ast.Lt: "<", ast.LtE: "<=", ast.Eq: "=="}
# Seen from the other side: 85 <= x is x >= 85.
_MIRRORED = {ast.Gt: "<", ast.GtE: "<=", ast.Lt: ">", ast.LtE: ">=", ast.Eq: "=="}


@dataclass(frozen=True)
class Histogram:
    """The values of one column, counted over bins of equal width.

    Attributes:
        column: as the expression calls it.
        low: where the first bin begins.
        high: where the last ends.
        kept: how many of the samples that stay fall into each bin.
        dropped: likewise of the others.
        cuts: thresholds of the expression: the value, and the words to write beside it.
        samples: how many samples were looked at, of whom some may lack a value.
    """

    column: str
    low: float
    high: float
    kept: tuple[int, ...]
    dropped: tuple[int, ...]
    cuts: tuple[tuple[float, str], ...]
    samples: int


def histograms(tables: SourceTables, rule: Rule, selected: Path) -> list[Histogram]:
    """Count the numbers that an expression compares or ranks, those that stay apart from others.

    Args:
        tables: the source, with its scores.
        rule: what was selected.
        selected: the selection's parquet file.

    Returns:
        One for each column of numbers with at least two values, of the first samples of the source.

    Raises:
        TableError: scores cannot be read.
    """
    expression = parse_expression(rule.keep)
    numeric = {
        name: column
        for name, column in tables.resolve(expression.columns).items()
        if column.dtype.is_numeric()
    }
    if not numeric:
        return []
    values, stays = _values(tables, numeric, selected)
    found = []
    for name in numeric:
        known = np.isfinite(values[name])
        numbers, mine = values[name][known], stays[known]
        if len(numbers) and numbers.min() < numbers.max():
            low, high = float(numbers.min()), float(numbers.max())
            kept, dropped = (
                np.histogram(part, BINS, (low, high))[0] for part in (numbers[mine], numbers[~mine])
            )
            cuts = tuple(cut for cut in _cuts(expression, name) if low <= cut[0] <= high)
            counts = tuple(kept.tolist()), tuple(dropped.tolist())
            found.append(Histogram(name, low, high, *counts, cuts, len(stays)))
    return found


def _values(
    tables: SourceTables, columns: dict[str, Column], selected: Path
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Give each column's values as doubles, NaN for none, and which samples stay."""
    kept = pl.scan_parquet(selected).select("shard", "key").with_columns(stays=True)
    parts: list[pl.DataFrame] = []
    for piece in islice(tables.pieces(columns), PIECES):
        mine = kept.filter(pl.col("shard").is_in(piece["shard"].unique().implode()))
        joined = piece.lazy().join(mine, on=["shard", "key"], how="left", maintain_order="left")
        parts.append(joined.select(*columns, pl.col("stays").fill_null(False)).collect())
    whole = pl.concat(parts)
    return (
        {name: whole[name].cast(pl.Float64).fill_null(np.nan).to_numpy() for name in columns},
        whole["stays"].to_numpy(),
    )


def _cuts(expression: Expression, name: str) -> Iterator[tuple[float, str]]:
    """Yield the numbers that a column is compared with, each with the comparison."""
    for node in ast.walk(expression.tree):
        if not isinstance(node, ast.Compare):
            continue
        sides = [node.left, *node.comparators]
        for left, sign, right in zip(sides, node.ops, sides[1:], strict=False):
            for column, number, signs in ((left, right, _SIGNS), (right, left, _MIRRORED)):
                value = _number(number)
                if column_name(column) == name and value is not None and type(sign) in signs:
                    yield value, f"{signs[type(sign)]} {value:g}"


def _number(node: ast.expr) -> float | None:
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
