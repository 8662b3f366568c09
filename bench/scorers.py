"""How near do the scorers with a model come to the bare model's own speed?

    python bench/scorers.py

The CLIP scorer and the judge score pictures of 512 x 384 pixels from a raw shard, in turns with
the bare model at the same batch size, whose pictures and tokens lie ready as tensors, and with a
plain loop over one pair at a time. Weights are random. On a CPU speeds are those of one core: per
second of processor time, all threads together, so that other work counts little; on a GPU they are
per second, with decoding on as many threads as there are cores.
"""

import argparse
import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import corpora
import figures
import scorer_models
import torch
import transformers

from openqwen2vl.curation.samples import Sample, read_samples
from openqwen2vl.curation.scorers.clip import ClipScorer
from openqwen2vl.curation.scorers.clip_model import load_clip
from openqwen2vl.curation.scorers.judge import Question
from openqwen2vl.curation.scorers.mlm_filter import MlmFilterScorer
from openqwen2vl.curation.scorers.pictures import open_picture
from openqwen2vl.curation.scorers.prompts import read_prompts
from openqwen2vl.curation.scorers.transformers_judge import TransformersJudge
from openqwen2vl.curation.scorers.weights import DTYPES, placement

METRIC, NEW_TOKENS, GOAL = "semantic_understanding", 8, 0.9
SHARE = 4  # of the pairs, one in so many goes through the plain loop
Way = Callable[[], int]
"""Scores some pairs; gives how many."""


