"""How much faster are a benchmark's questions answered in batches than one by one?

    python bench/evaluation.py

The tiny model, its weights random, answers multiple-choice questions about pictures of the embedded
corpus, with as many tokens as a short answer may take: once as ``openqwen2vl evaluate`` asks
(batches of like length, cache, Trainer, answers written line by line) and once in a plain loop that
decodes a picture and asks its question, one after the other, with the same cache. Both end with the
text on disk, on one core, per second of processor time, all threads together; the answers must be
the same to the letter. A third way is the loop without a cache: each new token reads the whole
prompt again, as a first script would.

Beside that, how many rows a second are scored: MMBench answers in several forms, from memory, with
reading and checking their file, and with writing what they are worth as well. The reading alone
stands against a loop that hands each line to the standard library's json and looks at none.
"""

import argparse
import json
import logging
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import figures
import lightning.pytorch as pl
import torch
from hydra import compose, initialize_config_module

from openqwen2vl.commands._assemble import build_model
from openqwen2vl.corpus.conversations import letter_prompt
from openqwen2vl.corpus.questions import choice_questions
from openqwen2vl.corpus.render import jpeg, render
from openqwen2vl.corpus.scenes import draw_scene
from openqwen2vl.evaluation.asking import Asked, put
from openqwen2vl.evaluation.generate import Answering, Effort, Questionnaire, generate
from openqwen2vl.evaluation.pictures import BytesImage
from openqwen2vl.evaluation.predictions import Answered, Header, read_predictions
from openqwen2vl.evaluation.protocols import PROTOCOLS
from openqwen2vl.evaluation.questions import Prompt, Question
from openqwen2vl.evaluation.score import score_predictions, write_scores
from openqwen2vl.evaluation.subject import Subject
from openqwen2vl.evaluation.unfinished import Unfinished
from openqwen2vl.formats.documents import IMAGE
from openqwen2vl.formats.images import decode_image
from openqwen2vl.formats.templates import TEMPLATES
from openqwen2vl.formats.tokens import special_tokens, train_tokenizer
from openqwen2vl.model.decoding import Sampling

GOAL, GRID, VOCABULARY = 3.0, 6, 512
ROWS_GOAL = 50_000
SAID = ("B", "(B)", "The answer is C.", "blue", "I cannot tell.", "A. red", "red or blue", "")
SHARE = 16  # of the questions, one in so many goes through the loop without a cache


_HEADER = Header(
    benchmark="bench",
    file_hash="",
    n=0,
    protocol="standard",
    protocol_version=PROTOCOLS["standard"].version,
    template_hash="",
    decoding={},
    model_hash="",
    model="tiny",
)


