"""A judge from transformers: any image-text-to-text model, by name or folder."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from openqwen2vl.curation.scorers.captions import plain, shorten
from openqwen2vl.curation.scorers.continuations import Ends, replies
from openqwen2vl.curation.scorers.judge import Question, Reply
from openqwen2vl.curation.scorers.numbers import number_tokens
from openqwen2vl.curation.scorers.pictures import open_picture
from openqwen2vl.curation.scorers.weights import placement, reachable, same_sums, weights_hash
from openqwen2vl.formats.errors import CheckpointError


@dataclass(frozen=True)
class _Loaded:
    """A model with its processor; ``weights`` names the weights as they were loaded."""

    model: Any
    processor: Any
    weights: str
    marks: list[str]
    eos_ids: list[int]
    pad_id: int


class TransformersJudge:
    """Asks by the model's own chat template: the picture first, then the text."""

    def __init__(
        self,
        model: str,
        device: str | None = None,
        dtype: str | None = None,
        caption_tokens: int = 512,
    ) -> None:
        """Say whom to ask; nothing is loaded yet.

        Args:
            model: a folder with weights, config and processor, or a name on the hub.
            device: ``None`` is the GPU where this process sees one; ``cuda`` where only workers do.
            dtype: float32, float16 or bfloat16; ``None`` is bfloat16 on a GPU, else float32.
            caption_tokens: a longer caption is cut there.

        Raises:
            ConfigError: an unknown device or dtype.
        """
        self._model = model
        self._device, self._dtype = placement(device, dtype, half=torch.bfloat16)
        self._caption_tokens = caption_tokens
        self._loaded: _Loaded | None = None
        self._placed = False

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self._device

    def __getstate__(self) -> dict[str, Any]:
        """Travel to another process without the weights; they are loaded there."""
        return {**self.__dict__, "_loaded": None, "_placed": False}

    def fingerprint(self) -> dict[str, Any]:
        """Give model, numbers, hashes of the weights and of the chat template.

        Raises:
            CheckpointError: the model cannot be loaded.
        """
        folder = Path(self._model).expanduser()
        loaded = self._judge()
        return {
            "model": folder.name if folder.is_dir() else self._model,
            "weights": loaded.weights,
            "template": _template_hash(loaded.processor),
            "dtype": str(self._dtype).removeprefix("torch."),
            "caption_tokens": self._caption_tokens,
        }

    def picture(self, data: bytes) -> Image.Image:
        """Decode a picture; the processor scales it."""
        return open_picture(data)

    def ask(self, questions: Sequence[Question], max_new_tokens: int, numbers: bool) -> list[Reply]:
        """Answer questions in one batch; see ``judge.Judge``.

        Raises:
            CheckpointError: the model cannot be loaded.
            ConfigError: its tokenizer is a slow one.
        """
        loaded = self._judge()
        if not self._placed:
            loaded.model.to(reachable(self._device))
            self._placed = True
        tokenizer = loaded.processor.tokenizer
        encode = partial(tokenizer.encode, add_special_tokens=False)
        asked = number_tokens(encode) if numbers else ()
        ends = Ends(eos_ids=loaded.eos_ids, pad_id=loaded.pad_id, max_new_tokens=max_new_tokens)
        with same_sums(self._device):
            return replies(loaded.model, tokenizer, self._inputs(loaded, questions), ends, asked)

    def _inputs(self, loaded: _Loaded, questions: Sequence[Question]) -> dict[str, Any]:
        processor = loaded.processor
        texts = [_rendered(processor, self._fitted(loaded, question)) for question in questions]
        bos = processor.tokenizer.bos_token
        inputs = processor(
            text=texts,
            images=[[question.picture] for question in questions],
            padding=True,
            padding_side="left",
            return_tensors="pt",
            # A template that writes the first token itself would else have it twice.
            add_special_tokens=not (bos and texts[0].startswith(bos)),
        )
        return {
            name: value.to(self._device, self._dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }

    def _fitted(self, loaded: _Loaded, question: Question) -> Question:
        """Give the question with a caption that is short enough and only text."""
        tokenizer = loaded.processor.tokenizer
        short = shorten(tokenizer, question.caption, self._caption_tokens)
        caption = plain(tokenizer, short, loaded.marks)
        return Question(None, question.before, caption, question.after, question.answer_start)

    def _judge(self) -> _Loaded:
        if self._loaded is None:
            self._loaded = _load(self._model, self._dtype)
        return self._loaded


def _load(name: str, dtype: torch.dtype) -> _Loaded:
    path = str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name
    try:
        processor = AutoProcessor.from_pretrained(path)
        # Rounded by transformers, which leaves alone what must stay float32: rotary frequencies.
        model = AutoModelForImageTextToText.from_pretrained(
            path, dtype=dtype, use_safetensors=True
        ).eval()
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f'cannot load a judge from "{name}": {said}; give the name of an image-text-to-text '
            "model that this machine can reach, or a folder with its config.json, .safetensors "
            "files, tokenizer and processor (where there is no network, download it elsewhere)"
        ) from error
    if not getattr(processor, "chat_template", None):
        raise CheckpointError(
            f'"{name}" has no chat template; give a model that was taught to answer, with a '
            "chat_template.jinja"
        )
    return _Loaded(
        model=model,
        processor=processor,
        weights=weights_hash(model.state_dict()),
        marks=_marks(processor),
        eos_ids=_eos_ids(model, processor.tokenizer),
        pad_id=_pad_id(processor.tokenizer),
    )


def _template_hash(processor: Any) -> str:
    """Hash the template itself: what it writes may hold today's date."""
    source = json.dumps(processor.chat_template, sort_keys=True)
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def _marks(processor: Any) -> list[str]:
    """Collect the texts that a processor replaces: ``image_token`` and its like."""
    found = {value for name, value in vars(processor).items() if name.endswith("_token")}
    return sorted(mark for mark in found if isinstance(mark, str) and len(mark) > 1)


def _eos_ids(model: Any, tokenizer: Any) -> list[int]:
    """Collect the ids that end an answer: the model's own and its tokenizer's."""
    own = model.generation_config.eos_token_id
    listed = own if isinstance(own, list) else [own]
    return sorted({token for token in (*listed, tokenizer.eos_token_id) if token is not None})


def _pad_id(tokenizer: Any) -> int:
    """Give the id that fills short prompts; the mask hides it, so that any other would do."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return int(tokenizer.pad_token_id)


def _rendered(processor: Any, question: Question) -> str:
    """Write a question as the model's template has it, up to where its answer goes on."""
    text = question.before + question.caption + question.after
    content = [{"type": "image"}, {"type": "text", "text": text}]
    message = [{"role": "user", "content": content}]
    prompt: str = processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    return prompt + question.answer_start
