"""Asks a model every question of a benchmark, on one device or many, and goes on after a kill."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from openqwen2vl.evaluation.asking import Asked, batches
from openqwen2vl.evaluation.loading import Batch, load
from openqwen2vl.evaluation.predictions import Answered, Header
from openqwen2vl.evaluation.subject import Subject
from openqwen2vl.evaluation.unfinished import Unfinished
from openqwen2vl.formats.errors import ConfigError, UserError
from openqwen2vl.formats.tokens import special_tokens
from openqwen2vl.model.decoding import Sampling


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How many questions are asked at once; in float32 no greedy answer depends on it.

    Attributes:
        batch_size: questions, at most.
        batch_tokens: tokens with padding, at most; a longer question is asked alone.
        num_workers: processes that read and decode pictures.
    """

    batch_size: int = 32
    batch_tokens: int = 65536
    num_workers: int = 0

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("batch_tokens", 1), ("num_workers", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} is {value!r}; expected a whole number from {least} on")


@dataclass(frozen=True, kw_only=True)
class Questionnaire:
    """A benchmark's questions to one model.

    Attributes:
        asked: all of them, in the files' order.
        header: of the predictions.
        overwrite: whether predictions of something else may go.
    """

    asked: Sequence[Asked]
    header: Header
    overwrite: bool = False


class Answering(pl.LightningModule):
    """Asks under ``Trainer.predict``; every rank takes its share of the batches.

    Args:
        subject: whom to ask.
        questions: what to ask.
        store: where the answers go.
        sampling: how the next token is drawn.
        effort: how many at once.
        report: told how many questions this rank has to ask, and after each batch how many it has.
    """

    def __init__(
        self,
        subject: Subject,
        questions: Questionnaire,
        store: Unfinished,
        sampling: Sampling,
        effort: Effort,
        report: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__()
        # Few questions may leave a rank without any.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.model = subject.model
        self._subject, self.questions, self.store = subject, questions, store
        self._sampling, self._effort = sampling, effort
        self._report = report or (lambda done, total: None)
        self._done = self._total = 0

    def setup(self, stage: str) -> None:
        """Make the file ready on rank 0 before any rank reads in it what is finished."""
        questions = self.questions
        if self.trainer.is_global_zero:
            prompts = {one.question.id: one.prompt_hash for one in questions.asked}
            self.store.start(questions.header, prompts, questions.overwrite)
        self.trainer.strategy.barrier("predictions are ready")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Give this rank's share; Lightning waits for all ranks before any of them asks."""
        finished = self.store.finished()
        left = [one for one in self.questions.asked if one.question.id not in finished]
        effort = self._effort
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        size = min(effort.batch_size, max(1, ceil(len(left) / ranks)))
        share = list(batches(left, size, effort.batch_tokens))[rank::ranks]
        self._total = sum(len(batch) for batch in share)
        self._report(0, self._total)
        return load(share, self.model.vision.side, effort.num_workers)

    def on_predict_start(self) -> None:
        """Open this rank's file, now that every rank has read what is finished."""
        self.store.open(self.questions.header, self.trainer.global_rank, self.trainer.world_size)

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Move the pictures; all else stays plain Python."""
        batch.images = batch.images.to(device, non_blocking=True)
        return batch

    def predict_step(self, batch: Batch, batch_index: int) -> list[Answered]:
        """Answer a batch.

        Raises:
            UserError: a picture is not there, or the batch is too large for the device.
        """
        if batch.missing is not None:
            raise UserError(
                f"{batch.missing}; every question's pictures have to be there: mend the files in "
                "data_root, the answers so far are kept"
            )
        try:
            found = answer(self._subject, batch.asked, batch.images, self._sampling)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{len(batch.asked)} questions of up to {max(o.tokens for o in batch.asked):,} "
                f"tokens are too many at once for {self.device}; lower batch_size or batch_tokens, "
                "the answers so far are kept"
            ) from error
        silent = [_answered(one, error=error) for one, error in batch.unanswerable]
        return [*found, *silent]

    def on_predict_batch_end(
        self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Write the answers down before the next batch is asked."""
        self.store.add(outputs)
        self._done += len(outputs)
        self._report(self._done, self._total)


def generate(trainer: pl.Trainer, answering: Answering) -> list[Answered]:
    """Ask all that has no answer yet; every rank calls it.

    Args:
        trainer: on one device or several, without loggers and checkpoints.
        answering: what to ask of whom.

    Returns:
        All answers in the questions' order on rank 0, none on the others.

    Raises:
        UserError: predictions of something else lie there, or a picture is missing.
    """
    store = answering.store
    try:
        with warnings.catch_warnings():
            # Where little or nothing is left to ask, Lightning wonders about empty loaders.
            warnings.filterwarnings("ignore", message="Total length of `DataLoader`")
            trainer.predict(answering, return_predictions=False)
        trainer.strategy.barrier("all questions are answered")
        if not trainer.is_global_zero:
            return []
        return store.finish([one.question.id for one in answering.questions.asked])
    finally:
        store.close()


def answer(
    subject: Subject, asked: Sequence[Asked], images: Tensor, sampling: Sampling
) -> list[Answered]:
    """Let a model answer a batch: say something, or judge options.

    Args:
        subject: whom to ask.
        asked: questions of one kind, as ``batches`` gathers them.
        images: uint8 (K, S, S, 3), all their pictures in order, on the model's device.
        sampling: how the next token is drawn.
    """
    if not asked:
        return []
    prompts, special = [one.ids for one in asked], special_tokens(subject.tokenizer)
    if asked[0].options:
        options = [one.options for one in asked]
        judged = subject.model.option_logprobs(prompts, options, images, special.image)
        return [
            _answered(one, logprobs=tuple(found)) for one, found in zip(asked, judged, strict=True)
        ]
    ids = subject.model.generate(
        prompts,
        images,
        image_id=special.image,
        pad_id=special.pad,
        eos_ids=asked[0].end_ids,
        max_new_tokens=asked[0].prompt.max_new_tokens,
        sampling=sampling,
    )
    return [
        _answered(one, output=_text(subject, found)) for one, found in zip(asked, ids, strict=True)
    ]


def _text(subject: Subject, ids: Sequence[int]) -> str:
    text: str = subject.tokenizer.decode(
        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text


def _answered(
    one: Asked, output: str = "", logprobs: tuple[float, ...] = (), error: str | None = None
) -> Answered:
    question = one.question
    return Answered(
        id=question.id,
        cluster=question.cluster,
        output=output,
        fields=question.fields,
        prompt_hash=one.prompt_hash,
        logprobs=logprobs,
        error=error,
    )
