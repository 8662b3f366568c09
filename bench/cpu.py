"""Did a change make training dearer? Gates on counts, which are the same on every machine.

    python bench/cpu.py            # exits with 1 if a gate is missed

Times depend on who else uses the machine, so none is a gate; `train_step.py` shows them as ratios.
A gate is a bound with little room above what the code does today: whoever improves a count
tightens its bound.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import corpora
import figures
import packing
from counts import compiled_programs, host_reads, linear_flops, saved_bytes
from stepper import Settings

from openqwen2vl.packing.bins import Limits
from openqwen2vl.packing.packers import pack

CONTEXT, GRID = 512, 3
WINDOW = 10_000


@dataclass(frozen=True)
class Gate:
    """A count and the bound it must keep.

    Attributes:
        name: what is counted.
        found: the count.
        bound: the largest allowed, or the smallest where ``least``.
        least: whether more is better.
    """

    name: str
    found: float
    bound: float
    least: bool = False

    @property
    def kept(self) -> bool:
        """Whether the bound holds."""
        return self.found >= self.bound if self.least else self.found <= self.bound


def main() -> None:
    """Count, print the table, and fail where a gate is missed."""
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        gates = _gates(_settings(Path(folder), 2 if options.quick else 6))
    rows = [
        (
            gate.name,
            f"{gate.found:,.4g}",
            f"{'>=' if gate.least else '<='} {gate.bound:,.4g}",
            "kept" if gate.kept else "MISSED",
        )
        for gate in gates
    ]
    figures.table(("count", "found", "gate", ""), rows)
    missed = [gate.name for gate in gates if not gate.kept]
    counts = {gate.name: {"found": gate.found, "bound": gate.bound} for gate in gates}
    headline = f"missed: {', '.join(missed)}" if missed else f"all {len(gates)} gates are kept"
    report = {"bench": "cpu", "machine": figures.machine(), "gates": counts, "missed": missed}
    figures.finish(report, headline, options.json)
    sys.exit(bool(missed))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps, for CI")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def _settings(folder: Path, steps: int) -> Settings:
    return Settings(
        device="cpu",
        model="tiny",
        grid=GRID,
        threads=1,
        frozen_tower=True,
        data=corpora.demo_steps(folder, steps, 4, CONTEXT, GRID),
    )


def _gates(settings: Settings) -> list[Gate]:
    flops = {name: linear_flops(name, settings) for name in ("ours", "padded", "full")}
    kept = {mode: saved_bytes(settings, mode) for mode in ("none", "mlp", "full")}
    first, later = compiled_programs(settings)
    filled = {name: _fill(name) for name in ("captions", "conversations", "interleaved")}
    return [
        Gate("FLOPs a token, share of padded rows'", flops["ours"] / flops["padded"], 0.56),
        Gate("FLOPs a token, share of one causal row's", flops["ours"] / flops["full"], 0.65),
        Gate("kept bytes a token, feed-forwards again / none", kept["mlp"] / kept["none"], 0.56),
        Gate("kept bytes a token, layers again / none", kept["full"] / kept["none"], 0.13),
        Gate("programs of compiled layers", first, 3),
        Gate("programs made after the first step", later, 0),
        Gate("values read back in a step", host_reads(settings), 0),
        Gate("fill, captions", filled["captions"], 0.998, least=True),
        Gate("fill, conversations", filled["conversations"], 0.990, least=True),
        Gate("fill, interleaved", filled["interleaved"], 0.995, least=True),
    ]


def _fill(kind: str) -> float:
    """Tokens over room in the packs of one window of documents, by the packer of choice."""
    lengths, images = packing.items(kind, WINDOW)
    bins = pack("auto", lengths, images, Limits(packing.CONTEXT)).bins
    return sum(lengths) / (len(bins) * packing.CONTEXT)


if __name__ == "__main__":
    main()
