"""Decides sample by sample what stays, says why the rest goes, and counts both."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from openqwen2vl.curation.scorer import NO_PAIR
from openqwen2vl.curation.selection.expression import Expression
from openqwen2vl.curation.selection.predicate import Predicate
from openqwen2vl.curation.selection.ranks import Ranks
from openqwen2vl.curation.selection.spines import RawShards
from openqwen2vl.curation.selection.tables import Column, SourceTables
from openqwen2vl.curation.selection.uids import UidList

REASONS = ("selection", "unscored", "unreadable")
"""Why a sample goes: a condition is false; none is false but one is unknown, as a score is null;
the same, and a scorer says that it could not read the sample, or none is false and the picture
cannot be decoded. A conversation that a scorer of pairs was not shown is unscored."""

# Whole numbers that are shown as words: a hundred million rows need not hold the words.
_REASON = pl.Enum(REASONS)
_ERROR, _TERM = "error of ", "term "  # no expression can spell these


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of a source.

    Attributes:
        tables: the source.
        expression: what stays.
        predicate: made of the expression.
        columns: that the expression reads.
        lists: the lists of uids that the expression names, and others.
    """

    tables: SourceTables
    expression: Expression
    predicate: Predicate
    columns: Mapping[str, Column]
    lists: Mapping[str, UidList]

    @property
    def errors(self) -> dict[str, Column]:
        """Give the columns in which scorers say why they have no score.

        Of those asked, and of those who saw the pictures: one that cannot be decoded is of no use.
        """
        places = self.tables.spine.places
        asked = {column.place for column in self.columns.values()} & set(places)
        asked |= set(self._seers)
        return {
            _ERROR + place: Column(place, f"{place}_error", pl.String())
            for place in sorted(asked)
            if f"{place}_error" in places[place]
        }

    @property
    def undecoded(self) -> list[str]:
        """Name those of ``errors`` that tell of pictures which cannot be decoded."""
        return [_ERROR + place for place in self._seers]

    @property
    def _seers(self) -> list[str]:
        """Give the scorers that looked at the picture of every sample."""
        spine = self.tables.spine
        whole = spine.whole if isinstance(spine, RawShards) else []
        return [place for place in whole if {"width", f"{place}_error"} <= set(spine.places[place])]


@dataclass
class Verdicts:
    """Verdicts over the pieces of a source, in their order.

    Attributes:
        question: what is asked.
        ranks: the answers to its ``top`` calls.
        kept: how many stay so far.
        seen: how many were judged so far.
        dropped: how many went, by reason.
        lost: how many each condition loses, by its text.
        nan: values that were no number, by column.
    """

    question: Question
    ranks: Ranks
    kept: int = 0
    seen: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    nan: Counter[str] = field(default_factory=Counter)

    def judge(self, piece: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Judge the next piece.

        Args:
            piece: with the columns and errors of the question.

        Returns:
            The samples that stay, and the others with ``reason`` and ``detail``.
        """
        terms = self.question.predicate.terms
        holds = [term.holds.alias(f"{_TERM}{n}") for n, term in enumerate(terms)]
        judged = piece.with_columns(self._answers(piece)).with_columns(holds)
        names = [f"{_TERM}{n}" for n in range(len(terms))]
        # Null, as of a condition that nothing is known of, where the picture cannot be decoded.
        seen = [
            pl.when(pl.col(error).is_null()).then(True).alias(error)
            for error in self.question.undecoded
        ]
        stays = pl.all_horizontal(*names, *seen) if len(names) + len(seen) > 1 else pl.col(names[0])
        kept = judged.filter(stays)
        dropped = judged.filter(~stays.fill_null(False)).with_columns(stays=stays)
        dropped = dropped.with_columns(*self._reasons(names))
        self._count(piece, kept, dropped, names)
        return kept, dropped

    def figures(self) -> dict[str, Any]:
        """Give what ``select.select`` returns of a source."""
        return {
            "seen": self.seen,
            "kept": self.kept,
            "dropped": {reason: self.dropped[reason] for reason in REASONS},
            "terms": {term.text: self.lost[term.text] for term in self.question.predicate.terms},
            "rejects": dict(sorted(self.question.tables.spine.rejects.items())),
            "nan": dict(sorted((+self.nan).items())),
            "unparsed": dict(sorted(self.question.tables.unparsed.items())),
        }

    def _answers(self, piece: pl.DataFrame) -> list[pl.Series]:
        """Answer the calls of ``uids`` and ``top``; the predicate reads them as columns."""
        found = [
            pl.Series(f"uids({name!r})", self.question.lists[name].contains(piece["uid"]))
            for name in self.question.expression.lists
        ]
        for text, ranks in self.ranks.items():
            part = pl.Series(text, ranks[self.seen : self.seen + len(piece)])
            found.append(pl.select(pl.when(part >= 0).then(part == 1).alias(text))[text])
        return found

    def _reasons(self, names: list[str]) -> list[pl.Expr]:
        errors = [pl.col(name) for name in self.question.errors]
        error = pl.coalesce(errors or [pl.lit(None, pl.String)])
        # A real fault first; where there is none, a scorer may not have been shown the sample.
        real: list[pl.Expr] = [pl.when(told != NO_PAIR).then(told) for told in errors]
        fault = pl.coalesce(real or [pl.lit(None, pl.String)])
        false, unknown = (self._first(names, known) for known in (True, False))
        known = pl.col("stays").is_not_null()
        selection, unscored, unreadable = (pl.lit(word, _REASON) for word in REASONS)
        why = pl.when(known).then(selection)
        if not errors:
            detail = pl.when(known).then(false).otherwise(unknown)
            return [why.otherwise(unscored).alias("reason"), detail.alias("detail")]
        detail = pl.when(known).then(false.cast(pl.String))
        return [
            why.when(fault.is_not_null()).then(unreadable).otherwise(unscored).alias("reason"),
            detail.otherwise(pl.coalesce(fault, error, unknown.cast(pl.String))).alias("detail"),
        ]

    def _first(self, names: list[str], known: bool) -> pl.Expr:
        """Give the text of the first condition that is false, or that is unknown."""
        said = [term.text for term in self.question.predicate.terms]
        texts = [pl.lit(text, pl.Enum(list(dict.fromkeys(said)))) for text in said]
        answer = texts[-1]
        for name, text in reversed([*zip(names[:-1], texts[:-1], strict=True)]):
            held = pl.col(name)
            hit = ~held.fill_null(True) if known else held.is_null()
            answer = pl.when(hit).then(text).otherwise(answer)
        return answer

    def _count(
        self, piece: pl.DataFrame, kept: pl.DataFrame, dropped: pl.DataFrame, names: list[str]
    ) -> None:
        self.seen += len(piece)
        self.kept += len(kept)
        self.dropped.update(dict(dropped["reason"].value_counts().iter_rows()))
        for name, term in zip(names, self.question.predicate.terms, strict=True):
            self.lost[term.text] += len(dropped) - int(dropped[name].sum())
        for name in self.question.columns:
            if piece.schema[name].is_float():
                self.nan[name] += int(piece[name].is_nan().sum())
