"""Rows that are equal: numbers in place of strings, and groups of the rows that share them."""

from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from openqwen2vl.curation.selection.uids import number_uids
from openqwen2vl.curation.shards import RUN

Words = NDArray[np.uint64]
Ids = NDArray[np.int32]


def equal_groups(words: Sequence[Words], valid: NDArray[np.bool_]) -> Ids:
    """Number the groups of two and more rows that agree in every word.

    Needs some 40 bytes a row beside its arguments: rows are sorted by the first word alone, and
    only those that share it are looked at further.

    Args:
        words: uint64 (n,) each; of the first, few rows of different groups should share a value.
        valid: (n,), rows that are equal to no other are False.

    Returns:
        int32 (n,), the number of each row's group from 0 on, -1 for a row that is alone.
    """
    ids = np.full(len(valid), -1, np.int32)
    rows = np.flatnonzero(valid)
    first = words[0][rows]
    order = np.argsort(first)
    first = first[order]
    same = first[1:] == first[:-1]
    shares = np.zeros(len(rows), np.bool_)
    shares[1:] = same
    shares[:-1] |= same
    rows = rows[order[shares]]
    if not len(rows):
        return ids
    columns = [word[rows] for word in words]
    order = np.lexsort(columns)
    rows = rows[order]
    new = np.ones(len(rows), np.bool_)
    new[1:] = np.any([column[order][1:] != column[order][:-1] for column in columns], axis=0)
    run = np.cumsum(new) - 1
    several = np.bincount(run) > 1
    number = np.cumsum(several) - 1
    ids[rows] = np.where(several[run], number[run], -1)
    return ids


def uid_words(
    batch: pa.RecordBatch, corpus: str, conversations: bool = False
) -> NDArray[np.uint64]:
    """Give the 128 bits by which uids are compared.

    They are ``uids.number_uids``. A uid that only repeats shard and key is common to many corpora
    (they all start at ``00000/000000000``), so the corpus' name goes in with it, as it does when
    packs are mixed.

    Args:
        batch: with the columns ``uid``, ``shard`` and ``key``.
        corpus: name of the raw corpus, which several selections may share.
        conversations: whether the shards may be runs of a listing, which uids do not tell apart.

    Returns:
        uint64 (2, n); what a null gives means nothing.
    """
    uids = batch["uid"].cast(pa.large_string())
    shards, keys = (batch[name].cast(pa.large_string()) for name in ("shard", "key"))
    if conversations:
        shards = pc.replace_substring_regex(shards, RUN, "")
    prefix, slash = (pa.scalar(text, pa.large_string()) for text in (corpus, "/"))
    repeated = pc.equal(uids, pc.binary_join_element_wise(shards, keys, slash))
    of_corpus = pc.binary_join_element_wise(prefix, uids, slash)
    texts = pc.if_else(pc.fill_null(repeated, False), of_corpus, pc.fill_null(uids, ""))
    return np.stack(number_uids(pl.Series(texts)))
