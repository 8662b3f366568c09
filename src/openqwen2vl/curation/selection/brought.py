"""Tables that a corpus brings: metadata and released scores, beside its shards or elsewhere."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from openqwen2vl.curation.scorers.prompts import METRICS
from openqwen2vl.curation.selection.frames import Part, TableError, cut_files, read_parts, schema_of
from openqwen2vl.curation.selection.spines import Names
from openqwen2vl.curation.selection.uid_index import UidIndex, rising_order
from openqwen2vl.curation.selection.uids import number_uids

# The first line, and in it nothing but digits; commas are what the official reader forgives too.
_SCORE = r"^[ \t\r,;]*([0-9]{1,3})[ \t\r,;]*(?:\n|$)"


_UID = "uid of the table"


class ShardTables:
    """Tables that name raw shards, as img2dataset writes them: joined by shard and key.

    Keys are numbers of the order of a download, so another download of the same corpus has the
    same keys for other samples; where both have a uid it must be the same.

    Attributes:
        said: what to call them.
        columns: their columns and types, without the key.
        lacking: shards that have no such table.
    """

    def __init__(self, files: Mapping[str, Path], shards: Sequence[str]) -> None:
        """Look at the first table.

        Args:
            files: by shard; at least one.
            shards: all raw shards of the source.

        Raises:
            TableError: it cannot be read.
        """
        self._files = files
        first = files[min(files)]
        self.said = f"{first} and its like"
        self.columns = {name: t for name, t in schema_of(first).items() if name != "key"}
        self.lacking = [shard for shard in shards if shard not in files]
        uid = self.columns.get("uid")
        self._has_uid = uid is not None and (uid == pl.String or uid.is_integer())

    def attach(self, frame: pl.DataFrame, names: Names) -> pl.DataFrame:
        """Give samples their columns, null where the table has no row for them.

        Raises:
            TableError: a table cannot be read, or is of other samples than its shard.
        """
        shards = frame["shard"].unique().sort()
        parts = [Part(self._files[shard], shard) for shard in shards if shard in self._files]
        identity = {"key": "key", _UID: "uid"} if self._has_uid else {"key": "key"}
        found = read_parts(parts, {**identity, **names})
        on = ["shard", "key"]
        # A key that occurs twice must not make two samples of one.
        found = found.with_columns(pl.col("key").cast(pl.String)).unique(on, keep="first")
        self._meet(found.select(on), frame.select(on))
        joined = frame.join(found, on=on, how="left", maintain_order="left")
        if not self._has_uid:
            return joined
        self._agree(joined.select("shard", "key", "uid", pl.col(_UID).cast(pl.String)))
        return joined.drop(_UID)

    def _meet(self, theirs: pl.DataFrame, own: pl.DataFrame) -> None:
        """Raise when no row is of any sample: keys that were stored as numbers lost their zeros."""
        if len(theirs) and len(own) and not len(theirs.join(own, on=["shard", "key"], how="semi")):
            raise TableError(
                f"no row of {self.said} is of a sample of its shard: one of its keys is "
                f"{min(theirs['key'])}, one of the shard's {min(own['key'])}; write keys as they stand in the "
                "shards, or leave them out so that the tables are joined by uid"
            )

    def _agree(self, joined: pl.DataFrame) -> None:
        """Raise when a sample and its row have two uids; one made of shard and key is none."""
        own, theirs = pl.col("uid"), pl.col(_UID)
        others = joined.filter(own != theirs).filter(
            theirs != "",
            own != pl.concat_str("shard", pl.lit("/"), "key"),
            own.str.to_lowercase() != theirs.str.to_lowercase(),
        )
        if not len(others):
            return
        shard, key, uid, there = others.row(0)
        count = int((others["shard"] == shard).sum())
        raise TableError(
            f"{self._files[shard]} is of another download than its shard: it has other uids for "
            f"{count} samples of shard {shard}, the first is key {key}: uid {there} there, {uid} in "
            "the shard; fetch shards and tables of the same download, or take the tables away"
        )


class UidTables:
    """Tables that name uids, as DataComp's metadata: joined by uid, wherever the rows stand.

    Attributes:
        said: what to call them.
        columns: their columns and types, without the uid.
        lacking: none; a sample without a row has nulls.
        duplicates: rows whose uid another row before had; known once columns were attached.
    """

    lacking: Sequence[str] = ()

    def __init__(self, files: Sequence[Path]) -> None:
        """Look at the first table.

        Args:
            files: at least one, rising by name.

        Raises:
            TableError: it cannot be read, or has no uid of text.
        """
        self._files = files
        self.said = str(files[0]) if len(files) == 1 else f"{files[0]} and its like"
        schema = schema_of(files[0])
        if schema.get("uid") != pl.String:
            raise TableError(
                f"{files[0]} has the columns {', '.join(schema)}; expected a uid of text, or a key "
                "and a raw shard of the same name, to know which samples the rows are of"
            )
        self.columns = {name: t for name, t in schema.items() if name != "uid"}
        self.duplicates = 0
        self._loaded: tuple[UidIndex, pl.DataFrame] | None = None

    def attach(self, frame: pl.DataFrame, names: Names) -> pl.DataFrame:
        """Give samples their columns; the tables are read once, 16 bytes a row and the columns."""
        if self._loaded is None or not set(names) <= set(self._loaded[1].columns):
            self._loaded = self._load(names)
        index, values = self._loaded
        place = index.find(*number_uids(frame["uid"]))
        rows = pl.Series(place).to_frame("row").select(pl.when(pl.col("row") >= 0).then("row"))
        return frame.hstack(values.select(pl.col(*names).gather(rows["row"])))

    def _load(self, names: Names) -> tuple[UidIndex, pl.DataFrame]:
        highs, lows, frames = [], [], []
        for parts in cut_files(self._files):
            found = read_parts(parts, {_UID: "uid", **names})
            found = found.filter(pl.col(_UID).is_not_null())
            high, low = number_uids(found[_UID])
            highs.append(high)
            lows.append(low)
            frames.append(found.select(*names))
        high, low = np.concatenate(highs), np.concatenate(lows)
        # Of rows with one uid the first comes first, and that is the one found.
        order = rising_order(high, low)
        high, low = high[order], low[order]
        self.duplicates = int(((high[1:] == high[:-1]) & (low[1:] == low[:-1])).sum())
        values = pl.concat(frames, how="vertical_relaxed", rechunk=True)
        return UidIndex(high, low), values.select(pl.all().gather(order))


def metric_of(column: str) -> str | None:
    """Give the metric of MLM-Filter that a released column holds, None for any other column."""
    metric = column.removesuffix("_score")
    return metric if metric != column and metric in METRICS else None


def strip_metric(stem: str) -> tuple[str, str]:
    """Split a released file's name into the shard's and the metric's, which may be empty."""
    for metric in METRICS:
        if stem.endswith(f"_{metric}"):
            return stem.removesuffix(f"_{metric}"), metric
    return stem, ""


def read_scores(column: pl.Expr) -> pl.Expr:
    """Read released scores: a whole number from 0 to 100 alone on the first line, else null.

    Args:
        column: text.

    Returns:
        float32.
    """
    number = column.str.extract(_SCORE).cast(pl.Float32)
    return pl.when(number <= 100).then(number)
