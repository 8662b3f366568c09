"""A judge from this house: a fine-tuned model of ours answers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from openqwen2vl.curation.scorers.captions import shorten
from openqwen2vl.curation.scorers.continuations import Ends, replies
from openqwen2vl.curation.scorers.judge import Question, Reply
from openqwen2vl.curation.scorers.numbers import number_tokens
from openqwen2vl.curation.scorers.weights import placement, reachable, same_sums, weights_hash
from openqwen2vl.formats.documents import IMAGE, Turn
from openqwen2vl.formats.images import decode_image
from openqwen2vl.formats.templates import Template, prompt_ids
from openqwen2vl.formats.tokens import encode_text, special_tokens
from openqwen2vl.model.mllm import MLLM

_LOADING = Lock()


@dataclass(frozen=True)
class TrainedModel:
    """A model with what it was trained to read.

    Attributes:
        model: on the CPU, its projector at the grid to judge at.
        tokenizer: of its packs.
        template: of its conversations.
        name: for people.
    """

    model: MLLM
    tokenizer: PreTrainedTokenizerFast
    template: Template
    name: str


class MllmJudge:
    """Asks a model of our own class, in the layout that it was fine-tuned in."""

    def __init__(
        self,
        load: Callable[[], TrainedModel],
        device: str | None = None,
        dtype: str | None = None,
        caption_tokens: int = 512,
    ) -> None:
        """Say whom to ask; nothing is loaded yet.

        Args:
            load: gives the model, which is then the judge's own; picklable. It is an argument
                since checkpoints are opened on a higher floor than this.
            device: ``None`` is the GPU where this process sees one; ``cuda`` where only workers do.
            dtype: float32, float16 or bfloat16; ``None`` is bfloat16 on a GPU, else float32.
            caption_tokens: a longer caption is cut there.

        Raises:
            ConfigError: an unknown device or dtype.
        """
        self._load = load
        self._device, self._dtype = placement(device, dtype, half=torch.bfloat16)
        self._caption_tokens = caption_tokens
        self._loaded: TrainedModel | None = None
        self._weights: str | None = None
        self._placed = False

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self._device

    def __getstate__(self) -> dict[str, Any]:
        """Travel to another process without the weights; they are loaded there."""
        return {**self.__dict__, "_loaded": None, "_weights": None, "_placed": False}

    def fingerprint(self) -> dict[str, Any]:
        """Give name, grid, numbers, and hashes of weights and template.

        Raises:
            UserError: as of ``load``.
        """
        judge = self._judge()
        return {
            "model": judge.name,
            "weights": self._weights,
            "template": judge.template.hash,
            "grid": judge.model.projector.grid,
            "dtype": str(self._dtype).removeprefix("torch."),
            "caption_tokens": self._caption_tokens,
        }

    def picture(self, data: bytes) -> NDArray[Any]:
        """Decode a picture as in training: uint8 (S, S, 3).

        Raises:
            ImageError: the bytes cannot be decoded.
        """
        return decode_image(data, self._judge().model.vision.side)

    def ask(self, questions: Sequence[Question], max_new_tokens: int, numbers: bool) -> list[Reply]:
        """Answer questions in one batch; see ``judge.Judge``."""
        judge = self._judge()
        if not self._placed:
            # A frozen tower is not registered: it follows the pictures by itself.
            judge.model.to(reachable(self._device))
            # Not the buffers: rotary frequencies of 16 bits would move far positions.
            for weight in judge.model.parameters():
                weight.data = weight.data.to(self._dtype)
            self._placed = True
        special = special_tokens(judge.tokenizer)
        asked = number_tokens(partial(encode_text, judge.tokenizer)) if numbers else ()
        ends = Ends(eos_ids=[special.eos], pad_id=special.pad, max_new_tokens=max_new_tokens)
        with _plain_attention(judge.model), same_sums(self._device):
            inputs = self._inputs(judge, questions)
            return replies(judge.model.llm, judge.tokenizer, inputs, ends, asked)

    @torch.no_grad()
    def _inputs(self, judge: TrainedModel, questions: Sequence[Question]) -> dict[str, Tensor]:
        """Give embeddings (B, L, D) padded on the left, and the mask of their real tokens."""
        model, special = judge.model, special_tokens(judge.tokenizer)
        spread = model.projector.grid**2
        prompts = [
            [t for token in ids for t in [token] * (spread if token == special.image else 1)]
            for ids in (self._prompt(judge, question) for question in questions)
        ]
        longest = max(len(prompt) for prompt in prompts)
        ids = [[special.pad] * (longest - len(prompt)) + prompt for prompt in prompts]
        tokens = torch.tensor(ids, device=self._device)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self._device)
        mask = torch.arange(longest, device=self._device) >= (longest - lengths)[:, None]
        places = (tokens == special.image).flatten().nonzero()[:, 0]
        pixels = [torch.from_numpy(question.picture) for question in questions]
        rows = model.image_rows(torch.stack(pixels).to(self._device))
        return {
            "inputs_embeds": model.embed(tokens, rows, places),
            "attention_mask": mask.long(),
        }

    def _prompt(self, judge: TrainedModel, question: Question) -> list[int]:
        """Give compact ids: one image mark, then the text, in which nothing is special."""
        caption = shorten(judge.tokenizer, question.caption, self._caption_tokens)
        text = "\n" + question.before + caption + question.after
        ids = prompt_ids([Turn("user", (IMAGE, text))], judge.tokenizer, judge.template)
        return [*ids, *encode_text(judge.tokenizer, question.answer_start)]

    def _judge(self) -> TrainedModel:
        # Pictures are made ready on several threads, and the first of them needs the model.
        with _LOADING:
            if self._loaded is None:
                self._loaded = self._load()
                self._weights = weights_hash(self._loaded.model.weights())
            return self._loaded


@contextmanager
def _plain_attention(model: MLLM) -> Iterator[None]:
    """Eval mode and an attention that knows a cache, for the time of an answer."""
    attention, training = model.llm.config._attn_implementation, model.training
    model.eval()
    model.llm.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.llm.set_attn_implementation(attention)
        model.train(training)
