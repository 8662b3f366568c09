"""Pictures of scenes: drawn with PIL at twice the size, then halved for smooth edges."""

import io
import math
import random
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from openqwen2vl.corpus.scenes import HEIGHTS, PLACES, Crowd, Scene, Sign, Things

Colour = tuple[int, int, int]
Point = tuple[float, float]

INKS: dict[str, Colour] = {
    "red": (214, 34, 40),
    "green": (40, 158, 52),
    "blue": (34, 92, 214),
    "yellow": (242, 208, 20),
    "purple": (146, 62, 184),
    "orange": (250, 128, 18),
}
PAPERS: dict[str, Colour] = {
    "white": (252, 252, 252),
    "grey": (206, 210, 214),
    "cream": (250, 238, 214),
    "dark": (42, 46, 56),
}
SMALLEST_SIDE, LARGEST_SIDE = 84, 120
OVERSAMPLING = 2
JPEG_QUALITY = 90


def render(scene: Scene, rng: random.Random) -> Image.Image:
    """An RGB picture of a scene; its sides (84 to 120 pixels), sizes and offsets vary with ``rng``."""
    width, height = (rng.randint(SMALLEST_SIDE, LARGEST_SIDE) * OVERSAMPLING for _ in range(2))
    picture = Image.new("RGB", (width, height), _vary(PAPERS[scene.background], rng))
    draw = ImageDraw.Draw(picture)
    if isinstance(scene, Things):
        _draw_things(draw, scene, (width, height), rng)
    elif isinstance(scene, Crowd):
        _draw_crowd(draw, scene, (width, height), rng)
    else:
        _draw_sign(draw, scene, (width, height), rng)
    return picture.reduce(OVERSAMPLING)


def jpeg(picture: Image.Image) -> bytes:
    """The picture as JPEG; the same picture always gives the same bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _draw_things(
    draw: ImageDraw.ImageDraw, scene: Things, size: tuple[int, int], rng: random.Random
) -> None:
    cell = (size[0] / 2, size[1] / 2)
    for thing in scene.things:
        row, column = divmod(PLACES.index(thing.place), 2)
        _draw_in_cell(draw, thing.shape, thing.colour, (column, row), cell, rng)


def _draw_crowd(
    draw: ImageDraw.ImageDraw, scene: Crowd, size: tuple[int, int], rng: random.Random
) -> None:
    cell = (size[0] / 3, size[1] / 3)
    for number in scene.cells:
        row, column = divmod(number, 3)
        _draw_in_cell(draw, scene.shape, scene.colour, (column, row), cell, rng)


def _draw_in_cell(
    draw: ImageDraw.ImageDraw,
    shape: str,
    colour: str,
    at: tuple[int, int],
    cell: tuple[float, float],
    rng: random.Random,
) -> None:
    radius = min(cell) * rng.uniform(0.38, 0.46)
    x, y = (
        (at[axis] + 0.5) * cell[axis] + rng.uniform(-0.5, 0.5) * (cell[axis] / 2 - radius)
        for axis in range(2)
    )
    ink = _vary(INKS[colour], rng)
    if shape == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)
    else:
        draw.polygon([(x + radius * u, y + radius * v) for u, v in _outline(shape)], fill=ink)


@lru_cache
def _outline(shape: str) -> tuple[Point, ...]:
    """Corners of a shape that fits the unit circle."""
    if shape == "square":
        side = 0.85
        return ((-side, -side), (side, -side), (side, side), (-side, side))
    if shape == "triangle":
        return tuple(_on_circle(turn / 3) for turn in range(3))
    if shape == "star":
        return tuple(_on_circle(turn / 10, 0.42 if turn % 2 else 1.0) for turn in range(10))
    # A cross is its upper arm, turned four times by a quarter: (u, v) goes to (-v, u).
    arm, outline = 0.32, list[Point]()
    corners: tuple[Point, ...] = ((-arm, -1.0), (arm, -1.0), (arm, -arm))
    for _ in range(4):
        outline += corners
        corners = tuple((-v, u) for u, v in corners)
    return tuple(outline)


def _on_circle(turn: float, radius: float = 1.0) -> Point:
    angle = 2 * math.pi * turn - math.pi / 2
    return radius * math.cos(angle), radius * math.sin(angle)


def _draw_sign(
    draw: ImageDraw.ImageDraw, scene: Sign, size: tuple[int, int], rng: random.Random
) -> None:
    font = _font(round(size[0] * rng.uniform(0.29, 0.32)))
    text = scene.word.upper()
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    band = size[1] / len(HEIGHTS)
    x = (size[0] - (right - left)) * rng.uniform(0.3, 0.7)
    y = (HEIGHTS.index(scene.height) + rng.uniform(0.35, 0.65)) * band - (bottom - top) / 2
    draw.text(
        (x - left, y - top), text, font=font, fill=_vary(INKS[scene.colour], rng), stroke_width=1
    )


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _vary(colour: Colour, rng: random.Random) -> Colour:
    red, green, blue = (min(255, max(0, channel + rng.randint(-12, 12))) for channel in colour)
    return red, green, blue
