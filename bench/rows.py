"""Rows of a bench: what is done, by us and by a plain loop, on how many things of what kind."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

from figures import ratios, show, spread


@dataclass(frozen=True)
class Row:
    """One question: how many things a second, on one core, by us and by a plain loop.

    Attributes:
        name: the question in a word or two.
        unit: what is counted.
        items: how many of them ``ours`` goes through.
        ours: does the work; each call does all of it.
        plain: does the same work as one would first write it.
        plain_items: how many ``plain`` goes through; it may take a part of what ``ours`` takes.
        goal: how many a second we mean to reach; None where there is no such number.
    """

    name: str
    unit: str
    items: int
    ours: Callable[[], object]
    plain: Callable[[], object]
    plain_items: int
    goal: float | None = None


def measure(row: Row, rounds: int) -> dict[str, object]:
    """Run both sides in turn, so that what slows a round slows both."""
    row.ours()  # what is loaded once is loaded now
    row.plain()
    ours, plain = [], []
    for _ in range(rounds):
        ours.append(row.items / _seconds(row.ours))
        plain.append(row.plain_items / _seconds(row.plain))
    return {
        "unit": row.unit,
        "per_s": spread(ours),
        "plain_per_s": spread(plain),
        "ratio": ratios(ours, plain),
        "goal_per_s": row.goal,
    }


def _seconds(work: Callable[[], object]) -> float:
    """Measure processor time, over all threads: other work on the machine counts little."""
    gc.collect()
    begin = time.process_time()
    work()
    return time.process_time() - begin


def cells(name: str, figures: dict[str, object]) -> list[str]:
    """Give a row of the printed table."""
    ours, plain, goal = figures["per_s"], figures["plain_per_s"], figures["goal_per_s"]
    return [
        name,
        f"{ours['median']:,.0f} {figures['unit']}/s",
        f"{plain['median']:,.0f}",
        show(figures["ratio"]),
        "" if goal is None else f"{goal:,.0f}",
    ]


HEADER = ("", "ours", "plain", "ratio", "goal")
