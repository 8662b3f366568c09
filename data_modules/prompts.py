"""Held-out documents as prompts, for sample answers during training."""

from typing import Any

import torch

from openqwen2vl.formats.errors import ImageError
from openqwen2vl.packing.batch import Decoder
from openqwen2vl.packing.reader import Packs


def prompts(folder: Packs, number: int, side: int, decode: Decoder) -> list[dict[str, Any]]:
    """Turn the documents of a pack into prompts with their answers.

    Args:
        folder: held-out packs.
        number: of the pack.
        side: pixels to which images are resized.
        decode: turns an image's bytes into pixels.

    Returns:
        For each document that asks for something and whose images can be read: uid, ``prompt``
        (ids with one mark per image, up to the first target), ``answer`` (the ids of the first
        target span), ``images`` uint8 (K, S, S, 3) of the prompt, tokenizer_hash.
    """
    pack, spec = folder.read(number), folder.manifest.spec
    found: list[dict[str, Any]] = []
    first_image = 0
    for document in pack.documents:
        start, images = document["start"], first_image
        first_image += document["images"]
        spans = [s for s in pack.targets.tolist() if start <= s[0] < start + document["length"]]
        if not spans:
            continue
        prompt = pack.ids[start : spans[0][0]].tolist()
        try:
            pixels = [
                torch.from_numpy(decode(data, side))
                for data in pack.images[images : images + prompt.count(spec.special.image)]
            ]
        except ImageError:
            continue
        found.append(
            {
                "uid": document["uid"],
                "prompt": prompt,
                "answer": pack.ids[spans[0][0] : spans[0][1]].tolist(),
                "images": torch.stack(pixels)
                if pixels
                else torch.zeros(0, side, side, 3, dtype=torch.uint8),
                "tokenizer_hash": spec.tokenizer_hash,
            }
        )
    return found
