"""What a global batch was, in digests: two of them are compared without keeping either."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openqwen2vl.packing.order import PackKey

FINGERPRINT_SIDE = 4
"""Pixels of the square that `fingerprint` gives: the smallest that holds a digest."""


def fingerprint(data: bytes, side: int) -> NDArray[np.uint8]:
    """Give the SHA-256 of a picture's bytes in place of its pixels.

    A decoder for `packing.batch.expand`: pictures are told apart without being decoded.

    Args:
        data: the picture's file.
        side: of the result, at least ``FINGERPRINT_SIDE``.

    Returns:
        uint8 (side, side, 3), the digest and zeros.
    """
    digest = np.frombuffer(sha256(data).digest(), np.uint8)
    square = np.zeros(side * side * 3, np.uint8)
    square[: len(digest)] = digest
    return square.reshape(side, side, 3)


@dataclass(frozen=True)
class ServedPack:
    """One pack as a rank got it.

    Attributes:
        key: which pack it is said to be.
        parts: digests of what the model and the loss read of it, by name.
        tokens: positions that are not pads.
        targets: labels that it asks for.
        images: pictures.
    """

    key: PackKey
    parts: Mapping[str, str]
    tokens: int
    targets: int
    images: int


@dataclass
class GlobalBatch:
    """What ranks were given for one optimizer step.

    Attributes:
        step: which one, from 0.
        packs: of all micro-batches, in the order in which they were added.
        said: the steps that the micro-batches say they are of.
        divisors: what they say the loss is divided by.
        corrupt: uids of documents with a picture that cannot be decoded.
    """

    step: int
    packs: list[ServedPack] = field(default_factory=list)
    said: set[int] = field(default_factory=set)
    divisors: set[int] = field(default_factory=set)
    corrupt: list[str] = field(default_factory=list)

    def add(self, batch: Mapping[str, Any]) -> None:
        """Add a micro-batch, as a loader gives it."""
        self.packs += served_packs(batch)
        self.said.add(int(batch["step"]))
        self.divisors.add(int(batch["global_targets"]))
        self.corrupt += [uid for uid, _ in batch["corrupt"]]

    @property
    def grids(self) -> list[int]:
        """Give the grids of its packs; more than one would be a fault."""
        return sorted({pack.key.grid for pack in self.packs})

    def digest(self) -> str:
        """Give one digest of all; it does not depend on who got what, nor in which order."""
        packs = sorted((tuple(pack.key), sorted(pack.parts.items())) for pack in self.packs)
        facts = (sorted(self.said), sorted(self.divisors), sorted(self.corrupt), packs)
        return _digest(repr((self.step, facts)).encode())


@dataclass(frozen=True)
class Difference:
    """How two global batches of one step differ.

    Attributes:
        step: which one, from 0.
        facts: what is not the same, in words with both values.
        packs: those concerned, with what is wrong with each.
    """

    step: int
    facts: Sequence[str]
    packs: Sequence[tuple[PackKey, str]]


def difference(one: GlobalBatch, other: GlobalBatch, names: tuple[str, str]) -> Difference | None:
    """Compare two global batches; None when they are the same.

    Args:
        one: of a step.
        other: of the same step.
        names: what to call them.
    """
    if one.digest() == other.digest():
        return None
    sides = tuple(zip((one, other), names, strict=True))
    wrong = [
        f"the micro-batches of {name} say that they are of step {_steps(batch.said)}"
        for batch, name in sides
        if batch.said != {one.step}
    ]
    told = {
        "grid": (one.grids, other.grids),
        "loss divisor": (sorted(one.divisors), sorted(other.divisors)),
        "images": tuple(sum(pack.images for pack in batch.packs) for batch in (one, other)),
        "documents with broken pictures": (sorted(one.corrupt), sorted(other.corrupt)),
    }
    wrong += [
        f"{fact}: {_said(mine)} in {names[0]}, {_said(theirs)} in {names[1]}"
        for fact, (mine, theirs) in told.items()
        if mine != theirs
    ]
    return Difference(one.step, wrong, list(_packs(one, other, names)))


def _packs(
    one: GlobalBatch, other: GlobalBatch, names: tuple[str, str]
) -> Iterator[tuple[PackKey, str]]:
    """Yield the packs that are not the same in both."""
    counts = [Counter(pack.key for pack in batch.packs) for batch in (one, other)]
    for key in sorted(counts[0] | counts[1]):
        times = [count[key] for count in counts]
        if times[0] != times[1]:
            yield key, f"{times[0]} times in {names[0]}, {times[1]} times in {names[1]}"
            continue
        mine, theirs = (
            [pack.parts for pack in batch.packs if pack.key == key] for batch in (one, other)
        )
        unlike = sorted({name for a, b in zip(mine, theirs, strict=True) for name in _unlike(a, b)})
        if unlike:
            yield key, f"has other {', '.join(unlike)}"


def _unlike(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    return [name for name in one if one[name] != other.get(name)]


def served_packs(batch: Mapping[str, Any]) -> Iterator[ServedPack]:
    """Take a micro-batch apart again: what the model and the loss read of each of its packs.

    Positions are counted within the pack, so a digest does not depend on its neighbours.

    Args:
        batch: as `data_modules.rows` gives it: `packing.batch.Batch` and ``packs``.
    """
    rows, context = batch["input_ids"].shape
    columns = {
        name: np.asarray(batch[name])
        for name in ("input_ids", "labels", "position_ids", "document_ids")
    }
    places, targets = np.asarray(batch["image_positions"]), np.asarray(batch["target_positions"])
    told = np.asarray(batch["sources"])  # by which losses are told apart
    ids, bounds = np.asarray(batch["target_ids"]), np.unique(np.asarray(batch["cu_seqlens"]))
    owners, pictures, taken = np.asarray(batch["target_rows"]), np.asarray(batch["images"]), 0
    for row, (source, turn, pack) in zip(range(rows), batch["packs"], strict=True):
        first, last = row * context, (row + 1) * context
        here = places[(places >= first) & (places < last)] - first
        images = len(here) // batch["grid"] ** 2
        asked = owners == row
        parts = {name: _digest(column[row]) for name, column in columns.items()}
        parts["targets"] = _digest(targets[asked] - first, ids[asked])
        parts["segments"] = _digest(bounds[(bounds > first) & (bounds <= last)] - first)
        parts["images"] = _digest(here, pictures[taken : taken + images])
        parts["source"] = _digest(told[row : row + 1])
        taken += images
        yield ServedPack(
            PackKey(int(batch["grid"]), source, turn, pack),
            parts,
            tokens=int((columns["document_ids"][row] >= 0).sum()),
            targets=int(asked.sum()),
            images=images,
        )


def _digest(*parts: bytes | NDArray[Any]) -> str:
    made = sha256()
    for part in parts:
        made.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes())
    return made.hexdigest()


def _steps(steps: set[int]) -> str:
    return _said([step + 1 for step in sorted(steps)])


def _said(value: Any) -> str:
    """Say a list as its members."""
    if not isinstance(value, list):
        return str(value)
    return ", ".join(str(one) for one in value) or "none"
