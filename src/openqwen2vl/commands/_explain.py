"""Says what Hydra found wrong with a command line, and the key that was probably meant."""

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from inspect import signature
from typing import Any

import yaml

from openqwen2vl.commands._help import included
from openqwen2vl.config import find_target, nearest

_SPECIAL = ("defaults", "_target_", "_partial_", "_convert_")


def explain(error: Exception, verb: str) -> str:
    """Say what Hydra says, with the nearest key when one was misspelt.

    Args:
        error: of Hydra or OmegaConf.
        verb: the command whose line it was.
    """
    causes = [str(error)]
    cause: BaseException | None = error
    while cause := cause.__cause__ if cause else None:
        causes.append(str(cause))
    text = "\n".join(dict.fromkeys(causes))
    lines = [line for line in text.splitlines() if line.strip()]
    if misspelt := re.search(r"Could not override '([^']+)'", text):
        return lines[0].rstrip(".") + _meant(misspelt[1], verb)
    if "override_grammar" in text:
        lines.append("a value with other than letters and digits wants quotes: \"key='a >= 3'\"")
    return "\n".join(lines)


def key_as_flag(words: Sequence[str]) -> str | None:
    """Tell that a key was written as a flag is (`--input DIR`), or give None.

    Args:
        words: of the command line, after the verb.
    """
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name not in _FLAGS:
            return f"{word} is no flag; keys are written {name}={value or 'VALUE'}"
    return None


# Hydra's own, without the dashes.
_FLAGS = frozenset(
    [
        "help",
        "hydra-help",
        "version",
        "cfg",
        "resolve",
        "package",
        "run",
        "multirun",
        "shell-completion",
        "config-path",
        "config-name",
        "config-dir",
        "info",
        "experimental-rerun",
    ]
)


def _meant(key: str, verb: str) -> str:
    """Hint at the key of the same place that is nearest, or at how one is added."""
    path = key.split(".")
    add = f"; to add a key that no file sets, write +{key}"
    for depth, name in enumerate(path):
        there = _names_at(path[:depth], verb)
        if name not in there:
            return nearest(name, there) or f"{add}=..."
    # Another choice of the group has it.
    return f"{add}.KEY=..." if there[path[-1]] else f"{add}=..."


def _names_at(path: Sequence[str], verb: str) -> dict[str, bool]:
    """Collect what the shipped files know at a place: name to whether it holds keys of its own."""
    names: dict[str, bool] = {}
    for node in _nodes(path, verb):
        for name, value in node.items():
            names[str(name)] = names.get(str(name), False) or isinstance(value, Mapping)
        if "_target_" in node:
            for name in signature(find_target(node["_target_"])).parameters:
                names.setdefault(name, False)
    return {name: holds for name, holds in names.items() if name not in _SPECIAL}


def _nodes(path: Sequence[str], verb: str) -> Iterator[Mapping[str, Any]]:
    conf = files("openqwen2vl.conf")
    roots = [conf.joinpath(f"{name}.yaml") for name in (verb, *included(verb))]
    trees = [yaml.safe_load(root.read_text()) for root in roots]
    if not path:
        trees.append({entry.name: {} for entry in conf.iterdir() if entry.is_dir()})
    elif (folder := conf.joinpath(path[0])).is_dir():
        choices = [entry for entry in folder.iterdir() if entry.name.endswith(".yaml")]
        trees += [{path[0]: yaml.safe_load(entry.read_text())} for entry in choices]
    for tree in trees:
        node = tree
        for name in path:
            node = node.get(name) if isinstance(node, Mapping) else None
        if isinstance(node, Mapping):
            yield node
