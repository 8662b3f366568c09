"""The text scorer: what a caption's own words tell, its language among it."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from openqwen2vl.curation.samples import Sample
from openqwen2vl.curation.scorers.caption_rules import bad_pattern, normalized, rules_hash
from openqwen2vl.curation.scorers.language import language_of, language_version

METHOD = 1
"""Goes up whenever the same caption would get other figures."""


@dataclass(frozen=True, kw_only=True)
class TextScorer:
    """Measures captions, and the text of whole conversations: a line for each turn.

    ``characters`` and ``words`` count a caption without white space around it; words are what
    stands between white space, so a Chinese sentence is one. ``unique_ratio`` is the share of
    different ones among the words, case folded. ``language`` is an ISO 639-1 code and
    ``language_probability`` how sure py3langid is of it; short captions are guesses.
    ``bad_pattern`` is the name of the first of ``caption_rules`` that the caption meets, null when
    none does. ``caption_hash`` is the first 8 bytes of BLAKE2b of the normalised caption: equal for
    captions that differ in case, white space or the width of letters alone.

    Attributes:
        name: folder of the scores.
        language: whether to tell the language, which costs as much as all the rest.
        batch_size: samples at a time.
    """

    name: str = "text"
    language: bool = True
    batch_size: int = 1024
    reads_conversations: ClassVar[bool] = True

    @property
    def columns(self) -> Mapping[str, pa.DataType]:
        """What is written, with these settings."""
        columns = {
            "characters": pa.int32(),
            "words": pa.int32(),
            "unique_ratio": pa.float32(),
            "bad_pattern": pa.string(),
            "caption_hash": pa.uint64(),
        }
        if self.language:
            columns["language"] = pa.string()
            columns["language_probability"] = pa.float32()
        return columns

    def fingerprint(self) -> dict[str, Any]:
        """Give the settings, the rules' hash and the version of the language model."""
        known = {"method": METHOD, "columns": list(self.columns), "rules": rules_hash()}
        return {**known, "language": language_version()} if self.language else known

    def score(self, samples: Sequence[Sample]) -> dict[str, list[Any]]:
        """Measure the caption of each sample."""
        rows = [_row(sample.caption) for sample in samples]
        if self.language:
            for row, sample in zip(rows, samples, strict=True):
                row["language"], row["language_probability"] = language_of(sample.caption)
        return {name: [row[name] for row in rows] for name in self.columns}


def _row(caption: str) -> dict[str, Any]:
    text = normalized(caption)
    words = text.split()
    return {
        "characters": len(caption.strip()),
        "words": len(words),
        "unique_ratio": len(set(words)) / len(words) if words else None,
        "bad_pattern": bad_pattern(text),
        "caption_hash": caption_hash(text),
    }


def caption_hash(text: str) -> int:
    """Give 64 bits that stand for a caption.

    Args:
        text: the caption, ``caption_rules.normalized``.
    """
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
