"""Which scores of two models belong together, and whether they are alike enough to be compared."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openqwen2vl.evaluation.score_files import LIKENESS, Scored
from openqwen2vl.formats.errors import UserError

# Differences that are told one by one.
_LISTED = 8


@dataclass(frozen=True)
class Pair:
    """Both models on the rows of one benchmark, in one order.

    Attributes:
        benchmark: its name.
        protocol: how answers were asked for and read.
        a: (R,) float64, how right the first model is, from 0 to 1.
        b: (R,) likewise of the second.
        clusters: (R,) which question each row is a copy of.
        metric: what the mean of ``a`` and of ``b`` is called: accuracy, or circular.
        headline: the metric that stands for the benchmark; ``metric`` may be another one.
        dtypes: the numbers that each model was reckoned in; None where its scores do not say.
        one_model: whether both are answers of the very same weights.
    """

    benchmark: str
    protocol: str
    a: NDArray[np.float64]
    b: NDArray[np.float64]
    clusters: NDArray[np.str_]
    metric: str = "accuracy"
    headline: str = "accuracy"
    dtypes: tuple[str | None, str | None] = (None, None)
    one_model: bool = False

    def circular(self) -> "Pair":
        """Give one row a question, right when all its copies are: as right as its worst copy."""
        names, places = np.unique(self.clusters, return_inverse=True)
        if len(names) == len(self.a):
            return self
        worst = []
        for correct in (self.a, self.b):
            lowest = np.ones(len(names))
            np.minimum.at(lowest, places, correct)
            worst.append(lowest)
        return replace(self, a=worst[0], b=worst[1], clusters=names, metric="circular")


@dataclass(frozen=True)
class Paired:
    """The pairs, and the benchmarks that only one of the two was scored on."""

    pairs: Sequence[Pair]
    only_a: Sequence[str]
    only_b: Sequence[str]


def pair_scores(a: Sequence[Scored], b: Sequence[Scored], circular: bool = False) -> Paired:
    """Pair the scores of two models by benchmark, and their rows by id.

    Args:
        a: of the first model.
        b: of the second.
        circular: whether the copies of a question count as one row, right when all are.

    Raises:
        UserError: scores that are not alike (all differences in one message), a benchmark twice in
            one of the two under one protocol, no benchmark in both, or rows that do not match.
    """
    both, only_a, only_b = _matched(_by_name(a, "a"), _by_name(b, "b"))
    faults = [fault for one, other in both for fault in _unlike(one, other)]
    if faults:
        more = [f"... and {len(faults) - _LISTED} more"] if len(faults) > _LISTED else []
        title = "unlike scores are not compared; score both models in the same way:"
        raise UserError("\n  ".join([title, *faults[:_LISTED], *more]))
    pairs = [_joined(one, other) for one, other in both]
    return Paired([pair.circular() if circular else pair for pair in pairs], only_a, only_b)


Named = dict[tuple[str, str], Scored]


def _by_name(scores: Sequence[Scored], side: str) -> Named:
    found: Named = {}
    for scored in scores:
        name = (str(scored.head["benchmark"]), str(scored.head["protocol"]))
        if name in found:
            raise UserError(
                f"{side} holds {name[0]} by protocol {name[1]} twice: {found[name].path} and "
                f"{scored.path}; name one of them"
            )
        found[name] = scored
    return found


def _matched(a: Named, b: Named) -> tuple[list[tuple[Scored, Scored]], list[str], list[str]]:
    if len(a) == len(b) == 1:
        # Meant for each other, whatever they are: what parts them is told with the rest.
        return list(zip(a.values(), b.values(), strict=True)), [], []
    both = [(a[name], b[name]) for name in a if name in b]
    alone_a, alone_b = [n for n in a if n not in b], [n for n in b if n not in a]
    # A benchmark that each has once, by another protocol: not alone, but unlike.
    for name in list(alone_a):
        others = [other for other in alone_b if other[0] == name[0]]
        if len(others) == 1 and sum(n[0] == name[0] for n in a) == 1:
            both.append((a[name], b[others[0]]))
            alone_a.remove(name)
            alone_b.remove(others[0])
    only_a, only_b = [n[0] for n in alone_a], [n[0] for n in alone_b]
    if not both:
        raise UserError(
            f"a and b share no benchmark: a has {', '.join(only_a)}; b has {', '.join(only_b)}"
        )
    return both, only_a, only_b


def _unlike(a: Scored, b: Scored) -> Iterator[str]:
    for name in LIKENESS:
        for part, one, other in _differences(name, a.head[name], b.head[name]):
            yield f"{a.head['benchmark']}: {part} is {one} in a and {other} in b"


def _differences(name: str, a: Any, b: Any) -> Iterator[tuple[str, str, str]]:
    """Yield the values that differ, those inside of objects by their path."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            yield from _differences(f"{name}.{key}", a.get(key, "absent"), b.get(key, "absent"))
    elif a != b:
        yield name, str(a), str(b)


def _joined(a: Scored, b: Scored) -> Pair:
    order_a, order_b = np.argsort(a.ids), np.argsort(b.ids)
    if not np.array_equal(a.ids[order_a], b.ids[order_b]):
        told = [
            f"{len(ids):,} only in {side} (such as {ids[0]!r})"
            for side, ids in (
                ("a", [str(i) for i in np.setdiff1d(a.ids, b.ids)]),
                ("b", [str(i) for i in np.setdiff1d(b.ids, a.ids)]),
            )
            if ids
        ]
        raise UserError(
            f"{a.path} and {b.path} are not about the same rows: {', '.join(told)}; "
            "score the same file of questions with both models"
        )
    clusters, others = a.clusters[order_a], b.clusters[order_b]
    if (clusters != others).any():
        place = int((clusters != others).argmax())
        raise UserError(
            f"row {str(a.ids[order_a][place])!r} is a copy of question {str(clusters[place])!r} "
            f"in {a.path} and of {str(others[place])!r} in {b.path}; score both again"
        )
    headline = str(a.head.get("headline", "accuracy"))
    return Pair(
        benchmark=str(a.head["benchmark"]),
        protocol=str(a.head["protocol"]),
        a=a.correct[order_a],
        b=b.correct[order_b],
        clusters=clusters,
        # `row` is what a benchmark with copies calls its accuracy.
        headline="accuracy" if headline == "row" else headline,
        dtypes=(a.head.get("dtype"), b.head.get("dtype")),
        one_model=a.head.get("model_hash", "a") == b.head.get("model_hash", "b"),
    )
