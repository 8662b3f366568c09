"""Questions as a model takes them: token ids, where an answer ends, and batches of like length."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from openqwen2vl.evaluation.questions import Prompt, Question
from openqwen2vl.evaluation.subject import Subject

# Lengths that differ by less than an eighth of an octave share a class, in which the files' order
# stays: neighbours often show the same picture or lie in the same part of a file.
_CLASSES = 8


@dataclass(frozen=True)
class Asked:
    """A question in tokens.

    Attributes:
        question: as it was read.
        prompt: in the words of the protocol.
        prompt_hash: of all of it but the pictures.
        ids: the prompt with one mark for each image.
        end_ids: any of them ends the answer; empty where options are judged.
        options: tokens of each option that is judged; empty where text is generated.
        tokens: how many tokens the prompt and the longest answer take, images spread out.
        fault: why the model cannot be asked, or None.
    """

    question: Question
    prompt: Prompt
    prompt_hash: str
    ids: list[int]
    end_ids: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    tokens: int
    fault: str | None = None


def put(
    questions: Sequence[Question], prompt_of: Callable[[Question], Prompt], subject: Subject
) -> list[Asked]:
    """Put questions into a model's tokens.

    Args:
        questions: of one benchmark.
        prompt_of: puts one in the words of a protocol.
        subject: whom to ask.

    Raises:
        ConfigError: the protocol and the tokenizer do not go together.
    """
    return [_put(question, prompt_of(question), subject) for question in questions]


def _put(question: Question, prompt: Prompt, subject: Subject) -> Asked:
    ids = subject.prompt_ids(prompt)
    judged = prompt.mode == "likelihood"
    options = subject.option_ids(prompt) if judged else ()
    spread = len(ids) + len(prompt.images) * (subject.visual_tokens - 1)
    tokens = spread + (max(map(len, options)) if judged else prompt.max_new_tokens)
    most = subject.most_tokens
    fault = None
    if most is not None and tokens > most:
        fault = f"prompt and answer are {tokens:,} tokens; the model holds {most:,}"
    return Asked(
        question=question,
        prompt=prompt,
        prompt_hash=prompt_hash(prompt),
        ids=ids,
        end_ids=() if judged else subject.end_ids(prompt.stop),
        options=options,
        tokens=tokens,
        fault=fault,
    )


def prompt_hash(prompt: Prompt) -> str:
    """Give 16 hex digits over all that a model is asked but the pictures."""
    parts = [part if isinstance(part, str) else None for part in prompt.parts]
    asked = [
        parts,
        prompt.system,
        prompt.raw,
        prompt.mode,
        prompt.max_new_tokens,
        prompt.stop,
        prompt.options,
        prompt.first_token,
    ]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def batches(
    asked: Sequence[Asked], most_prompts: int, most_tokens: int
) -> Iterator[tuple[Asked, ...]]:
    """Gather questions that can be asked at once, the longest first.

    So a batch too large for the memory shows at the start, and ranks that take turns end together.

    Args:
        asked: in any order.
        most_prompts: in a batch.
        most_tokens: in a batch, with its padding; a longer question is asked alone.
    """
    batch: list[Asked] = []
    longest = 0
    for one in sorted(asked, key=_order):
        size = max(longest, _width(one))
        full = len(batch) == most_prompts or size * (len(batch) + 1) > most_tokens
        if batch and (full or _kind(one) != _kind(batch[0])):
            yield tuple(batch)
            batch, size = [], _width(one)
        batch.append(one)
        longest = size
    if batch:
        yield tuple(batch)


def _order(one: Asked) -> tuple[object, ...]:
    return (*_kind(one), -round(_CLASSES * math.log2(_width(one))))


def _width(one: Asked) -> int:
    """How many tokens a question takes in a batch: a document for each option that is judged."""
    return one.tokens * max(1, len(one.options))


def _kind(one: Asked) -> tuple[object, ...]:
    """What all questions of a batch share."""
    return one.prompt.mode, one.prompt.max_new_tokens, one.end_ids
