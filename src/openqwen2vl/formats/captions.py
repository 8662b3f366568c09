"""Captions: one image and what it shows or says, from a text file or a page's ground truth."""

import json
from typing import Any

from openqwen2vl.formats.documents import IMAGE, Turn
from openqwen2vl.formats.rejects import Unusable


def caption_turn(text: str, num_images: int, name: str) -> Turn:
    """Give the turn of an image-text pair.

    Args:
        text: the caption.
        num_images: how many images come with it.
        name: what to call the caption when it cannot be used.

    Raises:
        Unusable: with the reason, when there is not just one image, or no text.
    """
    if num_images == 0:
        raise Unusable("missing_image", f"{name} is a caption without an image")
    if num_images > 1:
        raise Unusable("image_count", f"{num_images} images for one caption")
    if not text.strip():
        raise Unusable("empty_caption", f"{name} holds no text")
    return Turn("caption", (IMAGE, text))


def is_page(fields: dict[str, Any]) -> bool:
    """Whether a sample's JSON holds the text of a page, as SynthDoG writes it."""
    return "ground_truth" in fields


def page_text(fields: dict[str, Any]) -> str:
    """Give the text of a page: ``gt_parse.text_sequence`` of the JSON in ``ground_truth``.

    Raises:
        Unusable: ``bad_json``, when it is not there.
    """
    truth = fields["ground_truth"]
    try:
        parsed = json.loads(truth) if isinstance(truth, str) else truth
        text = parsed["gt_parse"]["text_sequence"]
        if isinstance(text, str):
            text.encode()  # a half surrogate pair cannot be written again
            return text
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Unusable(
            "bad_json", f"ground_truth holds no gt_parse.text_sequence ({type(error).__name__})"
        ) from error
    raise Unusable("bad_json", f"text_sequence is {type(text).__name__}, not a text")
