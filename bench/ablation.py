"""Which of eight mixtures is better? The demo's sources in every choice, at equal tokens.

    python bench/ablation.py --out runs/ablation
    python bench/ablation.py --devices 1 -- hydra/launcher=joblib hydra.launcher.n_jobs=2

Clean scenes are in every mixture; noisy alt-texts, handwriting and captions of other pictures are
each in half of them. ``openqwen2vl ablate`` pre-trains the tiny model on each mixture, fine-tunes
all on the same conversations, asks held-out questions and writes ``report.html``. The corpus is
made once; a second call goes on where the first was broken off.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ablation_corpus import BENCHMARKS, CONVERSATIONS, HIGH, Sizes, prepare
from figures import finish, machine

QUICK = Sizes(
    scenes=60, noisy=60, handwriting=60, mismatched=60, conversations=60, questions=12, low_part=0.4
)
ALL = "glob(demo_ablation_*)"
TWO = "demo_ablation_scenes,demo_ablation_scenes_mismatched"
PREPARED = "corpus.json"


def main() -> int:
    """Prepare the corpus, run the ablation, print the headline last; gives the exit code."""
    options = _options()
    sizes = QUICK if options.quick else Sizes()
    started = time.perf_counter()
    _prepare(options.out, sizes)
    code, figures = _ablate(_words(options))
    if figures is None:
        return code
    report = {
        "bench": "ablation",
        "machine": machine(),
        "corpus": asdict(sizes),
        "steps": {"pretrain": options.pretrain, "sft": options.sft},
        "seconds": time.perf_counter() - started,
        **figures,
    }
    finish(report, headline(figures), options.json)
    return code


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--seeds", default="1", help="a number, or seeds as [3,7]")
    parser.add_argument("--pretrain", type=int, metavar="STEPS")
    parser.add_argument("--sft", type=int, metavar="STEPS")
    parser.add_argument("--devices", type=int, metavar="N", help="processes of a job")
    parser.add_argument("--quick", action="store_true", help="two mixtures, far too short, for CI")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("words", nargs="*", help="further keys of ablate: hydra/launcher=joblib")
    options = parser.parse_args()
    steps, processes = ((4, 3), 1) if options.quick else ((400, 500), 2)
    options.pretrain = options.pretrain or steps[0]
    options.sft = options.sft or steps[1]
    options.devices = options.devices or processes
    return options


def _prepare(out: Path, sizes: Sizes) -> None:
    """Make the corpus unless it is there."""
    mark, wanted = out / "data" / PREPARED, json.dumps(asdict(sizes))
    if not mark.is_file():
        prepare(out / "data", sizes)
        mark.write_text(wanted)
    elif mark.read_text() != wanted:
        sys.exit(f"{out} holds another corpus; give another --out, or delete it")


def _words(options: argparse.Namespace) -> list[str]:
    """Give the keys of ``openqwen2vl ablate``."""
    data = options.out / "data"
    strategy = "ddp" if options.devices > 1 else "single"
    shared = [
        *(f"packs_root={data / 'packs'}", f"tokenizer={data / 'tokenizer'}"),
        *(f"strategy={strategy}", f"trainer.devices={options.devices}"),
        *("callbacks.answers=null", "callbacks.validation.every_n_steps=100"),
        *("callbacks.checkpoints.every_n_steps=100", "logger=csv"),
    ]
    pretrain = ["experiment=demo_pretrain", f"budget.steps={options.pretrain}", *shared]
    talk = f"+mixture.sources.{CONVERSATIONS}.packs={data / 'packs' / CONVERSATIONS}-g{HIGH}"
    sft = ["experiment=demo_sft", "mixture=empty", talk, f"budget.steps={options.sft}", *shared]
    asked = ["trainer.accelerator=cpu", "data.num_workers=0"]
    return [
        f"mixture={TWO if options.quick else ALL}",
        f"seeds={options.seeds}",
        f"out={options.out}",
        f"benchmarks={','.join(BENCHMARKS)}",
        f"data_root={data / 'benchmarks'}",
        f"pretrain=[{','.join(pretrain)}]",
        f"sft=[{','.join(sft)}]",
        f"evaluate=[{','.join(asked)}]",
        *options.words,
    ]


def _ablate(words: Sequence[str]) -> tuple[int, dict[str, Any] | None]:
    """Run the command, passing on what it says; gives its code and its figures."""
    command = [sys.executable, "-m", "openqwen2vl", "ablate", *words, "json=true"]
    last = ""
    # More threads gain nothing with a tiny model, and jobs beside each other lose by them.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if last:
                print(last, end="", flush=True)
            last = line
    if last.startswith("{"):
        return child.returncode, dict(json.loads(last))
    print(last, end="")
    return child.returncode, None


def headline(figures: dict[str, Any]) -> str:
    """Give the last line: how many differences are shown of the models, and the largest."""
    effects = figures["effects"]
    shown = [one for one in effects if one["of_models"]]
    told = (
        f"{len(shown)} of {len(effects)} differences from {figures['baseline']} are shown of the "
        "trained models"
    )
    if not shown:
        return told
    most = max(shown, key=lambda one: abs(one["comparison"]["difference"]))
    found = most["comparison"]
    low, high = found["interval"]
    return (
        f"{told}; the largest is {most['mixture']} on {found['name']}: "
        f"{found['difference']:+.1f} points ({low:.1f} to {high:.1f})"
    )


if __name__ == "__main__":
    sys.exit(main())
