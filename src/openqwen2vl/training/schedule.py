"""The learning rate as a pure function of the step."""

from dataclasses import dataclass
from math import cos, pi

from openqwen2vl.formats.errors import ConfigError

SHAPES = ("cosine", "constant")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up, then cosine decay or a constant [paper: cosine, 3 % warm-up].

    Attributes:
        shape: ``cosine`` or ``constant``.
        warmup: share of the steps spent rising; the first step has a rate above 0 (the official
            code wastes it at 0).
        final: rate at the end, as a share of the peak.
        length: optimizer steps that the curve spans; None: the run's own steps. Going on past a
            finished budget needs it, since the curve would otherwise be another one.
    """

    shape: str = "cosine"
    warmup: float = 0.03
    final: float = 0.0
    length: int | None = None

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ConfigError(f"schedule.shape is {self.shape!r}; expected one of {SHAPES}")
        if not (0 <= self.warmup < 1 and 0 <= self.final <= 1):
            raise ConfigError(
                f"schedule.warmup is {self.warmup} and schedule.final {self.final}; "
                "expected shares of 1"
            )
        if self.length is not None and self.length < 1:
            raise ConfigError(f"schedule.length is {self.length} steps; expected at least 1")

    def factor(self, step: int, length: int) -> float:
        """Give the share of the peak rate for optimizer step ``step`` (from 0) of ``length``."""
        rising = round(self.warmup * length)
        if step < rising:
            return (step + 1) / (rising + 1)
        if self.shape == "constant":
            return 1.0
        done = min(1.0, (step - rising) / max(1, length - rising))
        return self.final + (1 - self.final) * 0.5 * (1 + cos(pi * done))
