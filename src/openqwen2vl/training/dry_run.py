"""The data path without the model: what ranks of a topology would be given, one after another."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader

from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.packing.batch import Decoder
from openqwen2vl.packing.budget import accumulation
from openqwen2vl.packing.fingerprint import GlobalBatch
from openqwen2vl.packing.order import Order
from openqwen2vl.training.stream import PackedData


@dataclass(frozen=True, kw_only=True)
class Topology:
    """How the packs of a global batch are shared out.

    Attributes:
        devices: ranks on each node.
        num_nodes: nodes.
        micro_batch: packs that one rank processes at a time.
        num_workers: loader processes per rank, or ``auto``.
    """

    devices: int = 1
    num_nodes: int = 1
    micro_batch: int = 1
    num_workers: int | str = 0

    def __post_init__(self) -> None:
        if min(self.devices, self.num_nodes, self.micro_batch) < 1:
            raise ConfigError(f"{self} cannot be; expected at least 1 of each but num_workers")

    def __str__(self) -> str:
        return (
            f"devices={self.devices} num_nodes={self.num_nodes} micro_batch={self.micro_batch} "
            f"num_workers={self.num_workers}"
        )

    @property
    def ranks(self) -> int:
        """Give the number of processes."""
        return self.devices * self.num_nodes


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What a dry run looks at (config key ``replay``).

    Attributes:
        steps: optimizer steps from the start, and as many around each turn of the run.
        start: steps that are done already; None: those of the checkpoint, or none.
        decode: compare pixels; False: the bytes of the pictures.
        against: the topology to compare the run's own with.
    """

    against: Topology
    steps: int = 20
    start: int | None = None
    decode: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or (self.start or 0) < 0:
            raise ConfigError(
                f"replay.steps is {self.steps} and replay.start {self.start}; expected at least 1 "
                "and 0"
            )


@dataclass(frozen=True)
class Window:
    """Steps ``start <= n < stop`` that are replayed, and why these."""

    start: int
    stop: int
    reasons: tuple[str, ...]


@dataclass
class Rank:
    """What a data module asks its Trainer for.

    Attributes:
        global_rank: of the one that is played.
        world_size: ranks that there would be.
        num_devices: of them on one node.
        global_step: optimizer steps done.
        strategy: says that there is no GPU.
    """

    global_rank: int
    world_size: int
    num_devices: int
    global_step: int
    strategy: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(root_device=torch.device("cpu"))
    )


class Replayed(PackedData, Protocol):
    """A data module as a Trainer uses it.

    Attributes:
        trainer: whose ranks it serves.
        decode: makes pixels of pictures.
    """

    trainer: Any
    decode: Decoder

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on after the global batches that a checkpoint has seen."""

    def train_dataloader(self) -> DataLoader[Any]:
        """Give the rank's micro-batches."""


