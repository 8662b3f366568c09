"""Numbers written by real hands: scikit-learn's 1,797 scanned digits, set side by side."""

import random
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from openqwen2vl.corpus.render import LARGEST_SIDE, SMALLEST_SIDE
from openqwen2vl.corpus.split import is_held_out
from openqwen2vl.formats.errors import UserError

MOST_DIGITS = 2
# The scans stand in the order they were collected, so the last fifth also holds other writers.
HELD_OUT_SCANS_SHARE = 0.2


@dataclass(frozen=True, eq=False)
class Scans:
    """Scanned digits: ``ink`` uint8 (N, 8, 8), 0 is paper and 255 the darkest; ``digits`` N values 0..9."""

    ink: NDArray[np.uint8]
    digits: tuple[int, ...]

    def of(self, digit: int, held_out: bool) -> list[int]:
        """Indices of one digit's scans on one side of the split."""
        return self._groups[digit, held_out]

    @cached_property
    def _groups(self) -> dict[tuple[int, bool], list[int]]:
        first_held_out = round(len(self.digits) * (1 - HELD_OUT_SCANS_SHARE))
        groups: dict[tuple[int, bool], list[int]] = defaultdict(list)
        for index, digit in enumerate(self.digits):
            groups[digit, index >= first_held_out].append(index)
        return groups


@dataclass(frozen=True)
class Number:
    """A handwritten number: its digits as text, and which scan shows each of them."""

    text: str
    scans: tuple[int, ...]

    @property
    def description(self) -> str:
        """What is on the picture: the number and the scans it is made of."""
        return f"the number {self.text} from scans {list(self.scans)}"


def load_scans() -> Scans:
    """All 1,797 scans of scikit-learn's digits.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(
            "the handwriting needs scikit-learn, which is not installed; "
            "run: pip install 'openqwen2vl[demo]'"
        ) from error
    digits = load_digits()
    ink = (digits.images * (255 / 16)).round().astype(np.uint8)
    return Scans(ink, tuple(int(digit) for digit in digits.target))


def draw_number(rng: random.Random, scans: Scans, held_out: bool) -> Number:
    """A random number of one or two digits from the asked side of the split.

    Held-out numbers are made of held-out scans. Those of several digits are also values
    that never occur in training; there are too few one-digit values for that.
    """
    text = _random_value(rng, rng.randint(1, MOST_DIGITS), held_out)
    return Number(text, tuple(rng.choice(scans.of(int(digit), held_out)) for digit in text))


def other_numbers(rng: random.Random, text: str, wanted: int) -> list[str]:
    """So many other values of as many digits and from the same side of the split, evenly drawn.

    The same side: else the one option that never occurs in training would be the answer.
    """
    found = {text}
    while len(found) <= wanted:
        found.add(_random_value(rng, len(text), _is_held_out_value(text)))
    return rng.sample(sorted(found - {text}), wanted)


def _random_value(rng: random.Random, length: int, held_out: bool) -> str:
    lowest = 10 ** (length - 1) if length > 1 else 0
    while True:
        text = str(rng.randrange(lowest, 10**length))
        if length == 1 or _is_held_out_value(text) is held_out:
            return text


def _is_held_out_value(text: str) -> bool:
    return is_held_out(f"the number {text}")


def caption(number: Number, rng: random.Random) -> str:
    """A clean caption that names the number."""
    return rng.choice(
        ("the handwritten number {}", "{} written by hand", "a picture of the number {}")
    ).format(number.text)


def render(number: Number, scans: Scans, rng: random.Random) -> Image.Image:
    """An RGB picture, dark ink on light paper; sides 84 to 120 pixels, places and sizes vary."""
    width, height = (rng.randint(SMALLEST_SIDE, LARGEST_SIDE) for _ in range(2))
    cell = width // MOST_DIGITS
    mask = Image.new("L", (width, height))
    slack = width - cell * len(number.scans)
    left = slack // 2 + round(rng.uniform(-0.4, 0.4) * slack)
    top = height // 2 - cell // 2 + round(rng.uniform(-0.25, 0.25) * (height - cell))
    for place, index in enumerate(number.scans):
        side = round(cell * rng.uniform(0.9, 1.1))
        scan = Image.fromarray(scans.ink[index]).resize((side, side), Image.Resampling.BICUBIC)
        lift = rng.randint(-cell // 8, cell // 8)
        mask.paste(scan, (left + place * cell, top + lift))
    paper = Image.new("RGB", (width, height), _shade(rng, 215, 255))
    paper.paste(Image.new("RGB", (width, height), _shade(rng, 10, 90)), mask=mask)
    return paper


def _shade(rng: random.Random, low: int, high: int) -> tuple[int, int, int]:
    red, green, blue = (rng.randint(low, high) for _ in range(3))
    return red, green, blue
