"""What the ranks of a sharded run send each other in a step, and what that costs: formulas.

The bytes follow from how FSDP works and are tested against counted ones. The times are a
prediction, to choose a layout by; they know nothing of stragglers, loaders or a busy network.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from openqwen2vl.model.mllm import MLLM

# Of a step's computing, this much can hide communication; hidden, it still costs this share of
# its own time, since both want the memory's bandwidth.
OVERLAP, HIDDEN_COST = 0.9, 0.02


@dataclass(frozen=True)
class Unit:
    """Parameters that FSDP gathers and reduces in one collective.

    Attributes:
        parameters: of the unit, frozen ones included.
        trains: whether any of them has a gradient.
        root: the unit around all others, which keeps its weights from forward to backward.
    """

    parameters: int
    trains: bool = True
    root: bool = False


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a run lies on its ranks; names as in ``conf/strategy/fsdp.yaml``.

    Attributes:
        sharding: FULL_SHARD, SHARD_GRAD_OP or NO_SHARD.
        ranks: all of them.
        replicate: copies of the model.
        sync: ``step`` or ``micro_batch``.
        param_bytes: of one weight as it is gathered.
        reduce_bytes: of one gradient as it is reduced.
    """

    sharding: str
    ranks: int
    replicate: int = 1
    sync: str = "step"
    param_bytes: int = 2
    reduce_bytes: int = 4

    @property
    def shard(self) -> int:
        """Give the ranks that one copy is sharded over."""
        return 1 if self.sharding == "NO_SHARD" else self.ranks // self.replicate

    @property
    def copies(self) -> int:
        """Give the ranks that hold the same shard."""
        return self.ranks // self.shard


@dataclass(frozen=True)
class Traffic:
    """All collectives of one kind in one optimizer step.

    Attributes:
        kind: ``all_gather``, ``reduce_scatter`` or ``all_reduce``.
        group: ranks that take part in each.
        span: how many ranks lie between the group's first and its last, both counted.
        calls: collectives.
        payload: bytes of the whole tensors: what an all-gather gives, the others take.
    """

    kind: str
    group: int
    span: int
    calls: int
    payload: int

    @property
    def rounds(self) -> int:
        """Give how often a ring goes round: an all-reduce scatters, then gathers."""
        return 2 if self.kind == "all_reduce" else 1

    @property
    def sent(self) -> float:
        """Give the bytes that one rank sends, in a ring."""
        return self.rounds * self.payload * (self.group - 1) / self.group


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What the wires give.

    Attributes:
        per_node: ranks of a node, numbered one after the other.
        node_bandwidth: bytes a second that one rank sends to its neighbour within a node.
        network_bandwidth: the same between nodes.
        hop_seconds: from one rank of a ring to the next, however little is sent.
    """

    per_node: int
    node_bandwidth: float
    network_bandwidth: float
    hop_seconds: float


def units_of(model: MLLM) -> list[Unit]:
    """Give what FSDP wraps: each decoder layer, each trainable tower block, and the rest."""
    layers = list(model.decoder_layers)
    if model.vision.trainable:
        layers += list(model.vision.model.blocks)
    units = []
    inside = set()
    for layer in layers:
        parameters = list(layer.parameters())
        inside |= {id(parameter) for parameter in parameters}
        trains = any(parameter.requires_grad for parameter in parameters)
        units.append(Unit(sum(parameter.numel() for parameter in parameters), trains))
    rest = [parameter for parameter in model.parameters() if id(parameter) not in inside]
    root = Unit(
        sum(parameter.numel() for parameter in rest),
        any(parameter.requires_grad for parameter in rest),
        root=True,
    )
    return [root, *units]


def step_traffic(units: Sequence[Unit], layout: Layout, micro_batches: int) -> list[Traffic]:
    """Count the collectives of one optimizer step on one rank, scalars left out.

    A unit's tensor is padded to whole shards, so to a few elements more than its parameters where
    these do not divide.

    Args:
        units: of the model.
        layout: of the run.
        micro_batches: that each rank accumulates.

    Returns:
        Kinds that occur; a group of one sends nothing.
    """
    shard, found = layout.shard, []
    reduces = 1 if layout.sync == "step" else micro_batches
    padded = {unit: -(-unit.parameters // shard) * shard for unit in units}
    gathers = {unit: _gathers(unit, layout, micro_batches) for unit in units}
    trained = [unit for unit in units if unit.trains]
    if shard > 1:
        calls = sum(gathers[unit] for unit in units)
        payload = sum(gathers[unit] * padded[unit] for unit in units) * layout.param_bytes
        found.append(Traffic("all_gather", shard, shard, calls, payload))
        payload = reduces * sum(padded[unit] for unit in trained) * layout.reduce_bytes
        found.append(Traffic("reduce_scatter", shard, shard, reduces * len(trained), payload))
    if layout.copies > 1:
        payload = reduces * sum(padded[unit] for unit in trained) // shard * layout.reduce_bytes
        calls = reduces * len(trained)
        found.append(Traffic("all_reduce", layout.copies, layout.ranks, calls, payload))
    return found


def seconds(traffic: Sequence[Traffic], cluster: Cluster) -> float:
    """Predict how long a step's collectives take one after the other, nothing beside them."""
    total = 0.0
    for one in traffic:
        within = one.span <= cluster.per_node
        bandwidth = cluster.node_bandwidth if within else cluster.network_bandwidth
        hops = one.rounds * one.calls * (one.group - 1)
        total += one.sent / bandwidth + hops * cluster.hop_seconds
    return total


def efficiency(computing: float, communicating: float) -> float:
    """Predict the share of a step that is computing, when both run beside each other.

    Args:
        computing: seconds of a step without communication.
        communicating: seconds as `seconds` gives them.
    """
    exposed = max(0.0, communicating - OVERLAP * computing)
    return computing / (computing + exposed + HIDDEN_COST * communicating)


def _gathers(unit: Unit, layout: Layout, micro_batches: int) -> int:
    """Say how often a step gathers a unit's weights."""
    if layout.sharding == "FULL_SHARD":
        # For forward, and again for backward; the root's are still there.
        return micro_batches * (1 if unit.root else 2)
    return 1 if layout.sync == "step" else micro_batches
