"""Histograms as inline SVG: stacked counts over bins of equal width, thresholds drawn."""

from collections.abc import Sequence
from dataclasses import dataclass

from openqwen2vl.pages.axes import Frame, Mark, axes, colour, figure, legend, mark_lines


@dataclass(frozen=True)
class Layer:
    """A named part of each bin; the first lies at the bottom."""

    name: str
    counts: Sequence[int]


def histogram(
    low: float, high: float, layers: Sequence[Layer], label: str, marks: Sequence[Mark] = ()
) -> str:
    """Draw how many values fall where.

    Args:
        low: where the first bin begins.
        high: where the last ends.
        layers: equally many counts each, at least one.
        label: what the values are.
        marks: thresholds.

    Returns:
        HTML, in the page's colours.

    Raises:
        ValueError: no bins, or layers of unlike numbers of bins.
    """
    bins = len(layers[0].counts) if layers else 0
    if not bins or any(len(layer.counts) != bins for layer in layers):
        raise ValueError(f"layers have {[len(layer.counts) for layer in layers]} bins")
    most = max(sum(layer.counts[number] for layer in layers) for number in range(bins))
    names = [layer.name for layer in layers]

    def content(frame: Frame) -> str:
        parts = []
        for number in range(bins):
            left, right = (
                frame.across(low + (high - low) * edge / bins) for edge in (number, number + 1)
            )
            below = 0
            for place, layer in enumerate(layers):
                bottom, top = frame.down(below), frame.down(below + layer.counts[number])
                below += layer.counts[number]
                if bottom > top:
                    parts.append(
                        f'<rect x="{left:.1f}" y="{top:.1f}" width="{max(right - left - 1, 1):.1f}" '
                        f'height="{bottom - top:.1f}" fill="{colour(place)}"/>'
                    )
        drawn = "".join(parts) + mark_lines(marks, frame)
        return axes(frame, label, "samples") + drawn + legend(names, frame)

    title = f"samples by {label}: {', '.join(names)}"
    return figure((low, high), (0, max(most, 1)), title, content)