def main() -> None:
    """Measure every way in turns and print the table, then the headline."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clip", default="ViT-B-32", help="a name of open_clip's, or tiny")
    parser.add_argument("--judge", default="small", choices=list(scorer_models.JUDGES))
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=list(DTYPES))
    parser.add_argument("--quick", action="store_true", help="tiny models, two rounds, for CI")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.quick:
        options.clip, options.judge = "tiny", "tiny"
        options.pairs, options.batch, options.rounds = 16, 4, 2
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)  # open_clip warns that a new model has random weights
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        report = _measure(Path(root), options)
    report["settings"] = {key: value for key, value in vars(options).items() if key != "json"}
    _print(report)
    figures.finish(report, _headline(report), options.json)


def _measure(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    samples = _samples(root, options.pairs)
    place = {"device": options.device, "dtype": options.dtype}
    clip = scorer_models.clip_folder(root / "clip", options.clip)
    texts = [sample.caption for sample in samples]
    judge = scorer_models.judge_folder(root / "judge", options.judge, texts)
    ways = {"clip": _clip_ways(clip, samples, options.batch, place)}
    ways["judge"] = _judge_ways(judge, samples, options.batch, place)
    clock = time.process_time if options.device == "cpu" else time.perf_counter
    speeds = {name: {who: [] for who in kinds} for name, kinds in ways.items()}
    for turn in range(options.rounds + 1):  # the first one loads and warms up
        for name, kinds in ways.items():
            for who, way in kinds.items():
                start = clock()
                count = way()
                speeds[name][who] += [count / (clock() - start)] if turn else []
    return {
        "bench": "scorers",
        "machine": figures.machine(),
        "pairs_per_s": {
            name: {who: figures.spread(values) for who, values in kinds.items()}
            for name, kinds in speeds.items()
        },
        "over_bare": {n: figures.ratios(k["ours"], k["bare"]) for n, k in speeds.items()},
        "over_plain": {n: figures.ratios(k["ours"], k["plain"]) for n, k in speeds.items()},
        "expected_over_bare": figures.ratios(speeds["judge"]["expected"], speeds["judge"]["bare"]),
    }


def _samples(root: Path, count: int) -> list[Sample]:
    """Write pairs as in pre-training; a pack of 4096 tokens holds about 23 of them."""
    corpora.photo_packs(root, 2 + count // 20, 4096, 12, (512, 384))
    (raw,) = sorted((root / "raw").glob("*.tar"))
    found = [item for item in read_samples(raw, "bench") if isinstance(item, Sample)]
    return found[:count]


def _clip_ways(
    folder: Path, samples: list[Sample], batch: int, place: dict[str, Any]
) -> dict[str, Way]:
    scorer = ClipScorer(str(folder), batch_size=batch, **place)
    device, dtype = placement(half=torch.float16, **place)
    clip = load_clip(str(folder), None)
    clip.to(device, dtype)
    pictures = [clip.prepare(open_picture(sample.read())) for sample in samples]
    pixels = torch.stack(pictures).to(device, dtype).split(batch)
    tokens = clip.tokenize([sample.caption for sample in samples]).to(device).split(batch)

    def bare() -> int:
        scores = [clip.similarity(*pair) for pair in zip(pixels, tokens, strict=True)]
        return len(torch.cat(scores).tolist())

    def plain() -> int:
        for sample in samples[::SHARE]:
            picture = clip.prepare(open_picture(sample.read()))[None].to(device, dtype)
            clip.similarity(picture, clip.tokenize([sample.caption]).to(device)).item()
        return len(samples[::SHARE])

    return {"bare": bare, "ours": partial(_scored, scorer, samples), "plain": plain}


def _judge_ways(
    folder: Path, samples: list[Sample], batch: int, place: dict[str, Any]
) -> dict[str, Way]:
    judge = TransformersJudge(str(folder), **place)
    scorers = {
        expected: MlmFilterScorer(
            judge,
            [METRIC],
            batch_size=batch,
            max_new_tokens=NEW_TOKENS,
            expected=expected,
            least_chance=0.0,
        )
        for expected in (False, True)
    }
    prompt = read_prompts(None, [METRIC])[METRIC]
    questions = [
        Question(judge.picture(s.read()), prompt.before, s.caption, prompt.after) for s in samples
    ]
    judge.ask(questions[:1], 1, numbers=False)
    loaded = judge._judge()
    parts = [questions[at : at + batch] for at in range(0, len(questions), batch)]
    ready = [judge._inputs(loaded, part) for part in parts]

    def generate(inputs: Mapping[str, torch.Tensor]) -> None:
        loaded.model.generate(
            **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=loaded.pad_id
        )

    def bare() -> int:
        for inputs in ready:
            generate(inputs)
        return len(samples)

    def plain() -> int:
        for sample in samples[::SHARE]:
            question = Question(
                judge.picture(sample.read()), prompt.before, sample.caption, prompt.after
            )
            generate(judge._inputs(loaded, [question]))
        return len(samples[::SHARE])

    return {
        "bare": bare,
        "ours": partial(_scored, scorers[False], samples),
        "plain": plain,
        "expected": partial(_scored, scorers[True], samples),
    }


def _scored(scorer: ClipScorer | MlmFilterScorer, samples: list[Sample]) -> int:
    """Score as the runner does: so many samples at a time as the scorer asks for."""
    for at in range(0, len(samples), scorer.batch_size):
        scorer.score(samples[at : at + scorer.batch_size])
    return len(samples)


def _print(report: Mapping[str, Any]) -> None:
    rows = []
    for name, speeds in report["pairs_per_s"].items():
        ratios = [figures.show(report[key][name]) for key in ("over_bare", "over_plain")]
        pair = [f"{speeds[who]['median']:,.2f}" for who in ("ours", "bare", "plain")]
        met = "met" if report["over_bare"][name]["median"] >= GOAL else "missed"
        rows.append((name, *pair, ratios[1], ratios[0], f"{GOAL}x", met))
    header = ("pairs/s", "ours", "bare", "plain", "over plain", "over bare", "goal", "")
    figures.table(header, rows)
    print(f"judge with expected values over bare: {figures.show(report['expected_over_bare'])}")


def _headline(report: Mapping[str, Any]) -> str:
    clip, judge = (figures.show(report["over_bare"][name]) for name in ("clip", "judge"))
    return f"scorers over the bare model at the same batch size: clip {clip}, judge {judge}"


if __name__ == "__main__":
    main()
