"""Text of an answer that is still being made, in pieces that a reader can be shown."""

from collections.abc import Iterable, Iterator

from transformers import PreTrainedTokenizerFast

_UNFINISHED = "\ufffd"
"""What a decoder writes for bytes that are no character, or not yet."""

_MOST_UNFINISHED = 3
"""Bytes that a character can lack one more of: so many letters may yet become another."""


def text_pieces(tokenizer: PreTrainedTokenizerFast, ids: Iterable[int]) -> Iterator[str]:
    """Decode tokens as they come.

    A character whose bytes are spread over several tokens is held back until it is whole, so no
    piece ends inside one.

    Args:
        tokenizer: as ``load_tokenizer`` gives it.
        ids: of one answer.

    Yields:
        Texts that are not empty; joined they are what decoding all ids at once gives.
    """
    # Only what came since the last whole character is decoded again, after the piece before it:
    # some tokenizers write the first word of a text without its space.
    before: list[int] = []
    held: list[int] = []
    given = 0  # letters of the held tokens' text
    for token in ids:
        held.append(token)
        text = _after(tokenizer, before, held)
        settled = _settled(text)
        if settled > given:
            yield text[given:settled]
            given = settled
        if text and settled == len(text):
            before, held, given = held, [], 0
    rest = _after(tokenizer, before, held)[given:]
    if rest:
        yield rest


def _settled(text: str) -> int:
    """Count the letters that later bytes cannot change; bytes that are none must not hold all."""
    return max(len(text.rstrip(_UNFINISHED)), len(text) - _MOST_UNFINISHED)


def _after(tokenizer: PreTrainedTokenizerFast, before: list[int], held: list[int]) -> str:
    known = _text(tokenizer, before)
    return _text(tokenizer, [*before, *held])[len(known) :]


def _text(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text
