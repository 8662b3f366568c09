"""FLOPs of a training step, counted once, from the model that was built.

One multiply-add is two FLOPs; matrix products, convolutions and attention count, nothing else.
Work that only some implementations do (recomputation, masked-out scores) never counts, so that a
faster implementation shows as a higher share of the peak, not as more FLOPs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from openqwen2vl.model.last_layer import reads_rows
from openqwen2vl.model.mllm import MLLM


@dataclass(frozen=True, kw_only=True)
class FlopSpec:
    """Sizes that decide the FLOPs; multiply-adds unless the name says otherwise.

    Attributes:
        llm_linear: all decoder layers' linear maps, for one token.
        llm_last_forward: the part of ``llm_linear`` that is the last layer's feed-forward, which
            only rows with a target need; 0 where it is computed for all (experts).
        llm_last_output: the part of ``llm_last_forward`` that leads out of the layer.
        llm_outputs: the parts of ``llm_linear`` that lead out of their layers' feed-forwards, which
            checkpointing need not repeat.
        llm_attention: heads x head width x layers: the scores of one query-key pair and their use
            each take this much.
        head: output embedding, for one row of logits.
        projector_first: the first linear map, for one visual token.
        projector_rest: the other linear maps, for one visual token.
        tower: one image through all blocks that run, attention included.
        tower_input: the part of ``tower`` that embeds the patches.
        llm_trains: whether weight gradients of the language model are computed.
        projector_trains: likewise.
        tower_trains: likewise.
    """

    llm_linear: int
    llm_last_forward: int
    llm_attention: int
    head: int
    projector_first: int
    projector_rest: int
    tower: int
    tower_input: int
    llm_trains: bool
    projector_trains: bool
    tower_trains: bool
    llm_last_output: int = 0
    llm_outputs: int = 0

    @classmethod
    def of(cls, model: MLLM) -> "FlopSpec":
        """Read the sizes from a built model and from what it trains now.

        Raises:
            ValueError: a decoder layer holds weights this count does not know (experts).
        """
        layers = model.decoder_layers
        outputs = [_output(layer) for layer in layers]
        projector = _linear_sizes(model.projector)
        tower_input, tower = _tower(model)
        return cls(
            llm_linear=sum(sum(_linear_sizes(layer)) for layer in layers),
            llm_last_forward=_last_forward(layers[-1]),
            llm_attention=sum(_query_width(layer) for layer in layers),
            head=model.head_weight.numel(),
            projector_first=projector[0],
            projector_rest=sum(projector[1:]),
            tower=tower,
            tower_input=tower_input,
            llm_trains=_trains(model.llm),
            projector_trains=_trains(model.projector),
            tower_trains=_trains(model.vision),
            llm_last_output=outputs[-1] if reads_rows(layers[-1]) else 0,
            llm_outputs=sum(outputs),
        )


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one step contains, over all its micro-batches.

    Attributes:
        tokens: real ones, visual tokens included, pads excluded.
        pairs: query-key pairs that isolation and causality leave; see ``attention_pairs``.
        targets: positions whose logits are computed.
        images: images.
        visual_tokens: images x grid x grid.
    """

    tokens: int
    pairs: int
    targets: int
    images: int
    visual_tokens: int


