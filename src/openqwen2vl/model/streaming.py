"""One answer, token by token, while it is being made; the tokens are those of ``generation``."""

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache, TemperatureLogitsWarper, TopPLogitsWarper

from openqwen2vl.model.decoding import Decoding, Sampling
from openqwen2vl.model.generation import answering, expand, left_padded

if TYPE_CHECKING:
    from openqwen2vl.model.mllm import MLLM


@torch.no_grad()
def stream(
    model: "MLLM", prompt: Sequence[int], images: Tensor, image_id: int, decoding: Decoding
) -> Generator[int, None, None]:
    """Continue one prompt; each token is given as soon as it is known.

    The model is in eval mode and with plain attention from the first token until the last one, or
    until the iterator is closed: ask it nothing else in between. The seed's draws are its own: the
    caller's random state is not touched.

    Args:
        model: left in the mode and with the attention it came with.
        prompt: token ids with one ``image_id`` for each image.
        images: uint8 (K, S, S, 3); on the model's device.
        image_id: the image mark.
        decoding: how the answer goes on and ends.

    Yields:
        The ids that ``generation.generate`` gives for this prompt alone, without the one that
        ends the answer.

    Raises:
        ValueError: the prompt's marks and the images differ in number, or the prompt is empty.
    """
    expanded = expand([prompt], images, image_id, model.projector.grid)
    draws = torch.Generator(device=images.device).manual_seed(decoding.sampling.seed)
    with answering(model):
        embeddings, _ = left_padded(model, expanded, images, decoding.pad_id)
        cache = DynamicCache(config=model.llm.config)
        inputs: dict[str, Any] = {"inputs_embeds": embeddings}
        for _ in range(decoding.max_new_tokens):
            # Of the prompt only the last row meets the output embedding.
            logits = model.llm(
                **inputs, past_key_values=cache, use_cache=True, logits_to_keep=1
            ).logits
            token = _next(logits[:, -1].float(), decoding.sampling, draws)
            if int(token) in decoding.eos_ids:
                return
            yield int(token)
            inputs = {"input_ids": token[:, None]}


def _next(logits: Tensor, sampling: Sampling, draws: torch.Generator) -> Tensor:
    """Choose a token, int64 (1,), from its logits (1, V) as transformers does."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    none = torch.empty(1, 0, dtype=torch.int64, device=logits.device)
    warpers = [TemperatureLogitsWarper(float(sampling.temperature))]
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(float(sampling.top_p)))
    for warp in warpers:
        logits = warp(none, logits)
    return torch.multinomial(logits.softmax(dim=-1), num_samples=1, generator=draws)[:, 0]
