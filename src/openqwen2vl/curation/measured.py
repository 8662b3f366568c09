"""Which scorers measured the columns that a selection carries, told in the file of the selection.

Hashes can be compared only when they were made in the same way. Scores may be made again after a
selection, so the selection itself says how its own were made.
"""

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from openqwen2vl.curation.duplicates.selected import Selected
from openqwen2vl.curation.scorer import MORE
from openqwen2vl.formats.errors import ShardError

Measured = Mapping[str, Mapping[str, Any]]
"""``scorer.identity`` of what measured a column, by column."""

_FACTS = "openqwen2vl"


def measured_facts(measured: Measured) -> dict[str, str]:
    """Give what goes into the metadata of a parquet file; the same for the same arguments."""
    text = json.dumps({"measured": measured}, sort_keys=True, ensure_ascii=False)
    return {_FACTS: text}


def read_measured(selected: Selected) -> dict[str, dict[str, Any]]:
    """Read who measured the columns of a selection; nothing when the file does not tell.

    Raises:
        ShardError: the selection is missing or damaged.
    """
    try:
        told = (pq.read_schema(selected.path).metadata or {}).get(_FACTS.encode(), b"{}")
        found: dict[str, dict[str, Any]] = json.loads(told).get("measured", {})
    except (pa.ArrowException, OSError, ValueError, AttributeError) as error:
        raise ShardError(
            f"{selected.path} cannot be read ({type(error).__name__}); run the selection again"
        ) from error
    return found


def demand_alike(selected: Selected, columns: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse to compare columns that were measured in another way; unknown ones pass.

    Args:
        selected: the selection.
        columns: a scorer's fingerprint by column that is compared with what it measured.

    Raises:
        ShardError: a column of the selection was measured by another scorer or with other settings.
    """
    measured = read_measured(selected)
    for column in sorted(set(columns) & set(measured)):
        was, now = dict(measured[column]), json.loads(json.dumps(columns[column]))
        scorer = was.pop("name", "a scorer")
        was.pop(MORE, None)
        faults = [
            f"{name} was {was.get(name, 'not there')} then, is {now.get(name, 'not there')} now"
            for name in sorted({*was, *now})
            if was.get(name) != now.get(name)
        ]
        if faults:
            raise ShardError(
                f"{column} of the samples of {selected.name} was measured by {scorer} with other "
                f"settings than the evaluations': {'; '.join(faults)}; use the same settings, or "
                "score and select again with overwrite=true"
            )
