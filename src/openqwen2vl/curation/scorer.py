"""What a scorer is to those who run it; `_target_` of a config in conf/scorers names one."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import pyarrow as pa

from openqwen2vl.curation.samples import Sample

NO_PAIR = "conversation"
"""What the error column says of a conversation that a scorer of pairs was not shown."""

MORE = "more"
"""What a fingerprint has for conversations alone; it changes nothing of the other columns."""

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class Scorer(Protocol):
    """Gives figures to samples, some at a time.

    It is built in one process and sent to others before it is used: weights are loaded at the
    first call, never before, and what it holds until then can be pickled.
    """

    @property
    def name(self) -> str:
        """The folder of its scores; with ``_error`` the column that says why there are none."""

    @property
    def batch_size(self) -> int:
        """How many samples it is given at once, at most; it does not change a score."""

    @property
    def columns(self) -> Mapping[str, pa.DataType]:
        """What it writes; the names are those that a selection speaks of."""

    def fingerprint(self) -> dict[str, Any]:
        """Give all that its scores depend on, fit for JSON: settings, a hash of weights.

        It is asked for before the scorer is sent to other processes, so it leaves nothing in it
        that cannot be.
        """

    def score(self, samples: Sequence[Sample]) -> dict[str, list[Any]]:
        """Score samples.

        Returns:
            A list as long as ``samples`` for each of ``columns``, None where a sample could not be
            scored; ``<name>_error`` may say why, None where nothing is wrong.
        """


def identity(scorer: Scorer) -> dict[str, Any]:
    """Give what tells a scorer from all others whose scores may differ: name and fingerprint."""
    return {"name": scorer.name, **scorer.fingerprint()}


def error_column(scorer: Scorer) -> str:
    """Give the name of the column that says why a sample has no score."""
    return f"{scorer.name}_error"


def device_of(scorer: Scorer) -> str:
    """Give where a scorer runs, as torch writes it; one that does not say runs on the cores."""
    return str(getattr(scorer, "device", "cpu"))


def wants_gpu(scorer: Scorer) -> bool:
    """Whether a scorer runs on a GPU, here or where it is sent."""
    return device_of(scorer).startswith("cuda")


def reads_conversations(scorer: Scorer) -> bool:
    """Whether a scorer is shown conversations; one that does not say so judges pairs alone."""
    return bool(getattr(scorer, "reads_conversations", False))


def for_conversations(scorer: Scorer) -> Scorer:
    """Give what scores an input of conversations in a scorer's place: mostly the scorer itself."""
    make = getattr(scorer, "for_conversations", None)
    return scorer if make is None else cast(Scorer, make())


def told(error: Exception) -> str:
    """Give an error's kind and first line, the same in every run: memory addresses are left out."""
    said = f"{type(error).__name__}: {error}".splitlines()[0]
    return _ADDRESS.sub("", said)
