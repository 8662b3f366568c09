"""The shards of an input: tars or tables of pairs, or what holds conversations in their place.

An input is of one kind. Which one, a listing says by what it is, tables by their columns, and tars
by most of the first samples that can be read; what is of the other kind becomes a reject.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from openqwen2vl.formats.corpora import shard_path
from openqwen2vl.formats.documents import Document
from openqwen2vl.formats.errors import ShardError
from openqwen2vl.formats.interleaved import DEFAULT_RULES
from openqwen2vl.formats.listing import ListingShard, listing_shards, read_listing_items
from openqwen2vl.formats.parquet import (
    ParquetShard,
    holds_images_and_conversations,
    read_parquet_items,
)
from openqwen2vl.formats.raw import read_raw_items
from openqwen2vl.formats.rejects import Reject

LISTINGS = (".json", ".jsonl")
"""Endings of the files that list conversations."""

RUN = r"~\d{5,}$"
"""The end of the name of a run of a listing's entries; uids leave it out."""

FACES = "face_bboxes"
"""The field of a sample that holds DataComp's boxes."""

_TABLE = ".parquet"
_ENTRIES = 10_000  # of a listing in a shard, as img2dataset cuts pairs
_ASKED = 8  # files that are asked for their kind before an input is taken for one of pairs
_LOOKED_AT = 100  # samples of a tar that tell its kind


@dataclass(frozen=True)
class ConversationShard:
    """A shard whose samples are conversations.

    Attributes:
        name: the file's name without its ending; of a run of entries with its number.
        part: what packing would read.
    """

    name: str
    part: Path | ListingShard | ParquetShard

    def __str__(self) -> str:
        if not isinstance(self.part, ListingShard):
            return str(shard_path(self.part))
        last = self.part.first + len(self.part.spans) - 1
        return f"{self.part.path}, entries {self.part.first} to {last}"

    def items(self, source: str) -> Iterator[tuple[Document | Reject, dict[str, Any]]]:
        """Read documents and rejects under the shard's name, each with what its JSON holds.

        Raises:
            ShardError: the file is missing.
        """
        if isinstance(self.part, ListingShard):
            return read_listing_items(self.part, source)
        if isinstance(self.part, ParquetShard):
            return read_parquet_items(self.part, source, DEFAULT_RULES, (FACES,))
        return read_raw_items(self.part, source)


RawShard = Path | ConversationShard
"""A tar or a table of pairs, or a shard of conversations."""


def shard_name(shard: RawShard) -> str:
    """Give what a shard goes by: no two of an input have one name."""
    return shard.stem if isinstance(shard, Path) else shard.name


def shard_file(shard: RawShard) -> Path:
    """Give the file that a shard is, or is a part of."""
    return shard if isinstance(shard, Path) else shard_path(shard.part)


def has_files_beside(shard: RawShard) -> bool:
    """Whether pictures of a shard may be files of their own, which its own stamp does not tell of."""
    return isinstance(shard, ConversationShard) and not isinstance(shard.part, Path)


def image_root_of(shard: RawShard) -> str | None:
    """Give the folder that the paths of a shard's pictures start from; None without one."""
    if not isinstance(shard, ConversationShard) or isinstance(shard.part, Path):
        return None
    root = shard.part.image_root
    return None if root is None else os.path.abspath(root)


def name_in_uids(shard: str) -> str:
    """Give what the uids of samples without one of their own begin with, by the shard's name."""
    return re.sub(RUN, "", shard)


def is_listing(path: Path) -> bool:
    """Whether an input is a file that lists conversations."""
    return path.suffix in LISTINGS and not path.is_dir()


def of_conversations(shards: Sequence[RawShard]) -> bool:
    """Whether an input's samples are conversations, by its shards."""
    return any(isinstance(shard, ConversationShard) for shard in shards)


