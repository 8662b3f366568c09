"""Prove that every document of a corpus is in exactly one pack or in the ledger of rejects."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig, ListConfig
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from openqwen2vl.config import Schema
from openqwen2vl.engine.local import Item, Mapper, Result, map_shards
from openqwen2vl.formats.errors import PackError
from openqwen2vl.formats.manifest import Manifest
from openqwen2vl.formats.tokens import load_tokenizer
from openqwen2vl.packing.proof.faults import LISTED
from openqwen2vl.packing.proof.verify import Verification, VerifyRequest, verify

_FEW_DOCUMENTS, _FEW_BYTES = 10_000, 2e8

SCHEMA = Schema(
    keys=frozenset(["input", "packs", "image_root", "deep", "tokenizer", "workers", "json"]),
    types={"deep": bool, "tokenizer": str | None, "workers": int | None, "json": bool},
)


def run(config: DictConfig) -> dict[str, object]:
    """Verify folders of packs and print what they hold.

    Returns:
        Documents by what became of them, and the speed.

    Raises:
        PackError: with the number of faults and the first of them; the figures are printed first.
    """
    started = time.perf_counter()
    given = config.packs if isinstance(config.packs, ListConfig) else [config.packs]
    request = VerifyRequest(
        input=Path(config.input).expanduser(),
        packs=tuple(Path(path).expanduser() for path in given),
        image_root=Path(config.image_root).expanduser() if config.image_root else None,
        deep=config.deep,
        tokenizer=load_tokenizer(config.tokenizer) if config.tokenizer else None,
    )
    workers = config.workers or _workers(request.packs)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        found = verify(request, _with_progress(bar, workers))
    figures = _figures(found, time.perf_counter() - started)
    table = Table(box=None, show_header=False)
    for name, value in figures.items():
        if name == "text_compared":
            table.add_row("text", _text(found))
        elif name == "validation_again":
            if found.validation_again:
                table.add_row("validation", _again(found))
        else:
            table.add_row(name.replace("_", " "), _short(value))
    Console().print(table)
    if found.faults.counts:
        if config.json:
            sys.stdout.write(json.dumps(figures) + "\n")
        raise PackError(_message(request, found))
    return figures


def _figures(found: Verification, seconds: float) -> dict[str, object]:
    return {
        "documents": found.documents,
        "packed": found.packed,
        "validation_again": found.validation_again,
        "rejected": dict(sorted(found.rejected.items())),
        "outside_part": found.outside,
        "packs": found.packs,
        "images": found.images,
        "image_bytes_compared": found.bytes,
        "text_compared": found.texts is not None,
        "faults": dict(found.faults.counts),
        "seconds": seconds,
        "samples_per_second": found.documents / seconds,
        "megabytes_per_second": found.bytes / seconds / 1e6,
    }


def _message(request: VerifyRequest, found: Verification) -> str:
    total = found.faults.counts.total()
    kinds = ", ".join(f"{count} {kind}" for kind, count in found.faults.counts.items())
    folders = ", ".join(map(str, request.packs))
    lines = list(found.faults.sentences())[:LISTED]
    more = [f"... and {total - len(lines)} more"] if total > len(lines) else []
    title = f"{folders} is not {request.input} packed: {_faults(total)} ({kinds})"
    return "\n  ".join([title, *lines, *more])


def _faults(total: int) -> str:
    return "1 fault" if total == 1 else f"{total:,} faults"


def _text(found: Verification) -> str:
    if found.texts is None:
        return "not compared (give tokenizer=)"
    return f"{found.texts:,} documents encoded again and compared"


def _again(found: Verification) -> str:
    count = found.validation_again
    documents = "document is" if count == 1 else "documents are"
    return f"{count:,} {documents} packed again: the folders of all parts hold the same ones"


def _short(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{number:,} {name}" for name, number in value.items()) or "none"
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


def _workers(packs: Sequence[Path]) -> int:
    """Give a process a core, or this one alone where starting others takes longer than the work."""
    manifests = [Manifest.load(path) for path in packs]
    documents = sum(
        one.counts.documents + one.outside_part + sum(one.rejects.values()) for one in manifests
    )
    size = sum(shard.bytes for one in manifests for shard in one.shards)
    small = documents <= _FEW_DOCUMENTS and size <= _FEW_BYTES
    return 1 if small else len(os.sched_getaffinity(0))


def _with_progress(bar: Progress, workers: int) -> Mapper:
    def mapper(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        name = function.__name__.replace("_", " ")
        task = bar.add_task(name, total=len(items))
        if items and workers > 1 and not bar.console.is_terminal:
            # No bar is drawn where nobody looks; a log wants to know how far it is.
            bar.console.print(f"{name}: {len(items):,} to do", highlight=False)
        return map_shards(function, items, workers, lambda n, _: bar.update(task, completed=n))

    return mapper
