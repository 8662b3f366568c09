"""Captions as part of a prompt: short enough, and never more than text."""

from collections.abc import Iterable

from transformers import PreTrainedTokenizerFast

from openqwen2vl.formats.errors import ConfigError


def shorten(tokenizer: PreTrainedTokenizerFast, caption: str, most: int) -> str:
    """Cut a caption where a token would be one too many.

    Args:
        tokenizer: counts the caption by itself.
        caption: any text.
        most: tokens that may stay.

    Returns:
        The longest beginning of whole characters that the first ``most`` tokens hold.

    Raises:
        ConfigError: the tokenizer does not tell where its tokens lie.
    """
    spans = _spans(tokenizer, caption)
    return caption if len(spans) <= most else caption[: spans[most][1]]


def plain(tokenizer: PreTrainedTokenizerFast, caption: str, marks: Iterable[str] = ()) -> str:
    """Break whatever a tokenizer or a processor would not take for text.

    A space goes behind the first character of each special token's and each mark's text. That is
    where a caption which holds ``<image>`` differs from what the judge reads: ``< image>``.

    Args:
        tokenizer: whose special tokens are meant.
        caption: any text.
        marks: texts that a processor replaces by an image or a video.

    Raises:
        ConfigError: the tokenizer does not tell where its tokens lie.
    """
    for mark in marks:
        caption = caption.replace(mark, _broken(mark))
    special = _special_ids(tokenizer)
    found = _places(tokenizer, caption, special)
    for start, stop in reversed(found):
        caption = caption[:start] + _broken(caption[start:stop]) + caption[stop:]
    # A tokenizer that reads over the breaks gets nothing to read at all.
    while found := _places(tokenizer, caption, special):
        for start, stop in reversed(found):
            caption = caption[:start] + caption[stop:]
    return caption


def _broken(mark: str) -> str:
    """Put a space behind the first visible character."""
    cut = len(mark) - len(mark.lstrip()) + 1
    return mark[:cut] + " " + mark[cut:]


def _special_ids(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    added = tokenizer.added_tokens_decoder.items()
    special = {token for token, content in added if content.special}
    marks = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    # What stands for a letter that a vocabulary lacks is text.
    return special | (set(tokenizer.all_special_ids) - ({tokenizer.unk_token_id} - marks))


def _places(
    tokenizer: PreTrainedTokenizerFast, text: str, special: set[int]
) -> list[tuple[int, int]]:
    """Give where special tokens lie, first and last character."""
    spans = _spans(tokenizer, text)
    return [(start, stop) for token, start, stop in spans if token in special and stop > start]


def _spans(tokenizer: PreTrainedTokenizerFast, text: str) -> list[tuple[int, int, int]]:
    """Give id, first and last character of each token."""
    try:
        coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    except NotImplementedError as error:
        raise ConfigError(
            f"the judge's tokenizer, a {type(tokenizer).__name__}, does not tell where its tokens "
            "lie in a text; give a model with a fast tokenizer (tokenizer.json)"
        ) from error
    pairs = zip(coded["input_ids"], coded["offset_mapping"], strict=True)
    return [(token, start, stop) for token, (start, stop) in pairs]
