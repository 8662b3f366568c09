"""A short pre-training on packs, and what is asked of the model afterwards."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from transformers import PreTrainedTokenizerFast

from openqwen2vl.commands._assemble import build_model
from openqwen2vl.evaluation.choices import Item, Judged
from openqwen2vl.formats.images import decode_image
from openqwen2vl.formats.tokens import encode_text, special_tokens
from openqwen2vl.packing.batch import collate, expand
from openqwen2vl.packing.mixture import MixtureSpec, SourceSpec, open_mixture
from openqwen2vl.packing.order import Order, Phase
from openqwen2vl.packing.reader import PackFolder
from openqwen2vl.training.module import MLLMModule

QUESTIONS_AT_A_TIME = 32
CLIP_NORM = 1.0
NAME = "pairs"
COUNTED = ("tokens", "targets", "documents")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training, the same for all arms.

    Attributes:
        steps: of the optimizer.
        packs: of a step.
        context: tokens of a pack.
        grid: visual tokens along an image's side.
        side: pixels along it; patches are of 14.
        lr: peak of the rate.
    """

    steps: int
    packs: int
    context: int
    grid: int
    side: int
    lr: float


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model with what it was given.

    Attributes:
        module: its model, as training runs it.
        losses: mean over the targets of each step.
        tokens: without pads.
        targets: tokens that were asked for.
        documents: with repeats.
    """

    module: MLLMModule
    losses: list[float]
    tokens: int
    targets: int
    documents: int


def train(packs: Path, recipe: Recipe, seed: int) -> Trained:
    """Train the tiny model from random weights; the seed fixes them and the order of packs."""
    folder = PackFolder(packs)
    module = _module(recipe, seed, folder.manifest.spec.vocab_size)
    built = module.configure_optimizers()
    optimizer, rate = built["optimizer"], built["lr_scheduler"]["scheduler"]
    mixture = open_mixture(MixtureSpec(sources={NAME: SourceSpec(packs=str(packs))}), [recipe.grid])
    phases = (Phase(start=0, stop=recipe.steps, grid=recipe.grid),)
    order = Order(phases, {recipe.grid: mixture.stream(seed, recipe.grid)}, recipe.packs)
    module.train()
    losses: list[float] = []
    served: list[int] = []
    for step in range(recipe.steps):
        numbers = [key.pack for key in order.packs(step)]
        loss = module.losses(_batch(folder, numbers, recipe.side)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
        losses.append(loss.item())
        served += numbers
    counts = {name: int(getattr(folder, name)[served].sum()) for name in COUNTED}
    return Trained(module=module, losses=losses, **counts)


def held_out_loss(trained: Trained, packs: Path) -> float:
    """Give the mean cross-entropy of packs' targets, in nats."""
    folder, module = PackFolder(packs), trained.module.eval()
    total, targets = 0.0, 0
    with torch.no_grad():
        for number in range(len(folder)):
            losses = module.losses(_batch(folder, [number], module.model.vision.side))
            total, targets = total + losses.sum().item(), targets + len(losses)
    return total / targets


def which_caption(
    trained: Trained, items: Sequence[Item], tokenizer: PreTrainedTokenizerFast
) -> list[Judged]:
    """Choose for each picture the likeliest of its captions, laid out as in training.

    As in ``evaluation.choices``, log-probabilities of the tokens and of the end are summed; ties
    go to the first.
    """
    special, model = special_tokens(tokenizer), trained.module.model
    judged = []
    for first in range(0, len(items), QUESTIONS_AT_A_TIME):
        group = items[first : first + QUESTIONS_AT_A_TIME]
        prompts = [[special.bos, special.image] for _ in group]
        options = [
            [[*encode_text(tokenizer, f"\n{caption}"), special.eos] for caption in item.options]
            for item in group
        ]
        pictures = [decode_image(item.image.read_bytes(), model.vision.side) for item in group]
        images = torch.stack([torch.from_numpy(picture) for picture in pictures])
        for item, scores in zip(
            group, model.option_logprobs(prompts, options, images, special.image), strict=True
        ):
            judged.append(Judged(item, max(range(len(scores)), key=scores.__getitem__)))
    return judged


def _module(recipe: Recipe, seed: int, vocab_size: int) -> MLLMModule:
    """Compose what ``openqwen2vl train`` would for the demo, but for the sizes that are given."""
    settings = [
        *("stage=pretrain", "experiment=demo_pretrain", "mixture=empty", "resolution=tiny"),
        f"resolution.plan=[{{grid: {recipe.grid}, until: 1.0}}]",
        f"vision.image_side={recipe.side}",
        f"optim.lr={recipe.lr}",
        *(f"{part}.seed={seed}" for part in ("vision", "projector", "llm")),
    ]
    with initialize_config_module("openqwen2vl.conf", version_base=None):
        config = compose("train", settings)
    model = build_model(config, vocab_size)
    schedule = instantiate(config.schedule)
    return MLLMModule(model, instantiate(config.optim), schedule, recipe.steps, [NAME])


def _batch(folder: PackFolder, numbers: Sequence[int], side: int) -> dict[str, Any]:
    spec = folder.manifest.spec
    rows = [expand(folder.read(number), spec, side) for number in numbers]
    return dict(collate(rows, spec, folder.manifest.max_documents))
