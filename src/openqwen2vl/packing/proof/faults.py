"""Faults: what is not as it should be, counted by kind, the first of each in words."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

LISTED = 20
"""Faults of one kind that are told with names; all are counted."""


@dataclass
class Faults:
    """Faults by kind: how many, and the first of each in words."""

    counts: Counter[str] = field(default_factory=Counter)
    told: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, sentence: str, count: int = 1) -> None:
        """Count a fault, or several that one sentence tells."""
        self.counts[kind] += count
        sentences = self.told.setdefault(kind, [])
        if len(sentences) < LISTED:
            sentences.append(sentence)

    def merge(self, other: "Faults") -> None:
        """Take over what another part found."""
        self.counts += other.counts
        for kind, sentences in other.told.items():
            mine = self.told.setdefault(kind, [])
            mine += sentences[: LISTED - len(mine)]

    def sentences(self) -> Iterator[str]:
        """Give the faults in words, one of each kind in turn, so that no kind hides another."""
        for place in range(LISTED):
            for sentences in self.told.values():
                if place < len(sentences):
                    yield sentences[place]
