"""What whole conversations show: one number for all pictures of each, to compare by."""

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from openqwen2vl.curation.duplicates.selected import Column, Tables
from openqwen2vl.formats.errors import ShardError


def same_pictures(tables: Tables) -> Column:
    """Give a number for each conversation that tells its pictures' bytes, in their order.

    Those without pictures share one. Pairs have none, nor have conversations of whose pictures
    one could not be decoded.

    Args:
        tables: the selections; those of conversations have ``pictures`` and ``sha256``.

    Returns:
        uint64 (n,), bool (n,).
    """
    words, there = _nothing(tables)
    for rows, batch in _batches(tables, "sha256", "more_sha256"):
        counts, first, more = (batch[name].to_pylist() for name in batch.schema.names)
        for row, count, digest, others in zip(rows, counts, first, more, strict=True):
            if count is not None and (digest is not None or count == 0):
                words[row], there[row] = _word(digest or b"", others or b""), True
    return words, there


def same_looks(tables: Tables, max_blank: float) -> Column:
    """Give a number for each conversation that tells its pictures' perceptual hashes.

    Args:
        tables: the selections.
        max_blank: a conversation of which a picture is blanker has none, as of ``DuplicateRules``.

    Returns:
        uint64 (n,), bool (n,).
    """
    words, there = _nothing(tables)
    blank = tables.above("blank_share", max_blank)
    for rows, batch in _batches(tables, "phash", "more_phash", "more_blank_share"):
        counts, first, more, shares = (batch[name].to_pylist() for name in batch.schema.names)
        for row, count, number, others, share in zip(
            rows, counts, first, more, shares, strict=True
        ):
            blanks = np.frombuffer(share or b"", "<f4") > max_blank
            if count == 0:
                words[row], there[row] = _word(b"", b""), True
            elif number is not None and not (blank[row] or blanks.any()):
                words[row], there[row] = _word(number.to_bytes(8, "little"), others or b""), True
    return words, there


def _nothing(tables: Tables) -> Column:
    return np.zeros(tables.rows, np.uint64), np.zeros(tables.rows, np.bool_)


def _batches(tables: Tables, *wanted: str) -> Iterator[tuple[range, pa.RecordBatch]]:
    """Read ``pictures`` and columns of selections of conversations; one that lacks is null."""
    for number, selected in enumerate(tables.selections):
        names = tables.columns[number]
        if not selected.conversations or wanted[0] not in names:
            continue
        columns = ["pictures", *wanted]
        for first, batch in tables.batches(number, [n for n in columns if n in names]):
            arrays = [batch[n] if n in names else pa.nulls(batch.num_rows) for n in columns]
            yield range(first, first + batch.num_rows), pa.record_batch(arrays, columns)


def demand_pictures(tables: Tables) -> None:
    """Make sure that selections of conversations tell of their pictures.

    Raises:
        ShardError: one does not.
    """
    for selected, names in zip(tables.selections, tables.columns, strict=True):
        if selected.conversations and "pictures" not in names:
            raise ShardError(
                f"{selected.path} has no column pictures: duplicates by pair need it, of the image "
                f"scorer; it has {', '.join(names)}"
            )


def _word(first: bytes, others: bytes) -> int:
    """Give 64 bits for pictures told by their hashes, of 8 or 32 bytes each."""
    return int.from_bytes(hashlib.blake2b(first + others, digest_size=8).digest())
