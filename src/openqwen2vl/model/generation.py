"""Answers from a trained model: continuations with a cache, and the likelihood of given options.

Shapes: K images, S image side, L tokens of the longest prompt with its visual tokens, D width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import GenerationConfig

from openqwen2vl.model.compiled import uncompiled
from openqwen2vl.model.decoding import Decoding
from openqwen2vl.model.seeding import seeded

if TYPE_CHECKING:
    from openqwen2vl.model.mllm import MLLM

ROWS_AT_A_TIME = 1024
"""Rows of logits held at once when options are judged; a row of Qwen2.5's is 600 KB."""


@dataclass(frozen=True)
class Expanded:
    """Prompts with each image mark spread over its visual tokens."""

    ids: list[list[int]]
    image_slots: list[list[int]]
    """Where the visual tokens stand in each prompt, in order."""


@torch.no_grad()
def generate(
    model: "MLLM",
    prompts: Sequence[Sequence[int]],
    images: Tensor,
    image_id: int,
    decoding: Decoding,
) -> list[list[int]]:
    """Continue each prompt, all of them in one batch.

    Args:
        model: left in the mode and with the attention it came with.
        prompts: token ids with one ``image_id`` for each image.
        images: uint8 (K, S, S, 3), those of all prompts in order; on the model's device.
        image_id: the image mark.
        decoding: how the answers go on and end.

    Returns:
        The new ids of each prompt, up to and without the one that ended it.

    Raises:
        ValueError: the prompts' marks and the images differ in number, or a prompt is empty.
    """
    if not prompts:
        return []
    expanded = expand(prompts, images, image_id, model.projector.grid)
    with answering(model), seeded(decoding.sampling.seed, images.device):
        embeddings, mask = left_padded(model, expanded, images, decoding.pad_id)
        ids = model.llm.generate(
            inputs_embeds=embeddings, attention_mask=mask, generation_config=_settings(decoding)
        )
    return [_until(row, decoding.eos_ids) for row in ids.tolist()]


@torch.no_grad()
def option_logprobs(
    model: "MLLM",
    prompts: Sequence[Sequence[int]],
    options: Sequence[Sequence[Sequence[int]]],
    images: Tensor,
    image_id: int,
) -> list[list[float]]:
    """How likely each option is as the continuation of its prompt.

    All prompts with all their options are one pack of isolated documents, so nothing is padded and
    only the options' positions meet the output embedding. Each image is encoded once.

    Args:
        model: left in the mode it came with.
        prompts: token ids with one ``image_id`` for each image.
        options: for each prompt, the token ids of each of its options.
        images: uint8 (K, S, S, 3), those of all prompts in order; on the model's device.
        image_id: the image mark.

    Returns:
        For each prompt and option, the summed natural log-probability of the option's tokens.

    Raises:
        ValueError: marks and images, or prompts and options, differ in number; an empty prompt.
    """
    if len(prompts) != len(options):
        raise ValueError(
            f"{len(prompts)} prompts came with options for {len(options)}; give each prompt its own"
        )
    expanded = expand(prompts, images, image_id, model.projector.grid)
    layout = _lay_out(expanded, options)
    if not layout.rows:
        return [[0.0] * len(choices) for choices in options]
    was_training = model.training
    model.eval()
    try:
        hidden = _pack_hidden(model, layout, images)
    finally:
        model.train(was_training)
    values = iter(_chosen_logprobs(model, hidden, layout))
    return [[sum(next(values) for _ in option) for option in choices] for choices in options]


@dataclass(frozen=True)
class _Layout:
    """All prompts with all their options in one row."""

    ids: list[int]
    positions: list[int]
    lengths: list[int]
    image_positions: list[int]
    image_sources: list[int]
    """Which visual token of the batch's images stands at each of ``image_positions``."""
    rows: list[int]
    """Positions whose next token is an option's."""
    targets: list[int]


def _lay_out(expanded: Expanded, options: Sequence[Sequence[Sequence[int]]]) -> _Layout:
    layout = _Layout([], [], [], [], [], [], [])
    first_source = 0
    for ids, slots, choices in zip(expanded.ids, expanded.image_slots, options, strict=True):
        for option in choices:
            start = len(layout.ids)
            # The option's last token predicts nothing that is asked for, so it is not fed.
            document = [*ids, *option[:-1]]
            layout.ids.extend(document)
            layout.positions.extend(range(len(document)))
            layout.lengths.append(len(document))
            layout.image_positions.extend(start + slot for slot in slots)
            layout.image_sources.extend(range(first_source, first_source + len(slots)))
            layout.rows.extend(range(start + len(ids) - 1, start + len(ids) - 1 + len(option)))
            layout.targets.extend(option)
        first_source += len(slots)
    return layout


