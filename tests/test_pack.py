import json
import os
import subprocess
import sys

import pytest
from omegaconf import OmegaConf
from support.shards import tiny_tokenizer, write_caption_shard

from openqwen2vl import conf
from openqwen2vl.commands.pack import SCHEMA, run
from openqwen2vl.config import check
from openqwen2vl.formats.errors import UserError
from openqwen2vl.packing.reader import PackFolder


@pytest.fixture
def config(tmp_path):
    write_caption_shard(tmp_path / "ccs" / "00000.tar", 12)
    tiny_tokenizer(tmp_path / "tokenizer")
    shipped = OmegaConf.load(os.path.join(os.path.dirname(conf.__file__), "pack.yaml"))
    del shipped["defaults"]
    mine = {
        "input": str(tmp_path / "ccs"),
        "out": str(tmp_path / "packs"),
        "tokenizer": str(tmp_path / "tokenizer"),
        "context": 256,
        "grid": 4,
        "workers": 1,
    }
    return OmegaConf.merge(shipped, mine)


def test_the_figures_are_those_of_the_manifest(config, capsys):
    check(config, SCHEMA)
    figures = run(config)
    manifest = PackFolder(config.out).manifest
    assert manifest.source == "ccs"
    assert figures["documents"] == manifest.counts.documents == 12
    assert figures["fill"] == manifest.fill
    assert figures["rejects"] == {}
    json.dumps(figures)
    shown = capsys.readouterr().out
    assert f"{manifest.fill:.2%}" in shown
    assert "rejected: none" in shown


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("part", "0.9", "expected lo:hi"),
        ("grid", 40, "grid 40 makes 1600 tokens an image; the context of 256 holds none"),
        ("template", "nope", "there are open_qwen2vl_v1, qwen2_5"),
        ("tokenizer", "./nope", "no tokenizer folder ./nope"),
        ("input", "/nope", "no folder /nope"),
        ("validation", 1.5, "validation is 1.5"),
    ],
)
def test_a_users_mistake_is_one_sentence(config, key, value, message):
    config[key] = value
    with pytest.raises(UserError, match=message):
        run(config)


@pytest.mark.parametrize(("key", "value"), [("engine", "slurm"), ("packer", "magic")])
def test_a_choice_that_is_not_there_is_a_fault_of_the_config(config, key, value):
    config[key] = value
    with pytest.raises(UserError, match=f"{key} is '{value}'; there are"):
        check(config, SCHEMA)


@pytest.mark.slow
def test_the_command_line_packs_and_ends_with_json(config):
    overrides = [f"{key}={config[key]}" for key in ("input", "out", "tokenizer", "grid", "context")]
    command = [sys.executable, "-m", "openqwen2vl", "pack", *overrides, "json=true"]
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout.splitlines()[-1])["documents"] == 12
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "already holds packs; delete the folder or set overwrite=true" in again.stderr
    assert "Traceback" not in again.stderr


@pytest.mark.slow
def test_packing_starts_without_torch(config):
    code = (
        "import sys\n"
        "import openqwen2vl.packing.writer, openqwen2vl.packing.reader, openqwen2vl.engine.local\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
