"""Columns of scores that go along with kept samples: where they are, and their values by key."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from openqwen2vl.formats.errors import UserError


@dataclass(frozen=True)
class ScoreColumn:
    """A column whose values go into ``KEY.json``.

    Attributes:
        name: of the column.
        folder: holds ``SHARD.parquet`` with ``key`` and the column, as ``scores.write_scores``
            leaves it; None: the kept table has the column itself.
        label: what ``KEY.json`` calls it; None: its name.
    """

    name: str
    folder: Path | None = None
    label: str | None = None

    @property
    def called(self) -> str:
        """What ``KEY.json`` calls it."""
        return self.label or self.name

    def path(self, shard: str) -> Path | None:
        """Give the file of a shard's scores; None when the kept table has them.

        Raises:
            UserError: there is none.
        """
        if self.folder is None:
            return None
        path = self.folder / f"{shard}.parquet"
        if path.exists():
            return path
        raise UserError(
            f"{path} is missing: the samples of {shard} have no {self.name}; score the source, or "
            "do not ask for that column"
        )


def labelled(columns: Sequence[ScoreColumn]) -> tuple[ScoreColumn, ...]:
    """Give each column once; those of one name get labels ``PLACE.NAME``, as selections write them.

    The place is the folder's name, of a column of the kept table ``kept``.

    Raises:
        UserError: two columns have one label all the same.
    """
    each = dict.fromkeys(columns)
    names = Counter(column.called for column in each)
    found = []
    for column in each:
        if column.label is None and names[column.name] > 1:
            place = "kept" if column.folder is None else column.folder.name
            column = replace(column, label=f"{place}.{column.name}")
        found.append(column)
    twice = [
        name for name, times in Counter(column.called for column in found).items() if times > 1
    ]
    if twice:
        places = [str(column.folder) for column in found if column.called == twice[0]]
        raise UserError(
            f"two columns are called {twice[0]}, of {' and '.join(places)}; give one of them a label"
        )
    return tuple(found)


def made_of(scores: Path) -> str:
    """Give a hash of a file of scores.

    Not its time, which two runs that make the same file do not share: about a megabyte to read
    for a shard of images that is hundreds of them.
    """
    with scores.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def score_values(path: Path, name: str, keys: pa.ChunkedArray) -> pa.ChunkedArray:
    """Look a column up by key.

    Raises:
        UserError: the file is missing, or lacks the column or one of the keys.
    """
    try:
        scored = pq.read_table(path, columns=["key", name], use_threads=False)
        values = scored[name]
        places = pc.index_in(keys.cast(pa.string()), scored["key"].cast(pa.string()))
    except (OSError, pa.ArrowException, KeyError) as error:
        said = str(error).split("\n")[0]
        raise UserError(f"{path} has no columns key and {name} to read ({said})") from error
    if places.null_count:
        lost = keys.filter(pc.is_null(places))[0].as_py()
        raise UserError(
            f"{path} has no row for {lost}, one of {places.null_count} kept samples that it lacks; "
            "score, select and deduplicate again"
        )
    return values.take(places)
