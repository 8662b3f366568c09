"""Samplers whose order depends on the rank, which a dry run is there to find."""

from typing import Any

from openqwen2vl.data_modules.sampling import StepBatches


class OneForAll(StepBatches):
    """A sampler that forgets its rank."""

    def __iter__(self) -> Any:
        self.rank = 0
        return super().__iter__()


class Late(StepBatches):
    """A sampler whose second rank is a step ahead."""

    def __iter__(self) -> Any:
        self.start += self.rank
        return super().__iter__()
