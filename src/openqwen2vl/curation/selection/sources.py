"""Finds what there is of a source: its raw shards, their scores, the tables that it brings."""

import re
from collections.abc import Container, Sequence
from pathlib import Path

import polars as pl

from openqwen2vl.curation.scorers.prompts import METRICS
from openqwen2vl.curation.selection.brought import ShardTables, UidTables, strip_metric
from openqwen2vl.curation.selection.frames import TableError, schema_of
from openqwen2vl.curation.selection.spines import RawShards, Spine, TableRows
from openqwen2vl.curation.selection.tables import SourceTables
from openqwen2vl.curation.shards import RawShard, is_listing, shard_file, shard_name, shards_of

METADATA = "metadata"
"""What an expression calls tables whose own name is taken: DataComp delivers its shards and its
metadata in two folders of one name, and `metadata.original_width` is then that of the metadata."""


def open_source(
    name: str,
    folder: Path,
    scores: Path,
    tables: Sequence[Path] = (),
    image_root: Path | None = None,
) -> SourceTables:
    """Open a source; of each table only the first file's columns are looked at.

    A folder with ``.tar`` is raw shards, and so is one of parquet files with images in them, whose
    columns are joined by uid where they have one. Parquet files beside shards that have a shard's
    name, or ``SHARD_METRIC`` as MLM-Filter's released scores, are joined by key; others, and
    ``tables`` of other names, by uid. A folder of parquet files without images is a source without
    shards, whose samples are the rows. An expression calls tables by the folder's or file's name,
    released scores by the metric's; the tables that come second to a name are called ``METADATA``.

    Args:
        name: of the source.
        folder: what the corpus was delivered in, or a listing of conversations.
        scores: holds the scores of all sources; it need not exist.
        tables: more parquet files, or folders of them.
        image_root: folder of the images that the input names by path.

    Raises:
        ShardError: see ``shards_of``.
        TableError: the folder holds neither, or a table cannot be read or joined.
    """
    if not (folder.is_dir() or is_listing(folder)):
        raise TableError(f"no folder {folder}; check the path of source {name}")
    shards = shards_of(folder, image_root)
    beside = sorted(set(folder.glob("*.parquet")) - {shard_file(shard) for shard in shards})
    if not shards and not beside:
        raise TableError(
            f"{folder} holds neither .tar nor .parquet; expected raw shards or tables of metadata"
            f"{_listed_there(folder)}"
        )
    spine: Spine
    if shards:
        spine = RawShards(name, shards, scores)
    else:
        rows, beside = _rows(beside)
        spine = TableRows(_word(folder.name), rows)
    names = [shard_name(shard) for shard in shards]
    brought: dict[str, ShardTables | UidTables] = {}
    own = _own_columns(shards)
    if own is not None:
        brought[_free(_word(folder.name), spine.places)] = own
    for path, files in ((folder, beside), *((path, _files(path)) for path in tables)):
        for place, table in _tables(path, files, names):
            brought[_free(place, {*brought, *spine.places})] = table
    return SourceTables(name, spine, brought)


def _listed_there(folder: Path) -> str:
    """Say it when the folder holds what may be a listing, which is named itself."""
    found = sorted(path.name for path in folder.glob("*") if is_listing(path))
    return f"; if {found[0]} lists conversations, name that file as the input" if found else ""


def _own_columns(shards: Sequence[RawShard]) -> UidTables | None:
    """Give the columns of shards that are tables themselves, of those that name uids."""
    files = [shard_file(shard) for shard in shards]
    named = [path for path in files if path.suffix == ".parquet" and _names_uids(path)]
    return UidTables(named) if named else None


def _names_uids(path: Path) -> bool:
    try:
        return schema_of(path).get("uid") == pl.String
    except TableError:
        return False  # all of it is a reject


def _rows(files: list[Path]) -> tuple[list[Path], list[Path]]:
    """Choose the files whose rows are the samples; released scores are so only when alone."""
    metrics = {path: strip_metric(path.stem)[1] for path in files}
    chosen = min(metrics.values())
    rows = [path for path in files if metrics[path] == chosen]
    return rows, [path for path in files if metrics[path] != chosen]


def _files(path: Path) -> list[Path]:
    found = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not found or not found[0].is_file():
        raise TableError(f"no .parquet at {path}; check the path of the tables")
    return found


def _tables(
    path: Path, files: Sequence[Path], shards: Sequence[str]
) -> list[tuple[str, ShardTables | UidTables]]:
    """Group files by what they hold: one table for each metric, and one for the rest."""
    known = set(shards)
    groups: dict[tuple[str, bool], list[Path]] = {}
    for file in files:
        shard, metric = strip_metric(file.stem)
        groups.setdefault((metric, shard in known), []).append(file)
    found: list[tuple[str, ShardTables | UidTables]] = []
    for (metric, of_shards), group in sorted(groups.items()):
        place = metric or _word(path.name.removesuffix(".parquet"))
        if of_shards and "key" in schema_of(group[0]):
            by_shard = {strip_metric(file.stem)[0]: file for file in group}
            found.append((place, ShardTables(by_shard, shards)))
        else:
            found.append((place, UidTables(group)))
    return found


def _free(place: str, taken: Container[str]) -> str:
    """Give the name, or another when it is taken."""
    if place in taken and place not in METRICS:
        place = METADATA
    while place in taken:
        place += "_"
    return place


def _word(name: str) -> str:
    """Make a folder's name one that an expression can spell."""
    word = re.sub(r"\W", "_", name)
    return word if word.isidentifier() else f"t{word}"
