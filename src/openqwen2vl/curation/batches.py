"""Batches: a scorer called so that a broken sample costs itself and no failure becomes a score.

Scores are final once they are on disk. So only what a sample itself is to blame for leaves it
without one: what the scorer tells of it, and ``ImageError`` and ``Unusable``. Any other error may
be the scorer's or the machine's, and might not come back.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from openqwen2vl.curation.samples import Sample
from openqwen2vl.curation.scorer import (
    NO_PAIR,
    Scorer,
    error_column,
    reads_conversations,
    told,
)
from openqwen2vl.formats.errors import ImageError, UserError
from openqwen2vl.formats.rejects import Unusable

_LOG = logging.getLogger(__name__)

# As CUDA says it, torch on a CPU, and cuBLAS and cuDNN, which want memory of their own.
_NO_MEMORY = ("out of memory", "can't allocate memory", "alloc_failed")

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
        self.halved_to: int | None = None

    def score(self, samples: Sequence[Sample]) -> Scores:
        """Score samples; a broken one has None in each column, and why beside it.

        So has a conversation, ``NO_PAIR``, which a scorer of pairs is not shown.

        Args:
            samples: at most the scorer's batch size.

        Raises:
            UserError: as the scorer raised it, or the memory does not hold a single sample.
            RuntimeError: the scorer failed on a sample alone, and failed again: a fault of the
                scorer, the program or the device, which no setting mends, so it shows where from.
            ValueError: the scorer gave something else than it promised.
        """
        if reads_conversations(self.scorer):
            return self._scored(samples)
        pairs = [sample for sample in samples if not sample.is_conversation]
        found = self._scored(pairs)
        if len(pairs) == len(samples):
            return found
        rows = iter(range(len(pairs)))
        places = [None if sample.is_conversation else next(rows) for sample in samples]
        error = error_column(self.scorer)
        return {
            name: [
                (NO_PAIR if name == error else None) if at is None else values[at] for at in places
            ]
            for name, values in found.items()
        }

    def _scored(self, samples: Sequence[Sample]) -> Scores:
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
        if len(samples) == 1:
            return self._alone(samples[0])
        try:
            scores = self.scorer.score(samples)
        except UserError:
            raise
        except Exception as error:  # scorers run models and decoders, which raise what they like
            too_many, blamed, said = is_out_of_memory(error), _blames_sample(error), told(error)
        else:
            return self._checked(scores, len(samples))
        # The error is gone here, and with it the frames that hold what filled the memory.
        name, count = self.scorer.name, len(samples)
        if too_many:
            self.halved_to = count // 2
            text = "%s ran out of memory on %d samples at once; going on with %d"
            _LOG.warning(text, name, count, self.halved_to)
            return None
        if not blamed:
            text = "%s failed on %d samples at once (%s); trying them one by one"
            _LOG.warning(text, name, count, said)
        singles = [self._alone(sample) for sample in samples]
        return {column: [single[column][0] for single in singles] for column in singles[0]}

    def _alone(self, sample: Sample) -> Scores:
        """Score one sample; a failure that is no fault of its own has a second chance."""
        failed = False
        while True:
            try:
                scores = self.scorer.score([sample])
            except UserError:
                raise
            except Exception as error:
                if _blames_sample(error):
                    nothing: Scores = {name: [None] for name in self.scorer.columns}
                    return {**nothing, error_column(self.scorer): [told(error)]}
                if failed:
                    raise self._final(sample, error) from error
                failed = True
            else:
                return self._checked(scores, 1)

    def _final(self, sample: Sample, error: Exception) -> Exception:
        """Give what holds a shard back."""
        name, said = self.scorer.name, told(error)
        file = sample.image.path if sample.image else "without images"
        where = f"{sample.key} of {sample.source}/{sample.shard} ({file})"
        if is_out_of_memory(error):
            return UserError(
                f"{name} ran out of memory on one sample, {where}: {said}; take a smaller model or "
                "dtype, fewer workers, or a machine with more memory, and start again"
            )
        return RuntimeError(
            f"{name} failed twice on {where}, alone: {said}; its shard is left without scores, "
            "so that a new start scores it"
        )

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


def _blames_sample(error: Exception) -> bool:
    """Whether an error says that the sample itself is broken, today and on any machine."""
    return isinstance(error, ImageError | Unusable)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a device or on the host."""
    # By name and words: torch has a class of its own and raises plain RuntimeErrors too.
    said = str(error).lower() if isinstance(error, RuntimeError) else ""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(words in said for words in _NO_MEMORY)
    )
