"""How much do the ranks of a 2B run send each other, and what share of a step is left to compute?

    python bench/scaling.py

Formulas (`openqwen2vl.training.communication`), no measurement: the bytes are tested against
counted ones, the times are predictions from the assumptions below. docs/scaling.md holds the
table; tests/test_communication.py compares it with this file's.
"""

import argparse
from pathlib import Path

import figures

from openqwen2vl.training.communication import (
    Cluster,
    Layout,
    Traffic,
    Unit,
    efficiency,
    seconds,
    step_traffic,
)

# Qwen2.5-1.5B and the projector as FSDP wraps them; the frozen tower is on every rank.
UNITS = [Unit(237_507_072, root=True), *[Unit(46_797_824)] * 28]
# Assumed: nodes of eight H100, one 400 Gbit/s card for each.
CLUSTER = Cluster(per_node=8, node_bandwidth=300e9, network_bandwidth=50e9, hop_seconds=4e-6)
# The paper's mean pack of 4096 tokens at 144 visual tokens an image, at 40 % of 989.4 TFLOP/s.
PACK_SECONDS = 48.65e12 / (0.40 * 989.4e12)
GLOBAL_BATCH = 256
MICRO_BATCH = 4
RANKS = (8, 16, 32, 64, 128, 256, 512, 1024)
LAYOUTS = {
    "flat": {"sharding": "FULL_SHARD"},
    "copies": {"sharding": "FULL_SHARD", "replicate": True},
    "kept": {"sharding": "SHARD_GRAD_OP", "replicate": True},
}
HEADER = (
    *["GPUs", "packs each"],
    *["flat: GB", "efficiency"],
    *["one copy a node: GB within", "GB between", "efficiency"],
    *["... weights kept: GB within", "GB between", "efficiency"],
)


def split(traffic: list[Traffic]) -> tuple[float, float]:
    """Give the gigabytes that a rank sends within its node and to other nodes."""
    near = sum(one.sent for one in traffic if one.span <= CLUSTER.per_node)
    return near / 1e9, (sum(one.sent for one in traffic) - near) / 1e9


def predict(ranks: int) -> dict[str, float]:
    """Give the figures of a cluster size: bytes that a rank sends in a step, and efficiencies."""
    # Past 256 GPUs the paper's global batch has less than one pack for each: theirs grows.
    packs = max(1, GLOBAL_BATCH // ranks)
    turns = -(-packs // MICRO_BATCH)
    found: dict[str, float] = {"ranks": ranks, "packs": packs}
    for name, settings in LAYOUTS.items():
        copies = ranks // CLUSTER.per_node if settings.get("replicate") else 1
        layout = Layout(sharding=settings["sharding"], ranks=ranks, replicate=copies)
        traffic = step_traffic(UNITS, layout, turns)
        near, far = split(traffic)
        found |= {f"{name}_near": near, f"{name}_far": far}
        found[f"{name}_efficiency"] = efficiency(packs * PACK_SECONDS, seconds(traffic, CLUSTER))
    return found


def row(found: dict[str, float]) -> list[str]:
    """Give a table's row."""
    cells = [f"{found['ranks']:.0f}", f"{found['packs']:.0f}"]
    cells += [f"{found['flat_near'] + found['flat_far']:.1f}", f"{found['flat_efficiency']:.0%}"]
    for name in ("copies", "kept"):
        cells += [f"{found[f'{name}_near']:.1f}", f"{found[f'{name}_far']:.1f}"]
        cells += [f"{found[f'{name}_efficiency']:.0%}"]
    return cells


def main() -> None:
    """Print the table and the two efficiencies at 1,024 GPUs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="as without: nothing is measured")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    found = [predict(ranks) for ranks in RANKS]
    figures.table(HEADER, [row(one) for one in found])
    last = found[-1]
    headline = (
        f"predicted efficiency at {RANKS[-1]} GPUs: {last['copies_efficiency']:.0%} with one copy "
        f"a node, {last['flat_efficiency']:.0%} flat: "
        f"{last['copies_efficiency'] / last['flat_efficiency']:.2f}x"
    )
    figures.finish({"predicted": found}, headline, options.json)


if __name__ == "__main__":
    main()
