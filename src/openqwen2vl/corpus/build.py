"""The embedded corpus on disk: raw shards to train on, and questions held out from them."""

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from openqwen2vl.corpus import handwriting, render, scenes
from openqwen2vl.corpus.conversations import conversation
from openqwen2vl.corpus.handwriting import Number, Scans
from openqwen2vl.corpus.noise import noisy_caption
from openqwen2vl.corpus.questions import Question, choice_questions, yes_no_question
from openqwen2vl.corpus.scenes import Scene
from openqwen2vl.corpus.shards import Sample, write_raw_shard
from openqwen2vl.formats.errors import UserError
from openqwen2vl.formats.files import atomic_file

CAPTION_SOURCES = ("scenes", "noisy", "handwriting")
CONVERSATION_SOURCE = "conversations"
HANDWRITING_SHARE = 0.08
UID_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class CorpusSpec:
    """How large the corpus is; two equal specs give equal bytes.

    Attributes:
        seed: decides everything that is drawn.
        scenes: pictures of scenes with clean captions.
        noisy: pictures of scenes with alt-text-like captions, some of them another picture's.
        handwriting: pictures of handwritten numbers with clean captions.
        conversations: conversations of several turns, each about its own picture.
        multiple_choice: held-out questions of four options.
        yes_no: held-out questions to be answered by yes or no.
        samples_per_shard: pictures in one raw shard.

    Raises:
        UserError: less than nothing, or no samples in a shard.
    """

    seed: int
    scenes: int
    noisy: int
    handwriting: int
    conversations: int
    multiple_choice: int
    yes_no: int
    samples_per_shard: int = 500

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = 1 if name == "samples_per_shard" else 0
            if value < least:
                raise UserError(f"corpus.{name} is {value}; expected at least {least}")


@dataclass(frozen=True)
class ShardJob:
    """One raw shard to be written: samples ``first`` to ``stop`` of a source."""

    path: Path
    source: str
    first: int
    stop: int
    seed: int
    scans: Scans

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class Picture:
    """A rendered picture: what is on it, its JPEG bytes and its sides in pixels."""

    shows: Scene | Number
    image: bytes
    width: int
    height: int


MapJobs = Callable[[Callable[[ShardJob], int], Sequence[ShardJob]], Iterable[int]]


def build_corpus(out: Path, spec: CorpusSpec, map_jobs: MapJobs = map) -> dict[str, int]:
    """Write ``out/raw/SOURCE/NNNNN.tar`` and ``out/questions/*.jsonl`` with their pictures.

    Args:
        out: the folder; files of the same names are replaced.
        spec: how much of what.
        map_jobs: runs a function over shard jobs, as ``map`` does; several processes may share
            the work, the bytes written are the same.

    Returns:
        How many samples each source and each set of questions got.

    Raises:
        UserError: scikit-learn is not installed, or the disk is full.
    """
    scans = handwriting.load_scans()
    jobs = list(_jobs(out, spec, scans))
    counts = dict.fromkeys((*CAPTION_SOURCES, CONVERSATION_SOURCE), 0)
    for job, written in zip(jobs, map_jobs(write_shard, jobs), strict=True):
        counts[job.source] += written
    questions = out / "questions"
    counts["multiple_choice"] = _write_questions(questions, "multiple_choice", spec, scans)
    counts["yes_no"] = _write_questions(questions, "yesno", spec, scans)
    return counts


def write_shard(job: ShardJob) -> int:
    """Write one raw shard; a pure function of the job. Returns the number of samples."""
    indices = range(job.first, job.stop)
    return write_raw_shard(job.path, (_sample(job, index) for index in indices))


def draw_picture(rng: random.Random, scans: Scans, written: bool, held_out: bool) -> Picture:
    """A random picture: a handwritten number when ``written``, else a scene.

    It comes from the asked side of the split between training and held-out questions.
    """
    shows: Scene | Number
    if written:
        shows = handwriting.draw_number(rng, scans, held_out)
        image = handwriting.render(shows, scans, rng)
    else:
        shows = scenes.draw_scene(rng, held_out)
        image = render.render(shows, rng)
    return Picture(shows, render.jpeg(image), image.width, image.height)


def _jobs(out: Path, spec: CorpusSpec, scans: Scans) -> Iterator[ShardJob]:
    sizes = {
        "scenes": spec.scenes,
        "noisy": spec.noisy,
        "handwriting": spec.handwriting,
        CONVERSATION_SOURCE: spec.conversations,
    }
    for source, size in sizes.items():
        for number, first in enumerate(range(0, size, spec.samples_per_shard)):
            path = out / "raw" / source / f"{number:05d}.tar"
            stop = min(size, first + spec.samples_per_shard)
            yield ShardJob(path, source, first, stop, spec.seed, scans)


def _sample(job: ShardJob, index: int) -> Sample:
    # Every sample has a generator of its own: shards may be cut and mapped in any way.
    rng = random.Random(f"{job.seed}/{job.source}/{index}")
    written = job.source == "handwriting" or (
        job.source == CONVERSATION_SOURCE and rng.random() < HANDWRITING_SHARE
    )
    picture = draw_picture(rng, job.scans, written, held_out=False)
    caption = _caption(picture.shows, rng)
    text: str | None = caption
    extra: dict[str, object] = {}
    if job.source == "noisy":
        text, extra["noise"] = noisy_caption(caption, lambda: _other_caption(rng), rng)
    elif job.source == CONVERSATION_SOURCE:
        text, extra["conversations"] = None, conversation(picture.shows, caption, rng)
    uid = hashlib.blake2b(f"{job.seed}/{job.source}/{index}".encode(), digest_size=UID_BYTES)
    return Sample(uid.hexdigest(), picture.image, picture.width, picture.height, text, extra)


def _caption(shows: Scene | Number, rng: random.Random) -> str:
    if isinstance(shows, Number):
        return handwriting.caption(shows, rng)
    return scenes.caption(shows, rng)


def _other_caption(rng: random.Random) -> str:
    return scenes.caption(scenes.draw_scene(rng, held_out=False), rng)


def _write_questions(folder: Path, name: str, spec: CorpusSpec, scans: Scans) -> int:
    """Write ``name.jsonl`` and ``name/NNNN.jpg``: one held-out picture and question a line."""
    size = spec.multiple_choice if name == "multiple_choice" else spec.yes_no
    lines = []
    for index in range(size):
        rng = random.Random(f"{spec.seed}/{name}/{index}")
        written = rng.random() < HANDWRITING_SHARE
        picture = draw_picture(rng, scans, written, held_out=True)
        question = _held_out_question(name, picture.shows, rng)
        image = f"{name}/{index:04d}.jpg"
        with atomic_file(folder / image) as file:
            file.write(picture.image)
        lines.append(json.dumps(_record(f"{name}-{index:04d}", image, picture.shows, question)))
    with atomic_file(folder / f"{name}.jsonl") as file:
        file.write("".join(f"{line}\n" for line in lines).encode())
    return len(lines)


def _held_out_question(name: str, shows: Scene | Number, rng: random.Random) -> Question:
    if name == "multiple_choice":
        return choice_questions(shows, rng)[0]
    return yes_no_question(shows, rng)


def _record(
    identity: str, image: str, shows: Scene | Number, question: Question
) -> dict[str, object]:
    return {
        "id": identity,
        "image": image,
        "topic": question.topic,
        "question": question.text,
        "options": list(question.options),
        "answer": question.right,
        "description": shows.description,
    }
