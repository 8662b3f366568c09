"""Conversations that outgrow a context, shortened by whole exchanges when that is asked for."""

from collections.abc import Callable
from dataclasses import replace

from openqwen2vl.formats.documents import Document


def drop_last_turns(
    document: Document, limit: int, length: Callable[[Document], int]
) -> Document | None:
    """Give the conversation without its last exchanges, as few of them as it takes.

    What is left ends with an answer; the images of the turns that go, go with them. Nothing is
    cut within a turn.

    Args:
        document: one that may be too long.
        limit: tokens that it may have.
        length: gives a document's tokens with its image marks expanded; more turns are never
            shorter.

    Returns:
        The document itself when it fits; None when not even its first exchange does, or when it
        is no conversation.
    """
    if length(document) <= limit:
        return document
    ends = _ends(document)
    low, high = 0, len(ends)  # the first `low` ends fit, those from `high` on do not
    while low < high:
        middle = (low + high) // 2
        if length(_until(document, ends[middle])) <= limit:
            low = middle + 1
        else:
            high = middle
    return _until(document, ends[low - 1]) if low else None


def _ends(document: Document) -> list[int]:
    """How many turns make a conversation that ends with an answer, in rising order."""
    turns, ends, answered = document.turns, [], False
    for number, turn in enumerate(turns[:-1], 1):
        answered |= turn.role == "assistant" and bool(turn.text.strip())
        if answered and turn.role == "assistant" and turns[number].role != "assistant":
            ends.append(number)
    return ends


def _until(document: Document, num_turns: int) -> Document:
    turns = document.turns[:num_turns]
    num_images = sum(turn.num_images for turn in turns)
    return replace(document, turns=turns, images=document.images[:num_images])