def attention_pairs(lengths: Sequence[int]) -> int:
    """Query-key pairs of isolated causal documents: each token meets itself and those before it.

    Args:
        lengths: tokens of each document, visual tokens included.
    """
    return sum(length * (length + 1) // 2 for length in lengths)


def strict_flops(spec: FlopSpec, work: Work) -> dict[str, int]:
    """FLOPs that the step cannot do without, forward and backward, by part.

    Backward needs two products for each one of forward: one for the input, one for the weight.
    Frozen weights save the latter; nothing below the lowest trained part needs the former.

    Returns:
        ``llm_linear``, ``llm_attention``, ``head``, ``projector``, ``tower`` and their ``total``.
    """
    below_llm = spec.projector_trains or spec.tower_trains
    # Word embeddings train with the language model, so even its first layer has an input gradient.
    through_llm = spec.llm_trains or below_llm
    llm = _passes(spec.llm_trains, through_llm)
    attention = _passes(through_llm, through_llm)
    rest = _passes(spec.projector_trains, spec.projector_trains or spec.tower_trains)
    first = _passes(spec.projector_trains, spec.tower_trains)
    tower = spec.tower_trains
    unread = spec.llm_last_forward * (work.tokens - work.targets)
    parts = {
        "llm_linear": 2 * llm * (spec.llm_linear * work.tokens - unread),
        "llm_attention": 4 * attention * spec.llm_attention * work.pairs,
        "head": 2 * llm * spec.head * work.targets,
        "projector": 2
        * work.visual_tokens
        * (first * spec.projector_first + rest * spec.projector_rest),
        "tower": 2
        * work.images
        * (
            _passes(tower, tower) * (spec.tower - spec.tower_input)
            + _passes(tower, False) * spec.tower_input
        ),
    }
    return parts | {"total": sum(parts.values())}


def model_flops(spec: FlopSpec, work: Work) -> dict[str, int]:
    """FLOPs of a step by the usual convention: every token goes through every layer.

    As ``strict_flops``, but with the last layer's feed-forward counted for rows that nobody reads:
    what a program does that does not leave them out. The published GPU-hours of 5 billion tokens
    are 24.0 % of an A100's peak by this count [paper].

    Returns:
        The parts of ``strict_flops`` and their ``total``.
    """
    return strict_flops(replace(spec, llm_last_forward=0), work)


def forward_flops(spec: FlopSpec, work: Work) -> dict[str, int]:
    """The part of ``model_flops`` that is done in the forward pass."""
    still = {"llm_trains": False, "projector_trains": False, "tower_trains": False}
    return model_flops(replace(spec, **still), work)


def executed_flops(spec: FlopSpec, work: Work, checkpointing: str) -> int:
    """FLOPs that this program's step does, repeated ones included.

    The loss works its logits out again in backward. With checkpointing, backward does a layer's
    forward pass again, up to the map that leads out of it, or its feed-forward's alone.

    Args:
        spec: of the model.
        work: of the step.
        checkpointing: ``none``, ``mlp`` or ``full``.
    """
    repeated = spec.head * work.targets
    if checkpointing == "full":
        unread = (spec.llm_last_forward - spec.llm_last_output) * (work.tokens - work.targets)
        repeated += (spec.llm_linear - spec.llm_outputs) * work.tokens - unread
        repeated += 2 * spec.llm_attention * work.pairs
    if checkpointing == "mlp" and spec.llm_last_output:
        into = spec.llm_last_forward - spec.llm_last_output
        layers = spec.llm_outputs // spec.llm_last_output
        repeated += into * ((layers - 1) * work.tokens + work.targets)
    return strict_flops(spec, work)["total"] + 2 * repeated


def palm_flops(spec: FlopSpec, tokens: int, context: int) -> int:
    """FLOPs as language-model reports count them [PaLM, appendix B].

    Every position has logits, attention is dense over the context, and the tower does not exist:
    good for comparing with published numbers, wrong about the work done.

    Args:
        spec: of the model, counted as all trained.
        tokens: all positions, pads included.
        context: T.
    """
    return tokens * (6 * (spec.llm_linear + spec.head) + 12 * spec.llm_attention * context)


def _passes(weight_gradient: bool, input_gradient: bool) -> int:
    """Products a linear map takes: forward, and one for each gradient."""
    return 1 + int(weight_gradient) + int(input_gradient)


def _trains(part: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters())


def _linear_sizes(module: nn.Module) -> list[int]:
    """Weights of each linear map, in order; everything else with a matrix is unknown here."""
    linears = [part for part in module.modules() if isinstance(part, nn.Linear)]
    known = {id(linear.weight) for linear in linears}
    unknown = [n for n, p in module.named_parameters() if p.dim() > 1 and id(p) not in known]
    if unknown:
        raise ValueError(
            f"cannot count the FLOPs of {type(module).__name__}: its weights {unknown} belong to no "
            "nn.Linear; only dense layers are counted"
        )
    return [linear.weight.numel() for linear in linears]


def _last_forward(layer: Any) -> int:
    """Multiply-adds of a feed-forward for one token, if it can leave tokens out."""
    return sum(_linear_sizes(layer.mlp)) if reads_rows(layer) else 0


def _output(layer: Any) -> int:
    """Multiply-adds of the last map of a feed-forward, for one token."""
    sizes = _linear_sizes(layer.mlp)
    return sizes[-1] if sizes else 0


def _query_width(layer: Any) -> int:
    """Heads times head width of a decoder layer's attention."""
    width: int = layer.self_attn.o_proj.in_features
    return width


def _tower(model: MLLM) -> tuple[int, int]:
    """Multiply-adds of one image: patch embedding alone, and everything that runs."""
    tower = model.vision.model
    patches = model.vision.patch_grid**2
    tokens = patches + tower.num_prefix_tokens
    embedding: int = patches * tower.patch_embed.proj.weight.numel()
    linear = sum(sum(_linear_sizes(block)) for block in tower.blocks)
    # Every token meets every token: scores, and their use.
    attention = 2 * tokens**2 * model.vision.width * len(tower.blocks)
    return embedding, embedding + tokens * linear + attention
