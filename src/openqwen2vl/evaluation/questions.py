"""Questions of a benchmark, how one is put to a model, and what becomes of the answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from openqwen2vl.formats.documents import ImageMark, Part

Fields = Mapping[str, Any]
"""What is known of a question in plain JSON: ``question``, ``options``, ``answer``, categories."""


CHUNK_END = "<|endofchunk|>"
"""A part of a prompt that is this and nothing else is the token of that name, not its letters."""


class ImageSource(Protocol):
    """Where a picture's bytes lie; nothing is read before it is asked for."""

    def read(self) -> bytes:
        """Give the bytes as they are stored; whether they are a picture shows when decoding.

        Raises:
            ImageError: there are none.
        """
        ...


@dataclass(frozen=True)
class Question:
    """One row of a benchmark.

    Attributes:
        benchmark: its name.
        id: unique in the benchmark.
        cluster: rows that are copies of one question share it; for all others it is the id.
        images: the row's pictures in its own order.
        fields: all that prompt and scoring need, in plain JSON; predictions carry it on.
        demos: questions shown before this one with their answers; empty but for few-shot.
    """

    benchmark: str
    id: str
    cluster: str
    images: tuple[ImageSource, ...]
    fields: Fields
    demos: tuple["Question", ...] = ()


@dataclass(frozen=True)
class Prompt:
    """A question in the words of a protocol, and how its answer is drawn and ended.

    Attributes:
        parts: texts and image marks in order, exact to the newline. A text that is ``CHUNK_END``
            and nothing else is that token; any other text is words, whatever it holds.
        images: as many as ``parts`` has marks, in the same order; those of demos come first.
        system: what the system turn says; None leaves it to the chat template. Unused when raw.
        raw: ``<s>`` and the parts, without any turn, as the paper's harness asks; else the parts
            are one user turn and the chat template opens the assistant's.
        max_new_tokens: of the answer.
        stop: single tokens, special ones by name, each of which ends the answer in place of the
            template's end of turn. Empty: the answer ends where the template says.
        mode: ``generate`` asks for text, ``likelihood`` for the log-probability of each option.
        options: what the likelihood is asked of, in order; empty when text is generated.
        first_token: judge options by their first token alone, without the end of the turn.
    """

    parts: tuple[Part, ...]
    images: tuple[ImageSource, ...]
    system: str | None = None
    raw: bool = False
    max_new_tokens: int = 16
    stop: tuple[str, ...] = ()
    mode: Literal["generate", "likelihood"] = "generate"
    options: tuple[str, ...] = ()
    first_token: bool = False

    def __post_init__(self) -> None:
        marks = sum(isinstance(part, ImageMark) for part in self.parts)
        if marks != len(self.images):
            raise ValueError(f"a prompt with {marks} image marks and {len(self.images)} images")

    @property
    def text(self) -> str:
        """The texts joined, with ``<image>`` where an image stands: to look at and to hash."""
        return "".join("<image>" if isinstance(p, ImageMark) else p for p in self.parts)


@dataclass(frozen=True, slots=True)
class Read:
    """What a reader found in an output.

    Attributes:
        value: the answer it reads, or None for an output that it cannot read.
        how: the rule that found it, in a word or two.
    """

    value: str | None
    how: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an output is worth.

    Attributes:
        correct: from 0 to 1.
        read: what was read as the answer, and by which rule.
    """

    correct: float
    read: Read


@dataclass(frozen=True, slots=True)
class Row:
    """One scored prediction, as ``scored.jsonl`` holds it, with the question's fields."""

    id: str
    cluster: str
    fields: Fields
    output: str
    verdict: Verdict


@dataclass(frozen=True)
class Summary:
    """The figures of a benchmark.

    Attributes:
        metrics: name to value, in percent where it is a share.
        counts: name to count.
        by: kind of group (``category``) to the group's name to its accuracy in percent.
    """

    metrics: dict[str, float]
    counts: dict[str, int] = field(default_factory=dict)
    by: dict[str, dict[str, float]] = field(default_factory=dict)
