"""Batches: a scorer called so that neither a sample nor a lack of memory ends the run."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from openqwen2vl.curation.samples import Sample
from openqwen2vl.curation.scorer import Scorer, error_column, told
from openqwen2vl.formats.errors import UserError

MOST_FAILURES = 100
"""So many samples in a row on which a scorer failed are the scorer's fault, not theirs."""

_LOG = logging.getLogger(__name__)

Scores = dict[str, list[Any]]
"""A list for each of a scorer's columns, and for its error column."""


class Batches:
    """Calls a scorer with as many samples as the memory holds.

    Attributes:
        scorer: the one that is called.
        halved_to: samples at a time after the last time that memory ran out; None before.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self._failures = 0
        self.halved_to: int | None = None

    def score(self, samples: Sequence[Sample]) -> Scores:
        """Score samples; one that the scorer fails on has None in each column, and why beside it.

        Args:
            samples: at most the scorer's batch size.

        Raises:
            UserError: as the scorer raised it.
            RuntimeError: the scorer failed on many samples in a row.
            ValueError: the scorer gave something else than it promised.
        """
        scores: Scores = {name: [] for name in (*self.scorer.columns, error_column(self.scorer))}
        at = 0
        while at < len(samples):
            part = samples[at : at + (self.halved_to or len(samples))]
            found = self._attempt(part)
            if found is None:
                continue
            for name, values in found.items():
                scores[name] += values
            at += len(part)
        return scores

    def _attempt(self, samples: Sequence[Sample]) -> Scores | None:
        """Score samples at once; None when they were too many, and fewer are to be taken."""
        try:
            scores = self.scorer.score(samples)
        except UserError:
            raise
        except Exception as error:  # scorers run models and decoders, which raise what they like
            if len(samples) == 1:
                return self._failed(samples[0], error)
            too_many = is_out_of_memory(error)
        else:
            self._failures = 0
            return self._checked(scores, len(samples))
        # The error is gone here, and with it the frames that hold what filled the memory.
        if not too_many:
            return self._one_by_one(samples)
        self.halved_to = len(samples) // 2
        _LOG.warning(
            "%s ran out of memory on %d samples at once; going on with %d",
            self.scorer.name,
            len(samples),
            self.halved_to,
        )
        return None

    def _one_by_one(self, samples: Sequence[Sample]) -> Scores:
        singles = [self._attempt([sample]) or {} for sample in samples]
        return {name: [single[name][0] for single in singles] for name in singles[0]}

    def _failed(self, sample: Sample, error: Exception) -> Scores:
        self._failures += 1
        said = told(error)
        if self._failures >= MOST_FAILURES:
            raise RuntimeError(
                f"{self.scorer.name} failed on {self._failures} samples in a row, the last of "
                f"them {sample.source}/{sample.shard}/{sample.key}: {said}"
            ) from error
        nothing: Scores = {name: [None] for name in self.scorer.columns}
        return {**nothing, error_column(self.scorer): [said]}

    def _checked(self, given: Scores, count: int) -> Scores:
        """Hold a scorer to what it promised, and take NaN for no score."""
        name, error = self.scorer.name, error_column(self.scorer)
        scores = {**given}
        errors = scores[error] = list(scores.get(error, [None] * count))
        promised = {*self.scorer.columns, error}
        if set(scores) != promised or any(len(values) != count for values in scores.values()):
            shown = {column: len(values) for column, values in given.items()}
            raise ValueError(f"{name} gave {shown} for {count} samples of {sorted(promised)}")
        for column, kind in self.scorer.columns.items():
            if not pa.types.is_floating(kind):
                continue
            values = scores[column] = list(scores[column])
            for i, value in enumerate(values):
                if value is not None and not math.isfinite(value):
                    errors[i], values[i] = errors[i] or f"{column} is {value}", None
        return scores


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a device or on the host."""
    # By name and words: torch has a class of its own and raises plain RuntimeErrors too.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "out of memory" in str(error).lower())
    )
