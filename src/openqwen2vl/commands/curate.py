"""Score noisy pairs, select, drop duplicates, and write what stays into balanced shards."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from openqwen2vl.commands._curate_config import SCHEMA, read_request
from openqwen2vl.commands._curate_page import build_page
from openqwen2vl.commands._curate_workers import gpus_a_call, shared_gpus
from openqwen2vl.curation.funnel import LOSSES, funnel
from openqwen2vl.curation.steps import STEPS, curate
from openqwen2vl.engine.chosen import Engine, open_engine
from openqwen2vl.engine.local import Item, Mapper, Result
from openqwen2vl.engine.placement import Gpus

__all__ = ["SCHEMA", "run"]

PAGE = "report.html"


def run(config: DictConfig) -> dict[str, object]:
    """Run the steps that were asked for and print what is left of each source.

    Returns:
        The funnel of each source, what each step counted, the page and the seconds.
    """
    started = time.perf_counter()
    curation = read_request(config)
    steps = STEPS if config.only is None else (config.only,)
    share = gpus_a_call(config.num_gpus, curation.scorers) if "score" in steps else 0.0
    with (
        Progress(console=Console(stderr=True), transient=True) as bar,
        open_engine(config.engine, config.workers) as engine,
    ):
        gpus = shared_gpus(curation.scorers)
        found = curate(curation, _with_progress(bar, engine, share, gpus), steps)
    funnels = {name: told for name in curation.chosen.sources if (told := funnel(found, name))}
    _show(funnels)
    figures: dict[str, object] = {"funnel": funnels, **found}
    if config.report and funnels:
        page = curation.out / PAGE
        build_page(curation, found).save(page)
        figures["page"] = str(page)
        Console().print(f"pictures and histograms: {page}", soft_wrap=True, highlight=False)
    return {**figures, "seconds": time.perf_counter() - started}


def _with_progress(bar: Progress, engine: Engine, num_gpus: float, gpus: Gpus) -> Mapper:
    """Give a mapper that tells a bar how far each step is; a GPU has who asks for one."""

    def mapper(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        name = function.__name__.replace("_", " ")
        task = bar.add_task(name, total=len(items))
        on_gpu = any(getattr(item, "on_gpu", False) for item in items)
        yield from engine(
            function,
            items,
            lambda done, _: bar.update(task, completed=done),
            num_gpus=num_gpus if on_gpu else 0.0,
            gpus=gpus if on_gpu else (),
        )

    return mapper


def _show(funnels: Mapping[str, Mapping[str, Mapping[str, int]]]) -> None:
    table = Table(box=None)
    titles = ("unreadable", "not selected", "duplicates", "not blurred")
    for title in ("source", "delivered", *titles, "kept"):
        table.add_column(title, justify="left" if title == "source" else "right")
    for name, told in funnels.items():
        steps = ("delivered", *LOSSES, "kept")
        table.add_row(name, *(f"{sum(told.get(step, {}).values()):,}" for step in steps))
    Console().print(table)
