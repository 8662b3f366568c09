"""Corpora: the shards that an input has, whatever its layout, and how one is read."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from openqwen2vl.formats.documents import Document
from openqwen2vl.formats.errors import ShardError
from openqwen2vl.formats.interleaved import DEFAULT_RULES, InterleavedRules
from openqwen2vl.formats.listing import ListingShard, listing_shards, read_listing_shard
from openqwen2vl.formats.parquet import ParquetShard, parquet_shards, read_parquet_shard
from openqwen2vl.formats.raw import raw_shards, read_raw_shard
from openqwen2vl.formats.rejects import Reject

Shard = Path | ListingShard | ParquetShard
"""What one process reads on its own: a tar, a run of a listing's entries, or a parquet file."""


def open_corpus(path: Path, image_root: Path | None = None) -> Sequence[Shard]:
    """Give the shards of an input, in an order that depends on names alone.

    Args:
        path: a folder of ``.tar`` or ``.parquet`` files, one ``.tar`` or ``.parquet`` file, or a
            listing ``.json`` / ``.jsonl``. Where tars and parquet files lie together, the latter
            are taken for img2dataset's tables about the former.
        image_root: folder of the images that a listing or a table names by path.

    Raises:
        ShardError: nothing is there, or nothing that can be read.
    """
    if path.suffix in (".json", ".jsonl"):
        return listing_shards(path, image_root)
    if path.is_file() and path.suffix == ".tar":
        return [path]
    if path.suffix == ".parquet" and not path.is_dir():
        return parquet_shards(path, image_root)
    if path.is_file():
        raise ShardError(
            f"{path} is no .tar, .parquet, .json or .jsonl; name one of those, or a folder of "
            ".tar or .parquet files"
        )
    if not path.is_dir() or any(path.glob("*.tar")):
        return raw_shards(path)
    if any(path.glob("*.parquet")):
        return parquet_shards(path, image_root)
    raise ShardError(
        f"{path} holds no .tar and no .parquet; name a folder of raw shards (img2dataset's "
        "KEY.jpg, .txt, .json in tars) or of parquet files, or a .json / .jsonl"
    )


def shard_path(shard: Shard) -> Path:
    """Give the file that a shard is, or is a part of."""
    return shard if isinstance(shard, Path) else shard.path


def read_shard(
    shard: Shard, source: str, rules: InterleavedRules = DEFAULT_RULES
) -> Iterator[Document | Reject]:
    """Read the documents of a shard, and why others are left out, in the shard's order.

    Args:
        shard: from ``open_corpus``.
        source: the name to give the documents.
        rules: which interleaved documents are taken.

    Raises:
        ShardError: the file is missing.
    """
    if isinstance(shard, ListingShard):
        return read_listing_shard(shard, source)
    if isinstance(shard, ParquetShard):
        return read_parquet_shard(shard, source, rules)
    return read_raw_shard(shard, source, rules)
