"""Commands of the README and of docs/ are sound: every key exists and every value fits."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
from support.compose import composed

from openqwen2vl.__main__ import verbs
from openqwen2vl.config import check
from openqwen2vl.curation.selection.expression import parse_expression

ROOT = Path(__file__).parents[1]
_COMMAND = re.compile(rf"^ *openqwen2vl ({'|'.join(verbs())}) (.*)$", re.MULTILINE)


def commands() -> list[tuple[str, tuple[str, ...]]]:
    """Read the commands of all pages, `$name` of a shell's loop replaced."""
    found = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = re.sub(r" *\\\n *", " ", page.read_text())
        for verb, rest in _COMMAND.findall(text):
            rest = rest.replace("$name", "ccs").replace("$source", "ccs")
            words = shlex.split(rest, comments=True)
            if "..." not in words:  # else it is only spoken of
                found.append((verb, tuple(word for word in words if word != "-m")))
    return found


@pytest.mark.parametrize(("verb", "words"), commands(), ids=lambda part: " ".join(part)[:60])
def test_a_documented_command_is_sound(verb: str, words: tuple[str, ...]) -> None:
    if any("=" in word and "," in word.split("=")[1] and word[0] == "m" for word in words):
        return  # a sweep: what it is composed of is tested by tests/test_conf.py
    command = import_module(f"openqwen2vl.commands.{verb}")
    config = composed(*getattr(command, "reword", tuple)(words), name=verb)
    check(config, command.SCHEMA)
    for rule in config.selection.sources.values() if verb == "curate" else ():
        parse_expression(rule.keep)


def test_there_are_commands_to_look_at() -> None:
    found = [verb for verb, _ in commands()]
    assert found.count("curate") >= 6
    assert found.count("pack") >= 6
