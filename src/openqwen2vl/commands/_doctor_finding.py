"""What an examination finds: a level, the facts, and what to do."""

from dataclasses import dataclass
from enum import Enum


class Level(Enum):
    """From well to ill."""

    GREEN = "green"
    YELLOW = "yellow"
    RED = "red"


@dataclass(frozen=True)
class Finding:
    """One check.

    Attributes:
        name: of what was looked at.
        level: green: good; yellow: works, at a price; red: a run would fail.
        found: the facts, with numbers.
        todo: what mends it; empty when green.
    """

    name: str
    level: Level
    found: str
    todo: str = ""

    def plain(self) -> dict[str, str]:
        """Give plain values, as JSON has them."""
        return {**vars(self), "level": self.level.value}


def graded(name: str, found: str, red: str = "", yellow: str = "") -> Finding:
    """Make a finding: red or yellow when there is something to do about it, else green."""
    level = Level.RED if red else Level.YELLOW if yellow else Level.GREEN
    return Finding(name, level, found, red or yellow)
