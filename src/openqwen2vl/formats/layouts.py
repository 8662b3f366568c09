"""What a sample's JSON says: a conversation, an interleaved document or the text of a page."""

from typing import Any

from openqwen2vl.formats.captions import caption_turn, is_page, page_text
from openqwen2vl.formats.conversations import is_conversation, parse_turns
from openqwen2vl.formats.documents import ImageRef, Turn
from openqwen2vl.formats.interleaved import InterleavedRules, is_interleaved, parse_interleaved

Laid = tuple[tuple[Turn, ...], tuple[ImageRef, ...]]
"""The turns of a document, and its images in the order of their marks."""


def lay_out(
    fields: dict[str, Any], images: tuple[ImageRef, ...], rules: InterleavedRules
) -> Laid | None:
    """Read the turns that a sample's JSON holds.

    Args:
        fields: the JSON; empty when the sample has none.
        images: those that come with the sample, in its own order.
        rules: which interleaved documents are taken.

    Returns:
        Turns and images, or None when the JSON holds neither kind of document.

    Raises:
        Unusable: with the reason, when the document cannot be used.
    """
    if is_conversation(fields):
        return parse_turns(fields, len(images)), images
    if is_interleaved(fields):
        document = parse_interleaved(fields, len(images), rules)
        return (document.turn,), tuple(images[number] for number in document.images)
    if is_page(fields):
        return (caption_turn(page_text(fields), len(images), "ground_truth"),), images
    return None
