"""Captions as the web has them: file names, stock-photo phrases, cut ends, shouting, other pictures' texts."""

import random
from collections.abc import Callable

MISMATCHED = "mismatched"
CLEAN = "clean"
MISMATCHED_SHARE = 0.25
CLEAN_SHARE = 0.15

_STOCK_BEFORE = (
    "royalty free stock photo of",
    "vector illustration",
    "premium image,",
    "download:",
)
_STOCK_AFTER = ("isolated", "hd wallpaper", "stock image", "- free clipart", "| picture id")
_SHOUTS = ("SALE!!!", "CLICK HERE", "BUY NOW!", "FREE SHIPPING", "HOT DEAL!!")
_CAMERAS = ("IMG", "DSC", "DSCN", "P", "screenshot")


def noisy_caption(clean: str, other: Callable[[], str], rng: random.Random) -> tuple[str, str]:
    """An alt-text for a picture, and the name of what is wrong with it.

    Args:
        clean: the picture's true caption.
        other: gives the true caption of another picture, for a mismatch.
        rng: decides which fault, and its details.

    Returns:
        The text, never empty, and one of ``clean``, ``mismatched``, ``file_name``, ``stock``,
        ``truncated``, ``shouting``.
    """
    fate = rng.random()
    if fate < MISMATCHED_SHARE:
        return other(), MISMATCHED
    if fate < MISMATCHED_SHARE + CLEAN_SHARE:
        return clean, CLEAN
    fault = rng.choice((file_name, stock, truncated, shouting))
    return fault(clean, rng), fault.__name__


def file_name(clean: str, rng: random.Random) -> str:
    """A file's name, which may or may not hold words of the caption."""
    ending = rng.choice(("jpg", "JPG", "jpeg", "png"))
    if rng.random() < 0.5:
        return f"{rng.choice(_CAMERAS)}_{rng.randrange(10_000):04d}.{ending}"
    words = clean.replace(",", "").rstrip(".").split()
    return f"{'-'.join(words[:6])}-{rng.randrange(1000)}.{ending}"


def stock(clean: str, rng: random.Random) -> str:
    """The caption among a picture agency's phrases."""
    return f"{rng.choice(_STOCK_BEFORE)} {clean} {rng.choice(_STOCK_AFTER)} {rng.randrange(10_000)}"


def truncated(clean: str, rng: random.Random) -> str:
    """The caption's first part and three dots."""
    return f"{clean[: rng.randint(len(clean) // 3, 2 * len(clean) // 3)].rstrip()}..."


def shouting(clean: str, rng: random.Random) -> str:
    """The caption in capitals between an advertisement's cries."""
    return f"{rng.choice(_SHOUTS)} {clean.upper()} {rng.choice(_SHOUTS)}"
