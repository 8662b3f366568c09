"""How long a run is, and which grid it uses when: from fractions to absolute steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.packing.order import Phase


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The length of a run; at most one of the three is given, none means one pass.

    Attributes:
        passes: times that every pack is served, on average.
        tokens: tokens to serve; the run takes the steps that come nearest from above.
        steps: optimizer steps.
    """

    passes: float | None = None
    tokens: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        given = {k: v for k, v in vars(self).items() if v is not None}
        if len(given) > 1:
            raise ConfigError(f"budget: {given} are given together; keep one and drop the others")
        for key, value in given.items():
            if value <= 0:
                raise ConfigError(f"budget.{key} is {value}; expected more than 0")


@dataclass(frozen=True, kw_only=True)
class GridPhase:
    """One line of a resolution plan.

    Attributes:
        grid: visual tokens are ``grid * grid`` an image.
        until: share of the optimizer steps at which the phase ends; the last line says 1.
    """

    grid: int
    until: float

    def __post_init__(self) -> None:
        if self.grid < 1 or not 0 < self.until <= 1:
            raise ConfigError(
                f"resolution.plan: grid {self.grid} until {self.until}; "
                "expected grid >= 1 and 0 < until <= 1"
            )


@dataclass(frozen=True, kw_only=True)
class GridSupply:
    """Packs and tokens that all sources together hold at one grid."""

    packs: int
    tokens: int


def total_steps(
    budget: Budget,
    plan: Sequence[GridPhase],
    supply: Mapping[int, GridSupply],
    global_batch: int,
) -> int:
    """Turn a budget into optimizer steps.

    A pass is every pack of every grid of the plan once: documents are split between the phases
    when they are packed, so the grids' packs hold different documents.

    Returns:
        At least 1; a last global batch that is only partly new is filled from the next pass.
    """
    if budget.steps is not None:
        return budget.steps
    grids = sorted({phase.grid for phase in plan})
    packs = sum(supply[grid].packs for grid in grids)
    if budget.tokens is None:
        passes = 1.0 if budget.passes is None else budget.passes
        return max(1, ceil(passes * packs / global_batch))
    shares = {grid: 0.0 for grid in grids}
    start = 0.0
    for phase in plan:
        shares[phase.grid] += phase.until - start
        start = phase.until
    per_step = global_batch * sum(
        share * supply[grid].tokens / supply[grid].packs for grid, share in shares.items()
    )
    return max(1, ceil(budget.tokens / per_step))


def fix_phases(plan: Sequence[GridPhase], steps: int) -> tuple[Phase, ...]:
    """Turn the fractions of a plan into absolute steps (law: they never move afterwards).

    Raises:
        ConfigError: the fractions do not rise to 1, or a phase would have no step.
    """
    ends = [phase.until for phase in plan]
    if not ends or ends != sorted(set(ends)) or ends[-1] != 1:
        raise ConfigError(f"resolution.plan: 'until' must rise to 1, found {ends}")
    stops = [round(end * steps) for end in ends]
    starts = [0, *stops[:-1]]
    for phase, start, stop in zip(plan, starts, stops, strict=True):
        if stop <= start:
            raise ConfigError(
                f"resolution.plan: grid {phase.grid} until {phase.until} has no step of "
                f"the run's {steps}; give the run more steps or the phase a larger share"
            )
    return tuple(
        Phase(start=start, stop=stop, grid=phase.grid)
        for phase, start, stop in zip(plan, starts, stops, strict=True)
    )


def extend_phases(phases: Sequence[Phase], steps: int) -> tuple[Phase, ...]:
    """Give a started run more steps (or fewer, past its last boundary): only the last phase moves.

    Raises:
        ConfigError: the new end lies before the last phase's start.
    """
    last = phases[-1]
    if steps <= last.start:
        raise ConfigError(
            f"the budget gives {steps} steps, but this run switched to grid {last.grid} at step "
            f"{last.start}; give it a longer budget"
        )
    return (*phases[:-1], Phase(start=last.start, stop=steps, grid=last.grid))


def accumulation(global_batch: int, micro_batch: int, ranks: int) -> int:
    """Derive the micro-batches that each rank sums up for one optimizer step.

    Raises:
        ConfigError: the global batch is no multiple of ranks x micro-batch; names the nearest.
    """
    if micro_batch < 1 or ranks < 1:
        raise ConfigError(
            f"data.micro_batch is {micro_batch} packs on {ranks} rank(s); both start at 1"
        )
    per_turn = micro_batch * ranks
    if global_batch % per_turn:
        low = global_batch // per_turn * per_turn
        near = " or ".join(str(n) for n in (low, low + per_turn) if n)
        raise ConfigError(
            f"data.global_batch is {global_batch} packs, but {ranks} rank(s) x data.micro_batch "
            f"{micro_batch} take {per_turn} at a time; nearest: {near}"
        )
    return global_batch // per_turn
