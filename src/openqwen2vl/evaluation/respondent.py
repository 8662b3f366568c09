"""Answers what another harness asks, in the layout that the model was trained in."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from openqwen2vl.evaluation.asking import Asked, batches, put
from openqwen2vl.evaluation.generate import Effort, answer
from openqwen2vl.evaluation.loading import Batches
from openqwen2vl.evaluation.pictures import OpenedImage
from openqwen2vl.evaluation.predictions import Answered
from openqwen2vl.evaluation.questions import Prompt, Question
from openqwen2vl.evaluation.subject import Subject
from openqwen2vl.formats.documents import IMAGE, Part
from openqwen2vl.model.decoding import Sampling

_MARK = "<image>"


def user_turn(
    content: Sequence[str | Image.Image], most_tokens: int, options: Sequence[str] = ()
) -> Prompt:
    """Put texts and pictures as they come; a picture and the text behind it are on lines.

    Where all pictures come first and the text has as many marks ``<image>``, they stand there.

    Args:
        content: of the one user turn.
        most_tokens: cap on an answer.
        options: judged in place of an answer, where there are any.
    """
    pictures = [piece for piece in content if isinstance(piece, Image.Image)]
    texts = [piece for piece in content if isinstance(piece, str) and piece]
    parts: list[Part] = []
    if len(texts) == 1 and content[-1] == texts[0] and texts[0].count(_MARK) == len(pictures) > 0:
        for number, text in enumerate(texts[0].split(_MARK)):
            parts += [*([IMAGE] if number else []), *([text] if text else [])]
    else:
        for piece in content:
            if isinstance(piece, Image.Image):
                parts.append(IMAGE)
            elif piece:
                parts.append("\n" + piece if parts and parts[-1] is IMAGE else piece)
    return Prompt(
        tuple(parts),
        tuple(OpenedImage(picture) for picture in pictures),
        max_new_tokens=most_tokens,
        mode="likelihood" if options else "generate",
        options=tuple(options),
    )


@dataclass(frozen=True)
class Respondent:
    """Whom to ask, and how many questions at a time.

    Attributes:
        subject: its model on the device that it answers on.
        effort: ``num_workers`` is not used: the pictures are in memory.
    """

    subject: Subject
    effort: Effort

    def texts(self, prompts: Sequence[Prompt]) -> list[str]:
        """Give what the model says to each, drawn greedily; nothing where it cannot be asked."""
        return [one.output for one in self._answers(prompts)]

    def logprobs(self, prompts: Sequence[Prompt]) -> list[tuple[float, ...]]:
        """Give the log-probability of each option, with the end of the turn behind it.

        Minus infinity for all of a question that cannot be asked.
        """
        found = self._answers(prompts)
        return [
            one.logprobs or (-math.inf,) * len(prompt.options)
            for one, prompt in zip(found, prompts, strict=True)
        ]

    def _answers(self, prompts: Sequence[Prompt]) -> list[Answered]:
        questions = [
            Question("elsewhere", str(number), str(number), prompt.images, {})
            for number, prompt in enumerate(prompts)
        ]
        asked = put(questions, lambda question: prompts[int(question.id)], self.subject)
        found: dict[str, Answered] = {}
        for batch in batches(asked, self.effort.batch_size, self.effort.batch_tokens):
            found.update({one.id: one for one in self._batch(batch)})
        return [found[question.id] for question in questions]

    @torch.no_grad()
    def _batch(self, asked: Sequence[Asked]) -> list[Answered]:
        model = self.subject.model
        batch = Batches([asked], model.vision.side)[0]
        for _, fault in batch.unanswerable:
            warnings.warn(f"a question counts as unanswered: {fault}", stacklevel=2)
        images = batch.images.to(model.head_weight.device)
        silent = [
            Answered(
                id=one.question.id,
                cluster=one.question.cluster,
                output="",
                fields={},
                prompt_hash=one.prompt_hash,
                error=fault,
            )
            for one, fault in batch.unanswerable
        ]
        return [*answer(self.subject, batch.asked, images, Sampling()), *silent]
