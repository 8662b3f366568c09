"""Raw shards by name alone, and their scores, for those who only look at scores."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from openqwen2vl.curation.scores import ScoreFacts, score_path, write_scores
from openqwen2vl.curation.selection.sources import open_source
from openqwen2vl.curation.selection.tables import SourceTables


def uid(number: int) -> str:
    """Give a uid of 32 hex digits that are spread as a hash's."""
    return f"{(number + 1) * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128:032x}"


def add_scores(
    root: Path,
    scorer: str,
    shard: str,
    columns: dict[str, Any],
    source: str = "src",
    made_by: dict[str, Any] | None = None,
    **facts: Any,
) -> None:
    """Write a shard's name and one scorer's scores of it; keys and uids are made up if not given."""
    (root / source).mkdir(exist_ok=True)
    (root / source / f"{shard}.tar").touch()
    rows = len(next(iter(columns.values())))
    columns = {"key": [f"{n:04d}" for n in range(rows)], **columns}
    columns = {"uid": [uid(1000 * int(shard) + n) for n in range(rows)], **columns}
    told = {"source": source, "shard": shard, "bytes": 0, "mtime_ns": 0, "scorer": made_by or {}}
    write_scores(
        score_path(root / "scores", source, scorer, shard),
        pa.table(columns),
        ScoreFacts(**told, **facts),
    )


def write_table(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    """Write a parquet file as a corpus brings it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def opened(root: Path, source: str = "src", tables: tuple[Path, ...] = ()) -> SourceTables:
    """Open a source made by these functions."""
    return open_source(source, root / source, root / "scores", tables)
