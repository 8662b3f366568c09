"""What a dry run found, in figures and as a table."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from itertools import pairwise
from typing import Any

from rich.console import Console
from rich.table import Table

from openqwen2vl.packing.fingerprint import Difference
from openqwen2vl.training.dry_run import Record, Replayed, Window

_SHOWN = 8  # packs of a difference that are named, and documents of each


def replay_figures(
    data: Replayed,
    chosen: Sequence[Window],
    records: Sequence[Record],
    found: Difference | None,
    decoded: bool,
) -> dict[str, Any]:
    """Give a dry run's figures as plain values; steps count from 1, as in metrics.csv.

    Args:
        data: of the run.
        chosen: the steps that were replayed.
        records: of the run's own topology and the other.
        found: where they first differ.
        decoded: whether pictures were; else none was found broken, and the pace is the reader's.
    """
    batches = [batch for _, batch in sorted(records[0].batches.items())]
    whole = sha256("".join(batch.digest() for batch in batches).encode()).hexdigest()
    windowed = [
        {"first": window.start + 1, "last": window.stop, "why": list(window.reasons)}
        for window in chosen
    ]
    return {
        "equal": found is None,
        "digest": whole if found is None else None,
        "decoded": decoded,
        "steps": sum(window.stop - window.start for window in chosen),
        "global_batch": data.global_batch,
        "windows": windowed,
        "topologies": [_told(record, data.mixture.names, decoded) for record in records],
        "batches": [
            {
                "step": batch.step + 1,
                "grid": batch.grids[0],
                "packs": len(batch.packs),
                "tokens": sum(pack.tokens for pack in batch.packs),
                "targets": sum(pack.targets for pack in batch.packs),
                "images": sum(pack.images for pack in batch.packs),
                "divisor": min(batch.divisors),
                "digest": batch.digest(),
            }
            for batch in batches
        ],
        "first_difference": None if found is None else _explained(data, found),
    }


def _told(record: Record, names: Sequence[str], decoded: bool) -> dict[str, Any]:
    """Say what a topology served, and how evenly."""
    packs, tokens, images = (list(column) for column in zip(*record.per_rank(), strict=True))
    batches = sorted(record.batches.items())
    served = [pack for _, batch in batches for pack in batch.packs]
    sources = Counter(names[pack.key.source] for pack in served)
    of_source = Counter[str]()
    by_grid = Counter[int]()
    passes: dict[str, dict[int, int]] = {name: {} for name in names}
    for step, batch in batches:
        for pack in batch.packs:
            name = names[pack.key.source]
            of_source[name] += pack.tokens
            by_grid[pack.key.grid] += pack.images
            passes[name].setdefault(pack.key.turn + 1, step + 1)
    return {
        **asdict(record.topology),
        "ranks": record.topology.ranks,
        "accumulation": record.turns,
        "packs": packs,
        "tokens": tokens,
        "images": images,
        "images_spread": record.images_spread(),
        "steps_per_second": record.steps_per_second if decoded else None,
        "reader_steps_per_second": None if decoded else record.steps_per_second,
        "images_by_grid": dict(sorted(by_grid.items())),
        "switches": [
            step + 1
            for (before, one), (step, two) in pairwise(batches)
            if one.grids != two.grids and before + 1 == step
        ],
        "passes": passes,
        "sources": {name: {"packs": sources[name], "tokens": of_source[name]} for name in names},
        "corrupt": sum(len(batch.corrupt) for _, batch in batches) if decoded else None,
    }


def _explained(data: Replayed, found: Difference) -> dict[str, Any]:
    """Name the packs of a difference and the documents in them."""
    packs = []
    for key, what in found.packs[:_SHOWN]:
        documents = data.mixture.folders[key.grid][key.source].read(key.pack).documents
        packs.append(
            {
                **key._asdict(),
                "source": data.mixture.names[key.source],
                "what": what,
                "uids": [str(one["uid"]) for one in documents[:_SHOWN]],
                "documents": len(documents),
            }
        )
    return {
        "step": found.step + 1,
        "facts": list(found.facts),
        "packs": packs,
        "packs_concerned": len(found.packs),
    }


def show(title: str, figures: Mapping[str, Any]) -> None:
    """Print a dry run's figures, ``refused`` among them, and its verdict."""
    table = Table("", "this run", "replay.against", title=title, title_justify="left", box=None)
    columns = [dict(_rows(one)) for one in figures["topologies"]]
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    console = Console()
    console.print(table)
    for line in _verdict(figures):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _rows(one: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield (
        "ranks x micro-batch x turns",
        f"{one['ranks']} x {one['micro_batch']} x {one['accumulation']}",
    )
    yield "loader processes a rank", f"{one['num_workers']}"
    for name in ("packs", "tokens", "images"):
        yield f"{name} a rank", _span(one[name])
    yield "images of a turn's fullest rank", f"{one['images_spread']:.3f} x a fair share"
    if one["steps_per_second"] is None:
        yield "reader without decoding", f"{one['reader_steps_per_second']:.3g} steps/s"
    else:
        yield "loader", f"{one['steps_per_second']:.3g} steps/s"
    grids = (f"{count:,} at grid {grid}" for grid, count in one["images_by_grid"].items())
    yield "images", ", ".join(grids)
    yield "switches of the grid", ", ".join(f"step {step}" for step in one["switches"]) or "none"
    for name, held in one["sources"].items():
        yield f"packs of {name}", f"{held['packs']:,}{_passes(one['passes'][name])}"
    broken = (
        "not looked at (replay.decode=true)" if one["corrupt"] is None else f"{one['corrupt']:,}"
    )
    yield "documents with broken pictures", broken


def _passes(turns: Mapping[int, int]) -> str:
    """Say which passes of a source were seen, when it was not only one."""
    if len(turns) < 2:
        return ""
    first, *others = sorted(turns)
    seen = turns[others[0]]
    return f", of passes {first} to {others[-1]}; {others[0]} is first seen at step {seen}"


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _verdict(figures: Mapping[str, Any]) -> Iterator[str]:
    for window in figures["windows"]:
        why = "; ".join(window["why"])
        yield f"looked at steps {window['first']} to {window['last']}: {why}"
    if figures["refused"] is not None:
        yield f"the launch would be refused: {figures['refused']}"
    found = figures["first_difference"]
    if found is None:
        yield f"equal over {figures['steps']} steps: {figures['digest']}"
        return
    yield f"NOT EQUAL: step {found['step']} is the first that differs"
    yield from (f"  {fact}" for fact in found["facts"])
    for pack in found["packs"]:
        name = f"pack {pack['pack']} of {pack['source']} (grid {pack['grid']}, pass {pack['turn'] + 1})"
        uids = ", ".join(pack["uids"]) + (", ..." if pack["documents"] > len(pack["uids"]) else "")
        yield f"  {name} {pack['what']}: {uids}"
    if found["packs_concerned"] > len(found["packs"]):
        yield f"  and {found['packs_concerned'] - len(found['packs'])} more packs"
