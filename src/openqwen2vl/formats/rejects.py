"""Rejects: the documents that are left out, each with its reason."""

from dataclasses import dataclass
from typing import Literal, get_args

Reason = Literal[
    "empty_caption",
    "missing_image",
    "missing_text",
    "bad_text",
    "bad_json",
    "bad_conversation",
    "bad_interleaved",
    "image_count",
    "too_many_images",
    "trailing_images",
    "no_answer",
    "too_long",
    "duplicate_uid",
    "duplicate_key",
    "truncated_shard",
]

REASONS: tuple[str, ...] = get_args(Reason)
"""Every reason there is; a ledger holds no other."""


@dataclass(frozen=True)
class Reject:
    """A document that is left out.

    Attributes:
        source: name of the corpus.
        shard: the raw shard's file name without its ending.
        key: the sample's name within the shard; empty when the rest of a shard is lost.
        uid: as in ``Document``; the shard's name when the rest of a shard is lost.
        reason: one of ``REASONS``.
        detail: what was found, for a person to read.
    """

    source: str
    shard: str
    key: str
    uid: str
    reason: Reason
    detail: str


class Unusable(Exception):
    """Raised while a document is read; the reader turns it into a ``Reject``."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason: Reason = reason
        self.detail = detail
