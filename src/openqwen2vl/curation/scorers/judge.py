"""What a judge is to the scorer that asks it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Question:
    """One picture and what is asked about it and its caption.

    Attributes:
        picture: as the judge's own ``picture`` gave it.
        before: text in front of the caption.
        caption: any text; the judge shortens it where it is too long, and takes nothing in it
            for a special token or an image.
        after: text behind the caption.
        answer_start: text with which the judge's answer begins.
    """

    picture: Any
    before: str
    caption: str
    after: str
    answer_start: str = ""


@dataclass(frozen=True)
class Reply:
    """What a judge says.

    Attributes:
        text: the new text, special tokens left out.
        finished: false when it was cut off at the limit of tokens.
        numbers: the chance that it begins with 0, 1, ... 100; empty when that was not asked.
    """

    text: str
    finished: bool
    numbers: Sequence[float] = ()


class Judge(Protocol):
    """A model that answers questions about pictures.

    Like a scorer it can be pickled until it is used, and loads its weights at the first need.
    """

    def fingerprint(self) -> dict[str, Any]:
        """Give all that its answers depend on beside the questions, fit for JSON."""

    def picture(self, data: bytes) -> Any:
        """Make a picture ready, on whatever thread.

        Raises:
            ImageError: the bytes cannot be decoded.
        """

    def ask(self, questions: Sequence[Question], max_new_tokens: int, numbers: bool) -> list[Reply]:
        """Answer questions in one batch, always with the likeliest token.

        Args:
            questions: what the others are does not change the answer to one.
            max_new_tokens: of each answer.
            numbers: whether the chances of numbers are asked as well.
        """
