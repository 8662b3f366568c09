"""A run over data that is described by a few numbers, where there are no packs yet."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.packing.budget import Budget, GridPhase, GridSupply, fix_phases, total_steps
from openqwen2vl.packing.space import packed_bytes
from openqwen2vl.training.activations import MemorySpec
from openqwen2vl.training.flops import Work, attention_pairs
from openqwen2vl.training.planning import Disk, Load, checkpoint_bytes

_TEXT_MEMBERS = 2  # of a raw sample beside its image: caption and JSON
_BLOCK = 512


@dataclass(frozen=True, kw_only=True)
class Described:
    """Data by a few numbers, where there are no packs yet (keys of ``plan``).

    Attributes:
        tokens: of one pass, visual tokens included, pads not.
        images: of one pass.
        documents: of one pass; None: one for each image.
        context: tokens in a pack.
        fill: share of the packs' positions that are not pads.
        target_share: of the text tokens, a document's first left out, those that are targets.
        image_bytes: mean size of an encoded image.
    """

    tokens: float
    images: float
    documents: float | None
    context: int
    fill: float
    target_share: float
    image_bytes: float

    def __post_init__(self) -> None:
        if self.tokens <= 0 or self.images < 0 or self.context < 1:
            raise ConfigError(
                f"tokens is {self.tokens}, images {self.images}, context {self.context}; "
                "expected tokens and a context above 0, and no negative number of images"
            )
        if not 0 < self.fill <= 1 or not 0 < self.target_share <= 1:
            raise ConfigError(
                f"fill is {self.fill} and target_share {self.target_share}; expected shares in (0, 1]"
            )


def described_supply(data: Described, plan: Sequence[GridPhase]) -> dict[int, GridSupply]:
    """Divide described data over the grids of a plan: each step takes equally many tokens.

    Returns:
        Packs and tokens for each grid.
    """
    packs = data.tokens / (data.context * data.fill)
    return {
        # A pack that is not full is one all the same.
        grid: GridSupply(packs=math.ceil(share * packs), tokens=round(share * data.tokens))
        for grid, share in _shares(plan).items()
    }


def described_loads(
    data: Described, plan: Sequence[GridPhase], budget: Budget, global_batch: int, isolate: bool
) -> list[Load]:
    """Say what a run over described data serves, by grid.

    Args:
        data: of one pass.
        plan: the resolution plan.
        budget: of the run.
        global_batch: packs per optimizer step.
        isolate: whether documents of a pack see each other.

    Raises:
        ConfigError: more visual tokens than tokens, or a phase without steps.
    """
    supply = described_supply(data, plan)
    steps = total_steps(budget, plan, supply, global_batch)
    text = _text_tokens(data, plan)
    loads: dict[int, Load] = {}
    for phase in fix_phases(plan, steps):
        served = (phase.stop - phase.start) * global_batch
        tokens = served * data.context * data.fill
        images = tokens / (text + phase.grid**2) if data.images else 0.0
        documents = images * _documents(data) / data.images if data.images else served
        length = tokens / documents
        pairs = length * (length + 1) / 2 * documents if isolate else _whole(data, served)
        asked = max(0.0, tokens - images * phase.grid**2 - documents) * data.target_share
        load = Load(
            grid=phase.grid,
            steps=phase.stop - phase.start,
            packs=served,
            documents=round(documents),
            images=round(images),
            work=Work(
                tokens=round(tokens),
                pairs=round(pairs),
                targets=round(asked),
                images=round(images),
                visual_tokens=round(images) * phase.grid**2,
            ),
        )
        loads[phase.grid] = load if phase.grid not in loads else _sum(loads[phase.grid], load)
    return list(loads.values())


def packs_per_step(data: Described, plan: Sequence[GridPhase], documents: int) -> int:
    """Turn documents per step into packs, as the data module does with its manifests."""
    text = _text_tokens(data, plan) if data.images else data.context * data.fill
    ratio = _documents(data) / data.images if data.images else 1.0
    length = (text + plan[0].grid ** 2 * bool(data.images)) / ratio
    exact = documents * length / (data.context * data.fill)
    return max(1, round(exact)) if exact < 8 else round(exact / 8) * 8


def described_disk(data: Described, plan: Sequence[GridPhase], spec: MemorySpec, keep: int) -> Disk:
    """Estimate the disk of described data and of a run's checkpoints.

    Args:
        data: of one pass.
        plan: the resolution plan.
        spec: of the model.
        keep: checkpoints that stay.
    """
    packs = sum(supply.packs for supply in described_supply(data, plan).values())
    documents = _documents(data) if data.images else packs
    text = _text_tokens(data, plan) if data.images else data.tokens / packs
    # Each member of a tar has a header and is filled up to a block.
    images = data.images * (data.image_bytes + 1.5 * _BLOCK)
    raw = images + documents * _TEXT_MEMBERS * 2.5 * _BLOCK
    ids = round((text + 1) * (data.images or packs))
    return Disk(
        raw=round(raw),
        packed=packed_bytes(packs, round(documents), ids, round(images)),
        checkpoint=checkpoint_bytes(spec),
        checkpoints=(keep + 1) * checkpoint_bytes(spec),
    )


def _shares(plan: Sequence[GridPhase]) -> dict[int, float]:
    shares: dict[int, float] = {}
    start = 0.0
    for phase in plan:
        shares[phase.grid] = shares.get(phase.grid, 0.0) + phase.until - start
        start = phase.until
    return shares


def _text_tokens(data: Described, plan: Sequence[GridPhase]) -> float:
    """Text tokens that go with each image, the same at every grid.

    Raises:
        ConfigError: the images alone take more tokens than there are.
    """
    if not data.images:
        return 0.0
    shares = _shares(plan)

    def images(text: float) -> float:
        return sum(share * data.tokens / (text + grid**2) for grid, share in shares.items())

    low, high = 0.0, data.tokens / data.images
    if images(low) < data.images:
        grids: Mapping[int, float] = {grid: round(share, 3) for grid, share in shares.items()}
        raise ConfigError(
            f"{data.images:,.0f} images at the grids {sorted(grids)} take more than the "
            f"{data.tokens:,.0f} tokens there are, which include visual tokens; give more tokens, "
            "fewer images or a smaller grid (resolution=...)"
        )
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if images(middle) > data.images else (low, middle)
    return low


def _documents(data: Described) -> float:
    return data.images if data.documents is None else data.documents


def _whole(data: Described, packs: int) -> float:
    return attention_pairs([round(data.context * data.fill)]) * packs


def _sum(one: Load, other: Load) -> Load:
    """Join two phases of the same grid."""
    work = {key: value + getattr(other.work, key) for key, value in vars(one.work).items()}
    return Load(
        grid=one.grid,
        steps=one.steps + other.steps,
        packs=one.packs + other.packs,
        documents=one.documents + other.documents,
        images=one.images + other.images,
        work=Work(**work),
    )
