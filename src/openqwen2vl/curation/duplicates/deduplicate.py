"""De-duplication over sources: of samples that are alike the one of highest priority stays."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from openqwen2vl.curation.duplicates.groups import Ids, equal_groups
from openqwen2vl.curation.duplicates.independent import Nearness, Verdict, first_independent
from openqwen2vl.curation.duplicates.near import check_distance
from openqwen2vl.curation.duplicates.outcome import Marks, write_outcome
from openqwen2vl.curation.duplicates.selected import Column, Selected, Tables
from openqwen2vl.curation.duplicates.whole import demand_pictures, same_looks, same_pictures
from openqwen2vl.formats.errors import ConfigError

CRITERIA = {
    "uid": "duplicate_uid",
    "image": "duplicate_image",
    "pair": "duplicate_pair",
    "near": "near_duplicate",
}
"""What samples can be compared by, and the reason of a sample that is dropped by it."""

CONTAMINATED = "contaminated"
"""The reason of a sample that shows a picture of an evaluation."""


@dataclass(frozen=True, kw_only=True)
class DuplicateRules:
    """When two samples are alike.

    Attributes:
        by: of ``CRITERIA``. ``uid``: the same uid. ``image``: the same bytes (sha256). ``near``:
            perceptual hashes within the distance. ``pair``: the same normalised caption, and the
            same bytes or the same perceptual hash. However they are written here, a sample's
            reason is the first that holds in the order of ``CRITERIA``. Conversations are not
            compared by ``image`` and ``near``, as one picture is asked about many times; ``pair``
            takes the normalised text of all their turns and all their pictures.
        distance: bits of 64 that perceptual hashes may differ in.
        max_blank: perceptual hashes of pictures with a larger ``blank_share`` are not compared:
            all empty pictures have one hash. Without that column all are.
    """

    by: tuple[str, ...] = ("uid", "image", "pair", "near")
    distance: int = 4
    max_blank: float = 0.95

    def __post_init__(self) -> None:
        """Look at the rules.

        Raises:
            ConfigError: one that is unknown, or a number that is out of bounds.
        """
        if unknown := [name for name in self.by if name not in CRITERIA]:
            raise ConfigError(
                f"duplicates by {unknown[0]!r} are not known; expected some of "
                f"{', '.join(CRITERIA)}"
            )
        check_distance(self.distance)
        if not 0 <= self.max_blank <= 1:
            raise ConfigError(f"max_blank is {self.max_blank}; it is a share, from 0 to 1")


@dataclass(frozen=True)
class Removed:
    """Rows that are dropped before any are compared.

    Attributes:
        rows: int64 (r,), rising; a row's number over all selections, as ``Tables`` counts.
        details: what to say of each.
    """

    rows: np.ndarray[Any, np.dtype[np.int64]]
    details: Sequence[str]


@dataclass(frozen=True)
class SourceCounts:
    """What became of one source.

    Attributes:
        selected: rows of its selection.
        kept: rows that stay.
        dropped: how many do not, by reason.
        for_source: how many of them gave way to a sample of which source.
    """

    selected: int
    kept: int
    dropped: dict[str, int] = field(default_factory=dict)
    for_source: dict[str, int] = field(default_factory=dict)


def deduplicate(
    selections: Sequence[Selected],
    kept: Path,
    dropped: Path,
    rules: DuplicateRules,
    contaminated: Removed | None = None,
) -> dict[str, SourceCounts]:
    """Drop samples that are like one that stays.

    In order of priority (the source's place in the list, then the row's in its selection) a sample
    stays when it is like no sample that stays. So every dropped one is like a kept one, which its
    ``detail`` names; what was kept is kept again by the same rules; and two samples that are only
    linked by a third, which is dropped, may both stay. A null is like nothing.

    ``kept/NAME.parquet`` has the columns of the selection and ``sources``: the names, in order of
    priority, of the sources that held the sample or one that gave way to it. Its rows are in the
    order of the selection. ``dropped/deduplicate-NAME.parquet`` has ``shard``, ``key``, ``uid``,
    ``reason`` and ``detail``. All files appear at the end, each whole; the same input gives the
    same bytes. Needs some 60 bytes a row at most, and the names of the samples that others gave
    way to.

    Args:
        selections: of higher priority first, at most 64.
        kept: folder of the tables of samples that stay.
        dropped: folder of the tables of samples that do not.
        rules: when samples are alike.
        contaminated: rows to drop beforehand; nothing gives way to them.

    Returns:
        Counts by the name of the source.

    Raises:
        ShardError: a selection is missing or damaged, or lacks a column that the rules need.
        ConfigError: too many sources.
    """
    tables = Tables.open(selections)
    out = np.zeros(tables.rows, np.bool_)
    if contaminated is not None:
        out[contaminated.rows] = True
    groups, near = _criteria(tables, rules, out)
    verdict = first_independent(list(groups.values()), near, tables.rows)
    reasons = [CRITERIA[name] for name in (*groups, "near")]
    marks = _marks(verdict, reasons, out, contaminated)
    facts = {"rules": {**asdict(rules), "by": [name for name in CRITERIA if name in rules.by]}}
    write_outcome(tables, marks, kept, dropped, facts)
    return _count(tables, marks)


def _criteria(
    tables: Tables, rules: DuplicateRules, out: np.ndarray[Any, np.dtype[np.bool_]]
) -> tuple[Mapping[str, list[Ids]], Nearness | None]:
    """Give the groups of equal rows by criterion, and what is compared bit by bit."""
    found: dict[str, list[Ids]] = {}
    if "uid" in rules.by:
        high, low, there = tables.uids()
        found["uid"] = [equal_groups([high, low], there & ~out)]
        del high, low, there
    pair, near = "pair" in rules.by, "near" in rules.by
    hashes = _perceptual(tables, rules, out) if pair or near else None
    talks = tables.conversations()
    if "image" in rules.by:
        tables.demand("sha256", "duplicates by image need it, of the image scorer", of_pairs=True)
    if near:
        tables.demand("phash", "duplicates by near need it, of the image scorer", of_pairs=True)
    if "image" in rules.by or pair:
        high, low, there = tables.digests()
        there &= ~(out | talks)
        if "image" in rules.by:
            found["image"] = [equal_groups([high, low], there)]
        if pair:
            tables.demand("caption_hash", "duplicates by pair need it, of the text scorer")
            _demand_image(tables)
            captions, told = tables.numbers("caption_hash")
            found["pair"] = [equal_groups([high, low, captions], there & told)]
            if hashes is not None:
                found["pair"].append(equal_groups([hashes[0], captions], hashes[1] & told))
            if talks.any():
                demand_pictures(tables)
                for words, seen in (same_pictures(tables), same_looks(tables, rules.max_blank)):
                    found["pair"].append(equal_groups([words, captions], seen & told & ~out))
        del high, low, there
    if not near or hashes is None:
        return found, None
    return found, Nearness(*hashes, rules.distance, equal_groups([hashes[0]], hashes[1]))


def _perceptual(
    tables: Tables, rules: DuplicateRules, out: np.ndarray[Any, np.dtype[np.bool_]]
) -> Column:
    hashes, there = tables.numbers("phash")
    return hashes, there & ~(out | tables.conversations()) & ~tables.above(
        "blank_share", rules.max_blank
    )


def _demand_image(tables: Tables) -> None:
    for selected, names in zip(tables.selections, tables.columns, strict=True):
        if not ({"sha256", "phash"} & set(names) or selected.conversations):
            tables.demand(
                "sha256", "duplicates by pair need it or phash, of the image scorer", True
            )


def _marks(
    verdict: Verdict,
    reasons: Sequence[str],
    out: np.ndarray[Any, np.dtype[np.bool_]],
    contaminated: Removed | None,
) -> Marks:
    """Join what was dropped as a duplicate and what was dropped before."""
    reason, keeper = verdict.criterion, verdict.keeper
    if contaminated is not None:
        reason[out] = len(reasons)
        keeper[out] = -1
        verdict.kept[out] = False
    details = contaminated.details if contaminated else ()
    return Marks(verdict.kept, keeper, reason, (*reasons, CONTAMINATED), details)


def _count(tables: Tables, marks: Marks) -> dict[str, SourceCounts]:
    counts = {}
    starts = np.array(tables.start)
    names = [selected.name for selected in tables.selections]
    for number, name in enumerate(names):
        rows = slice(tables.start[number], tables.start[number + 1])
        gone = ~marks.kept[rows]
        by_reason: dict[str, int] = {}
        numbers = np.bincount(marks.reason[rows][gone], minlength=len(marks.reasons))
        for reason, times in zip(marks.reasons, numbers.tolist(), strict=True):
            if times:
                by_reason[reason] = by_reason.get(reason, 0) + times
        keeper = marks.keeper[rows][gone]
        owner = np.searchsorted(starts, keeper[keeper >= 0], side="right") - 1
        times_by = np.bincount(owner, minlength=len(names)).tolist()
        counts[name] = SourceCounts(
            selected=len(gone),
            kept=int(len(gone) - gone.sum()),
            dropped=dict(sorted(by_reason.items())),
            for_source={other: n for other, n in zip(names, times_by, strict=True) if n},
        )
    return counts
