"""Answers of a batch: the likeliest ones, and on request how likely each number is.

Shapes: B prompts, L tokens of the longest one, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from openqwen2vl.curation.scorers.judge import Reply
from openqwen2vl.curation.scorers.numbers import Tokens, distribution, needed_prefixes


@dataclass(frozen=True, kw_only=True)
class Ends:
    """How answers end.

    Attributes:
        eos_ids: any of them ends an answer.
        pad_id: fills what follows in a batch.
        max_new_tokens: of each answer.
    """

    eos_ids: Sequence[int]
    pad_id: int
    max_new_tokens: int


def replies(
    model: Any,
    tokenizer: Any,
    inputs: Mapping[str, Tensor],
    ends: Ends,
    numbers: Sequence[Tokens] = (),
) -> list[Reply]:
    """Give the likeliest answers as text, and how likely they begin with each number.

    Args:
        model: as of ``answer``.
        tokenizer: writes the answers out.
        inputs: as of ``answer``.
        ends: how answers end.
        numbers: tokens of each number that is asked for; none is asked for by default.
    """
    rows, logits = answer(model, inputs, ends, needed_prefixes(numbers) if numbers else ())
    chances = distribution(numbers, logits).tolist() if numbers else [()] * len(rows)
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    return [
        Reply(text, row[-1] in ends.eos_ids, chance)
        for text, row, chance in zip(texts, rows, chances, strict=True)
    ]


@torch.no_grad()
def answer(
    model: Any, inputs: Mapping[str, Tensor], ends: Ends, prefixes: Sequence[Tokens] = ()
) -> tuple[list[list[int]], dict[Tokens, Tensor]]:
    """Give the likeliest answers, and the logits after some beginnings of an answer.

    The prompts are read once, whatever is asked. After that each prefix but the empty one costs
    one step of one token, on a copy of the cache.

    Args:
        model: a transformers model that generates; its own generation settings are left aside.
        inputs: of ``generate``: ids or embeddings of B prompts padded on the left, the mask of
            their real tokens, and whatever the model wants of the pictures.
        ends: how answers end.
        prefixes: beginnings of answers, each after those that it begins with; the empty one first.

    Returns:
        The new ids of each prompt, up to and with the one that ended it; and for each prefix
        float32 (B, V), the logits of what follows it.
    """
    settings = GenerationConfig(
        max_new_tokens=ends.max_new_tokens,
        pad_token_id=ends.pad_id,
        eos_token_id=list(ends.eos_ids),
        do_sample=False,
        use_cache=True,
    )
    found: dict[Tokens, Tensor] = {}
    brought = model.generation_config
    # transformers fills what a caller leaves out from the model's own settings: Qwen2.5's
    # repetition penalty of 1.1 would bend a greedy answer.
    model.generation_config = GenerationConfig()
    try:
        if prefixes:
            walk = _Walk(prefixes, ends, found)
            ids = model.generate(**inputs, generation_config=settings, custom_generate=walk)
        else:
            ids = model.generate(**inputs, generation_config=settings)
    finally:
        model.generation_config = brought
    length = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
    return [_until(row, ends.eos_ids) for row in ids[:, length:].tolist()], found


class _Walk:
    """A decoding method for ``generate``, which prepares masks, positions and the cache for it."""

    def __init__(self, prefixes: Sequence[Tokens], ends: Ends, found: dict[Tokens, Tensor]) -> None:
        self.prefixes, self.ends, self.found = prefixes, ends, found

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **state: Any,
    ) -> Tensor:
        """Give int64 (B, L + new tokens) and fill ``found``; the arguments are transformers'."""
        first = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **state)
        state, logits = _run(model, first, state)
        self.found[()] = logits
        self._branch(model, input_ids, state, ())
        return self._greedy(model, input_ids, state, logits)

    def _branch(self, model: Any, ids: Tensor, state: dict[str, Any], prefix: Tokens) -> None:
        longer = [p for p in self.prefixes if p[:-1] == prefix and p != prefix]
        for following in longer:
            token = ids.new_full((len(self.found[()]), 1), following[-1])
            # A copy, since not every cache can be cut back to where the branch began.
            branch = {**state, "past_key_values": deepcopy(state["past_key_values"])}
            grown, after, self.found[following] = _step(model, ids, branch, token)
            self._branch(model, grown, after, following)

    def _greedy(self, model: Any, ids: Tensor, state: dict[str, Any], logits: Tensor) -> Tensor:
        ended = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        eos = torch.tensor(self.ends.eos_ids, dtype=ids.dtype, device=logits.device)
        for number in range(self.ends.max_new_tokens):
            token = logits.argmax(dim=1, keepdim=True)
            token[ended] = self.ends.pad_id
            ended |= torch.isin(token[:, 0], eos)
            if ended.all() or number + 1 == self.ends.max_new_tokens:
                return torch.cat([ids, token], dim=1)
            ids, state, logits = _step(model, ids, state, token)
        return ids


def _step(
    model: Any, ids: Tensor, state: dict[str, Any], token: Tensor
) -> tuple[Tensor, dict[str, Any], Tensor]:
    """Read one more token; gives all ids, the state behind it and the logits after it."""
    ids = torch.cat([ids, token], dim=1)
    inputs = model.prepare_inputs_for_generation(ids, next_sequence_length=1, **state)
    return (ids, *_run(model, inputs, state))


def _run(
    model: Any, inputs: Mapping[str, Any], state: dict[str, Any]
) -> tuple[dict[str, Any], Tensor]:
    outputs = model(**inputs, return_dict=True)
    state = model._update_model_kwargs_for_generation(outputs, state)
    return state, outputs.logits[:, -1].float()


def _until(row: list[int], eos_ids: Sequence[int]) -> list[int]:
    ends = [at for at, token in enumerate(row) if token in eos_ids]
    return row[: ends[0] + 1] if ends else row
