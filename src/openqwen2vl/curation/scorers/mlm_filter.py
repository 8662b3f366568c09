"""Scores by a judge: a multimodal language model is asked about each pair, one question a metric."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa

from openqwen2vl.curation.samples import Sample
from openqwen2vl.curation.scorer import error_column, told
from openqwen2vl.curation.scorers.answers import read_score
from openqwen2vl.curation.scorers.judge import Judge, Question, Reply
from openqwen2vl.curation.scorers.numbers import expected_value
from openqwen2vl.curation.scorers.pictures import decoding_threads
from openqwen2vl.curation.scorers.prompts import METRICS, prompts_hash, read_prompts
from openqwen2vl.formats.errors import ConfigError, ImageError

_SHOWN = 60
"""Characters of an unreadable answer that are told."""


class MlmFilterScorer:
    """Four metrics after MLM-Filter [Wang et al. 2024], each a whole number from 0 to 100.

    An answer that gives no score leaves None, never 0, and is told in ``<name>_error``.

    Attributes:
        name: folder of the scores.
        batch_size: samples that one call takes; the judge answers one question on each at once.
    """

    def __init__(
        self,
        judge: Judge,
        metrics: Sequence[str] = METRICS,
        prompt_file: str | None = None,
        name: str = "mlm_filter",
        batch_size: int = 16,
        max_new_tokens: int = 8,
        expected: bool = False,
        least_chance: float = 0.5,
        threads: int | None = None,
    ) -> None:
        """Say what to ask whom; the judge loads nothing yet.

        Args:
            judge: who answers.
            metrics: of ``prompts.METRICS``, each a column.
            prompt_file: see ``prompts.read_prompts``; ``None`` is our own judge's questions. A
                judge that was tuned on a prompt of its own wants that one.
            name: folder of the scores.
            batch_size: pairs that the judge sees at once.
            max_new_tokens: of an answer. ``100`` takes three in Qwen's tokenizer, which splits
                digits; some more, so that a heading does not cost the number.
            expected: also give ``<metric>_expected``, the mean of 0 to 100 weighted by how likely
                the answer begins with each; see ``numbers.distribution``.
            least_chance: of an answer that begins with a number at all; where it is less likely,
                there is no expected value.
            threads: that decode pictures; ``None`` is one for each usable core.

        Raises:
            ConfigError: unknown metrics, a prompt file that is none, figures out of range.
        """
        if max_new_tokens < 1 or not 0 <= least_chance <= 1:
            raise ConfigError(
                f"max_new_tokens is {max_new_tokens} and least_chance {least_chance}; expected at "
                "least 1, and a share from 0 to 1"
            )
        self.name = name
        self.batch_size = batch_size
        self._judge = judge
        self._prompts = read_prompts(prompt_file, metrics)
        self._max_new_tokens = max_new_tokens
        self._expected = expected
        self._least = least_chance
        self._threads = decoding_threads(threads)
        names = [column for m in metrics for column in (m, f"{m}_expected")[: 1 + expected]]
        self.columns: Mapping[str, pa.DataType] = {column: pa.float32() for column in names}

    @property
    def device(self) -> str:
        """Where the judge answers, as torch writes it; ``cpu`` for one that does not say."""
        return str(getattr(self._judge, "device", "cpu"))

    def fingerprint(self) -> dict[str, Any]:
        """Give the judge's own, the questions' hash and how answers are decoded and read.

        Raises:
            UserError: the judge cannot be loaded.
        """
        return {
            "judge": self._judge.fingerprint(),
            "metrics": list(self._prompts),
            "prompts": prompts_hash(self._prompts),
            "decoding": {"greedy": True, "max_new_tokens": self._max_new_tokens},
            "expected": {"least_chance": self._least} if self._expected else None,
        }

    def score(self, samples: Sequence[Sample]) -> dict[str, list[Any]]:
        """Score samples; a picture that cannot be decoded leaves every metric None.

        Raises:
            UserError: the judge cannot be loaded.
        """
        with ThreadPoolExecutor(self._threads) as pool:
            pictures = list(pool.map(partial(_picture, self._judge), samples))
        faults: list[list[str]] = [[p] if isinstance(p, str) else [] for p in pictures]
        shown = [at for at, fault in enumerate(faults) if not fault]
        scores: dict[str, list[Any]] = {name: [None] * len(samples) for name in self.columns}
        for metric, prompt in self._prompts.items():
            questions = [
                Question(
                    pictures[at],
                    prompt.before,
                    samples[at].caption,
                    prompt.after,
                    prompt.answer_start,
                )
                for at in shown
            ]
            replies = self._ask(questions)
            for at, reply in zip(shown, replies, strict=True):
                for column, value, fault in self._read(metric, reply):
                    scores[column][at] = value
                    faults[at] += [f"{column}: {fault}"] if value is None else []
        errors = ["; ".join(fault) or None for fault in faults]
        return {**scores, error_column(self): errors}

    def _ask(self, questions: Sequence[Question]) -> list[Reply]:
        if not questions:
            return []
        return self._judge.ask(questions, self._max_new_tokens, self._expected)

    def _read(self, metric: str, reply: Reply) -> list[tuple[str, float | None, str]]:
        """Give column, value, and what to say where there is none."""
        said = reply.text[:_SHOWN]
        read = read_score(reply.text, reply.finished)
        found = [(metric, None if read is None else float(read), f"no score in {said!r}")]
        if self._expected:
            mean = expected_value(reply.numbers, self._least)
            chance = f"a number is likely by {sum(reply.numbers):.3f} only"
            found.append((f"{metric}_expected", mean, chance))
        return found


def _picture(judge: Judge, sample: Sample) -> Any:
    """Give the picture as the judge wants it, or why there is none."""
    try:
        return judge.picture(sample.read())
    except ImageError as error:
        return told(error)
