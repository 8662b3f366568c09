"""What autograd keeps from forward for backward, by formula.

The formulas follow the tensors that a decoder layer (norm, attention, gated feed-forward), a ViT
block and the loss save for backward, one by one; ``tests/test_memory.py`` counts the same tensors.

Sizes are bytes. "Positions" are those of a micro-batch, pads included.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from openqwen2vl.model.last_layer import reads_rows
from openqwen2vl.model.mllm import MLLM

PRECISIONS = ("fp32", "mixed", "bf16")


@dataclass(frozen=True, kw_only=True)
class MemorySpec:
    """Sizes that decide the memory.

    Attributes:
        width: of the language model.
        layers: decoder layers.
        query: heads x head width of a decoder layer.
        keys: key-value heads x head width.
        heads: query heads.
        head_width: of one head.
        feed: width of the feed-forward.
        last_reads_rows: whether the last feed-forward works on target rows alone.
        vocabulary: rows of the output embedding.
        projector: widths of the projector, the tower's first.
        tower_width: of the vision tower.
        tower_hidden: width of a block's feed-forward.
        tower_heads: of a block.
        tower_blocks: that run.
        tower_tokens: of one image.
        tower_side: pixels.
        linear: weights of the linear maps in decoder layers.
        unit: weights of the largest decoder layer.
        trainable: weights that train.
        standing: weights that stand still but belong to the module (a frozen tower does not).
        projector_weights: of the projector.
        tower_weights: of the vision tower.
        llm_trains: whether the language model does.
        projector_trains: likewise.
        tower_trains: likewise.
    """

    width: int
    layers: int
    query: int
    keys: int
    heads: int
    head_width: int
    feed: int
    last_reads_rows: bool
    vocabulary: int
    projector: tuple[int, ...]
    tower_width: int
    tower_hidden: int
    tower_heads: int
    tower_blocks: int
    tower_tokens: int
    tower_side: int
    linear: int
    unit: int
    trainable: int
    standing: int
    projector_weights: int
    tower_weights: int
    llm_trains: bool
    projector_trains: bool
    tower_trains: bool

    @classmethod
    def of(cls, model: MLLM) -> "MemorySpec":
        """Read the sizes from a model, which may be on the meta device."""
        layer, tower = model.decoder_layers[0], model.vision.model
        attention = layer.self_attn
        maps = [part for part in model.projector.modules() if isinstance(part, nn.Linear)]
        parts = model.trainable_summary()
        registered = sum(parameter.numel() for parameter in model.parameters())
        trainable = sum(part.trainable for part in parts.values())
        return cls(
            width=model.head_weight.shape[1],
            layers=len(model.decoder_layers),
            query=attention.o_proj.in_features,
            keys=attention.k_proj.out_features,
            heads=attention.o_proj.in_features // attention.head_dim,
            head_width=attention.head_dim,
            feed=layer.mlp.down_proj.in_features,
            last_reads_rows=reads_rows(model.decoder_layers[-1]),
            vocabulary=model.head_weight.shape[0],
            projector=(maps[0].in_features, *(one.out_features for one in maps)),
            tower_width=model.vision.width,
            tower_hidden=tower.blocks[0].mlp.fc1.out_features,
            tower_heads=tower.blocks[0].attn.num_heads,
            tower_blocks=len(tower.blocks),
            tower_tokens=model.vision.patch_grid**2 + tower.num_prefix_tokens,
            tower_side=model.vision.side,
            linear=sum(_linear(one) for one in model.decoder_layers),
            unit=max(sum(p.numel() for p in one.parameters()) for one in model.decoder_layers),
            trainable=trainable,
            standing=registered - trainable,
            projector_weights=parts["projector"].total,
            tower_weights=parts["vision"].total,
            llm_trains=parts["llm"].trainable > 0,
            projector_trains=parts["projector"].trainable > 0,
            tower_trains=parts["vision"].trainable > 0,
        )


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """What one rank processes at a time.

    Attributes:
        positions: packs x context, pads included.
        targets: positions with a target.
        images: images.
        grid: visual tokens along an image's side.
    """

    positions: int
    targets: int
    images: int
    grid: int


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How a rank computes and what it shares.

    Attributes:
        precision: ``fp32``; ``mixed``: fp32 weights under bf16 autocast; ``bf16``: the weights are
            gathered in bf16 (FSDP).
        checkpointing: ``none``, ``mlp`` or ``full``.
        ranks: over which weights, gradients and optimizer state are divided.
        gathers: ``nothing``; ``units``: layers are gathered for their turn (FSDP); ``all``: they
            stay gathered between forward and backward (SHARD_GRAD_OP).
        accumulates: whether gradients of an earlier micro-batch are there in forward.
        whole_gradients: whether those are whole on every rank until the step (FSDP's
            ``sync=step``), in the dtype of the gathered weights.
        offloads: whether weights and optimizer state lie on the host.
        cuda: attention is one kernel and a frozen tower is bf16; else one call a document, fp32.
    """

    precision: str = "fp32"
    checkpointing: str = "none"
    ranks: int = 1
    gathers: str = "nothing"
    accumulates: bool = False
    whole_gradients: bool = False
    offloads: bool = False
    cuda: bool = False

    @property
    def wide(self) -> int:
        """Bytes of a value in a matrix product."""
        return 4 if self.precision == "fp32" else 2

    @property
    def stream(self) -> int:
        """Bytes of a value between layers; autocast leaves them in float32."""
        return 2 if self.precision == "bf16" else 4


