"""A plan's figures as a table."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def show(title: str, figures: Mapping[str, Any]) -> None:
    """Print a plan's figures, and the memory of other micro-batches."""
    table = Table(title=title, title_justify="left", box=None, show_header=False)
    for name, text in _rows(figures):
        table.add_row(name, text)
    choices = Table("micro-batch", "checkpointing", "activations", "peak", "fits", box=None)
    for row in figures["micro_batches"]:
        sizes = said(row["activations"]), said(row["peak"])
        words = f"{row['micro_batch']}", row["checkpointing"], *sizes
        choices.add_row(*words, "yes" if row["fits"] else "no")
    console = Console()
    console.print(table)
    console.print(choices)


def said(size: float) -> str:
    """Say bytes as GB or TB, of 10^9 and 10^12."""
    return f"{size / 1e12:,.2f} TB" if size >= 1e12 else f"{size / 1e9:,.2f} GB"


def _rows(figures: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    flops, memory, disk = figures["flops"], figures["memory"], figures["disk"]
    total = flops["total"]
    yield "tokens", f"{figures['tokens']:,} ({figures['targets']:,} targets)"
    yield "images", f"{figures['images']:,} in {figures['documents']:,} documents"
    yield (
        "packs",
        f"{figures['packs']:,} in {figures['steps']:,} steps of {figures['global_batch']} = "
        f"{figures['devices']} devices x {figures['micro_batch']} x {figures['accumulation']}",
    )
    yield "FLOPs", f"{total:.4g}; {figures['flops_executed']:.4g} executed"
    for name, value in flops.items():
        if name != "total":
            yield f"  {name.replace('_', ' ')}", f"{value:.3g} ({value / total:.1%})"
    has = f"{said(memory['available'])} on {figures['hardware']}"
    yield "memory a device", f"{said(memory['peak'])} of {has}"
    for name, size in memory.items():
        if name not in ("peak", "available"):
            yield f"  {name.replace('_', ' ')}", said(size)
    host = figures["host"]
    if host["memory"]:
        moved = f"{said(host['moved_a_step'])} a step to and from each device"
        yield "memory of a host", f"{said(host['memory'])}; {moved}, which no hours count"
    each = said(disk["checkpoint"])
    yield "disk", f"raw {said(disk['raw'])}, packs {said(disk['packed'])}"
    yield "  checkpoints", f"{said(disk['checkpoints'])}, each {each}"
    low, high = figures["gpu_hours_range"]
    least, most = figures["wall_hours_range"]
    by = "timed steps" if figures["mfu"] is None else f"{figures['mfu']:.1%} of the peak"
    hours = "GPU-hours" if figures["kind"] == "gpu" else "process-hours"
    yield hours, f"{figures['gpu_hours']:,.4g} ({low:,.4g} to {high:,.4g}), by {by}"
    yield "on the clock", f"{figures['wall_hours']:,.4g} hours ({least:,.4g} to {most:,.4g})"
