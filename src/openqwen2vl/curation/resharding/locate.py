"""Where the files of kept samples lie: an index file for each raw shard, made before any copying."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from openqwen2vl.curation.resharding.columns import ScoreColumn, made_of, score_values
from openqwen2vl.curation.resharding.conversations import PICTURES, conversation_files
from openqwen2vl.curation.resharding.kept import KeptShard, read_kept
from openqwen2vl.curation.resharding.unpack import unpack
from openqwen2vl.curation.scores import stamp
from openqwen2vl.curation.shards import ConversationShard, RawShard, shard_file
from openqwen2vl.formats.errors import ShardError
from openqwen2vl.formats.files import atomic_file
from openqwen2vl.formats.raw import read_raw_files
from openqwen2vl.formats.tar import BLOCK, Member
from openqwen2vl.packing.locks import one_writer

NOWHERE = -1
"""The offset of a file that a sample has not."""

SCORE = "score "
"""What the names of score columns begin with in an index file."""

_VERSION = 1
_IDENTITY, _BYTES = b"openqwen2vl.located", b"openqwen2vl.bytes"
_PER_SAMPLE, _PER_SCORE = 160, 40  # bytes that a sample's JSON gains: uid, origin, each score
_KINDS = ("image", "text", "json")
_FILES = pa.schema(
    [("ending", pa.string())]
    + [(f"{kind}_{what}", pa.int64()) for kind in _KINDS for what in ("at", "size")]
)


@dataclass(frozen=True)
class LocateJob:
    """One raw shard to look through.

    Attributes:
        raw: the tar, the table with images in it, or a shard of conversations.
        kept: the kept table.
        kept_hash: of that table.
        shard: the rows that speak of this tar.
        scores: what goes along.
        path: where the index file goes.
    """

    raw: RawShard
    kept: Path
    kept_hash: str
    shard: KeptShard
    scores: tuple[ScoreColumn, ...]
    path: Path

    def __str__(self) -> str:
        return str(self.raw)

    @property
    def tar(self) -> Path:
        """What the index speaks of: the raw shard, or what is unpacked of a table beside it."""
        file = shard_file(self.raw)
        return self.path.with_suffix(".tar") if file.suffix == ".parquet" else file

    def identity(self) -> str:
        """Everything that the index depends on, as text."""
        paths = [column.path(self.shard.name) for column in self.scores]
        made = [path and made_of(path) for path in paths]
        scores = [(c.name, c.called, hash) for c, hash in zip(self.scores, made, strict=True)]
        rows = [self.shard.name, self.shard.first, self.shard.rows]
        return json.dumps([_VERSION, self.kept_hash, rows, stamp(self.raw), scores])


@dataclass(frozen=True)
class Located:
    """The index file of a raw shard.

    Attributes:
        name: of the raw shard.
        file: that it is or is a part of: a tar, a table or a listing.
        tar: that file, or what is unpacked of the table.
        path: the index file.
        samples: its rows.
        bytes: what they will take up in a tar, about.
        identity: as of ``LocateJob.identity``.
        stamp: bytes of the raw shard and time of its last change, in ns.
    """

    name: str
    file: Path
    tar: Path
    path: Path
    samples: int
    bytes: int
    identity: str
    stamp: tuple[int, int]

    def read(self) -> pa.Table:
        """Read key, uid, scores, the images' endings, and offsets and sizes of the files.

        Raises:
            ShardError: the index file went away or is damaged.
        """
        try:
            return pq.read_table(self.path, use_threads=False).replace_schema_metadata()
        except (OSError, pa.ArrowException) as error:
            raise ShardError(f"{self.path} cannot be read ({error}); start again") from error

    def check(self) -> None:
        """Make sure that the raw shard is still as it was.

        Raises:
            ShardError: it changed or went away.
        """
        if stamp(self.file) != self.stamp:
            raise ShardError(f"{self.file} changed while its samples were copied; start again")


def locate_shard(job: LocateJob) -> Located:
    """Find the kept samples of a raw shard, unless that was done before.

    Images in a tar are not touched. Those in a table are copied out of it, since new shards take
    them in another order than the rows'.

    Raises:
        ShardError: the raw shard is missing, or lacks a sample that is kept.
        UserError: scores are missing, or the disk is full.
    """
    identity, found = job.identity(), stamp(job.raw)
    with one_writer(job.path):
        size = _known(job.path, identity) if job.tar.is_file() else None
        if size is None:
            size = _write(job, identity)
    file = shard_file(job.raw)
    return Located(job.shard.name, file, job.tar, job.path, job.shard.rows, size, identity, found)


def _known(path: Path, identity: str) -> int | None:
    """Give the bytes that an index file tells of, when it is there and of this identity."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException):
        return None
    return int(metadata[_BYTES]) if metadata.get(_IDENTITY) == identity.encode() else None


