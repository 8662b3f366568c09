import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from rich.progress import TimeRemainingColumn
from support.runs import assert_one_message
from support.shards import tiny_tokenizer, write_caption_shard

from openqwen2vl import conf
from openqwen2vl.commands._pack_progress import Figures, make_bar, with_progress
from openqwen2vl.commands.pack import SCHEMA, run
from openqwen2vl.config import check
from openqwen2vl.engine.local import map_inline
from openqwen2vl.formats.errors import UserError
from openqwen2vl.packing.finished import WrittenShard
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
    assert re.search(r"rejects +none", shown)


def test_every_document_read_is_in_one_of_the_figures(config, tmp_path, capsys):
    write_caption_shard(tmp_path / "ccs" / "00001.tar", 188, seed=1)
    config.part, config.validation = "0.0:0.7", 0.1
    config.context = 40  # too short for some
    figures = run(config)
    held_out = figures["validation"]
    rejects = sum(figures["rejects"].values())
    parts = (figures["documents"], rejects, figures["outside_part"])
    assert min(*parts, held_out["documents"]) > 0
    assert figures["documents_read"] == 200
    assert sum(parts) + held_out["documents"] + held_out["rejects"] == 200
    assert re.search(rf"validation +{held_out['documents']} documents", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("part", "0.9", "expected lo:hi"),
        ("grid", 40, "grid 40 makes 1600 tokens an image; the context of 256 holds none"),
        ("template", "nope", "there are open_qwen2vl_v1, open_qwen2vl_v2, qwen2_5"),
        ("tokenizer", "./nope", "no tokenizer folder ./nope"),
        ("input", "/nope", "no folder /nope"),
        ("validation", 1.5, "validation is 1.5"),
    ],
)
def test_a_users_mistake_is_one_sentence(config, key, value, message):
    config[key] = value
    with pytest.raises(UserError, match=message):
        run(config)


def test_a_wrong_input_is_told_before_a_wrong_tokenizer(config):
    config.input, config.tokenizer = "/nope", "./nope"
    with pytest.raises(UserError, match="no folder /nope"):
        run(config)


def test_a_hub_that_is_out_of_reach_is_asked_once_and_told_in_one_message(config, tmp_path):
    away = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    words = [f"{key}={config[key]}" for key in ("input", "out")]
    done = subprocess.run(
        [sys.executable, "-m", "openqwen2vl", "pack", *words, "tokenizer=tokenizer"],
        env=os.environ | away,
        capture_output=True,
        text=True,
        timeout=20,  # six requests, each a while after the last, take 30 s
    )
    assert_one_message((done.returncode, done.stdout, done.stderr), "no tokenizer 'tokenizer'")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("key", "value"), [("engine", "slurm"), ("packer", "magic"), ("overlong", "cut")]
)
def test_a_choice_that_is_not_there_is_a_fault_of_the_config(config, key, value):
    config[key] = value
    with pytest.raises(UserError, match=f"{key} is '{value}'; there are"):
        check(config, SCHEMA)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("min_images", 10, "min_images is 10 and max_images 9"),
        ("trailing_images", "cut", "trailing_images is 'cut'"),
        ("min_image", 1, "min_image: interleaved has no such key; did you mean 'min_images'?"),
    ],
)
def test_a_rule_for_pages_that_cannot_be_is_one_sentence(config, key, value, message):
    config.interleaved[key] = value
    with pytest.raises(UserError, match=re.escape(message)):
        check(config, SCHEMA)


def test_the_rules_of_the_config_reach_the_manifest(config):
    config.interleaved.max_images, config.overlong = 3, "drop_last_turns"
    config.index = f"{config.out}/../lengths"
    run(config)
    manifest = PackFolder(config.out).manifest
    assert (manifest.interleaved.max_images, manifest.overlong) == (3, "drop_last_turns")
    assert list(Path(config.index).glob("*/*.parquet"))


def test_the_bar_says_documents_a_second_fill_and_the_time_left_on_stderr(config, capsys):
    run(config)
    seen, bar = [], make_bar()
    update = bar.update
    bar.update = lambda task, **fields: seen.append(fields) or update(task, **fields)
    mapper = with_progress(bar, map_inline, 256)
    shard = PackFolder(config.out).manifest.shards[0]
    written = WrittenShard(shard, None, 12, 12, 128 * shard.packs, 1, 1, 1)
    assert list(mapper(lambda item: [item], [written])) == [[written]]
    assert seen[0]["completed"] == 1
    assert re.fullmatch(r"[\d,]+ documents/s, fill 50\.00%", seen[0]["figures"])
    assert any(isinstance(column, TimeRemainingColumn) for column in bar.columns)
    assert bar.console.stderr
    assert str(Figures(256)) == ""
    assert "documents/s" not in capsys.readouterr().out


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