def saved_activations(spec: MemorySpec, micro: MicroBatch, setup: Setup) -> dict[str, int]:
    """Bytes that autograd keeps from forward for backward, each storage once, weights left out.

    Returns:
        ``layers``, ``ends`` (embedding, final norm, loss), ``projector``, ``tower`` and, under
        autocast, ``casts`` of weights to bf16.
    """
    tokens, rows, visual = micro.positions, micro.targets, micro.images * micro.grid**2
    wide, stream = setup.wide, setup.stream
    if setup.checkpointing == "full":
        layers = spec.layers * tokens * spec.width * stream
    else:
        layers = (spec.layers - 1) * layer_bytes(spec, setup, tokens, tokens)
        layers += layer_bytes(spec, setup, tokens, rows if spec.last_reads_rows else tokens)
        layers += 2 * spec.head_width * tokens * stream  # rotary angles, shared by all layers
        if spec.last_reads_rows:
            layers += rows * spec.width * wide  # what is put back in its place
    ends = 8 * tokens + 8 * visual + visual * spec.width * stream
    ends += tokens * _norm(spec, setup) + rows * (spec.width * wide + 8 + 8 + 4)
    return {
        "layers": layers,
        "ends": ends,
        "projector": _projector_bytes(spec, setup, visual),
        "tower": _tower_bytes(spec, setup, micro) if spec.tower_trains else 0,
        "casts": _casts(spec, setup),
    }


def layer_bytes(spec: MemorySpec, setup: Setup, tokens: int, rows: int) -> int:
    """Bytes that one decoder layer keeps.

    Args:
        spec: of the model.
        setup: of the rank.
        tokens: positions that go through attention.
        rows: positions that go through the feed-forward.
    """
    wide, width = setup.wide, spec.width
    mixed = setup.precision == "mixed"
    # Each linear map casts its input for itself under autocast; otherwise they share one.
    into_attention, into_feed = (3, 2) if mixed else (1, 1)
    # One call a document leaves pieces that are joined again: a second copy of the result.
    copies = 2 if setup.cuda else 3
    attention = wide * (copies * spec.query + 2 * spec.keys) + 4 * spec.heads
    feed = wide * 4 * spec.feed
    inputs = wide * width * into_attention, wide * width * into_feed
    if not spec.llm_trains:
        # Weights that stand still need no inputs of theirs; the functions between them do.
        attention -= wide * spec.query * (copies - 2)
        feed, inputs = wide * 3 * spec.feed, (0, 0)
    once = 2 * _norm(spec, setup) + attention + inputs[0]
    if setup.checkpointing == "mlp":
        return tokens * once + rows * setup.stream * width
    return tokens * once + rows * (feed + inputs[1])


def feed_weights(spec: MemorySpec) -> int:
    """Weights of all feed-forwards: three maps in each layer."""
    return 3 * spec.layers * spec.width * spec.feed


def _norm(spec: MemorySpec, setup: Setup) -> int:
    """Bytes a root-mean-square norm keeps of a position: input, its scale, and the scaled."""
    scaled = setup.stream * spec.width if spec.llm_trains else 0
    return 4 * spec.width + 4 + scaled


def _projector_bytes(spec: MemorySpec, setup: Setup, visual: int) -> int:
    first, *hidden, _ = spec.projector
    if not (spec.projector_trains or spec.tower_trains):
        return 0
    between = 2 if spec.projector_trains else 1  # before and behind each GELU
    own = first if spec.projector_trains else 0
    return setup.wide * visual * (own + between * sum(hidden))


def _tower_bytes(spec: MemorySpec, setup: Setup, micro: MicroBatch) -> int:
    """A trainable ViT: norms, queries, keys, values, result and feed-forward of each block."""
    wide, stream, width = setup.wide, setup.stream, spec.tower_width
    block = 2 * (stream * width + 8) + 6 * wide * width
    block += 4 * spec.tower_heads + 2 * wide * spec.tower_hidden
    pixels = 3 * spec.tower_side**2 * wide
    pooled = stream * spec.tower_tokens * width if micro.grid**2 < spec.tower_tokens else 0
    return micro.images * (spec.tower_blocks * spec.tower_tokens * block + pixels + pooled)


def _casts(spec: MemorySpec, setup: Setup) -> int:
    """Copies of weights that autocast makes and keeps to the end of forward."""
    if setup.precision != "mixed":
        return 0
    tower = spec.tower_weights if spec.tower_trains else 0
    # What is checkpointed does not keep its copies; see ``footprint``.
    again = {"none": 0, "mlp": feed_weights(spec), "full": spec.linear}
    layers = spec.linear - again[setup.checkpointing]
    return 2 * (layers + spec.vocabulary * spec.width + spec.projector_weights + tower)


def _linear(layer: Any) -> int:
    return sum(p.weight.numel() for p in layer.modules() if isinstance(p, nn.Linear))
