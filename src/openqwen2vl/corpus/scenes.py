"""Scenes of coloured shapes, counted shapes and written words: what is on a picture, and its caption."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from openqwen2vl.corpus.split import is_held_out

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("circle", "square", "triangle", "star")
PLACES = ("top left", "top right", "bottom left", "bottom right")
HEIGHTS = ("top", "middle", "bottom")
COUNTS = ("one", "two", "three", "four")
WORDS = ("cat", "dog", "sun", "tree", "fish", "bird", "moon", "milk")
BACKGROUNDS = ("white", "grey", "cream")


@dataclass(frozen=True)
class Thing:
    """One coloured shape in one quarter of the picture."""

    colour: str
    shape: str
    place: str

    @property
    def name(self) -> str:
        """The thing with its article: ``an orange star``."""
        return f"{article(self.colour)} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Things:
    """One to three things in reading order; colours, shapes and places all differ: each names one."""

    things: tuple[Thing, ...]
    background: str

    @property
    def description(self) -> str:
        """Everything that is on the picture, in one canonical line."""
        things = sorted(f"{thing.name} at the {thing.place}" for thing in self.things)
        return f"{'; '.join(things)}; {self.background} background"


@dataclass(frozen=True)
class Crowd:
    """One to four equal shapes, each in its own cell (0..8, by rows) of a 3 x 3 board."""

    colour: str
    shape: str
    cells: tuple[int, ...]
    background: str

    @property
    def count(self) -> str:
        """How many there are, as a word."""
        return COUNTS[len(self.cells) - 1]

    @property
    def description(self) -> str:
        """Everything that is on the picture, in one canonical line."""
        return (
            f"{self.count} {self.colour} {plural(self.shape, len(self.cells))} in cells "
            f"{sorted(self.cells)}; {self.background} background"
        )


@dataclass(frozen=True)
class Sign:
    """One word, written in capitals of one colour at one height."""

    word: str
    colour: str
    height: str
    background: str

    @property
    def description(self) -> str:
        """Everything that is on the picture, in one canonical line."""
        return f"{self.word} in {self.colour} at the {self.height}; {self.background} background"


Scene = Things | Crowd | Sign


def article(word: str) -> str:
    """``an`` before a vowel, else ``a``."""
    return "an" if word[0] in "aeiou" else "a"


def plural(shape: str, count: int) -> str:
    """The shape's name for so many of them: ``cross``, ``crosses``."""
    if count == 1:
        return shape
    return shape + ("es" if shape.endswith("s") else "s")


def draw_scene(rng: random.Random, held_out: bool) -> Scene:
    """A random scene whose description lies on the asked side of the split.

    Six scenes of nine are things, two are crowds and one is a sign.
    """
    while True:
        kind = rng.choices((_draw_things, _draw_crowd, _draw_sign), weights=(6, 2, 1))[0]
        scene: Scene = kind(rng)
        if is_held_out(scene.description) is held_out:
            return scene


def caption(scene: Scene, rng: random.Random) -> str:
    """A clean caption: true, and complete but for the background."""
    if isinstance(scene, Things):
        text = _join([f"{thing.name} at the {thing.place}" for thing in scene.things])
    elif isinstance(scene, Crowd):
        text = f"{scene.count} {scene.colour} {plural(scene.shape, len(scene.cells))}"
    else:
        text = f"the word {scene.word} in {scene.colour} at the {scene.height}"
    return rng.choice(("{}", "a picture of {}", "{}.")).format(text)


def _join(phrases: Sequence[str]) -> str:
    if len(phrases) == 1:
        return phrases[0]
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _draw_things(rng: random.Random) -> Things:
    number = rng.choices((1, 2, 3), weights=(7, 2, 1))[0]
    colours, shapes = rng.sample(COLOURS, number), rng.sample(SHAPES, number)
    places = sorted(rng.sample(PLACES, number), key=PLACES.index)
    things = tuple(Thing(*parts) for parts in zip(colours, shapes, places, strict=True))
    return Things(things, rng.choice(BACKGROUNDS))


def _draw_crowd(rng: random.Random) -> Crowd:
    cells = tuple(sorted(rng.sample(range(9), rng.randint(1, len(COUNTS)))))
    return Crowd(rng.choice(COLOURS), rng.choice(SHAPES), cells, rng.choice(BACKGROUNDS))


def _draw_sign(rng: random.Random) -> Sign:
    return Sign(*(rng.choice(pool) for pool in (WORDS, COLOURS, HEIGHTS, BACKGROUNDS)))
