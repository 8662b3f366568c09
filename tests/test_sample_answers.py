"""What a page shows of a held-out document: the user's words, not the template's."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.shards import tiny_tokenizer
from support.trainer import ACCUMULATION, FakeTrainer, tiny_module

from openqwen2vl.callbacks.answers import SampleAnswers, _question
from openqwen2vl.formats.documents import IMAGE, Turn
from openqwen2vl.formats.templates import TEMPLATES, prompt_ids
from openqwen2vl.formats.tokens import special_tokens, tokenizer_hash


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


@pytest.mark.parametrize("mine", [True, False])
def test_no_rank_asks_alone_where_another_cannot_read(tmp_path: Path, mine: bool) -> None:
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    document = {
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "prompt": [1],
        "images": torch.zeros(0),
    }
    trainer = FakeTrainer(tmp_path, global_step=500)
    trainer.datamodule = SimpleNamespace(held_out_documents=lambda count, grid: [document])
    told: list[bool] = []

    def together(decision: bool, all: bool) -> bool:
        told.append(decision)
        return False  # another rank's tokenizer is missing

    trainer.strategy.reduce_boolean_decision = together
    name = "tokenizer" if mine else "nowhere"
    asked = SampleAnswers(str(tmp_path / name))
    asked.on_train_batch_end(trainer, tiny_module(), None, {}, 500 * ACCUMULATION - 1)
    assert told == [mine]  # and no `predict_step`, which the stand-in lacks
