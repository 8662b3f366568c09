"""Random access to packs: one read of the disk a pack, from any process."""

import json
import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from openqwen2vl.formats.errors import ShardError
from openqwen2vl.formats.manifest import MANIFEST_NAME, Manifest
from openqwen2vl.packing.index import Index

VALIDATION = "validation"
"""The folder of held-out packs within a folder of packs."""

# Of the files that a process may have open, a folder keeps this part, but a few in any case.
_PART_OPEN, _LEAST_OPEN = 16, 8


@dataclass(frozen=True)
class Pack:
    """One pack as it is stored, in compact coordinates (one mark per image).

    Attributes:
        ids: int64 (n,).
        targets: int64 (m, 2), half-open spans over ``ids``.
        documents: per document ``uid, source, shard, key, start, length, images``; start and
            length are over ``ids``, images is how many.
        images: the images' bytes as they came, in the order of their marks.
    """

    ids: NDArray[np.int64]
    targets: NDArray[np.int64]
    documents: list[dict[str, Any]]
    images: list[bytes]


class Packs(Protocol):
    """Packs by number, wherever they come from; the attributes are those of `PackFolder`."""

    path: Path
    manifest: Manifest
    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    images: NDArray[np.int64]
    documents: NDArray[np.int64]

    def __len__(self) -> int:
        """Count the packs."""

    def read(self, number: int) -> Pack:
        """Give pack ``number``."""

    def uid_hashes(self) -> NDArray[np.uint64]:
        """Give the sorted 64-bit identities of the documents (see ``plan.uid_hash``)."""

    def validation(self) -> "Packs | None":
        """Give the held-out packs of the same corpus; None when nothing is held out."""


class PackFolder:
    """A finished folder of packs, read by number.

    It can be pickled and used after a fork: files are opened when first needed, by each process
    for itself.

    Args:
        path: the folder that holds ``manifest.json``.

    Attributes:
        path: that folder.
        manifest: what it holds.
        tokens: int64 (n,), expanded tokens of each pack, without pads.
        targets: int64 (n,), labels that each pack asks for.
        images: int64 (n,), images of each pack.
        documents: int64 (n,), documents of each pack.

    Raises:
        ShardError: the folder is unfinished, or a shard is missing or shorter than it was.
        PackError: another version of the format.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.manifest = Manifest.load(self.path)
        self._index = Index.load(self.path)
        self.tokens = self._index.tokens
        self.targets = self._index.targets
        self.images = self._index.images
        self.documents = self._index.documents
        self._files: tuple[int, dict[int, int]] = (os.getpid(), {})
        self._check()

    def _check(self) -> None:
        """Compare the folder with its manifest, without reading a shard."""
        if len(self) != self.manifest.counts.packs:
            raise ShardError(
                f"{self.path}: the index holds {len(self)} packs, the manifest "
                f"{self.manifest.counts.packs}; run pack again"
            )
        for shard in self.manifest.shards:
            path = self.path / shard.name
            if not path.is_file():
                raise ShardError(f"packed shard {path} is missing; copy it again or run pack again")
            size = path.stat().st_size
            if size != shard.bytes:
                raise ShardError(
                    f"{path} has {size} bytes, the manifest says {shard.bytes}; "
                    "copy it again or run pack again"
                )

    def __len__(self) -> int:
        return len(self._index.shard)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": (0, {})}

    def read(self, number: int) -> Pack:
        """Give pack ``number``.

        Raises:
            ShardError: the shard does not hold what the index says.
            IndexError: there is no such pack.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"pack {number} of {len(self)} in {self.path}")
        index = self._index
        first, last = index.image_start[number : number + 2]
        offsets = index.image_offsets[first:last].tolist()
        sizes = index.image_sizes[first:last].tolist()
        start, json_size = int(index.json_offset[number]), int(index.json_size[number])
        stop = offsets[-1] + sizes[-1] if offsets else start + json_size
        shard = int(index.shard[number])
        data = os.pread(self._descriptor(shard), stop - start, start)
        if len(data) != stop - start:
            raise ShardError(
                f"{self.path / index.shards[shard]} ends within pack {number}: {len(data)} of "
                f"{stop - start} bytes; copy it again or run pack again"
            )
        try:
            content = json.loads(data[:json_size])
        except ValueError as error:
            raise ShardError(
                f"{self.path / index.shards[shard]} is damaged in pack {number}; copy it again"
            ) from error
        return Pack(
            ids=np.array(content["ids"], np.int64),
            targets=np.array(content["targets"], np.int64).reshape(-1, 2),
            documents=content["documents"],
            images=[data[o - start : o - start + n] for o, n in zip(offsets, sizes, strict=True)],
        )

    def uid_hashes(self) -> NDArray[np.uint64]:
        """Give the sorted 64-bit identities of the documents (see ``plan.uid_hash``)."""
        try:
            hashes: NDArray[np.uint64] = np.load(self.path / "uids.npy", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ShardError(f"{self.path}/uids.npy cannot be read; run pack again") from error
        return hashes

    def validation(self) -> "PackFolder | None":
        """Open the held-out packs beside the others; None when nothing is held out."""
        folder = self.path / VALIDATION
        return PackFolder(folder) if (folder / MANIFEST_NAME).is_file() else None

    def _descriptor(self, shard: int) -> int:
        """Open a shard in each process; a forked copy's offsets are its parent's affair.

        Packs come in random order from thousands of shards, more than a process may often have
        open (1,024), so the least recently used is closed again.
        """
        if self._files[0] != os.getpid():
            self._files = (os.getpid(), {})
        files = self._files[1]
        descriptor = files.pop(shard, None)
        if descriptor is None:
            if len(files) >= _most_open():
                os.close(files.pop(next(iter(files))))
            descriptor = os.open(self.path / self._index.shards[shard], os.O_RDONLY)
        files[shard] = descriptor
        return descriptor


def _most_open() -> int:
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(_LEAST_OPEN, allowed // _PART_OPEN)
