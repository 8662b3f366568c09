"""How many samples or rows a second does each step of curation take, beside a plain loop?

    python bench/curation.py

On one core and in processor time, so that other work on the machine counts little. Each part of
curation brings its rows: a function that makes what they work on below a folder and gives
``rows.Row``. Both sides of a row run in turn.
"""

import argparse
import tempfile
from pathlib import Path

from curation_scoring import scoring_rows
from figures import finish, machine, show, table
from rows import HEADER, cells, measure

MAKERS = (scoring_rows,)
HEADLINE = "perceptual hash"


def main() -> None:
    """Measure every row and print the table, then the headline."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="rows whose name holds these words")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two small rounds, for CI")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.quick:
        options.rounds = 2
    figures: dict[str, dict[str, object]] = {}
    for make in MAKERS:
        with tempfile.TemporaryDirectory() as folder:
            for row in make(Path(folder), options.quick):
                if options.only in row.name:
                    figures[row.name] = measure(row, options.rounds)
    if not figures:
        parser.error(f"no row's name holds '{options.only}'")
    table(HEADER, [cells(name, row) for name, row in figures.items()])
    shown = HEADLINE if HEADLINE in figures else next(iter(figures))
    headline = f"{shown}: {show(figures[shown]['ratio'])} of a plain loop"
    report = {
        "bench": "curation",
        "machine": machine(),
        "rows": figures,
        "settings": {k: v for k, v in vars(options).items() if k != "json"},
    }
    finish(report, headline, options.json)


if __name__ == "__main__":
    main()
