"""The model that is asked, with all it takes to put a question to it."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from openqwen2vl.evaluation.questions import CHUNK_END, Prompt
from openqwen2vl.formats.documents import ImageMark, Turn
from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.formats.templates import Template, prompt_ids
from openqwen2vl.formats.tokens import encode_text, special_tokens
from openqwen2vl.model.mllm import MLLM


@dataclass(frozen=True)
class Subject:
    """A trained model.

    Attributes:
        model: its projector at the grid to be asked at.
        tokenizer: the one that it was trained with.
        template: likewise.
        name: for people.
        hash: of all its weights, as they were loaded, and the grid.
    """

    model: MLLM
    tokenizer: PreTrainedTokenizerFast
    template: Template
    name: str
    hash: str

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Give the ids after which the answer comes, with one mark for each image.

        Raises:
            ConfigError: the prompt holds a token that this tokenizer lacks.
        """
        if not prompt.raw:
            system = [] if prompt.system is None else [Turn("system", (prompt.system,))]
            turns = [*system, Turn("user", prompt.parts)]
            return prompt_ids(turns, self.tokenizer, self.template)
        special = special_tokens(self.tokenizer)
        ids = [special.bos]
        for part in prompt.parts:
            if isinstance(part, ImageMark):
                ids.append(special.image)
            elif part == CHUNK_END:
                ids.append(self._special_id(part))
            else:
                ids += encode_text(self.tokenizer, part)
        return ids

    def end_ids(self, stop: Sequence[str]) -> tuple[int, ...]:
        """Give the ids that end an answer: those of ``stop``, or the template's end of turn.

        Raises:
            ConfigError: one of ``stop`` is not a single token of this tokenizer.
        """
        if not stop:
            return (special_tokens(self.tokenizer).eos,)
        named = self.tokenizer.get_added_vocab()
        ids = [[named[t]] if t in named else encode_text(self.tokenizer, t) for t in stop]
        for text, found in zip(stop, ids, strict=True):
            if len(found) != 1:
                raise ConfigError(
                    f"the protocol ends answers at {text!r}, which is {len(found)} tokens of "
                    f"{self.name}'s tokenizer and not one; choose another protocol"
                )
        return tuple(found[0] for found in ids)

    def option_ids(self, prompt: Prompt) -> tuple[tuple[int, ...], ...]:
        """Give the tokens of each option that are judged, with the end of the turn.

        Raises:
            ConfigError: two options begin with the same token, where only that one is judged.
        """
        ids = [encode_text(self.tokenizer, text) for text in prompt.options]
        if not prompt.first_token:
            end = special_tokens(self.tokenizer).eos
            return tuple((*option, end) for option in ids)
        first = tuple((option[0],) for option in ids)
        if len(set(first)) < len(first):
            raise ConfigError(
                f"options {', '.join(prompt.options)} begin with the same token in {self.name}'s "
                "tokenizer, and this protocol judges the first one alone; choose another"
            )
        return first

    def _special_id(self, name: str) -> int:
        found: dict[str, int] = self.tokenizer.get_added_vocab()
        if name not in found:
            raise ConfigError(
                f"the protocol's prompt holds the token {name}, which {self.name}'s tokenizer "
                "lacks; choose protocol=standard"
            )
        return found[name]

    @property
    def visual_tokens(self) -> int:
        """How many tokens an image becomes."""
        return self.model.projector.grid**2

    @property
    def most_tokens(self) -> int | None:
        """How many tokens the language model can hold, where its config tells."""
        found: int | None = getattr(self.model.llm.config, "max_position_embeddings", None)
        return found
