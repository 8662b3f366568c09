"""Lightning's Trainer with one more bound of a run: GPU-hours."""

import inspect
from typing import Any, get_type_hints

import lightning.pytorch as pl

from openqwen2vl.formats.errors import ConfigError

_LIGHTNINGS = pl.Trainer.__init__


class Trainer(pl.Trainer):
    """A `lightning.pytorch.Trainer` that knows how many GPU-hours its run may take.

    It only carries the number, as ``max_steps`` is carried; ``callbacks.record`` measures, over all
    restarts, and ends the run with a checkpoint.

    Args:
        max_gpu_hours: of all devices and all restarts together (hours of processes on a CPU);
            None: as many as it takes.
        options: Lightning's own.

    Raises:
        ConfigError: no number above 0.
    """

    def __init__(self, *, max_gpu_hours: float | None = None, **options: Any) -> None:
        wrong = isinstance(max_gpu_hours, bool) or not isinstance(max_gpu_hours, int | float)
        if max_gpu_hours is not None and (wrong or max_gpu_hours <= 0):
            raise ConfigError(
                f"trainer.max_gpu_hours is {max_gpu_hours!r}; expected a number above 0, or null"
            )
        self.max_gpu_hours = max_gpu_hours
        super().__init__(**options)


def _signature() -> inspect.Signature:
    """Lightning's arguments and ours: whoever checks a config looks at these."""
    signature = inspect.signature(_LIGHTNINGS)
    ours = inspect.Parameter("max_gpu_hours", inspect.Parameter.KEYWORD_ONLY, default=None)
    return signature.replace(parameters=[*signature.parameters.values(), ours])


Trainer.__init__.__signature__ = _signature()  # type: ignore[attr-defined]
Trainer.__init__.__annotations__ = {
    **get_type_hints(_LIGHTNINGS),
    "max_gpu_hours": float | None,
}
