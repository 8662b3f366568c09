"""The JSON of one sample, from whoever wrote it."""

import json
import math
from typing import Any

from openqwen2vl.formats.rejects import Unusable


def parse_sample(raw: bytes, name: str) -> dict[str, Any]:
    """Parse an object that holds nothing but text that can be written again.

    Args:
        raw: the bytes.
        name: what to call them when they cannot be used.

    Raises:
        Unusable: ``bad_json``; half surrogate pairs, which JSON can escape and UTF-8 cannot hold,
            count as such.
    """
    try:
        fields = json.loads(raw)
        if b"\\u" in raw:
            json.dumps(fields, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise Unusable("bad_json", f"{name}: {str(error).splitlines()[0]}") from error
    if not isinstance(fields, dict):
        raise Unusable("bad_json", f"{name} holds {type(fields).__name__}, not an object")
    return fields


def sample_uid(fields: dict[str, Any], default: str) -> str:
    """Give a sample's own ``uid``, or the default when it has none."""
    given = fields.get("uid")
    if isinstance(given, int) and not isinstance(given, bool):
        return str(given)
    return given if isinstance(given, str) and given else default


def sample_scores(fields: dict[str, Any]) -> tuple[tuple[str, float], ...]:
    """Give the numbers that curation left in ``scores``, by name; anything else there is no score."""
    given = fields.get("scores")
    found = given.items() if isinstance(given, dict) else ()
    return tuple(
        (name, value)
        for name, value in sorted(found)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    )
