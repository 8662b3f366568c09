"""What `make demo` must have shown: run after it, on its summary.json."""

import json
import sys
from pathlib import Path

POINTS = 0.45  # above chance, of the held-out multiple choice
KEYS = {"chance_mc", "before_mc", "after_mc", "chance_yesno", "after_yesno", "loss_first"}
KEYS |= {"loss_last", "fill", "seconds"}


def faults(summary: dict[str, float]) -> list[str]:
    """Say what is missing of the promise: learning, and the figures that show it."""
    missing = sorted(KEYS - set(summary))
    if missing:
        return [f"summary.json lacks {', '.join(missing)}"]
    found = []
    gain = summary["after_mc"] - summary["chance_mc"]
    if gain < POINTS:
        found.append(f"multiple choice is {gain:.1%} above chance, expected {POINTS:.0%}")
    if abs(summary["before_mc"] - summary["chance_mc"]) > 0.1:
        found.append(f"untrained, multiple choice is {summary['before_mc']:.1%}: the set leaks")
    if summary["loss_last"] >= summary["loss_first"] / 2:
        found.append(f"the loss went from {summary['loss_first']} to {summary['loss_last']}")
    return found


if __name__ == "__main__":
    told = faults(json.loads(Path(sys.argv[1]).read_text()))
    sys.stderr.writelines(f"{line}\n" for line in told)
    sys.exit(1 if told else 0)
