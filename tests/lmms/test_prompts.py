"""The standard protocol asks in lmms-eval's words, and lets a model say as much."""

from pathlib import Path
from typing import Any

import pytest

from lmms.parity import STANDARD, sides
from lmms.theirs import COUNTERPARTS
from openqwen2vl.evaluation.questions import Prompt
from openqwen2vl.formats.documents import ImageMark

PICTURE = "a picture"
MOST_TOKENS = 128
LETTER_TOKENS = {"seedbench": 16, "mmstar": 16}  # theirs says nothing


def ours_in_pieces(prompt: Prompt) -> list[str]:
    """Give texts and pictures in order, without the newline that we put behind a picture."""
    pieces: list[str] = []
    for part in prompt.parts:
        if isinstance(part, ImageMark):
            pieces.append(PICTURE)
        else:
            pieces.append(part.removeprefix("\n") if PICTURE in pieces[-1:] else part)
    return pieces


def theirs_in_pieces(content: list[dict[str, Any]]) -> list[str]:
    pieces = [PICTURE if part["type"] == "image" else part["text"] for part in content]
    return [piece for piece in pieces if piece]


@pytest.mark.parametrize("name", COUNTERPARTS)
def test_a_question_is_put_in_the_same_words(name: str, tmp_path: Path) -> None:
    side = sides(name, tmp_path)
    assert len(side.rows) >= 12
    for number, (question, doc) in enumerate(side.rows):
        prompt = side.ours.prompt(question, STANDARD)
        assert len(prompt.images) == len(question.images)
        if name == "mantis":
            # Theirs shows all pictures first and leaves the marks as words; ours stand there.
            assert prompt.text == side.theirs.text(doc)
        else:
            assert ours_in_pieces(prompt) == theirs_in_pieces(side.theirs.content(number))


@pytest.mark.parametrize("name", COUNTERPARTS)
def test_an_answer_may_be_as_long_up_to_a_bound(name: str, tmp_path: Path) -> None:
    side = sides(name, tmp_path)
    theirs = side.theirs.settings.get("max_new_tokens")
    assert theirs is None or name not in LETTER_TOKENS
    most = min(theirs or LETTER_TOKENS.get(name, MOST_TOKENS), MOST_TOKENS)
    for question, _ in side.rows:
        assert side.ours.prompt(question, STANDARD).max_new_tokens == most
