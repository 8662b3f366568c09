"""A conversation with a trained model: what was said and shown, and the answer as it comes."""

import io
import warnings
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import NoReturn

import torch
from PIL import Image
from torch import Tensor

from openqwen2vl.curation.scorers.mllm_judge import TrainedModel
from openqwen2vl.formats.documents import IMAGE, Turn
from openqwen2vl.formats.errors import ImageError, UserError
from openqwen2vl.formats.images import decode_image
from openqwen2vl.formats.templates import prompt_ids
from openqwen2vl.formats.tokens import special_tokens
from openqwen2vl.model.decoding import Decoding, Sampling
from openqwen2vl.model.streaming import stream
from openqwen2vl.release.streaming_text import text_pieces

KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What a picture that people bring may be written as."""


@dataclass(frozen=True)
class Picture:
    """A picture that can be shown to the model.

    Attributes:
        name: for people.
        pixels: uint8 (S, S, 3), as the vision tower takes it.
    """

    name: str
    pixels: Tensor


@dataclass(frozen=True)
class Conversation:
    """Turns and pictures; each step gives a new one, so a step can be taken back.

    Attributes:
        turns: user and assistant in turn, after the system's where there is one.
        pictures: as many as the turns hold marks, in the same order.
    """

    turns: tuple[Turn, ...] = ()
    pictures: tuple[Picture, ...] = field(default=())

    def asked(self, text: str, pictures: Sequence[Picture] = ()) -> "Conversation":
        """Add a question: its pictures, a newline and its words, as the benchmarks are asked."""
        marks = [IMAGE] * len(pictures)
        turn = Turn("user", (*marks, "\n" + text if marks else text))
        return Conversation((*self.turns, turn), (*self.pictures, *pictures))

    def answered(self, text: str) -> "Conversation":
        """Add what the model said, be it cut short."""
        return replace(self, turns=(*self.turns, Turn("assistant", (text,))))


def started(system: str | None = None) -> Conversation:
    """Give a conversation in which nothing was said yet.

    Args:
        system: what its system turn says; ``None`` leaves that to the model's template.
    """
    return Conversation(() if system is None else (Turn("system", (system,)),))


class Partner:
    """A trained model, ready to answer on its device."""

    def __init__(
        self, trained: TrainedModel, device: torch.device, sampling: Sampling, max_new_tokens: int
    ) -> None:
        """Move a model to its device.

        Args:
            trained: the partner's own from now on.
            device: where it answers.
            sampling: how each token is drawn.
            max_new_tokens: of an answer.
        """
        trained.model.to(device)
        self.name, self._trained, self._device = trained.name, trained, device
        special = special_tokens(trained.tokenizer)
        self._image_id = special.image
        self._decoding = Decoding(
            pad_id=special.pad,
            eos_ids=[special.eos],
            max_new_tokens=max_new_tokens,
            sampling=sampling,
        )

    @property
    def grid(self) -> int:
        """The side of the square of tokens that an image becomes."""
        return int(self._trained.model.projector.grid)

    def look(self, data: bytes, name: str) -> Picture:
        """Decode a picture as in training.

        Args:
            data: a file's bytes.
            name: for people.

        Raises:
            ImageError: the bytes are no picture, or one that is cut off or too large.
        """
        try:
            _check_kind(data)
            pixels = decode_image(data, self._trained.model.vision.side)
        except ImageError as error:
            raise ImageError(f"{name} cannot be shown: {error}") from error
        return Picture(name, torch.from_numpy(pixels))

    def prompt(self, conversation: Conversation) -> list[int]:
        """Give the ids after which the answer comes, with one mark for each image.

        Args:
            conversation: ends with a question.

        Raises:
            UserError: it leaves no room for an answer of ``max_new_tokens``.
        """
        trained = self._trained
        ids = prompt_ids(conversation.turns, trained.tokenizer, trained.template)
        spread = len(ids) + len(conversation.pictures) * (self.grid**2 - 1)
        most = getattr(trained.model.llm.config, "max_position_embeddings", None)
        answer = self._decoding.max_new_tokens
        if most is not None and spread + answer > most:
            raise UserError(
                f"the conversation has come to {spread:,} tokens with this question (a picture is "
                f"{self.grid**2}), and an answer may take {answer:,}; the model holds {most:,}: "
                "start afresh, or lower max_new_tokens"
            )
        return ids

    def answer(self, conversation: Conversation) -> Generator[str, None, None]:
        """Answer the last question; see ``model.streaming.stream`` and ``text_pieces``.

        Close the iterator to stop the answer.

        Args:
            conversation: ends with a question.

        Yields:
            Pieces of the answer.

        Raises:
            UserError: as of ``prompt``, or the device has not the memory.
        """
        prompt = self.prompt(conversation)
        side = self._trained.model.vision.side
        shown = [picture.pixels for picture in conversation.pictures]
        blank = torch.zeros(0, side, side, 3, dtype=torch.uint8)
        images = (torch.stack(shown) if shown else blank).to(self._device)
        model, tokenizer = self._trained.model, self._trained.tokenizer
        tokens = stream(model, prompt, images, self._image_id, self._decoding)
        with closing(tokens):
            try:
                yield from text_pieces(tokenizer, tokens)
            except torch.OutOfMemoryError as error:
                _too_large(len(prompt), len(shown), self._device, error)


def _check_kind(data: bytes) -> None:
    """Refuse from the first bytes what is none of ``KINDS``; PIL hands some others to programs."""
    try:
        with warnings.catch_warnings():
            # That there are too many pixels is told by who decodes.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            Image.open(io.BytesIO(data), formats=KINDS).close()
    except Image.DecompressionBombError:
        return
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"it is no picture; expected one of {', '.join(KINDS)}") from error


def _too_large(tokens: int, pictures: int, device: torch.device, error: Exception) -> NoReturn:
    raise UserError(
        f"{tokens:,} tokens of text and {pictures} pictures are too many at once for the memory of "
        f"{device}; start afresh, or show fewer pictures"
    ) from error
