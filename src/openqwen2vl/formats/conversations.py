"""Conversations as people store them: LLaVA's `conversations` and the chat format's `messages`."""

from typing import Any

from openqwen2vl.formats.documents import IMAGE, Part, Role, Turn
from openqwen2vl.formats.rejects import Unusable

_MARK = "<image>"
_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def is_conversation(fields: dict[str, Any]) -> bool:
    """Whether a sample's JSON holds a conversation."""
    return "conversations" in fields or "messages" in fields


def parse_turns(fields: dict[str, Any], num_images: int) -> tuple[Turn, ...]:
    """Read the turns of a conversation.

    The word ``<image>`` in a value is the place of an image, as LLaVA defines it; a chat
    message may give its parts as a list instead.

    Args:
        fields: a sample's JSON with ``conversations`` or ``messages``.
        num_images: how many images come with the sample.

    Raises:
        Unusable: with the reason, when the turns cannot be read, nobody answers, or the marks
            are not as many as the images.
    """
    raw = fields.get("conversations", fields.get("messages"))
    if not isinstance(raw, list) or not raw:
        raise Unusable("bad_conversation", "the conversation is not a list of turns")
    turns = tuple(_turn(item) for item in raw)
    if any(turn.role == "system" for turn in turns[1:]):
        raise Unusable("bad_conversation", "a system turn stands after the first turn")
    if not any(turn.role == "assistant" and turn.text.strip() for turn in turns):
        raise Unusable("no_answer", f"none of {len(turns)} turns is an answer")
    marks = sum(turn.num_images for turn in turns)
    if marks != num_images:
        raise Unusable("image_count", f"{marks} image marks in the text, {num_images} images")
    return turns


def _turn(item: Any) -> Turn:
    if not isinstance(item, dict):
        raise Unusable("bad_conversation", f"a turn is {type(item).__name__}, not an object")
    role = item.get("from", item.get("role"))
    if role not in _ROLES:
        raise Unusable("bad_conversation", f"a turn's speaker is {role!r}")
    content = item.get("value", item.get("content"))
    if isinstance(content, str):
        return Turn(_ROLES[role], _split(content))
    if isinstance(content, list):
        return Turn(_ROLES[role], _listed(content))
    raise Unusable("bad_conversation", f"a turn's text is {type(content).__name__}")


def _split(text: str) -> tuple[Part, ...]:
    """Cut a text at its image marks."""
    parts: list[Part] = []
    for index, piece in enumerate(text.split(_MARK)):
        if index:
            parts.append(IMAGE)
        if piece:
            parts.append(piece)
    return tuple(parts)


def _listed(content: list[Any]) -> tuple[Part, ...]:
    """Read a list of typed parts; a text after an image starts on a new line, as LLaVA writes it."""
    parts: list[Part] = []
    for item in content:
        kind = item.get("type") if isinstance(item, dict) else None
        if kind in ("image", "image_url"):
            parts.append(IMAGE)
        elif kind == "text" and isinstance(item.get("text"), str):
            text = item["text"]
            after_image = bool(parts) and parts[-1] is IMAGE
            parts.append("\n" + text if after_image and not text.startswith("\n") else text)
        else:
            raise Unusable("bad_conversation", f"a part of a turn is {kind!r}, not text or image")
    return tuple(parts)
