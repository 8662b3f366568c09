"""The corpus of ``ablation.py``: the demo's sources, one more of wrong captions, and benchmarks.

The questions are about held-out pictures and lie in the public forms of GQA (scenes) and TextVQA
(words and handwritten numbers), so that ``openqwen2vl evaluate`` asks them like any others.
"""

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from openqwen2vl.corpus import scenes
from openqwen2vl.corpus.build import (
    HANDWRITING_SHARE,
    CorpusSpec,
    Picture,
    build_corpus,
    draw_picture,
)
from openqwen2vl.corpus.conversations import conversation
from openqwen2vl.corpus.handwriting import Number, Scans, load_scans
from openqwen2vl.corpus.handwriting import caption as caption_of_number
from openqwen2vl.corpus.noise import MISMATCHED
from openqwen2vl.corpus.questions import Question, choice_questions
from openqwen2vl.corpus.render import jpeg, render
from openqwen2vl.corpus.scenes import Scene
from openqwen2vl.corpus.shards import Sample, write_raw_shard
from openqwen2vl.evaluation.prompts import IN_A_WORD
from openqwen2vl.formats.documents import Document
from openqwen2vl.formats.files import atomic_file
from openqwen2vl.formats.raw import raw_shards, read_raw_shard
from openqwen2vl.formats.tokens import load_tokenizer, train_tokenizer
from openqwen2vl.packing.plan import Selection
from openqwen2vl.packing.request import PackRequest, make_spec
from openqwen2vl.packing.writer import pack_folder

CAPTIONS = ("scenes", "noisy", "handwriting", MISMATCHED)
CONVERSATIONS = "conversations"
BENCHMARKS = ("gqa", "textvqa")
READING = ("word", "number", "digit")
NUMBERS_SHARE = 0.5
PEOPLE = 10  # who answered a question of TextVQA, here all alike
SHARD = 500
TEMPLATE = "qwen2_5"
VOCABULARY, CONTEXT = 512, 512
LOW, HIGH = 3, 6


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of what is drawn; samples, conversations, and questions of each benchmark."""

    scenes: int = 4000
    noisy: int = 4000
    handwriting: int = 2000
    mismatched: int = 4000
    conversations: int = 6000
    questions: int = 1000
    low_part: float = 0.15
    validation: float = 0.03
    seed: int = 0


def prepare(root: Path, sizes: Sizes) -> None:
    """Write ``root/raw``, ``root/tokenizer``, ``root/packs`` and ``root/benchmarks``."""
    spec = CorpusSpec(
        seed=sizes.seed,
        scenes=sizes.scenes,
        noisy=sizes.noisy,
        handwriting=sizes.handwriting,
        conversations=0,
        multiple_choice=0,
        yes_no=0,
        samples_per_shard=SHARD,
    )
    build_corpus(root, spec)
    scans = load_scans()
    raw = root / "raw"
    _write(raw / MISMATCHED, (_mismatched(sizes.seed, n) for n in range(sizes.mismatched)))
    _write(raw / CONVERSATIONS, (_talk(sizes.seed, n, scans) for n in range(sizes.conversations)))
    for name in BENCHMARKS:
        _write_benchmark(root / "benchmarks" / name, name, sizes, scans)
    _pack(root, sizes)


def _write(folder: Path, samples: Iterator[Sample]) -> None:
    for number in range(1_000_000):
        part = list(islice(samples, SHARD))
        if not part:
            return
        write_raw_shard(folder / f"{number:05d}.tar", part)


def _uid(identity: str) -> str:
    return hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()


def _mismatched(seed: int, number: int) -> Sample:
    """A picture of a scene with the clean caption of another."""
    identity = f"{seed}/{MISMATCHED}/{number}"
    rng = random.Random(identity)
    image = render(scenes.draw_scene(rng, held_out=False), rng)
    other = scenes.caption(scenes.draw_scene(rng, held_out=False), rng)
    return Sample(_uid(identity), jpeg(image), *image.size, other, {"noise": MISMATCHED})


def _talk(seed: int, number: int, scans: Scans) -> Sample:
    """A conversation whose plain questions end in the sentence that benchmarks end them in."""
    identity = f"{seed}/{CONVERSATIONS}/{number}"
    rng = random.Random(identity)
    picture = draw_picture(rng, scans, rng.random() < HANDWRITING_SHARE, held_out=False)
    turns = conversation(picture.shows, _caption(picture.shows, rng), rng)
    for turn in turns[::2]:
        if turn["value"].endswith("?"):
            turn["value"] += f"\n{IN_A_WORD}"
    said: dict[str, Any] = {"conversations": turns}
    return Sample(_uid(identity), picture.image, picture.width, picture.height, None, said)


def _caption(shows: Scene | Number, rng: random.Random) -> str:
    if isinstance(shows, Number):
        return caption_of_number(shows, rng)
    return scenes.caption(shows, rng)


def _write_benchmark(folder: Path, name: str, sizes: Sizes, scans: Scans) -> None:
    lines = []
    for number in range(sizes.questions):
        rng = random.Random(f"{sizes.seed}/{name}/{number}")
        picture, question = _asked(rng, scans, reading=name == "textvqa")
        image = f"{number:05d}.jpg"
        with atomic_file(folder / image) as file:
            file.write(picture.image)
        row: dict[str, Any] = {"question": question.text, "image": image}
        if name == "gqa":
            row |= {"id": str(number), "answer": question.answer}
        else:
            row |= {"question_id": str(number), "answers": [question.answer] * PEOPLE}
        lines.append(json.dumps(row))
    with atomic_file(folder / f"{name}.jsonl") as file:
        file.write("".join(f"{line}\n" for line in lines).encode())


def _asked(rng: random.Random, scans: Scans, reading: bool) -> tuple[Picture, Question]:
    """A held-out picture and a question; ``reading`` asks what is written, else what is there."""
    written = reading and rng.random() < NUMBERS_SHARE
    while True:
        picture = draw_picture(rng, scans, written, held_out=True)
        questions = choice_questions(picture.shows, rng)
        fit = [one for one in questions if (one.topic in READING) is reading]
        if fit:
            return picture, fit[0]


def _pack(root: Path, sizes: Sizes) -> None:
    tokenizer = train_tokenizer(_texts(root / "raw"), VOCABULARY)
    tokenizer.save_pretrained(root / "tokenizer")
    tokenizer = load_tokenizer(str(root / "tokenizer"))
    split = sizes.low_part
    jobs = [(source, LOW, (0.0, split)) for source in CAPTIONS]
    jobs += [(source, HIGH, (split, 1.0)) for source in CAPTIONS]
    jobs.append((CONVERSATIONS, HIGH, (0.0, 1.0)))
    for source, grid, part in jobs:
        request = PackRequest(
            input=root / "raw" / source,
            out=root / "packs" / f"{source}-g{grid}",
            source=source,
            spec=make_spec(tokenizer, CONTEXT, grid, TEMPLATE),
            selection=Selection(part=part, validation=sizes.validation),
        )
        pack_folder(request, tokenizer)


def _texts(raw: Path) -> Iterator[str]:
    for source in (*CAPTIONS, CONVERSATIONS):
        for shard in raw_shards(raw / source):
            for document in read_raw_shard(shard, source):
                if isinstance(document, Document):
                    yield from (turn.text for turn in document.turns)
