"""Packed shards against the sha256 that their manifest gives."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from openqwen2vl.engine.local import Mapper
from openqwen2vl.packing.proof.faults import Faults
from openqwen2vl.packing.proof.holdings import Holdings


@dataclass(frozen=True)
class HashJob:
    """A packed shard and the sha256 that the manifest gives it."""

    path: Path
    sha256: str

    def __str__(self) -> str:
        return str(self.path)


def hash_shard(job: HashJob) -> str | None:
    """Say what is wrong with a packed shard's hash; None when it is right or there is no file."""
    try:
        with job.path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None  # the audit has told it
    if found == job.sha256:
        return None
    return f"{job.path} has sha256 {found[:16]}..., the manifest says {job.sha256[:16]}..."


def hash_shards(holdings: Holdings, mapper: Mapper) -> Faults:
    """Hash every packed shard of a folder."""
    faults = Faults()
    jobs = [HashJob(holdings.path / e.name, e.sha256) for e in holdings.manifest.shards]
    for sentence in mapper(hash_shard, jobs):
        if sentence is not None:
            faults.add("packed shard", sentence)
    return faults
