"""What a page shows of a held-out document: the user's words, not the template's."""

from pathlib import Path

import pytest
from support.shards import tiny_tokenizer

from openqwen2vl.callbacks.answers import _question
from openqwen2vl.formats.documents import IMAGE, Turn
from openqwen2vl.formats.templates import TEMPLATES, prompt_ids
from openqwen2vl.formats.tokens import special_tokens


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_the_question_is_what_the_user_says(tmp_path: Path, name: str) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    special = special_tokens(tokenizer)
    turn = Turn("user", (IMAGE, "\na red ball\nand a blue box"))
    ids = prompt_ids([turn], tokenizer, TEMPLATES[name])
    assert special.im_start in ids
    assert _question(tokenizer, special, ids) == "a red ball\nand a blue box"


def test_a_caption_has_no_question(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    special = special_tokens(tokenizer)
    ids = [special.image, *tokenizer.encode("a red", add_special_tokens=False)]
    assert _question(tokenizer, special, ids) == "a red"
