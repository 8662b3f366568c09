"""lmms-eval looks for a task's functions beside its file: its own ones, and two of ours."""

from typing import Any

from lmms_eval.tasks.ai2d.utils import (
    MultiChoiceRegexFilter,
    ai2d_doc_to_target,
    ai2d_doc_to_text,
    ai2d_doc_to_visual,
)

__all__ = [
    "MultiChoiceRegexFilter",
    "ai2d_doc_to_target",
    "ai2d_doc_to_text",
    "ai2d_doc_to_visual",
    "letters",
    "number",
]


def letters(doc: dict[str, Any]) -> list[str]:
    """Give the letters of the options."""
    return ["ABCDEF"[place] for place in range(len(doc["options"]))]


def number(doc: dict[str, Any]) -> int:
    """Give the number of the right option."""
    return int(doc["answer"])
