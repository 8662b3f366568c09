"""The loader one would write first: webdataset, PIL, loops over tokens.

It streams the very packs that ours reads and gives the very same batches.
"""

import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from torch import Tensor

from openqwen2vl.formats.tokens import IGNORE_INDEX
from openqwen2vl.packing.reader import PackFolder

Decode = Callable[[bytes, int], np.ndarray]


def decode_image(data: bytes, side: int) -> np.ndarray:
    """Decode and squash with PIL alone."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    return np.array(picture.resize((side, side), Image.Resampling.BICUBIC))


def stream(
    folder: PackFolder, side: int, decode: Decode = decode_image
) -> Iterator[dict[str, Any]]:
    """Give one batch a pack, in the order of the shards."""
    urls = [str(folder.path / shard.name) for shard in folder.manifest.shards]
    for sample in webdataset.WebDataset(urls, shardshuffle=False, empty_check=False):
        content = json.loads(sample["json"])
        images = [sample[f"{i}.jpg"] for i in range(sum(d["images"] for d in content["documents"]))]
        pixels = [torch.from_numpy(decode(data, side)) for data in images]
        yield {**_expand(content, folder), "images": torch.stack(pixels)}


def _expand(content: dict[str, Any], folder: PackFolder) -> dict[str, Tensor | int]:
    spec = folder.manifest.spec
    wanted = {at for start, stop in content["targets"] for at in range(start, stop)}
    ids: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    owners: list[int] = []
    for number, document in enumerate(content["documents"]):
        first = document["start"]
        begin = len(ids)
        for at in range(first, first + document["length"]):
            token = content["ids"][at]
            if at in wanted and at > first:
                labels[-1] = token
            for _ in range(spec.tokens_per_image if token == spec.special.image else 1):
                positions.append(len(ids) - begin)
                ids.append(token)
                labels.append(IGNORE_INDEX)
                owners.append(number)
    tokens = len(ids)
    for position in range(spec.context - tokens):
        ids.append(spec.special.pad)
        labels.append(IGNORE_INDEX)
        positions.append(position)
        owners.append(-1)
    return {
        "input_ids": torch.tensor([ids]),
        "labels": torch.tensor([labels]),
        "position_ids": torch.tensor([positions]),
        "document_ids": torch.tensor([owners], dtype=torch.int32),
        "tokens": tokens,
    }
