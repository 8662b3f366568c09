"""How much of a shard may be lost before it is no longer the samples' fault."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from openqwen2vl.curation.scorer import NO_PAIR
from openqwen2vl.curation.scores import ScoreError
from openqwen2vl.curation.shards import ConversationShard, RawShard, has_files_beside
from openqwen2vl.formats.listing import ListingShard
from openqwen2vl.formats.rejects import Reject

LEAST_SAMPLES = 100
"""Fewer samples in a shard say nothing of how a scorer does."""

MOST_ERRORS = 0.5
"""The share of a shard's samples that may lack a score, or a picture."""


def check_pictures(shard: RawShard, rejects: Sequence[Reject], sound: int) -> None:
    """Refuse conversations of which most lack a picture: a wrong folder must not become final.

    Fewer than ``LEAST_SAMPLES`` tell of a wrong folder only where they are all that a listing
    begins with, and none of them is sound: the last run of a long one may be a single entry.

    Args:
        shard: what was read.
        rejects: of it.
        sound: how many samples it holds beside them.

    Raises:
        ScoreError: more than ``MOST_ERRORS`` lack a picture.
    """
    if not has_files_beside(shard):
        return
    lost = [one for one in rejects if one.reason == "missing_image"]
    count = sound + len(rejects)
    least = 1 if _begins_a_listing(shard) and len(lost) == count else LEAST_SAMPLES
    if count >= least and len(lost) > MOST_ERRORS * count:
        raise ScoreError(
            f"{len(lost)} of the {count} conversations of {shard} lack a picture, the first, "
            f"{lost[0].key}, since: {lost[0].detail}; check image_root, and whether all folders of "
            f"pictures are there: at most {MOST_ERRORS:.0%} may lack theirs"
        )


def _begins_a_listing(shard: RawShard) -> bool:
    part = shard.part if isinstance(shard, ConversationShard) else None
    return isinstance(part, ListingShard) and part.first == 0


def count_errors(table: pa.Table, column: str, shard: RawShard, scorer: str) -> int:
    """Count the samples that lack a score; too large a share of them must not become final.

    Args:
        table: the scores, a row a sample.
        column: says why a row has none.
        shard: what was scored.
        scorer: its name.

    Raises:
        ScoreError: more than ``MOST_ERRORS`` lack a score.
    """
    rows = table.num_rows
    errors: int = rows - table[column].null_count
    # That a conversation is no pair says nothing of how the scorer does.
    failed = pc.fill_null(pc.not_equal(table[column], NO_PAIR), False)
    if rows >= LEAST_SAMPLES and pc.sum(failed).as_py() > MOST_ERRORS * rows:
        first = table.filter(failed).slice(0, 1).to_pylist()[0]
        raise ScoreError(
            f"{scorer} could not score {errors} of the {rows} samples of {shard}, the first, "
            f"{first['key']}, since: {first[column]}; at most {MOST_ERRORS:.0%} of a shard may lack "
            "a score: check the scorer's settings, or mend the shard or take it away"
        )
    return errors
