"""The language of a caption, by py3langid: a small model that comes with the package."""

from functools import lru_cache
from importlib.metadata import version

from py3langid.langid import MODEL_FILE, LanguageIdentifier

_LONGEST = 1000  # characters that are looked at; more change the verdict seldom and cost time


@lru_cache(maxsize=1)
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def language_of(caption: str) -> tuple[str, float]:
    """Give the likeliest language of a caption, as an ISO 639-1 code, and its probability.

    The probability has four decimals: more would differ between processors.
    """
    language, probability = _identifier().classify(caption[:_LONGEST])
    return language, round(probability, 4)


def language_version() -> str:
    """Name the model that is asked."""
    return f"py3langid {version('py3langid')}"
