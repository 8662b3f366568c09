"""The funnel: what each step of a curation lost of a source, and why."""

from collections.abc import Mapping
from typing import Any

LOSSES = ("unreadable", "selection", "deduplicate", "reshard")
"""The parts of a funnel that lose samples, in their order."""


def funnel(found: Mapping[str, Any], name: str) -> dict[str, dict[str, int]]:
    """Give what a source lost at each step, by reason.

    Args:
        found: as ``steps.curate`` returns it.
        name: of the source.

    Returns:
        ``delivered``: all samples; then of ``LOSSES`` those that were run, with what each lost,
        and ``kept``: those that are left after the last step that was run. Empty before selection.
    """
    selected = found.get("select", {}).get("sources", {}).get(name)
    if selected is None:
        return {}
    rejects = dict(selected["rejects"])
    told = {
        "delivered": {"samples": selected["seen"] + sum(rejects.values())},
        "unreadable": rejects,
        "selection": {reason: n for reason, n in selected["dropped"].items() if n},
        "kept": {"samples": selected["kept"]},
    }
    thinned = found.get("deduplicate", {}).get("sources", {}).get(name)
    if thinned is not None:
        told["deduplicate"] = {reason: n for reason, n in thinned["dropped"].items() if n}
        told["kept"] = {"samples": thinned["kept"]}
    resharded = found.get("reshard", {}).get(name, {})
    if "samples" in resharded:
        told["reshard"] = dict(resharded.get("dropped", {}))
        told["kept"] = {"samples": resharded["samples"]}
    return told
