"""What an exported model is asked before it is let out, and what it has to answer."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from openqwen2vl.formats.documents import IMAGE, Turn
from openqwen2vl.formats.images import decode_image
from openqwen2vl.formats.templates import Template, prompt_ids
from openqwen2vl.formats.tokens import special_tokens
from openqwen2vl.model.mllm import MLLM
from openqwen2vl.release.filled import logits

SQUARE, WIDE = "square.png", "wide.png"
"""A picture of the tower's own side, and one that has to be resized."""

TEXT, TENSORS = "question.json", "question.safetensors"

_CONVERSATIONS = (
    (Turn("user", (IMAGE, "\nWhat is in this picture?")),),
    (Turn("user", ("Name three colours.",)),),
    (
        Turn("system", ("Answer briefly.",)),
        Turn("user", (IMAGE, IMAGE, "\nWhich is wider?")),
        Turn("assistant", ("The second one.",)),
        Turn("user", ("By how much?",)),
    ),
)
_CAPTION = Turn("caption", (IMAGE, ""))
_CAPTION_PROMPT = "<s><|image_pad|>\n"


@dataclass(frozen=True)
class Texts:
    """How a model reads and writes.

    Attributes:
        tokenizer: from ``load_tokenizer``.
        template: that the model was trained with.
    """

    tokenizer: PreTrainedTokenizerFast
    template: Template


def write_question(folder: Path, model: MLLM, texts: Texts) -> None:
    """Ask our own model and write down questions and answers.

    The logits are of the conversation with two pictures, wherever there is no visual token.

    Args:
        folder: takes two pictures, ``question.json`` and ``question.safetensors``.
        model: with the weights that were exported.
        texts: of that model.
    """
    folder.mkdir(parents=True)
    side = model.vision.side
    _draw(side, side).save(folder / SQUARE)
    _draw(side + side // 2, side - side // 4).save(folder / WIDE)
    pictures = [decode_image((folder / name).read_bytes(), side) for name in (SQUARE, WIDE)]
    images = torch.from_numpy(np.stack(pictures))
    special = special_tokens(texts.tokenizer)
    asked = [_asked(turns, texts, model.projector.grid) for turns in _CONVERSATIONS]
    ids = torch.tensor(asked[-1]["ids"])
    read = (ids != special.image).nonzero()[:, 0]
    answer = logits(model, ids, images, special.image, read)
    pixels = model.vision.pixels(images).to(torch.float32)
    tensors = {"ids": ids, "read": read, "logits": answer, "pixels": pixels}
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / TENSORS)
    caption = {
        "text": _CAPTION_PROMPT,
        "images": [SQUARE],
        "ids": _expanded([_CAPTION], texts, model.projector.grid),
    }
    told = {"pictures": [SQUARE, WIDE], "conversations": asked, "caption": caption}
    (folder / TEXT).write_text(json.dumps(told | {"end": special.eos}))


def _draw(width: int, height: int) -> Image.Image:
    """Give blocks of random colours with some noise: what a resize should not change much."""
    rng = np.random.default_rng(7)
    blocks = rng.integers(20, 236, (7, 7, 3), dtype=np.uint8)
    picture = Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)
    noise = rng.integers(-20, 20, (height, width, 3))
    return Image.fromarray((np.asarray(picture).astype(np.int64) + noise).astype(np.uint8))


def _asked(turns: Sequence[Turn], texts: Texts, grid: int) -> dict[str, Any]:
    """Give a conversation in the words of ``apply_chat_template``, with the ids it must become."""
    images = sum(turn.num_images for turn in turns)
    return {
        "messages": [
            {"role": turn.role, "content": [_content(part) for part in turn.parts]}
            for turn in turns
        ],
        "images": [SQUARE, WIDE][:images],
        "ids": _expanded(turns, texts, grid),
    }


def _content(part: object) -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": part.removeprefix("\n")}
    return {"type": "image"}


def _expanded(turns: Sequence[Turn], texts: Texts, grid: int) -> list[int]:
    mark = special_tokens(texts.tokenizer).image
    found: list[int] = []
    for one in prompt_ids(turns, texts.tokenizer, texts.template):
        found += [one] * (grid * grid if one == mark else 1)
    return found