def main() -> None:
    """Answer in every way in turns and print the table, then the headline."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=16, help="of each answer")
    parser.add_argument("--rows", type=int, default=50_000, help="to score")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few questions, two rounds, for CI")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.quick:
        options.questions, options.rows, options.rounds = 48, 4_000, 2
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*(does not have many workers|LeafSpec).*")
    with tempfile.TemporaryDirectory() as root:
        report = _measure(Path(root), options)
        report |= _scoring(Path(root), options)
    report["settings"] = {key: value for key, value in vars(options).items() if key != "json"}
    _print(report)
    figures.finish(report, _headline(report), options.json)


def _measure(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    subject, asked = _questions(options)
    ways: dict[str, Callable[[Path], dict[str, str]]] = {
        "batches": lambda folder: _batches(subject, asked, folder, options.batch),
        "one by one": lambda folder: _one_by_one(subject, asked, folder, cache=True),
        "no cache": lambda folder: _one_by_one(subject, asked[::SHARE], folder, cache=False),
    }
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    answers: dict[str, dict[str, str]] = {}
    for turn in range(options.rounds + 1):  # the first one warms up
        for name, way in ways.items():
            folder = root / f"{name}-{turn}"
            folder.mkdir()
            start = time.process_time()
            answers[name] = way(folder)
            seconds = time.process_time() - start
            speeds[name] += [len(answers[name]) / seconds] if turn else []
    whole = answers["one by one"]
    part = {name: whole[name] for name in answers["no cache"]}
    return {
        "bench": "evaluation",
        "machine": figures.machine(),
        "questions_per_s": {name: figures.spread(found) for name, found in speeds.items()},
        "over_one_by_one": figures.ratios(speeds["batches"], speeds["one by one"]),
        "over_no_cache": figures.ratios(speeds["batches"], speeds["no cache"]),
        "same_answers": answers["batches"] == whole and answers["no cache"] == part,
        "different_answers": len(set(whole.values())),
        "data": {
            "questions": len(asked),
            "tokens_of_a_question": sum(one.tokens for one in asked) / len(asked),
        },
    }


def _questions(options: argparse.Namespace) -> tuple[Subject, list[Asked]]:
    rng = random.Random(0)
    scenes = [draw_scene(rng, held_out=True) for _ in range(options.questions)]
    asked = [choice_questions(scene, rng)[0] for scene in scenes]
    texts = [letter_prompt(question.text, question.options) for question in asked]
    tokenizer = train_tokenizer(texts, VOCABULARY)
    with initialize_config_module("openqwen2vl.conf", version_base="1.3"):
        config = compose("train", ["stage=sft", "model=tiny", "init_from=null"])
    model = build_model(config, VOCABULARY).eval()
    model.projector.grid = GRID
    # Random weights that say something else about each picture, and not one token for ever.
    torch.manual_seed(0)
    for weight in model.llm.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    subject = Subject(model, tokenizer, TEMPLATES["qwen2_5"], "tiny", "")
    questions = [
        Question(
            benchmark="bench",
            id=str(number),
            cluster=str(number),
            images=(BytesImage(jpeg(render(scene, rng))),),
            fields={"question": text},
        )
        for number, (scene, text) in enumerate(zip(scenes, texts, strict=True))
    ]
    prompt = {"max_new_tokens": options.tokens}
    return subject, put(
        questions,
        lambda q: Prompt((IMAGE, "\n" + q.fields["question"]), q.images, **prompt),
        subject,
    )


def _scoring(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Score a file of MMBench answers, four copies a question."""
    header = replace(_HEADER, benchmark="mmbench", n=options.rows)
    options_of = {"A": "red", "B": "blue", "C": "green", "D": "yellow"}
    fields = {"question": "What color is the circle?", "options": options_of, "answer": "B"}
    fields |= {"category": "attribute_recognition", "l2_category": "finegrained_perception"}
    with (root / "rows.jsonl").open("wb") as file:
        file.write(header.line())
        for number in range(options.rows):
            said = SAID[number % len(SAID)]
            cluster = str(number % (options.rows // 4))
            row = Answered(
                id=str(number), cluster=cluster, output=said, fields=fields, prompt_hash="0" * 16
            )
            file.write(row.line())
    names = ("json alone", "read", "scored", "read and scored", "read, scored and written")
    speeds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(options.rounds + 1):  # the first one warms up
        begin = time.process_time()
        with (root / "rows.jsonl").open("rb") as file:
            parsed = [json.loads(line) for line in file]
        start = time.process_time()
        del parsed
        found = read_predictions(root / "rows.jsonl")
        read = time.process_time()
        scores = score_predictions(*found)
        scored = time.process_time()
        write_scores(root, scores)
        seconds = [start - begin, read - start, scored - read, scored - start]
        seconds.append(time.process_time() - start)
        for name, taken in zip(names, seconds, strict=True):
            speeds[name] += [options.rows / taken] if turn else []
        del found, scores  # freed here, not while the next turn is timed
    return {
        "rows_per_s": {name: figures.spread(values) for name, values in speeds.items()},
        "read_over_json": figures.ratios(speeds["read"], speeds["json alone"]),
        "scored_over_json": figures.ratios(speeds["read and scored"], speeds["json alone"]),
    }


def _batches(subject: Subject, asked: Sequence[Asked], folder: Path, size: int) -> dict[str, str]:
    header = replace(_HEADER, n=len(asked), template_hash=subject.template.hash)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    answering = Answering(
        subject,
        Questionnaire(asked=asked, header=header),
        Unfinished(folder),
        Sampling(),
        Effort(batch_size=size),
    )
    return {answer.id: answer.output for answer in generate(trainer, answering)}


@torch.inference_mode()
def _one_by_one(
    subject: Subject, asked: Sequence[Asked], folder: Path, cache: bool
) -> dict[str, str]:
    special = special_tokens(subject.tokenizer)
    outputs: dict[str, str] = {}
    with (folder / "predictions.jsonl").open("w") as file:
        for one in asked:
            (image,) = one.prompt.images
            pixels = torch.from_numpy(decode_image(image.read(), subject.model.vision.side))[None]
            ids: list[int] = []
            while len(ids) < one.prompt.max_new_tokens:
                (new,) = subject.model.generate(
                    [[*one.ids, *ids]],
                    pixels,
                    image_id=special.image,
                    pad_id=special.pad,
                    eos_ids=one.end_ids,
                    max_new_tokens=one.prompt.max_new_tokens if cache else 1,
                )
                ids += new
                if cache or not new:
                    break
            outputs[one.question.id] = subject.tokenizer.decode(ids, skip_special_tokens=True)
            file.write(json.dumps({"id": one.question.id, "output": outputs[one.question.id]}))
            file.write("\n")
    return outputs


def _print(report: Mapping[str, Any]) -> None:
    rows = [
        (name, f"{speed['median']:,.1f}", f"{speed['min']:,.1f}", f"{speed['max']:,.1f}")
        for name, speed in report["questions_per_s"].items()
    ]
    figures.table(("questions/s of one core", "median", "min", "max"), rows)
    data = report["data"]
    met = "met" if report["over_one_by_one"]["median"] >= GOAL else "missed"
    print(
        f"{data['questions']} questions of {data['tokens_of_a_question']:.0f} tokens with answer; "
        f"the same answers: {report['same_answers']} ({report['different_answers']} different "
        f"ones); over no cache {figures.show(report['over_no_cache'])}; goal {GOAL:g}x {met}"
    )
    for name, speed in report["rows_per_s"].items():
        print(f"rows/s {name}: {speed['median']:,.0f} ({speed['min']:,.0f} to {speed['max']:,.0f})")
    met = "met" if report["rows_per_s"]["read and scored"]["median"] >= ROWS_GOAL else "missed"
    print(
        f"over json alone: read {figures.show(report['read_over_json'])}, read and scored "
        f"{figures.show(report['scored_over_json'])}; goal of {ROWS_GOAL:,} rows/s read and scored "
        f"{met}"
    )


def _headline(report: Mapping[str, Any]) -> str:
    return f"questions in batches over one by one: {figures.show(report['over_one_by_one'])}"


if __name__ == "__main__":
    main()
