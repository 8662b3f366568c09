"""Which packed sources a run draws from, opened and checked before step 0."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from openqwen2vl.formats.errors import PackError
from openqwen2vl.packing.budget import GridSupply
from openqwen2vl.packing.order import Order, Source, Stream
from openqwen2vl.packing.reader import PackFolder, Packs

Opener = Callable[[str, "SourceSpec"], Sequence[Packs]]
"""Opens a source of a mixture: its packs at one grid or several."""


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """One source of a mixture.

    Attributes:
        packs: its pack folder, or one folder per grid; each folder's manifest says its grid. With
            ``data=online`` its raw shards.
        weight: its share of the tokens under ``mode: weights``.
        licence: what its makers allow, in words; checkpoints keep it.
    """

    packs: str | Sequence[str]
    weight: float = 1.0
    licence: str | None = None

    @property
    def folders(self) -> list[Path]:
        """Give the folders as a list."""
        return [Path(p) for p in ([self.packs] if isinstance(self.packs, str) else self.packs)]


@dataclass(frozen=True, kw_only=True)
class MixtureSpec:
    """Sources and how their packs are interleaved (config group ``mixture``).

    Attributes:
        sources: by name; they must not share documents.
        mode: ``proportional`` (every pack once per pass, the paper's) or ``weights``.
    """

    sources: Mapping[str, SourceSpec]
    mode: str = "proportional"


@dataclass(frozen=True)
class Mixture:
    """Opened pack folders of all sources at all grids.

    Attributes:
        spec: what was asked for.
        folders: ``folders[grid][s]`` is the folder of the ``s``-th source, in the spec's order.
    """

    spec: MixtureSpec
    folders: Mapping[int, Sequence[Packs]] = field(repr=False)

    @property
    def names(self) -> list[str]:
        """Give the sources' names in their order."""
        return list(self.spec.sources)

    def stream(self, seed: int, grid: int) -> Stream:
        """Give the endless sequence of packs at one grid."""
        weights = [source.weight for source in self.spec.sources.values()]
        sources = [
            Source(name=name, tokens=folder.tokens, weight=weight)
            for name, folder, weight in zip(self.names, self.folders[grid], weights, strict=True)
        ]
        return Stream(seed, grid, sources, self.spec.mode)

    def supply(self, grid: int) -> GridSupply:
        """Count packs and tokens of all sources at one grid."""
        folders = self.folders[grid]
        return GridSupply(
            packs=sum(len(folder) for folder in folders),
            tokens=sum(int(folder.tokens.sum()) for folder in folders),
        )

    def documents_per_pack(self, grid: int) -> float:
        """Give the mean number of documents in a pack at one grid."""
        documents = sum(folder.manifest.counts.documents for folder in self.folders[grid])
        return documents / max(1, self.supply(grid).packs)

    def validation(self) -> "Mixture | None":
        """Give the held-out packs of the sources that have them; None when none has any."""
        sources: dict[str, SourceSpec] = {}
        by_grid: dict[int, list[Packs]] = {grid: [] for grid in self.folders}
        for number, (name, source) in enumerate(self.spec.sources.items()):
            held = {grid: column[number].validation() for grid, column in self.folders.items()}
            if all(packs is not None for packs in held.values()):
                sources[name] = source
                for grid, packs in held.items():
                    by_grid[grid] += [packs] if packs is not None else []
        return _checked(Mixture(replace(self.spec, sources=sources), by_grid)) if sources else None


def open_folders(_: str, source: SourceSpec) -> list[PackFolder]:
    """Open the pack folders of a source."""
    return [PackFolder(path) for path in source.folders]


def open_mixture(spec: MixtureSpec, grids: Sequence[int], opener: Opener = open_folders) -> Mixture:
    """Open every source of a mixture and check that they belong together.

    Args:
        spec: the mixture.
        grids: the grids of the resolution plan; each source needs packs of each.
        opener: opens a source.

    Raises:
        PackError: no sources, a source without packs of a grid (or with two), folders made with
            other tokenizers, templates or contexts, or documents that two sources share.
    """
    if not spec.sources:
        raise PackError("the mixture has no sources; name at least one under mixture.sources")
    by_grid: dict[int, list[Packs]] = {grid: [] for grid in sorted(set(grids))}
    for name, source in spec.sources.items():
        opened = opener(name, source)
        found = [folder.manifest.spec.grid for folder in opened]
        for grid, folders in by_grid.items():
            if found.count(grid) != 1:
                raise PackError(
                    f"mixture source {name!r} has {found.count(grid)} pack folders of grid {grid} "
                    f"(its folders have grids {found}); the resolution plan needs exactly one: "
                    f"pack it with grid={grid} and list the folder in "
                    f"mixture.sources.{name}.packs"
                )
            folders.append(opened[found.index(grid)])
    return _checked(Mixture(spec, by_grid))


def _checked(mixture: Mixture) -> Mixture:
    _check_specs(mixture)
    _check_disjoint(mixture)
    return mixture


def _check_specs(mixture: Mixture) -> None:
    """Refuse folders whose tokens would not mean the same."""
    folders = [folder for column in mixture.folders.values() for folder in column]
    first = folders[0]
    for folder in folders[1:]:
        for key in ("context", "tokenizer_hash", "template_hash"):
            one, other = getattr(first.manifest.spec, key), getattr(folder.manifest.spec, key)
            if one != other:
                raise PackError(
                    f"{folder.path} was packed with {key} {other}, {first.path} with {one}; "
                    "pack them alike"
                )


def _check_disjoint(mixture: Mixture) -> None:
    """Refuse sources that share documents: a shared one would be served twice a pass."""
    for folders in mixture.folders.values():
        named = list(zip(mixture.names, folders, strict=True))
        for (one, first), (other, second) in combinations(named, 2):
            shared = len(np.intersect1d(first.uid_hashes(), second.uid_hashes(), True))
            if shared:
                raise PackError(
                    f"mixture sources {one!r} and {other!r} share {shared} documents (by uid) in "
                    f"{first.path} and {second.path}; select or de-duplicate before packing"
                )


def consumed(mixture: Mixture, order: Order, steps: int) -> dict[str, dict[str, float]]:
    """Count per source what the first ``steps`` global batches held: a function of the order.

    Returns:
        For each source: packs, tokens, target_tokens, images, documents, and ``passes``, the
        packs served over the packs there are (of all grids that were used).
    """
    columns = ("tokens", "targets", "images", "documents")
    totals = [dict.fromkeys(("packs", *columns), 0) for _ in mixture.names]
    available = [0] * len(mixture.names)
    for grid, folders in mixture.folders.items():
        span = order.served(grid, steps)
        for source, folder in enumerate(folders):
            times = np.bincount(span.pack[span.source == source], minlength=len(folder))
            totals[source]["packs"] += int(times.sum())
            available[source] += len(folder) if times.any() else 0
            for column in columns:
                totals[source][column] += int((getattr(folder, column) * times).sum())
    return {
        name: {**total, "passes": total["packs"] / max(1, packs)}
        for name, total, packs in zip(mixture.names, totals, available, strict=True)
    }
