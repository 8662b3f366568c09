"""A CLIP small enough to be trained here: open_clip's own classes and loss, on pairs as they come."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor

from openqwen2vl.curation.samples import Sample
from openqwen2vl.curation.scorers.clip_model import CONFIG, ClipModel, load_clip
from openqwen2vl.curation.scorers.pictures import open_picture
from openqwen2vl.training.schedule import Schedule

SIDE = 64
MODEL = {
    "embed_dim": 64,
    # A residual network whose pooling attends to places: it learns from hundreds of pairs what a
    # transformer of this size needs thousands for.
    "vision_cfg": {"layers": [1, 1, 1, 1], "width": 16, "head_width": 16, "image_size": SIDE},
    "text_cfg": {
        "context_length": 40,
        "vocab_size": 49408,  # of open_clip's own tokenizer
        "width": 64,
        "heads": 2,
        "layers": 2,
    },
}
PREPROCESS = {
    "mean": list(open_clip.OPENAI_DATASET_MEAN),
    "std": list(open_clip.OPENAI_DATASET_STD),
    "interpolation": "bicubic",
    "resize_mode": "squash",  # the whole picture: a crop would cut off what a caption names
}
WEIGHTS = "open_clip_model.safetensors"
DECAY, BETAS, WARMUP = 0.1, (0.9, 0.98), 0.1


@dataclass(frozen=True, kw_only=True)
class ClipRecipe:
    """How it is trained.

    Attributes:
        steps: of the optimizer.
        batch: pairs of a step; each is told from the others.
        lr: peak of the rate, reached in the first tenth and then lowered as a cosine.
        seed: of the first weights and of the order.
    """

    steps: int
    batch: int
    lr: float
    seed: int


def train_clip(samples: Sequence[Sample], folder: Path, recipe: ClipRecipe) -> list[float]:
    """Train on pairs, of which nothing is looked at but the picture and the caption.

    Args:
        samples: at least a batch of them.
        folder: takes the model, as ``ClipScorer(model=folder)`` reads it.
        recipe: how.

    Returns:
        The loss of each step.
    """
    clip = _new(folder, recipe.seed)
    network = clip.network.train()
    matrices = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=BETAS, fused=True)
    curve = Schedule(warmup=WARMUP)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: curve.factor(s, recipe.steps))
    contrast = open_clip.ClipLoss()
    losses = []
    for chosen in _batches(len(samples), recipe):
        pixels, tokens = _inputs(clip, [samples[i] for i in chosen])
        loss = contrast(*network(pixels, tokens))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
        losses.append(loss.item())
    _save(network, folder)
    return losses


def _new(folder: Path, seed: int) -> ClipModel:
    """Write random weights and load them as the scorer will: the same pixels and tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}
    (folder / CONFIG).write_text(json.dumps(told, indent=2) + "\n")
    torch.manual_seed(seed)
    _save(open_clip.CLIP(**MODEL), folder)
    return load_clip(str(folder), None)


def _save(network: torch.nn.Module, folder: Path) -> None:
    save_file(network.state_dict(), folder / WEIGHTS)


def _batches(pairs: int, recipe: ClipRecipe) -> list[list[int]]:
    """Draw as many passes over the pairs as the steps need; a pass's short end is left out."""
    generator = torch.Generator().manual_seed(recipe.seed)
    found: list[list[int]] = []
    while len(found) < recipe.steps:
        order = torch.randperm(pairs, generator=generator)
        found += [part.tolist() for part in order.split(recipe.batch) if len(part) == recipe.batch]
    return found[: recipe.steps]


def _inputs(clip: ClipModel, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    pixels = [clip.prepare(open_picture(sample.read())) for sample in samples]
    return torch.stack(pixels), clip.tokenize([sample.caption for sample in samples])