def shards_of(folder: Path, image_root: Path | None = None) -> list[RawShard]:
    """Give the shards of an input by name: its tars, or else its tables, or a listing's runs.

    A folder of tables with neither images nor conversations, as of metadata, has none; whether it
    is one, the first table that can be opened says. Beside tables with images, one that cannot be
    opened is a shard as well, all of it a reject.

    Args:
        folder: a folder, or a listing.
        image_root: folder of the images that a listing or a table names by path.

    Raises:
        ShardError: the listing or its folder of images is missing, or it lists nothing; or a tar
            leads nowhere.
    """
    if is_listing(folder):
        return list(_runs(folder, image_root, _stamp(folder) if folder.is_file() else None))
    tars = sorted(folder.glob("*.tar"))
    if tars:
        return _talks(tars) if _speaks(tars) else list(tars)
    tables = _tables(folder)
    if any(_converses(path) for path in tables[:_ASKED]):
        return [ConversationShard(p.stem, ParquetShard(p, image_root)) for p in tables]
    return list(tables)


def shards_at(
    folder: Path, names: Sequence[str], image_root: Path | None = None
) -> dict[str, RawShard]:
    """Give an input's shards by name; one of pairs that is not there is the path of a tar.

    Raises:
        ShardError: see ``shards_of``; or a shard of conversations is not there.
    """
    shards = shards_of(folder, image_root)
    if not of_conversations(shards) and not is_listing(folder):
        return {name: _pairs_at(folder, name) for name in names}
    there = {shard_name(shard): shard for shard in shards}
    missing = [name for name in names if name not in there]
    if missing:
        raise ShardError(
            f"{folder} has no shard {missing[0]}, one of {len(missing)} that are missing; bring it "
            "back, or score again"
        )
    return {name: there[name] for name in names}


def _pairs_at(folder: Path, name: str) -> Path:
    tar, table = folder / f"{name}.tar", folder / f"{name}{_TABLE}"
    return table if table.is_file() and not tar.is_file() else tar


def _talks(tars: Sequence[Path]) -> list[RawShard]:
    return [ConversationShard(path.stem, path) for path in tars]


@cache
def _runs(
    path: Path, image_root: Path | None, stamp: tuple[int, int] | None
) -> tuple[RawShard, ...]:
    """Cut a listing into runs; once, since the whole file is looked through."""
    parts = listing_shards(path, image_root, _ENTRIES)
    return tuple(ConversationShard(f"{path.stem}~{n:05d}", part) for n, part in enumerate(parts))


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise ShardError(f"raw shard {path} is missing") from error
    return found.st_size, found.st_mtime_ns


def _tables(folder: Path) -> list[Path]:
    found, decided = [], False
    for path in sorted(folder.glob(f"*{_TABLE}")):
        try:
            shows = any(_columns(path, _stamp(path)))
        except ShardError:
            found.append(path)
            continue
        if not (shows or decided):
            return []
        decided = True
        if shows:
            found.append(path)
    return found if decided else []


def _converses(path: Path) -> bool:
    try:
        return _columns(path, _stamp(path))[1]
    except ShardError:
        return False  # all of it is a reject


@cache
def _columns(path: Path, stamp: tuple[int, int]) -> tuple[bool, bool]:
    """Tell whether a table has images, and conversations; once, since inputs are asked often."""
    return holds_images_and_conversations(path)


def _speaks(tars: Sequence[Path]) -> bool:
    for path in tars[:_ASKED]:
        kind = _kind(path, _stamp(path))
        if kind is not None:
            return kind
    return False


@lru_cache(maxsize=256)
def _kind(path: Path, stamp: tuple[int, int]) -> bool | None:
    """Tell whether most pairs and conversations of a tar are the latter; None without any."""
    items = (item for item, _ in read_raw_items(path, ""))
    roles = (item.turns[0].role for item in items if isinstance(item, Document))
    told = [role != "caption" for role in islice(roles, _LOOKED_AT) if role != "interleaved"]
    return 2 * sum(told) > len(told) if told else None