def _write(job: LocateJob, identity: str) -> int:
    own = [column.name for column in job.scores if column.folder is None]
    rows = read_kept(job.kept, job.shard, ["key", "uid", *own])
    table = rows.select(["key", "uid"])
    for column in job.scores:
        path = column.path(job.shard.name)
        values = rows[column.name] if path is None else score_values(path, column.name, rows["key"])
        table = table.append_column(SCORE + column.called, values)
    files = _files(job, rows["key"].to_pylist())
    for name, values in zip(files.schema.names, files.columns, strict=True):
        table = table.append_column(name, values)
    total = _bytes(files, _PER_SAMPLE + _PER_SCORE * len(job.scores))
    metadata = {_IDENTITY: identity.encode(), _BYTES: str(total).encode()}
    with atomic_file(job.path) as file:
        table = table.replace_schema_metadata(metadata)
        pq.write_table(table, file, compression="zstd", compression_level=1)
    return total


def _bytes(files: pa.Table, more: int) -> int:
    """Tell what files will take up in a tar, about.

    Args:
        files: of ``_files``.
        more: bytes that the JSON of a sample gains.
    """
    kinds = [kind for kind in _KINDS if f"{kind}_size" in files.schema.names]
    sizes = [files[f"{kind}_size"].to_numpy() + more * (kind == "json") for kind in kinds]
    if PICTURES in files.schema.names:
        sizes.append(pc.struct_field(pc.list_flatten(files[PICTURES]), "size").to_numpy())
    return sum(int((BLOCK + -(-size // BLOCK) * BLOCK).sum()) for size in sizes)


def _files(job: LocateJob, keys: Sequence[str]) -> pa.Table:
    """Give where the files of some samples lie, a row each."""
    if job.tar != shard_file(job.raw):
        unpack(job.raw, set(keys), job.tar)
    if isinstance(job.raw, ConversationShard):
        unpacked = job.tar != shard_file(job.raw)
        shard = ConversationShard(job.raw.name, job.tar) if unpacked else job.raw
        return conversation_files(shard, keys)
    return pa.table(list(zip(*_pairs(job, keys), strict=True)), _FILES)


def _pairs(job: LocateJob, keys: Sequence[str]) -> Iterator[tuple[str | int, ...]]:
    """Give the rows of ``_FILES`` for the pairs of some keys."""
    there = dict(read_raw_files(job.tar))
    missing = [key for key in keys if key not in there]
    if missing:
        raise ShardError(
            f"{job.raw} lacks {missing[0]}, one of {len(missing)} samples of it that {job.kept} "
            "keeps; it is another file than was scored: bring it back, or score it again"
        )
    for key in keys:
        files = there[key]
        images = [ending for ending in files if ending not in ("txt", "json")]
        if len(images) != 1:
            raise ShardError(
                f"{key} of {job.raw} has {len(images)} images; only pairs of one image and its "
                "caption can be kept"
            )
        yield (
            images[0],
            *_place(files[images[0]]),
            *_place(files.get("txt")),
            *_place(files.get("json")),
        )


def _place(member: Member | None) -> tuple[int, int]:
    return (NOWHERE, 0) if member is None else (member.offset, member.size)
