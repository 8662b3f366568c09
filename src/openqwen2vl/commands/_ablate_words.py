"""Words of an ablation's command line, and what they name: mixtures, seeds, lists of keys."""

import re
from collections.abc import Sequence
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override
from hydra.errors import HydraException
from omegaconf import ListConfig

from openqwen2vl.config import nearest
from openqwen2vl.formats.errors import ConfigError

_SWEEP = ("-m", "--multirun")
_LISTS = ("pretrain", "sft", "evaluate")
# What `glob(*)` leaves out: it has no sources.
_EMPTY = "empty"


def reword(words: Sequence[str]) -> list[str]:
    """Give the words of an ablation as Hydra takes them; what is so already stays.

    ``mixture=A,B`` or a glob would choose files of the config group ``mixture``, one a job of a
    sweep; it becomes ``mixture={names:'A,B'}``, a text. ``benchmarks=a,b`` becomes a list; the
    items of ``pretrain=[stage=pretrain,...]`` are quoted, since they have ``=`` in them. ``-m``
    is understood: an ablation is always a multirun.
    """
    if "only=job" in words:
        return list(words)
    return [_reworded(word) for word in words if word not in _SWEEP]


def _reworded(word: str) -> str:
    key, given, value = word.partition("=")
    if key == "mixture" and not value.startswith("{"):
        plain = value.startswith(("[", "'", '"')) or value == "null"
        return f"mixture={{names:{value if plain else _quoted(value)}}}"
    if not given or value[:1] in ("'", '"'):
        return word
    if key == "benchmarks" and "," in value and not value.startswith("["):
        return f"benchmarks=[{value}]"
    if key in _LISTS and value.startswith("[") and value.endswith("]"):
        items = [item if item[0] in "'\"" else _quoted(item) for item in split_items(value[1:-1])]
        return f"{key}=[{','.join(items)}]"
    return word


def _quoted(text: str) -> str:
    # Backslashes count only before a quote: those of the text are doubled, one guards the quote.
    return "'" + re.sub(r"(\\+)$", r"\1\1", re.sub(r"(\\*)'", r"\1\1\\'", text)) + "'"


def split_items(text: str) -> list[str]:
    """Cut a text at the commas that stand in no bracket and in no quotes; empty items go."""
    items, depth, quote, before = [""], 0, "", ""
    for letter in text:
        if before == "\\":
            # A guarded letter means itself, and guards none.
            items[-1] += letter
            before = ""
            continue
        before = letter
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "[({":
            depth += 1
        elif letter in "])}":
            depth -= 1
        if letter == "," and not depth and not quote:
            items.append("")
        else:
            items[-1] += letter
    return [item.strip() for item in items if item.strip()]


def mixtures_of(given: Any) -> list[str]:
    """Give the mixtures that ``mixture=`` names, each once, in order.

    Args:
        given: a list of names, or what Hydra takes for a sweep: names parted by commas, a glob.

    Raises:
        ConfigError: none is named, there is none of such a name, or it cannot be read.
    """
    known = _known_mixtures()
    if isinstance(given, ListConfig):
        names = [str(name) for name in given]
    else:
        value = _parsed(f"mixture={given}").value()
        if isinstance(value, Glob):
            names = value.filter([name for name in known if name != _EMPTY])
        elif isinstance(value, ChoiceSweep):
            names = [str(getattr(one, "text", one)) for one in value.list]
        else:
            names = [str(value)]
    if not names:
        raise ConfigError(f"mixture={given} names none; there are {', '.join(known)}")
    unknown = [name for name in dict.fromkeys(names) if name not in known]
    if unknown:
        told = ", ".join(f"{name!r}{nearest(name, known)}" for name in unknown)
        raise ConfigError(f"mixture names {told}; there are {', '.join(known)}")
    return list(dict.fromkeys(names))


def _known_mixtures() -> list[str]:
    loader = GlobalHydra.instance().config_loader()
    return sorted(loader.get_group_options("mixture", ObjectType.CONFIG))


def _parsed(word: str) -> Override:
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException as error:
        raise ConfigError(f"{word} cannot be read: {str(error).splitlines()[0]}") from error


def seeds_of(given: Any) -> list[int]:
    """Give the seeds: N means 0 to N-1, a list those in it.

    Raises:
        ConfigError: no seed, one twice, or no whole numbers.
    """
    seeds = list(given) if isinstance(given, ListConfig) else given
    if type(seeds) is int:
        seeds = list(range(seeds))
    whole = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds is {given}; expected a number above 0 or a list of seeds, [3,7]")
    return [int(seed) for seed in seeds]


def names_of(given: Any) -> list[str]:
    """Give the names of ``NAME``, ``NAME,NAME`` or a list, each once."""
    names = given if isinstance(given, ListConfig) else str(given).split(",")
    return list(dict.fromkeys(str(name).strip() for name in names))


def stage_words(given: Any, key: str, stage: str | None) -> list[str]:
    """Give the overrides of a stage.

    Args:
        given: a list of overrides, or the name of an experiment.
        key: under which they were given, for messages.
        stage: the stage of `train`, named first where they do not name it.

    Raises:
        ConfigError: an item that is no override, or a text where none can be.
    """
    if isinstance(given, ListConfig):
        words = [str(word) for word in given]
    elif stage is not None and isinstance(given, str):
        words = [f"experiment={given}"]
    else:
        raise ConfigError(f"{key} is {given!r}; expected a list, [KEY=VALUE,...]")
    plain = [word for word in words if "=" not in word and not word.startswith("~")]
    if plain:
        raise ConfigError(f"{key} holds {plain[0]!r}; expected KEY=VALUE")
    named = any(word.startswith("stage=") for word in words)
    return words if stage is None or named else [f"stage={stage}", *words]
