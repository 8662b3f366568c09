"""docs/paper.md is an index: what it names must exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_name_in_the_index_exists() -> None:
    named = re.findall(r"`([\w/]+\.(?:py|yaml))(?::(\w+))?`", (ROOT / "docs/paper.md").read_text())
    assert len(named) > 30
    for path, name in named:
        file = ROOT / path
        assert file.is_file(), path
        if name:
            defined = {
                node.name
                for node in ast.walk(ast.parse(file.read_text()))
                if isinstance(node, ast.FunctionDef | ast.ClassDef)
            }
            assert name in defined, f"{path}:{name}"
