"""Does filtering help? A CLIP that saw no label, the real curation, and equal tokens for each arm.

    python bench/filtering.py

For each seed anew: a corpus of which half the captions are other pictures', a tiny CLIP trained on
that very corpus, its similarity as curation's ``clip`` scorer gives it, ``top(clip_similarity, f)``,
new shards, packs, and a short training of the tiny model on each arm: everything, what the filter
keeps, and all pairs that match, which is what a perfect filter would keep. All arms of a seed have
the same first weights, tokenizer, number of steps and packs of a step, and answer the same
questions on held-out pictures: which of four captions, that differ in one word or place, is true?
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from figures import finish
from filtering_report import headline, line, make_report, show
from filtering_seed import Asked, Seed, Settings
from filtering_training import Recipe
from tiny_clip import ClipRecipe

QUICK = Settings(
    pairs=400,
    held_out=200,
    questions=24,
    clean=40,
    clip=ClipRecipe(steps=6, batch=32, lr=1e-3, seed=0),
    recipe=Recipe(steps=6, packs=1, context=512, grid=4, side=56, lr=2e-3),
)


def main() -> None:
    """Measure every seed, each with a line, then print arms, differences and the headline."""
    options = _options()
    torch.set_num_threads(1)
    settings = QUICK if options.quick else replace(Settings(), top=options.top)
    with tempfile.TemporaryDirectory() as folder:
        asked = Asked.write(Path(folder) / "asked", settings)
        seeds = []
        for seed in range(1, 1 + (1 if options.quick else options.seeds)):
            seeds.append(Seed(Path(folder) / str(seed), seed, settings).measure(asked))
            print(line(seeds[-1]), flush=True)
    report = make_report(seeds, asked, settings)
    show(report)
    finish(report, headline(report), options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--top", type=float, default=Settings.top, help="share that is kept")
    parser.add_argument("--quick", action="store_true", help="one seed, far too short, for CI")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
