"""Prompts of a judge: one a metric, from a file of ours or of the user's."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from openqwen2vl.formats.errors import ConfigError

METRICS = (
    "image_text_matching",
    "object_detail_fulfillment",
    "caption_text_quality",
    "semantic_understanding",
)
CAPTION = "{caption}"
ANSWER_START = "answer_start"


@dataclass(frozen=True)
class Prompt:
    """What is asked for one metric.

    Attributes:
        before: text in front of the caption.
        after: text behind it.
        answer_start: text with which the answer begins, as if the judge had said it.
    """

    before: str
    after: str
    answer_start: str


def read_prompts(path: str | None, metrics: Sequence[str]) -> dict[str, Prompt]:
    """Read the prompts of some metrics.

    A prompt file is YAML or JSON: a text for each metric, in which ``{caption}`` stands once; and,
    if wanted, ``answer_start``, the text that every answer begins with. Other braces are text.

    Args:
        path: the file; ``None`` is the one of our judge.
        metrics: of ``METRICS``, each at most once.

    Raises:
        ConfigError: an unknown metric; no such file, or one that is none of this kind.
    """
    _check_metrics(metrics)
    name = path or "our prompts"
    content = _content(path)
    for key in content:
        if key not in (*METRICS, ANSWER_START):
            raise ConfigError(f"prompt file {name}: {_unknown(str(key), (*METRICS, ANSWER_START))}")
    start = content.get(ANSWER_START, "")
    if not isinstance(start, str):
        raise ConfigError(f"prompt file {name}: {ANSWER_START} is {start!r}; expected a text")
    prompts = {}
    for metric in metrics:
        if metric not in content:
            raise ConfigError(
                f"prompt file {name} has no prompt for {metric}; add one, or leave the metric away"
            )
        prompts[metric] = _prompt(content[metric], start, f"prompt file {name}: {metric}")
    return prompts


def prompts_hash(prompts: Mapping[str, Prompt]) -> str:
    """Give 16 hex digits over every word that is asked."""
    content = {metric: asdict(prompt) for metric, prompt in prompts.items()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _check_metrics(metrics: Sequence[str]) -> None:
    for metric in metrics:
        if metric not in METRICS:
            raise ConfigError(f"metrics: {_unknown(str(metric), METRICS)}")
    if not metrics or len(set(metrics)) < len(metrics):
        raise ConfigError(
            f"metrics is {list(metrics)}; give one or more of {', '.join(METRICS)}, each once"
        )


def _content(path: str | None) -> Mapping[Any, Any]:
    if path is None:
        file: Any = files(__package__).joinpath("prompts.yaml")
    else:
        file = Path(path).expanduser()
        if not file.is_file():
            raise ConfigError(f"there is no prompt file {path}; give a YAML or JSON file, or null")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        said = str(error).strip().splitlines()
        raise ConfigError(
            f"prompt file {path} is neither YAML nor JSON in UTF-8: {said[0]} {said[-1].strip()}"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"prompt file {path} holds {type(content).__name__}; expected a text for each metric"
        )
    return content


def _prompt(text: Any, start: str, place: str) -> Prompt:
    if not isinstance(text, str):
        raise ConfigError(f"{place} is {text!r}; expected a text")
    if text.count(CAPTION) != 1:
        raise ConfigError(
            f"{place} holds {CAPTION} {text.count(CAPTION)} times; expected once, where the "
            "caption goes"
        )
    before, _, after = text.partition(CAPTION)
    return Prompt(before, after, start)


def _unknown(name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
    return f"{name} is unknown; {hint}"
