"""Words of the command line that Hydra would read otherwise than people mean them."""

import re
from collections.abc import Sequence

_TEXTS = ("prompt", "system", "tokenizer")
_QUOTES = "'\""


def reword(words: Sequence[str]) -> list[str]:
    """Give the words of a chat as Hydra takes them; what is so already stays.

    ``model=PATH`` would choose a file of the config group ``model``; it becomes
    ``model={path:'PATH'}``. A question may hold commas, brackets and question marks: it is quoted,
    as is a picture's path, which becomes a list of one.
    """
    return [_reworded(word) for word in words]


def _reworded(word: str) -> str:
    key, given, value = word.partition("=")
    if not given or value == "null" or _is_quoted(value):
        return word
    if key in _TEXTS:
        return f"{key}={_quoted(value)}"
    if key == "model" and not value.startswith("{"):
        return f"model={{path:{_quoted(value)}}}"
    if key == "image" and not value.startswith("["):
        return f"image=[{_quoted(value)}]"
    return word


def _is_quoted(value: str) -> bool:
    return len(value) > 1 and value[0] in _QUOTES and value[-1] == value[0]


def _quoted(text: str) -> str:
    """Quote a text so that neither Hydra's grammar nor OmegaConf's finds anything in it."""
    # Backslashes count only in front of what they could escape: a dollar's brace, or a quote.
    text = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", text)
    text = re.sub(r"(\\*)(')", lambda found: found[1] * 2 + "\\'", text)
    return "'" + re.sub(r"\\+$", lambda found: found[0] * 2, text) + "'"
