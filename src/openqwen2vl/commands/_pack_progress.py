"""The bar of `pack`: how far each step is, how fast, how full the packs are; on stderr alone."""

import time
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from openqwen2vl.engine.local import Item, Mapper, Result
from openqwen2vl.packing.finished import WrittenShard
from openqwen2vl.packing.layout import Window
from openqwen2vl.packing.lengths import Lengths


def make_bar() -> Progress:
    """Make a bar that shows figures and the time that is left, and is gone at the end."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def with_progress(bar: Progress, engine: Mapper, context: int) -> Mapper:
    """Give a mapper that tells a bar what comes of it.

    Args:
        bar: of ``make_bar``.
        engine: what runs the functions.
        context: tokens in a pack.
    """

    def mapper(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        name = function.__name__.replace("_", " ")
        task = bar.add_task(name, total=len(items), figures="")
        figures = Figures(context)
        for done, result in enumerate(engine(function, items), 1):
            figures.add(result)
            bar.update(task, completed=done, figures=str(figures))
            yield result

    return mapper


class Figures:
    """What the results of a step add up to, as text: documents a second, and fill of packs.

    Args:
        context: tokens in a pack.
    """

    def __init__(self, context: int) -> None:
        self._context = context
        self._started = time.perf_counter()
        self._documents = self._tokens = self._packs = 0

    def add(self, result: object) -> None:
        """Count one result of a step; those without documents count for nothing."""
        if isinstance(result, (Lengths, Window)):
            self._documents += result.documents
        elif isinstance(result, list):
            for shard in result:
                if isinstance(shard, WrittenShard):
                    self._documents += shard.documents
                    self._tokens += shard.tokens
                    self._packs += shard.entry.packs

    def __str__(self) -> str:
        if not self._documents:
            return ""
        rate = self._documents / max(time.perf_counter() - self._started, 1e-9)
        fill = f", fill {self._tokens / (self._packs * self._context):.2%}" if self._packs else ""
        return f"{rate:,.0f} documents/s{fill}"
