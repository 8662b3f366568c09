"""Manifests of new shards: what a folder of them holds and what it was made from."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from openqwen2vl.curation.resharding.rewrite import NewShard
from openqwen2vl.curation.unreadable import SCHEMA
from openqwen2vl.formats.errors import ShardError
from openqwen2vl.formats.files import atomic_file
from openqwen2vl.formats.manifest import MANIFEST_NAME

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ReshardManifest:
    """What a folder of new shards holds; with this file it is complete.

    Attributes:
        name: as of ``ReshardRequest``; likewise ``source``, ``seed``, ``samples_per_shard``,
            ``window``, ``blur`` and ``funnel``.
        samples: in all shards.
        bytes: of all shards.
        scores: names of the score columns.
        blurred: as of ``NewShard.blur``, over all shards.
        shards: in the order of their names; none when nothing is kept.
        digest: of everything that the shards depend on.
    """

    name: str
    source: str
    samples: int
    bytes: int
    seed: int
    samples_per_shard: int
    window: int
    scores: tuple[str, ...]
    blur: bool
    blurred: dict[str, int]
    shards: tuple[NewShard, ...]
    funnel: dict[str, Any]
    digest: str
    format_version: int = FORMAT_VERSION

    def save(self, folder: Path) -> None:
        """Write ``manifest.json``, atomically; equal manifests are equal bytes."""
        with atomic_file(folder / MANIFEST_NAME) as file:
            file.write((json.dumps(asdict(self), indent=2, sort_keys=True) + "\n").encode())

    @property
    def dropped(self) -> dict[str, int]:
        """How many kept samples are in no shard, by reason."""
        left_out = self.blurred.get("unreadable", 0)
        return {"unreadable": left_out} if left_out else {}

    def write_dropped(self, path: Path) -> None:
        """Write a table of the kept samples that are in no shard, atomically, sorted by shard.

        It has the columns of the tables of samples that earlier steps dropped.
        """
        why = {"reason": "unreadable", "detail": "its image has faces and cannot be decoded"}
        rows = [
            {"shard": raw, "key": key, "uid": uid, **why}
            for raw, key, uid in sorted(row for shard in self.shards for row in shard.left_out)
        ]
        with atomic_file(path) as file:
            pq.write_table(pa.Table.from_pylist(rows, SCHEMA), file, compression="zstd")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the manifest of a folder.

        Raises:
            ShardError: there is none, or it is no manifest of new shards.
        """
        path = folder / MANIFEST_NAME
        try:
            told = json.loads(path.read_bytes())
            if told["format_version"] == FORMAT_VERSION:
                shards = tuple(NewShard(**shard) for shard in told.pop("shards"))
                return cls(**{**told, "shards": shards, "scores": tuple(told["scores"])})
        except FileNotFoundError as error:
            raise ShardError(f"no {MANIFEST_NAME} in {folder}: resharding has not ended") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ShardError(
                f"{path} is no manifest of curated shards ({type(error).__name__}); remove the "
                "folder, or choose another out"
            ) from error
        raise ShardError(
            f"{path} has format_version {told['format_version']}, this program writes "
            f"{FORMAT_VERSION}; remove the folder and start again"
        )
