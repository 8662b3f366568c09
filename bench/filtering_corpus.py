"""A web-like corpus whose pairs are known to match or not, and what is asked of those who learn it.

What is wrong with a caption stands in ``KEY.json`` under ``noise``; only measuring looks there.
"""

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from openqwen2vl.corpus import noise, scenes
from openqwen2vl.corpus.render import jpeg, render
from openqwen2vl.corpus.scenes import Crowd, Scene, Things
from openqwen2vl.corpus.shards import Sample, write_raw_shard
from openqwen2vl.formats.files import atomic_file

SAMPLES_PER_SHARD = 1000
NUM_OPTIONS = 4
_THING = {"colour": scenes.COLOURS, "shape": scenes.SHAPES, "place": scenes.PLACES}
_FAULTS = (noise.file_name, noise.stock, noise.truncated, noise.shouting)


@dataclass(frozen=True)
class Web:
    """What becomes of captions.

    Attributes:
        mismatched: share of pairs whose caption is another picture's.
        clean: share of the other pairs whose caption is left as it is; the rest have, in equal
            parts, the faults of ``corpus.noise``.
    """

    mismatched: float
    clean: float


CLEAN = Web(0.0, 1.0)


def write_pairs(folder: Path, name: str, seed: int, pairs: int, web: Web, held_out: bool) -> None:
    """Write raw shards ``folder/NNNNN.tar``; every pair has a generator of its own."""
    for number, first in enumerate(range(0, pairs, SAMPLES_PER_SHARD)):
        stop = min(pairs, first + SAMPLES_PER_SHARD)
        samples = (_pair(f"{seed}/{name}/{index}", web, held_out) for index in range(first, stop))
        write_raw_shard(folder / f"{number:05d}.tar", samples)


def _pair(identity: str, web: Web, held_out: bool) -> Sample:
    rng = random.Random(identity)
    scene = scenes.draw_scene(rng, held_out)
    picture = render(scene, rng)
    caption, fate = scenes.caption(scene, rng), noise.CLEAN
    if rng.random() < web.mismatched:
        caption = scenes.caption(scenes.draw_scene(rng, held_out), rng)
        fate = noise.MISMATCHED
    elif rng.random() >= web.clean:
        fault = rng.choice(_FAULTS)
        caption, fate = fault(caption, rng), fault.__name__
    uid = hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
    return Sample(uid, jpeg(picture), *picture.size, caption, {"noise": fate})


def write_questions(folder: Path, seed: int, questions: int) -> Path:
    """Write held-out pictures, each with four captions of which one is true.

    The wrong ones differ from it in a single word or place, evenly drawn among those that are
    left. Who answers without looking is right a little less often than by chance: what is held
    out is missing in training, so that the words of a true caption stood together less often.

    Returns:
        The ``.jsonl``, in the form of ``evaluation.choices``; its questions are empty.
    """
    lines = []
    for index in range(questions):
        rng = random.Random(f"{seed}/which/{index}")
        scene = scenes.draw_scene(rng, held_out=True)
        image = f"pictures/{index:04d}.jpg"
        with atomic_file(folder / image) as file:
            file.write(jpeg(render(scene, rng)))
        topic, wrong = _lookalikes(scene, rng)
        # One wording for all four: the same draw of ``scenes.caption`` for each.
        wording = rng.random()
        texts = [scenes.caption(one, random.Random(wording)) for one in (scene, *wrong)]
        options = rng.sample(texts, len(texts))
        record = {"id": f"which-{index:04d}", "image": image, "topic": topic, "question": ""}
        lines.append(json.dumps({**record, "options": options, "answer": options.index(texts[0])}))
    path = folder / "which.jsonl"
    with atomic_file(path) as file:
        file.write("".join(f"{line}\n" for line in lines).encode())
    return path


def _lookalikes(scene: Scene, rng: random.Random) -> tuple[str, list[Scene]]:
    """Give what is asked about, and three scenes that differ in that alone."""
    found = list(_changes(scene))
    topic = rng.choice(sorted({topic for topic, _ in found}))
    others = [other for about, other in found if about == topic]
    return topic, rng.sample(others, NUM_OPTIONS - 1)


def _changes(scene: Scene) -> Iterator[tuple[str, Scene]]:
    """Yield topics, each with at least three scenes that could be drawn and are not this one."""
    if isinstance(scene, Things):
        first, *others = scene.things
        # Of several things only the colour leaves enough: their shapes and places all differ.
        for topic, pool in _THING.items() if not others else [("colour", scenes.COLOURS)]:
            taken = {getattr(thing, topic) for thing in scene.things}
            for value in (value for value in pool if value not in taken):
                changed = replace(first, **{topic: value})
                yield topic, replace(scene, things=(changed, *others))
    elif isinstance(scene, Crowd):
        for count in range(1, len(scenes.COUNTS) + 1):
            if count != len(scene.cells):
                yield "count", replace(scene, cells=tuple(range(count)))
        for topic in ("colour", "shape"):
            for value in _THING[topic]:
                if value != getattr(scene, topic):
                    yield topic, replace(scene, **{topic: value})
    else:
        for topic, pool in (("word", scenes.WORDS), ("colour", scenes.COLOURS)):
            for value in pool:
                if value != getattr(scene, topic):
                    yield topic, replace(scene, **{topic: value})
