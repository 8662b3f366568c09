"""Packs: whether they are whole, and whether the disk reads as fast as GPUs take images."""

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig

from openqwen2vl.commands._doctor_finding import Finding, graded
from openqwen2vl.formats.errors import UserError
from openqwen2vl.packing.preflight import preflight
from openqwen2vl.packing.reader import PackFolder
from openqwen2vl.packing.summary import spread

_BLOCK = 2**22


def pack_findings(folders: Sequence[Path], sample: int) -> Iterator[Finding]:
    """Look at folders of packs: manifest and index, some packs, the hashes of some shards.

    Args:
        folders: of packs.
        sample: shards of each that are hashed.
    """
    for path in folders:
        name = f"packs {path}"
        try:
            folder = PackFolder(path)
            faults = preflight(folder)
            damaged = _damaged(folder, sample)
        except UserError as error:
            yield graded(name, str(error), red="copy them again or run pack again")
            continue
        if damaged:
            found = f"{', '.join(damaged)} differ from the manifest's sha256"
            yield graded(name, found, red="copy these shards again")
        elif faults:
            yield graded(name, "; ".join(faults), red="pack again")
        else:
            count = len(folder.manifest.shards)
            shards = "1 shard" if count == 1 else f"{count:,} shards"
            yield graded(name, f"{len(folder):,} packs in {shards}, {min(sample, count)} hashed")


def _damaged(folder: PackFolder, sample: int) -> list[str]:
    """Name those of some shards, spread evenly, whose bytes are not the manifest's."""
    shards = folder.manifest.shards
    found = []
    for number in spread(len(shards), sample):
        with (folder.path / shards[number].name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != shards[number].sha256:
            found.append(shards[number].name)
    return found


def disk_findings(config: DictConfig, packs: Sequence[Path]) -> Iterator[Finding]:
    """Time the disk that holds the packs, or ``path``, against what the GPUs here take."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    sizes = list(_shards(packs))
    images = sum(count for _, _, count in sizes)
    mean = sum(size for _, size, _ in sizes) / images if images else config.image_bytes
    needed = config.images_per_second * mean * max(1, gpus)
    try:
        found = read_speed([path for path, _, _ in sizes], Path(config.path), config.read_bytes)
    except OSError as error:
        yield graded("disk speed", str(error), red="choose another path=")
        return
    yield speed_finding(found, needed, gpus)


def speed_finding(found: float, needed: float, gpus: int) -> Finding:
    """Compare bytes a second with those that the loader must deliver."""
    said = f"{found / 1e6:,.0f} MB/s; {max(1, gpus)} GPU(s) take at most {needed / 1e6:,.0f}"
    slow = "packs on a faster disk, or copied to the node's own before the run"
    if gpus and found < needed:
        return graded("disk speed", said, red=slow)
    return graded("disk speed", said, yellow=slow if found < 2 * needed else "")


def _shards(folders: Sequence[Path]) -> Iterator[tuple[Path, int, int]]:
    """Yield shards of readable folders: path, bytes, and images in proportion."""
    for path in folders:
        try:
            folder = PackFolder(path)
        except UserError:
            continue  # told by ``pack_findings``
        each = folder.manifest.counts.images // max(1, len(folder.manifest.shards))
        for shard in folder.manifest.shards:
            yield path / shard.name, shard.bytes, each


def read_speed(shards: Sequence[Path], folder: Path, amount: float) -> float:
    """Read files that the system's cache was asked to forget; bytes a second.

    Args:
        shards: to read; none: a file that is written to ``folder`` for it.
        folder: see there.
        amount: bytes, at most.
    """
    if shards:
        return _timed(shards, amount)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
        block = os.urandom(_BLOCK)
        for _ in range(max(1, int(amount) // _BLOCK)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return _timed([Path(file.name)], amount)


def _timed(paths: Sequence[Path], amount: float) -> float:
    done, seconds = 0, 0.0
    for path in paths:
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            started = time.perf_counter()
            while done < amount and (block := file.read(_BLOCK)):
                done += len(block)
            seconds += time.perf_counter() - started
        if done >= amount:
            break
    return done / max(seconds, 1e-9)
