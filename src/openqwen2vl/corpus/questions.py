"""Questions about a picture whose answers cannot be guessed without seeing it.

Every question's answer and its wrong options are drawn evenly from one pool, so that neither an
option's place, nor its length, nor how often it is right elsewhere, tells anything.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from openqwen2vl.corpus import scenes
from openqwen2vl.corpus.handwriting import Number, other_numbers
from openqwen2vl.corpus.scenes import Crowd, Scene, Sign, Thing, Things

NUM_OPTIONS = 4
YES, NO = "yes", "no"


@dataclass(frozen=True)
class Question:
    """A question with its options in the order they are shown; one of them is the answer."""

    topic: str
    text: str
    options: tuple[str, ...]
    answer: str

    @property
    def right(self) -> int:
        """The answer's index among the options."""
        return self.options.index(self.answer)


def choice_questions(picture: Scene | Number, rng: random.Random) -> list[Question]:
    """Every multiple-choice question of four options that the picture answers, in random order."""
    if isinstance(picture, Things):
        found = [question for thing in picture.things for question in _about(thing, rng)]
    elif isinstance(picture, Crowd):
        found = _about_crowd(picture, rng)
    elif isinstance(picture, Sign):
        found = [
            _choice("word", "What word is written?", picture.word, scenes.WORDS, rng),
            _choice("colour", "What colour is the word?", picture.colour, scenes.COLOURS, rng),
        ]
    else:
        found = _about_number(picture, rng)
    rng.shuffle(found)
    return found


def yes_no_question(picture: Scene | Number, rng: random.Random) -> Question:
    """One yes/no question; yes and no are equally likely, also for one given wording."""
    answer = rng.choice((YES, NO))
    if isinstance(picture, Things):
        topic, text = _ask_thing(picture, answer == YES, rng)
    elif isinstance(picture, Crowd):
        count = picture.count if answer == YES else _other(picture.count, scenes.COUNTS, rng)
        named = scenes.plural(picture.shape, scenes.COUNTS.index(count) + 1)
        topic, text = "count", f"Can you count {count} {named}?"
    elif isinstance(picture, Sign):
        word = picture.word if answer == YES else _other(picture.word, scenes.WORDS, rng)
        topic, text = "word", f"Is the word {word} written?"
    else:
        value = picture.text if answer == YES else other_numbers(rng, picture.text, 1)[0]
        topic, text = "number", f"Is this the number {value}?"
    return Question(topic, text, (YES, NO), answer)


def _about(thing: Thing, rng: random.Random) -> list[Question]:
    """Each property of a thing, asked for by one of the two others."""
    colour, shape, place = thing.colour, thing.shape, thing.place
    by_colour, by_shape, by_place = f"{colour} one", shape, f"one at the {place}"
    return [
        _choice(
            "colour",
            f"What colour is the {rng.choice((by_shape, by_place))}?",
            colour,
            scenes.COLOURS,
            rng,
        ),
        _choice(
            "shape",
            f"What shape is the {rng.choice((by_colour, by_place))}?",
            shape,
            scenes.SHAPES,
            rng,
        ),
        _choice(
            "place",
            f"Where is the {rng.choice((by_colour, by_shape))}?",
            place,
            scenes.PLACES,
            rng,
        ),
        _what_is_at(thing, rng),
    ]


def _what_is_at(thing: Thing, rng: random.Random) -> Question:
    """All options differ in colour and in shape, as the things of one picture do."""
    colours = rng.sample([c for c in scenes.COLOURS if c != thing.colour], NUM_OPTIONS - 1)
    shapes = rng.sample([s for s in scenes.SHAPES if s != thing.shape], NUM_OPTIONS - 1)
    others = [Thing(*pair, thing.place).name for pair in zip(colours, shapes, strict=True)]
    return _shuffled("thing", f"What is at the {thing.place}?", thing.name, others, rng)


def _about_crowd(picture: Crowd, rng: random.Random) -> list[Question]:
    shapes = scenes.plural(picture.shape, 2)
    many = [scenes.plural(shape, 2) for shape in scenes.SHAPES]
    return [
        _choice("count", f"How many {shapes} are there?", picture.count, scenes.COUNTS, rng),
        _choice("colour", f"What colour are the {shapes}?", picture.colour, scenes.COLOURS, rng),
        _choice("shape", "What shapes are these?", shapes, many, rng),
    ]


def _about_number(picture: Number, rng: random.Random) -> list[Question]:
    others = other_numbers(rng, picture.text, NUM_OPTIONS - 1)
    digits = [str(digit) for digit in range(10)]
    return [
        _shuffled("number", "What number is written?", picture.text, others, rng),
        _choice("digit", "What is the last digit?", picture.text[-1], digits, rng),
    ]


def _ask_thing(picture: Things, true: bool, rng: random.Random) -> tuple[str, str]:
    thing = rng.choice(picture.things)
    if rng.random() < 0.5:
        colour = thing.colour if true else _other(thing.colour, scenes.COLOURS, rng)
        return "colour", f"Is the one at the {thing.place} {colour}?"
    place = thing.place if true else _other(thing.place, scenes.PLACES, rng)
    return "place", f"Is the {thing.colour} one at the {place}?"


def _choice(
    topic: str, text: str, answer: str, pool: Sequence[str], rng: random.Random
) -> Question:
    wrong = rng.sample([other for other in pool if other != answer], NUM_OPTIONS - 1)
    return _shuffled(topic, text, answer, wrong, rng)


def _shuffled(
    topic: str, text: str, answer: str, wrong: Sequence[str], rng: random.Random
) -> Question:
    options = [answer, *wrong]
    rng.shuffle(options)
    return Question(topic, text, tuple(options), answer)


def _other(value: str, pool: Sequence[str], rng: random.Random) -> str:
    return rng.choice([other for other in pool if other != value])