@dataclass
class Record:
    """What a topology served.

    Attributes:
        topology: which.
        turns: micro-batches of a rank for one step.
        batches: the global batches, by step.
        loads: by step, turn and rank: packs, tokens and images of a micro-batch.
        seconds: what each rank took for all steps, in which it was alone on the machine.
    """

    topology: Topology
    turns: int
    batches: dict[int, GlobalBatch] = field(default_factory=dict)
    loads: dict[tuple[int, int, int], tuple[int, int, int]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    def per_rank(self) -> list[tuple[int, int, int]]:
        """Give packs, tokens and images of each rank."""
        sums = np.zeros((self.topology.ranks, 3), np.int64)
        for (_, _, rank), load in self.loads.items():
            sums[rank] += load
        return [(int(packs), int(tokens), int(images)) for packs, tokens, images in sums]

    def images_spread(self) -> float:
        """Say how unevenly images lay on ranks; see `packing.balance.spread`.

        Returns:
            1 where ranks that work at the same time always had equally many.
        """
        groups: dict[tuple[int, int], list[int]] = {}
        for (step, turn, _), (_, _, images) in self.loads.items():
            groups.setdefault((step, turn), []).append(images)
        waits = sum(max(group) for group in groups.values())
        fair = sum(sum(group) / len(group) for group in groups.values())
        return waits / fair if fair else 1.0

    @property
    def steps_per_second(self) -> float:
        """Give the pace of the slowest rank, which the others would wait for.

        No bound of a real run's: digests slow it, and other ranks take nothing from it.
        """
        return len(self.batches) / max(1e-9, *self.seconds)


def windows(order: Order, names: Sequence[str], start: int, steps: int) -> list[Window]:
    """Choose the steps to look at: the first, and around where the data change.

    These are the switches of the grid, and the first new pass of any source.

    Args:
        order: of the run.
        names: of its sources.
        start: steps that are done already.
        steps: in each window, before it is cut at the run's ends or joined with another.

    Returns:
        Windows that do not touch, rising.

    Raises:
        ConfigError: nothing is left after ``start``.
    """
    if start >= order.steps:
        raise ConfigError(
            f"a dry run after {start} steps has nothing to replay: the run has {order.steps}; "
            "give a smaller replay.start or a longer budget"
        )
    found = [Window(start, min(start + steps, order.steps), ("the start",))]
    turns = [
        (phase.start, f"grid {before.grid} -> {phase.grid} at step {phase.start + 1}")
        for before, phase in pairwise(order.phases)
    ]
    for step, reason in sorted([*turns, *_first_pass(order, names, start)]):
        if step <= start:
            continue
        first = max(start, step - steps // 2)
        last = min(order.steps, first + steps)
        if first <= found[-1].stop:
            old = found.pop()
            last = max(old.stop, last)
            found.append(Window(old.start, last, (*old.reasons, reason)))
        else:
            found.append(Window(first, last, (reason,)))
    return found


def _first_pass(order: Order, names: Sequence[str], start: int) -> Iterator[tuple[int, str]]:
    """Yield the first step after ``start`` at which some source begins anew, if there is one."""
    found: list[tuple[int, int, int]] = []
    for grid in order.streams:
        span = order.served(grid, order.steps)
        steps = [n for p in order.phases if p.grid == grid for n in range(p.start, p.stop)]
        for source in range(len(names)):
            places = np.flatnonzero(span.source == source)
            turns = span.turn[places]
            anew = places[1:][np.diff(turns) > 0]
            for place in anew.tolist():
                step = steps[place // order.global_batch]
                if step > start:
                    found.append((step, source, int(span.turn[place])))
                    break
    if found:
        step, source, turn = min(found)
        yield step, f"pass {turn + 1} of {names[source]} at step {step + 1}"


def replay(data: Replayed, topology: Topology, chosen: Sequence[Window]) -> Record:
    """Give every rank of a topology its micro-batches, and keep their digests.

    Each rank goes through the real loader, resumed at each window, with an order of its own; only
    then comes the next rank.

    Args:
        data: of the run, with the topology's ``micro_batch`` and ``num_workers``; ``image_side``
            is set.
        topology: which.
        chosen: the steps.

    Raises:
        ConfigError: ranks and micro-batch do not divide the global batch.
    """
    turns = accumulation(data.global_batch, data.micro_batch, topology.ranks)
    record = Record(topology, turns, seconds=[0.0] * topology.ranks)
    phases = data.order.phases
    for rank in range(topology.ranks):
        # A new order: what one rank has asked for must be of no use to another.
        data.keep_phases(phases)
        for window in chosen:
            data.trainer = Rank(rank, topology.ranks, topology.devices, window.start)
            data.load_state_dict({"global_batches": window.start})
            began = time.perf_counter()
            loader = islice(data.train_dataloader(), (window.stop - window.start) * turns)
            for number, batch in enumerate(loader):
                # A Trainer counts micro-batches; what they say of themselves is compared.
                step = window.start + number // turns
                whole = record.batches.setdefault(step, GlobalBatch(step))
                seen = len(whole.packs)
                whole.add(batch)
                mine = whole.packs[seen:]
                record.loads[step, number % turns, rank] = (
                    len(mine),
                    sum(pack.tokens for pack in mine),
                    sum(pack.images for pack in mine),
                )
            record.seconds[rank] += time.perf_counter() - began
    return record