def _pack_hidden(model: "MLLM", layout: _Layout, images: Tensor) -> Tensor:
    """Hidden states (total, D) of the one packed row."""
    device = images.device
    sources = torch.tensor(layout.image_sources, dtype=torch.int64, device=device)
    embeddings = model.embed(
        torch.tensor([layout.ids], device=device),
        model.image_rows(images)[sources],
        torch.tensor(layout.image_positions, dtype=torch.int64, device=device),
    )
    edges = list(accumulate(layout.lengths, initial=0))
    return model.decode(
        embeddings,
        torch.tensor([layout.positions], device=device),
        torch.tensor(edges, dtype=torch.int32, device=device),
        max(layout.lengths),
    )[0]


def _chosen_logprobs(model: "MLLM", hidden: Tensor, layout: _Layout) -> list[float]:
    """Log-probability of each target, a few rows of logits at a time."""
    device = hidden.device
    rows = torch.split(torch.tensor(layout.rows, device=device), ROWS_AT_A_TIME)
    targets = torch.split(torch.tensor(layout.targets, device=device), ROWS_AT_A_TIME)
    values = [
        model.head(hidden[here]).float().log_softmax(dim=1).gather(1, wanted[:, None])[:, 0]
        for here, wanted in zip(rows, targets, strict=True)
    ]
    listed: list[float] = torch.cat(values).double().tolist()
    return listed


def expand(prompts: Sequence[Sequence[int]], images: Tensor, image_id: int, grid: int) -> Expanded:
    """Spread each image mark over its visual tokens.

    Raises:
        ValueError: as of ``generate``.
    """
    marks = sum(list(prompt).count(image_id) for prompt in prompts)
    if marks != len(images):
        raise ValueError(
            f"the prompts hold {marks} image marks (id {image_id}), but {len(images)} images came; "
            "give one image for each mark"
        )
    if not all(len(prompt) for prompt in prompts):
        raise ValueError("a prompt is empty; give each at least one token")
    ids = [
        [i for token in prompt for i in [token] * (grid * grid if token == image_id else 1)]
        for prompt in prompts
    ]
    slots = [[at for at, token in enumerate(row) if token == image_id] for row in ids]
    return Expanded(ids, slots)


def left_padded(
    model: "MLLM", expanded: Expanded, images: Tensor, pad_id: int
) -> tuple[Tensor, Tensor]:
    """Embeddings (prompts, L, D) and the mask int64 (prompts, L) of their real tokens."""
    longest = max(len(row) for row in expanded.ids)
    gaps = [longest - len(row) for row in expanded.ids]
    ids = [[pad_id] * gap + row for gap, row in zip(gaps, expanded.ids, strict=True)]
    mask = [[0] * gap + [1] * (longest - gap) for gap in gaps]
    positions = [
        number * longest + gap + slot
        for number, (gap, slots) in enumerate(zip(gaps, expanded.image_slots, strict=True))
        for slot in slots
    ]
    device = images.device
    where = torch.tensor(positions, dtype=torch.int64, device=device)
    embeddings = model.embed(torch.tensor(ids, device=device), model.image_rows(images), where)
    return embeddings, torch.tensor(mask, device=device)


@contextmanager
def answering(model: "MLLM") -> Iterator[None]:
    """Eval mode, plain attention and neutral generation settings for the time of an answer.

    A released model brings settings of its own, and transformers fills every value that a caller
    leaves out from them: Qwen2.5's repetition penalty of 1.1 would bend a greedy answer.
    """
    llm = model.llm
    attention, settings = llm.config._attn_implementation, llm.generation_config
    was_training = model.training
    model.eval()
    llm.set_attn_implementation("sdpa")
    llm.generation_config = GenerationConfig()
    try:
        with uncompiled():
            yield
    finally:
        llm.generation_config = settings
        llm.set_attn_implementation(attention)
        model.train(was_training)


def _settings(decoding: Decoding) -> GenerationConfig:
    sampling = decoding.sampling
    drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    return GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        pad_token_id=decoding.pad_id,
        eos_token_id=list(decoding.eos_ids),
        use_cache=True,
        do_sample=sampling.temperature > 0,
        **(drawn if sampling.temperature > 0 else {}),
    )


def _until(row: list[int], eos_ids: Sequence[int]) -> list[int]:
    ends = [at for at, token in enumerate(row) if token in eos_ids]
    return row[: ends[0]] if ends else row
