"""Memory of a training step by formula: what each device holds, and the most at one time.

Sizes are bytes.
"""

from dataclasses import dataclass, replace

from openqwen2vl.training.activations import (
    MemorySpec,
    MicroBatch,
    Setup,
    feed_weights,
    layer_bytes,
    saved_activations,
)
from openqwen2vl.training.loss import CHUNK


def loss_bytes(spec: MemorySpec, micro: MicroBatch, setup: Setup) -> int:
    """Bytes that ``loss=chunked`` takes: logits of a chunk, and the output embedding's gradient."""
    chunk, several = min(CHUNK, micro.targets), micro.targets > CHUNK
    narrow = 0 if setup.wide == 4 else setup.wide
    # The chunk before is let go only when the next one is there.
    logits = chunk * spec.vocabulary * (8 + (2 * narrow if several else 0))
    head = spec.vocabulary * spec.width
    return logits + (head * (4 + setup.wide) if spec.llm_trains else 0)


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes on one device, and on its host where weights are offloaded.

    Attributes:
        weights: masters, divided over ranks; none where they are offloaded.
        gradients: likewise divided; offloaded ones are on the device until backward is over.
        optimizer: AdamW's two moments, as the weights.
        frozen_tower: a frozen vision tower, whole on every device.
        gathered: weights that a sharded strategy collects, and their gradients before the division.
        activations: what autograd keeps of a micro-batch.
        logits: what the loss works with.
        peak: the most of them at one time.
        host: offloaded weights, gradients and moments of this device's rank.
    """

    weights: int
    gradients: int
    optimizer: int
    frozen_tower: int
    gathered: int
    activations: int
    logits: int
    peak: int
    host: int


def footprint(spec: MemorySpec, micro: MicroBatch, setup: Setup) -> Footprint:
    """Say what a training step takes on each device.

    Three moments compete: the loss, when all activations are there; backward through the last
    feed-forward that works on all rows; the end of backward, when all gradients are there.
    Optimizer states count from the first step on.
    """
    states = spec.trainable + spec.standing
    weights, gradients = 4 * states // setup.ranks, 4 * spec.trainable // setup.ranks
    optimizer = 8 * spec.trainable // setup.ranks
    # Gradients that meet in each micro-batch are added up on the host.
    held = gradients if setup.accumulates and not setup.whole_gradients else 0
    host = weights + gradients + optimizer + held if setup.offloads else 0
    if setup.offloads:
        weights = optimizer = 0
    tower = 0 if spec.tower_trains else spec.tower_weights * (2 if setup.cuda else 4)
    gathered, reduced = _gathered(spec, setup)
    whole = setup.wide * spec.trainable if setup.accumulates and setup.whole_gradients else 0
    saved = saved_activations(spec, micro, setup)
    activations, logits = sum(saved.values()), loss_bytes(spec, micro, setup)
    lasting = weights + optimizer + tower + gathered + whole
    stay = setup.accumulates and not setup.offloads
    lasting += gradients if stay else 0
    new = 0 if stay else gradients
    # Autocast keeps its copies of what is checkpointed, too, until forward is over.
    again = {"none": 0, "mlp": feed_weights(spec), "full": spec.linear}[setup.checkpointing]
    copies = 2 * again if setup.precision == "mixed" else 0
    at_loss = lasting + activations + logits + copies
    embedding = 4 * spec.vocabulary * spec.width if spec.llm_trains else 0
    at_layer = lasting + activations - saved["ends"] + embedding
    at_layer += _layer_backward(spec, micro, setup) + new // spec.layers
    last = layer_bytes(spec, setup, micro.positions, micro.positions)
    at_end = lasting + new + last + max(embedding, reduced)
    return Footprint(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        frozen_tower=tower,
        gathered=gathered + reduced + whole,
        activations=activations,
        logits=logits,
        peak=max(at_loss, at_layer, at_end),
        host=host,
    )


def _layer_backward(spec: MemorySpec, micro: MicroBatch, setup: Setup) -> int:
    """What backward through a layer's feed-forward adds, less what the last layer has freed."""
    # Gradients of the product, of both its factors, and of the layer's input and result.
    work = 3 * spec.feed * setup.wide + 2 * spec.width * setup.stream
    if setup.checkpointing == "full":
        again = layer_bytes(spec, setup, micro.positions, micro.positions)
        copies = 2 * spec.linear // spec.layers if setup.precision == "mixed" else 0
        return micro.positions * work + again + copies
    rows = micro.targets if spec.last_reads_rows else 0
    freed = layer_bytes(spec, setup, micro.positions, rows) if rows else 0
    again = 0
    if setup.checkpointing == "mlp":
        plain = replace(setup, checkpointing="none")
        again = layer_bytes(spec, plain, 0, micro.positions)
        again += 2 * feed_weights(spec) // spec.layers if setup.precision == "mixed" else 0
    return micro.positions * work + again - freed


def _gathered(spec: MemorySpec, setup: Setup) -> tuple[int, int]:
    """Weights that are gathered at once, and the whole gradient of a unit before its division."""
    if setup.gathers == "nothing":
        return 0, 0
    states = spec.trainable + spec.standing
    root = states - spec.unit * spec.layers
    # One unit computes, the next is on its way; the root stays.
    held = states if setup.gathers == "all" else root + 2 * spec.unit
    largest = max(root, spec.unit)
    # A shard comes from the host as it lies there, before it is narrowed and gathered.
    fetched = 4 * largest // setup.ranks if setup.offloads else 0
    return setup.wide * held + fetched, (setup.wide + 4) * largest


def moved_bytes(spec: MemorySpec, setup: Setup, turns: int) -> int:
    """Bytes that one device and its host send each other in an optimizer step.

    Args:
        spec: of the model.
        setup: of the rank.
        turns: micro-batches in the step.

    Returns:
        fp32 shards of all weights for forward and, but for the root's, again for backward;
        gradients back, once or in each micro-batch. 0 where nothing is offloaded.
    """
    if not setup.offloads:
        return 0
    states = spec.trainable + spec.standing
    again = 0 if setup.gathers == "all" else spec.unit * spec.layers
    returns = 1 if setup.whole_gradients else turns
    return 4 * (turns * (states + again) + returns * spec.trainable) // setup.ranks
