"""How answers are decoded: which token comes next, and when an answer ends."""

from collections.abc import Sequence
from dataclasses import dataclass

from openqwen2vl.formats.errors import ConfigError

_LEAST_TEMPERATURE = 1e-6  # below, logits divided by it overflow
_SEEDS = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: draw among the likeliest tokens that together have this probability.
        seed: of the draws; they are shared by the whole batch.

    Raises:
        ConfigError: numbers out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for key, low, high in (("temperature", 0, 100), ("top_p", 1e-6, 1), ("seed", 0, _SEEDS)):
            value = getattr(self, key)
            if not low <= value <= high:
                raise ConfigError(f"{key} is {value!r}; expected {low:g} to {high:g}")
        if 0 < self.temperature < _LEAST_TEMPERATURE:
            raise ConfigError(
                f"temperature is {self.temperature!r}; take 0 for the likeliest token, or "
                f"{_LEAST_TEMPERATURE:g} and more"
            )


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How answers begin, go on and end.

    Attributes:
        pad_id: fills short prompts on the left and finished answers on the right.
        eos_ids: any of them ends an answer.
        max_new_tokens: of each answer.
        sampling: how the next token is drawn.
    """

    pad_id: int
    eos_ids: Sequence[int]
    max_new_tokens: int
    sampling: Sampling
