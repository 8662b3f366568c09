"""What the README tells a newcomer to type is typed here."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import TINY_MODEL, environment
from support.shards import tiny_tokenizer, write_caption_shard

README = Path(__file__).parents[1] / "README.md"
MARK = "<!-- run by tests/test_readme.py -->"


def commands() -> list[list[str]]:
    """Read the commands of the marked block."""
    block = README.read_text().split(MARK)[1].split("```bash\n")[1].split("```")[0]
    return [shlex.split(line) for line in block.strip().splitlines()]


@pytest.mark.slow
def test_the_commands_of_the_readme_run_in_their_order(tmp_path: Path) -> None:
    write_caption_shard(tmp_path / "raw" / "captions" / "00000.tar", 60)
    tiny_tokenizer(tmp_path / "tokenizer")
    found = commands()
    assert [words[:2] for words in found] == [
        ["openqwen2vl", verb]
        for verb in ("curate", "pack", "pack", "verify", "inspect", "train", "train")
    ]
    for words in found:
        # Only smaller than what is printed; every word of the README is kept.
        size = TINY_MODEL[1:] if words[1] == "train" else ()
        done = subprocess.run(
            [sys.executable, "-m", "openqwen2vl", *words[1:], *size],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert "<img" in (tmp_path / "packs.html").read_text()
    for name in ("config.json", "metrics.csv", "checkpoints", "consumed.json", "run.json"):
        assert (tmp_path / "runs" / "pretrain" / name).exists()
    assert len((tmp_path / "runs/pretrain/metrics.csv").read_text().splitlines()) == 7


def test_the_readme_names_files_and_targets_that_exist() -> None:
    text = README.read_text()
    root = README.parent
    for path in re.findall(r"`((?:src|docs|data_modules|conf)/[\w./]*)`", text):
        assert (root / path).exists(), path
    makefile = (root / "Makefile").read_text()
    for target in re.findall(r"^ {4}make (\w+)", text, re.MULTILINE):
        assert f"\n{target}:" in makefile
