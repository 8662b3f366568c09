"""A few generated answers during training, to the loggers and to samples.jsonl."""

import json
import logging
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from transformers import PreTrainedTokenizerFast

from openqwen2vl.formats.errors import UserError
from openqwen2vl.formats.files import atomic_file
from openqwen2vl.formats.said import said_turns
from openqwen2vl.formats.tokens import (
    SpecialTokens,
    load_tokenizer,
    special_tokens,
    tokenizer_hash,
)
from openqwen2vl.training.module import MLLMModule
from openqwen2vl.training.stream import packed_data

from .boundary import ends_step

log = logging.getLogger(__name__)

_SIDE = 144


class SampleAnswers(pl.Callback):
    """Continues the first held-out documents greedily, at the current grid.

    Small copies of their pictures are kept in ``samples/``.

    Args:
        tokenizer: folder or hub name, only to read the answers; None: no answers.
        every_n_steps: optimizer steps between two rounds.
        count: documents.
        max_new_tokens: of an answer.
    """

    def __init__(
        self,
        tokenizer: str | None,
        every_n_steps: int = 500,
        count: int = 4,
        max_new_tokens: int = 48,
    ) -> None:
        self.tokenizer = tokenizer
        self.every_n_steps, self.count, self.max_new_tokens = every_n_steps, count, max_new_tokens

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Ask when it is time."""
        due = trainer.global_step % self.every_n_steps == 0
        if ends_step(trainer, batch_idx) and due and self.tokenizer is not None:
            assert isinstance(pl_module, MLLMModule)
            self._ask(trainer, pl_module, self.tokenizer)

    def _ask(self, trainer: pl.Trainer, module: MLLMModule, name: str) -> None:
        documents = packed_data(trainer).held_out_documents(self.count, module.model.projector.grid)
        if not documents:
            return
        tokenizer = _reader(name, documents[0]["tokenizer_hash"])
        # Sharded weights are gathered on all ranks, and a folder or the hub may fail on one.
        if not trainer.strategy.reduce_boolean_decision(tokenizer is not None, all=True):
            return
        assert tokenizer is not None
        special = special_tokens(tokenizer)
        questions = {
            "prompts": [document["prompt"] for document in documents],
            "images": torch.cat([document["images"] for document in documents]).to(module.device),
            "image_id": special.image,
            "pad_id": special.pad,
            "eos_ids": [special.eos],
            "max_new_tokens": self.max_new_tokens,
        }
        module.eval()
        with torch.no_grad():
            answers = trainer.strategy.predict_step(questions, 0)
        module.train()
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        lines = []
        for document, answer in zip(documents, answers, strict=True):
            texts = {"wanted": document["answer"], "given": answer}
            told = {"step": trainer.global_step, "uid": document["uid"]}
            told["picture"] = _picture(folder, document)
            told["question"] = _question(tokenizer, special, document["prompt"])
            lines.append(told | {name: _text(tokenizer, ids) for name, ids in texts.items()})
        with (folder / "samples.jsonl").open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        text = "\n\n".join(f"wanted: {x['wanted']}\n\ngiven: {x['given']}" for x in lines)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("answers", text, trainer.global_step)


def _reader(name: str, packed_with: str) -> PreTrainedTokenizerFast | None:
    """Load the tokenizer that reads the answers; None, with a warning, when that cannot be."""
    try:
        tokenizer = load_tokenizer(name)
    except UserError as error:
        # Answers are for the eye; a run that has come so far need not end for them.
        log.warning("no sample answers: %s", error)
        return None
    if packed_with != tokenizer_hash(tokenizer):
        log.warning("no sample answers: %s is not the packs' tokenizer", name)
        return None
    return tokenizer


def _text(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def _question(
    tokenizer: PreTrainedTokenizerFast, special: SpecialTokens, ids: Sequence[int]
) -> str:
    """Give what the user says in a prompt; one without turns as it is."""
    said = [text for role, text in said_turns(ids, tokenizer, special) if role == "user"]
    return "\n".join(said) or _text(tokenizer, list(ids))


def _picture(folder: Path, document: dict[str, Any]) -> str | None:
    """Keep a small copy of a document's first picture; gives its name within the run's folder."""
    if not len(document["images"]):
        return None
    # A uid may hold anything, and a name of a file may not.
    name = f"samples/{sha256(str(document['uid']).encode()).hexdigest()[:16]}.jpg"
    if not (folder / name).exists():
        picture = Image.fromarray(document["images"][0].numpy())
        picture.thumbnail((_SIDE, _SIDE))
        with atomic_file(folder / name) as file:
            picture.save(file, "JPEG", quality=80)
    return name
