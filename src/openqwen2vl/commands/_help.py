"""What `openqwen2vl <verb> --help` says: the verb's own config with its comments, and its groups."""

import ast
from collections.abc import Iterator
from importlib.resources import files
from itertools import dropwhile

import yaml
from rich.console import Console

# Of how a run's folder is named and Hydra set up; nothing that a command takes.
_SETTINGS = ("hydra_quiet", "hydra_train")


def show_help(verb: str) -> None:
    """Print a verb's purpose, its usage, the groups it is composed of, and its keys with defaults.

    Args:
        verb: name of a module in `openqwen2vl.commands`.
    """
    console = Console()
    for line in _lines(verb):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def purpose(verb: str) -> str:
    """Give a command's docstring, read without importing what the command takes to run."""
    source = files("openqwen2vl.commands").joinpath(f"{verb}.py").read_text()
    return ast.get_docstring(ast.parse(source)) or ""


def _lines(verb: str) -> Iterator[str]:
    usage, keys = _parts(verb)
    yield purpose(verb)
    yield "\n".join(["", *usage])
    if chosen := list(_groups(verb)):
        yield "\nGroups (NAME=CHOICE; NAME.KEY=VALUE sets one of its keys):"
        yield from chosen
    yield "\nKeys (KEY=VALUE) and their defaults; ??? must be given:"
    yield "\n".join(keys)
    for below in included(verb):
        yield f"\nAnd those of {below}:"
        yield "\n".join(_parts(below)[1])
    flags = "--cfg job prints the whole composed config"
    yield f"\n{flags}; -m runs every choice of values with commas (KEY=A,B)."


def _parts(name: str) -> tuple[list[str], list[str]]:
    """Give a config file's lines: the comments at its top, and its keys without the list of parts."""
    lines = _text(name).splitlines()
    head = [line[2:] for line in lines[: _first_key(lines)]]
    rest = dropwhile(lambda line: not line.startswith("defaults:"), lines)
    next(rest)
    body = dropwhile(lambda line: line.startswith((" ", "#")) or not line, rest)
    return head, list(body)


def _first_key(lines: list[str]) -> int:
    return next(n for n, line in enumerate(lines) if line and not line.startswith("#"))


def _groups(verb: str) -> Iterator[str]:
    """Say of each group what it is by default and which choices ship."""
    for part in _defaults(verb):
        if not isinstance(part, dict):
            continue
        ((name, chosen),) = part.items()
        if name.startswith("override "):
            continue
        folder = files("openqwen2vl.conf").joinpath(name)
        found = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        there = sorted(one.removesuffix(".yaml") for one in found if one.endswith(".yaml"))
        default = "must be chosen" if chosen == "???" else f"default {_said(chosen)}"
        yield f"  {name} ({default}): {', '.join(there)}"
    for below in included(verb):
        yield from _groups(below)


def _said(chosen: object) -> str:
    if chosen is None:
        return "none"
    return ", ".join(map(str, chosen)) if isinstance(chosen, list) else str(chosen)


def included(verb: str) -> list[str]:
    """Name the commands whose config this one is built on."""
    parts = [part for part in _defaults(verb) if isinstance(part, str)]
    return [part for part in parts if part not in ("_self_", *_SETTINGS)]


def _defaults(verb: str) -> list[object]:
    found = yaml.safe_load(_text(verb)).get("defaults", [])
    assert isinstance(found, list)
    return found


def _text(name: str) -> str:
    return files("openqwen2vl.conf").joinpath(f"{name}.yaml").read_text()
