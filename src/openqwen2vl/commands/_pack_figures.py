"""What came of packing, so that every document read is found in one of the figures."""

from collections.abc import Mapping
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from openqwen2vl.formats.manifest import Manifest

_NAMES = (
    "fill",
    "lower_bound",
    "image_lower_bound",
    "packers",
    "rejects",
    "outside_part",
    "shortened",
)
_WORDS = {"documents": "documents packed"}


def pack_figures(train: Manifest, validation: Manifest | None) -> dict[str, object]:
    """Give the training packs' counts, fill, bound and rejects, then what went elsewhere.

    Args:
        train: of the training packs.
        validation: of the packs beside them; ``None`` when there are none.

    Returns:
        ``documents_read`` is the sum of ``documents``, ``rejects``, ``outside_part`` and, in
        ``validation``, ``documents`` and ``rejects``.
    """
    held_out = {
        "documents": validation.counts.documents if validation else 0,
        "rejects": sum(validation.rejects.values()) if validation else 0,
    }
    kept = train.counts.documents + sum(train.rejects.values()) + train.outside_part
    return {
        **asdict(train.counts),
        **{name: getattr(train, name) for name in _NAMES},
        "validation": held_out,
        "documents_read": kept + held_out["documents"] + held_out["rejects"],
    }


def show_figures(title: str, figures: Mapping[str, object]) -> None:
    """Print the figures, a row each."""
    table = Table(title=title, title_justify="left", show_header=False, box=None)
    for name, value in figures.items():
        if value is not None:
            table.add_row(_WORDS.get(name, name.replace("_", " ")), _short(value))
    Console().print(table)


def _short(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{number:,} {name}" for name, number in value.items()) or "none"
    if isinstance(value, float):
        return f"{value:.2%}"
    return f"{value:,}" if isinstance(value, int) else str(value)
