"""Which packs make up global batch n: a pure function of seed, pack folders, mixture and plan.

No state is kept between calls but caches, so any rank, worker or restart computes the same
answer, whatever it computed before.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from openqwen2vl.formats.errors import PackError

Int64s = npt.NDArray[np.int64]

MODES = ("proportional", "weights")


class PackKey(NamedTuple):
    """Names one pack of a stream: the ``source``-th source's ``pack``, read in its ``turn``-th pass."""

    grid: int
    source: int
    turn: int
    pack: int


def scramble(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Mix 64-bit integers one by one (the finalizer of SplitMix64, a bijection).

    Written out because NumPy does not promise equal random streams across its versions, and the
    order of a run must outlive them.
    """
    with np.errstate(over="ignore"):
        z = values + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)))


def mix_seed(*parts: int) -> int:
    """Fold integers into one 63-bit seed; any change of any part gives an unrelated seed."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = scramble(state ^ np.uint64(part & (2**64 - 1)))
    return int(state[0] >> np.uint64(1))


def permutation(size: int, *seed: int) -> Int64s:
    """Give ``0..size-1`` in an order fixed by ``seed``, equal on every machine and version.

    Returns:
        int64 (size,).
    """
    keys = scramble(np.arange(size, dtype=np.uint64) ^ np.uint64(mix_seed(*seed)))
    return np.argsort(keys, kind="stable").astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Global batches ``start <= n < stop`` are made of packs of one grid."""

    start: int
    stop: int
    grid: int


@dataclass(frozen=True, kw_only=True)
class Source:
    """What the order needs to know of one source at one grid.

    Attributes:
        name: the source's name in the mixture.
        tokens: int64 (packs,), tokens of each pack.
        weight: its share of the tokens under ``mode=weights``; unused otherwise.
    """

    name: str
    tokens: Int64s
    weight: float = 1.0


class Span(NamedTuple):
    """Consecutive places of a stream, as int64 (n,) columns; see `PackKey`."""

    source: Int64s
    turn: Int64s
    pack: Int64s


@dataclass(eq=False)
class Stream:
    """The endless sequence of packs of one grid.

    ``proportional`` shuffles the concatenation of all sources anew in each pass (the paper's mix).
    ``weights`` gives every position to the source that lags most behind its share of the tokens
    served so far; each source has its own passes, each with a fresh permutation.
    """

    seed: int
    grid: int
    sources: Sequence[Source]
    mode: str = "proportional"
    _shuffles: dict[tuple[int, int], Int64s] = field(default_factory=dict, repr=False)
    # Columns of what `weights` has dealt so far, and per source its tokens and packs.
    _dealt: "tuple[array[int], array[int], array[int]]" = field(
        default_factory=lambda: (array("q"), array("q"), array("q")), repr=False
    )
    _served: list[int] = field(default_factory=list, repr=False)
    _counts: list[int] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise PackError(f"mixture.mode is {self.mode!r}; expected one of {', '.join(MODES)}")
        empty = [source.name for source in self.sources if not len(source.tokens)]
        if empty or not self.sources:
            raise PackError(f"no packs of grid {self.grid} in source(s) {', '.join(empty) or '-'}")
        weights = [source.weight for source in self.sources]
        if not all(weight > 0 for weight in weights):
            raise PackError(f"weights of a mixture must be above 0, found {weights}")
        self._shares = [weight / sum(weights) for weight in weights]
        sizes = [len(source.tokens) for source in self.sources]
        self._starts = np.cumsum([0, *sizes])
        self._served, self._counts = [0] * len(sizes), [0] * len(sizes)

    def __len__(self) -> int:
        """Give the number of packs of all sources together."""
        return int(self._starts[-1])

    def at(self, position: int) -> PackKey:
        """Name the pack at a position; positions count from 0 and never end."""
        source, turn, pack = self.span(position, position + 1)
        return PackKey(self.grid, int(source[0]), int(turn[0]), int(pack[0]))

    def span(self, start: int, stop: int) -> Span:
        """Name the packs at positions ``start <= p < stop``."""
        if self.mode == "weights":
            self._deal(stop)
            return Span(*(np.array(column[start:stop], np.int64) for column in self._dealt))
        turns, ranks = np.divmod(np.arange(start, stop), len(self))
        places = np.empty_like(ranks)
        for turn in np.unique(turns).tolist():
            here = turns == turn
            places[here] = self._shuffle(-1, turn, len(self))[ranks[here]]
        sources = np.searchsorted(self._starts, places, side="right") - 1
        return Span(sources, turns, places - self._starts[sources])

    def _deal(self, length: int) -> None:
        """Deal positions to the sources up to ``length``; what was dealt before stays."""
        total = sum(self._served)
        sources, turns, packs = self._dealt
        while len(sources) < length:
            lag = [
                share * total - served
                for share, served in zip(self._shares, self._served, strict=True)
            ]
            # Ties go to the heavier source, then to the first, so that the start is no accident.
            source = max(range(len(lag)), key=lambda s: (lag[s], self._shares[s], -s))
            size = len(self.sources[source].tokens)
            turn, rank = divmod(self._counts[source], size)
            pack = int(self._shuffle(source, turn, size)[rank])
            tokens = int(self.sources[source].tokens[pack])
            sources.append(source)
            turns.append(turn)
            packs.append(pack)
            self._counts[source] += 1
            self._served[source] += tokens
            total += tokens

    def _shuffle(self, source: int, turn: int, size: int) -> Int64s:
        if (source, turn) not in self._shuffles:
            # A pass is read from front to back, so one older pass at most is still asked for.
            for old in [key for key in self._shuffles if key[0] == source and key[1] < turn - 1]:
                del self._shuffles[old]
            self._shuffles[source, turn] = permutation(size, self.seed, self.grid, source, turn)
        return self._shuffles[source, turn]


@dataclass(frozen=True, eq=False)
class Order:
    """The global batches of a run.

    Args:
        phases: in order, without gaps, from global batch 0.
        streams: one per grid of the phases.
        global_batch: packs per optimizer step.

    Raises:
        PackError: phases with gaps, or a grid without a stream.
    """

    phases: tuple[Phase, ...]
    streams: Mapping[int, Stream]
    global_batch: int

    def __post_init__(self) -> None:
        joined = all(a.stop == b.start and b.stop > b.start for a, b in pairwise(self.phases))
        if not self.phases or self.phases[0].start != 0 or not joined:
            raise PackError(f"phases must follow each other from step 0, found {self.phases}")
        if self.global_batch < 1:
            raise PackError(f"the global batch is {self.global_batch} packs; expected at least 1")
        missing = sorted({phase.grid for phase in self.phases} - set(self.streams))
        if missing:
            raise PackError(f"the resolution plan asks for grid(s) {missing}; no packs of them")

    @property
    def steps(self) -> int:
        """Give the number of global batches."""
        return self.phases[-1].stop

    def grid(self, step: int) -> int:
        """Give the grid of a global batch."""
        return self._phase(step).grid

    def packs(self, step: int) -> list[PackKey]:
        """Name the packs of a global batch, slot by slot."""
        grid, first = self.grid(step), self.ordinal(step) * self.global_batch
        span = self.streams[grid].span(first, first + self.global_batch)
        columns = (column.tolist() for column in span)
        return [PackKey(grid, *key) for key in zip(*columns, strict=True)]

    def served(self, grid: int, steps: int) -> Span:
        """Name all packs of a grid in the first ``steps`` global batches."""
        batches = sum(
            min(phase.stop, steps) - phase.start
            for phase in self.phases
            if phase.grid == grid and phase.start < steps
        )
        return self.streams[grid].span(0, batches * self.global_batch)

    def ordinal(self, step: int) -> int:
        """Count the global batches before ``step`` that have its grid."""
        here = self._phase(step)
        earlier = [p for p in self.phases if p.grid == here.grid and p.start < here.start]
        return sum(p.stop - p.start for p in earlier) + step - here.start

    def _phase(self, step: int) -> Phase:
        for phase in self.phases:
            if step < phase.stop:
                return phase
        return self.phases[-1]
