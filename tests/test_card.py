"""Where a model comes from, and what its card says of that."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from support.exports import PATCHES, request, unchecked, write_records, write_run
from support.runs import Run, assert_one_message

from openqwen2vl.commands._facts import _origin
from openqwen2vl.formats.templates import TEMPLATES
from openqwen2vl.release import export as exporting
from openqwen2vl.release.card import Card, gpu_hours
from openqwen2vl.release.export import KEY, export
from openqwen2vl.release.provenance import stages

CONFIG = {
    "openqwen2vl": {"grid": 27, "dtype": "bf16"},
    "vision_config": {"image_size": 384, "num_hidden_layers": 27, "hidden_size": 1152},
    "text_config": {"model_type": "qwen2", "num_hidden_layers": 28, "hidden_size": 1536},
}
SCORES = {
    "benchmark": "mmbench",
    "protocol": "oqvl-paper",
    "protocol_version": 2,
    "file_hash": "f" * 64,
    "n": 1,
    "decoding": {"temperature": 0},
    "template_hash": TEMPLATES["qwen2_5"].hash,
    "model_hash": f"{'a' * 16}-g{PATCHES}",
    "headline": "accuracy",
    "metrics": {"accuracy": 80.875},
}
CURATION = {
    "select": {
        "sources": {
            "red": {
                "seen": 100,
                "kept": 60,
                "rejects": {},
                "dropped": {"condition": 40},
                "terms": {"clip_similarity >= 0.3": 40},
            }
        }
    }
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "reload", unchecked)


def card(**more: Any) -> str:
    settings: dict[str, Any] = {
        "name": "model",
        "tower": "vit",
        "llm": "qwen",
        "template": TEMPLATES["qwen2_5"],
        "stages": [{"stage": "sft", "run": "sft", "step": 5, "steps": 5}],
    }
    return Card(**settings | more).text(CONFIG)


def write_scores(folder: Path, **more: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "scores.json").write_text(json.dumps(SCORES | more))
    (folder / "scored.jsonl").write_text('{"id": "1", "cluster": "1", "correct": 1}\n')
    return folder


def test_a_card_gives_the_sizes_that_the_folder_has_whatever_the_names() -> None:
    told = card(llm=None)
    assert "`vit` (27 blocks of width 1152, pictures of 384 x 384)" in told
    assert "language model of no recorded name (28 layers of width 1536, `qwen2`)" in told


def test_stages_are_followed_back_to_the_first(tmp_path: Path) -> None:
    first = write_run(tmp_path / "align", stage="align", grid=PATCHES)
    second = write_run(tmp_path / "pretrain", stage="pretrain", grid=4, init_from=first.run)
    third = write_run(tmp_path / "sft", init_from=second.checkpoint)
    found = stages(third.checkpoint)
    assert [one["stage"] for one in found] == ["align", "pretrain", "sft"]
    assert [one["run"] for one in found] == ["align", "pretrain", "sft"]
    assert [one["grids"] for one in found] == [[6], [4], [6]]
    assert found[1]["sources"]["red"] == {
        "licence": "CC-BY-4.0",
        "packs": 20,
        "tokens": 5000,
        "targets": 900,
        "images": 60,
        "documents": 70,
        "passes": 0.5,
    }
    assert gpu_hours(found) == {"NVIDIA A100-SXM4-40GB": 4.5}
    # Where a run lay on somebody's machine is nobody's business.
    assert str(tmp_path) not in json.dumps(found)


def test_a_stage_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    first = write_run(tmp_path / "pretrain", stage="pretrain")
    second = write_run(tmp_path / "sft", init_from=first.run)
    shutil.rmtree(first.run)
    found = stages(second.checkpoint)
    assert found[0] == {"run": "pretrain", "missing": True}
    assert found[1]["stage"] == "sft"
    assert "an earlier run, not found | pretrain" in card(stages=found)


def test_a_model_folder_between_two_stages_keeps_what_came_before(tmp_path: Path) -> None:
    first = write_run(tmp_path / "pretrain", stage="pretrain")
    about = {"provenance": {"stages": stages(first.checkpoint)}}
    plain = request(first.checkpoint)
    export(request(first.checkpoint, about={**plain.about, **about}), tmp_path / "out")
    shutil.rmtree(first.run)
    second = write_run(tmp_path / "sft", init_from=tmp_path / "out")
    assert [one["stage"] for one in stages(second.checkpoint)] == ["pretrain", "sft"]


def test_runs_that_start_from_each_other_end(tmp_path: Path) -> None:
    run = tmp_path / "sft"
    made = write_run(run, init_from=run)
    assert [one["run"] for one in stages(made.checkpoint)] == ["sft"]


def test_a_checkpoint_without_a_run_says_what_it_knows(tmp_path: Path) -> None:
    made = write_run(tmp_path / "run")
    moved = made.checkpoint.replace(tmp_path / "moved.ckpt")
    (found,) = stages(moved)
    assert "device_hours" not in found
    assert found["sources"]["red"] == {"licence": "CC-BY-4.0"}
    told = card(stages=[found])
    assert "| sft | red | not recorded | not recorded |" in told
    assert "In all: not recorded." in told


def test_a_checkpoint_says_its_own_hours_by_device(tmp_path: Path) -> None:
    """A run that went on with other GPUs: the hours of both, as they were at this checkpoint."""
    made = write_run(tmp_path / "run")
    hours = {"NVIDIA A100-SXM4-40GB": 3.0, "NVIDIA H200": 1.5}
    cost = {"device": "NVIDIA H200", "devices": 2, "device_hours": 4.5, "hours_by_device": hours}
    opened = torch.load(made.checkpoint, weights_only=True)
    torch.save(opened | {"openqwen2vl": made.facts | {"cost": cost}}, made.checkpoint)
    assert gpu_hours(stages(made.checkpoint)) == hours
    (found,) = stages(made.checkpoint.replace(tmp_path / "moved.ckpt"))
    assert gpu_hours([found]) == hours
    told = card(stages=[found])
    assert "| 2 x NVIDIA H200, before it NVIDIA A100-SXM4-40GB | 4.50 |" in told
    assert "In all: 3.00 h NVIDIA A100-SXM4-40GB, 1.50 h NVIDIA H200." in told


def test_a_checkpoint_says_itself_what_it_has_seen(tmp_path: Path) -> None:
    """Its runs went on or went: neither a later phase of the plan nor a later count is its own."""
    made = write_run(tmp_path / "sft", init_from=tmp_path / "gone")
    phases = [{"start": 0, "stop": 5, "grid": 4}, {"start": 5, "stop": 9, "grid": PATCHES}]
    facts = made.facts | {
        "phases": phases,
        "earlier": [{"stage": "pretrain", "run": "gone", "step": 8, "steps": 8, "grids": [4]}],
        "consumed": {"red": {"packs": 3, "documents": 11}},
    }
    torch.save(torch.load(made.checkpoint, weights_only=True) | {KEY: facts}, made.checkpoint)
    write_records(made.run, step=9)
    first, last = stages(made.checkpoint)
    assert (first["run"], first["step"]) == ("gone", 8)
    assert (last["grids"], last["recorded_step"]) == ([4], 5)
    assert last["sources"]["red"] == {"licence": "CC-BY-4.0", "packs": 3, "documents": 11}
    told = card(stages=[first, last])
    assert "Trained at 16 visual tokens an image in the end, and given 729 here." in told


def test_a_run_says_what_it_started_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write_run(tmp_path / "pretrain", stage="pretrain")
    monkeypatch.chdir(tmp_path)
    fresh = _origin(OmegaConf.create({"init_from": "pretrain"}), None)
    assert fresh == {"init_from": str(first.run), "earlier": stages(first.run)}
    # Resumed, by whatever words: it started from what it did at first.
    assert _origin(OmegaConf.create({"init_from": None}), fresh | {"steps": 5}) == fresh
    alone = {"init_from": None, "earlier": []}
    assert _origin(OmegaConf.create({"init_from": None}), None) == alone


def test_stages_survive_an_export_and_a_conversion(call: Run, tmp_path: Path) -> None:
    made = write_run(tmp_path / "sft")
    assert call("export", f"checkpoint={made.run}", f"out={tmp_path}/one")[0] == 0
    assert call("convert", f"source={tmp_path}/one", f"out={tmp_path}/y.ckpt")[0] == 0
    assert stages(tmp_path / "y.ckpt") == stages(made.run)
    content = torch.load(tmp_path / "y.ckpt", weights_only=True)
    content[KEY]["earlier"] = []  # as of a model of others
    torch.save(content, tmp_path / "y.ckpt")
    assert stages(tmp_path / "y.ckpt") == [{"run": "one", "model_folder": True}]
    assert "| an earlier model | one | not recorded |" in card(stages=stages(tmp_path / "y.ckpt"))


def test_the_card_of_a_command_tells_all_that_is_known(call: Run, tmp_path: Path) -> None:
    first = write_run(tmp_path / "pretrain", stage="pretrain", grid=4)
    made = write_run(tmp_path / "sft", init_from=first.run)
    scores = write_scores(tmp_path / "scores" / "mmbench")
    (tmp_path / "curated").mkdir()
    (tmp_path / "curated" / "curation.json").write_text(json.dumps(CURATION))
    code, out, err = call(
        "export",
        f"checkpoint={made.run}",
        f"out={tmp_path}/out",
        f"scores={scores.parent}",
        f"curation=[{tmp_path}/curated]",
        "licence=apache-2.0",
        "json=true",
    )
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["device_hours"] == {"NVIDIA A100-SXM4-40GB": 3.0}
    told = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(told.split("---")[1])
    assert (front["license"], front["pipeline_tag"]) == ("apache-2.0", "image-text-to-text")
    for row in (
        "| mmbench | 80.88 | accuracy | 1 | oqvl-paper, version 2 | temperature 0 |",
        "| pretrain | pretrain | 5 of 5 | 16 | 4 | 2e-05 | 8 x NVIDIA A100-SXM4-40GB | 1.50 |",
        "| sft | blue | 70 | 60 | 5,000 | 20 | 2.00 | unknown |",
        "| red | `clip_similarity >= 0.3` | 40 |",
        "| red | 100 | 60 |",
    ):
        assert row in told
    assert "In all: 3.00 h NVIDIA A100-SXM4-40GB." in told
    assert "trust_remote_code" not in told
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    kept = config["openqwen2vl"]["provenance"]
    assert [one["stage"] for one in kept["stages"]] == ["pretrain", "sft"]
    assert kept["scores"][0]["protocol"] == "oqvl-paper"
    assert kept["curation"]["red"]["kept"] == 60


@pytest.mark.parametrize(
    "unlike", [{"template_hash": "0" * 16}, {"model_hash": f"{'a' * 16}-g4"}, {"model_hash": "x"}]
)
def test_scores_of_another_model_are_refused(
    call: Run, tmp_path: Path, unlike: dict[str, str]
) -> None:
    made = write_run(tmp_path / "sft")
    scores = write_scores(tmp_path / "scores", **unlike)
    told = call("export", f"checkpoint={made.run}", f"out={tmp_path}/out", f"scores={scores}")
    assert_one_message(told, "scores mmbench of a model with template")
    assert not (tmp_path / "out").exists()


def test_a_record_of_another_step_than_the_weights_is_said(tmp_path: Path) -> None:
    made = write_run(tmp_path / "sft")
    write_records(made.run, step=9)
    told = card(stages=stages(made.checkpoint))
    assert "sft was recorded at step 9, its weights are of step 5." in told


def test_a_base_model_is_shown_with_a_caption_and_pooled_ones_with_their_code() -> None:
    base = card(stages=[{"stage": "pretrain"}])
    assert 'prompt = "<s><|image_pad|>\\n"' in base
    assert "apply_chat_template" not in base
    pooled = Card(
        name="m", tower="v", llm="l", template=TEMPLATES["qwen2_5"], stages=[{"stage": "sft"}]
    ).text(CONFIG | {"auto_map": {}})
    assert pooled.count("trust_remote_code=True") == 3
    assert "apply_chat_template" in pooled


def test_names_cannot_break_a_table() -> None:
    told = card(stages=[{"stage": "sft", "sources": {"a|b\nc": {"licence": "x | y"}}}])
    assert "| sft | a\\|b c |" in told
    assert "| x \\| y |" in told


def test_the_example_of_the_card_is_python() -> None:
    for told in (card(), card(stages=[{"stage": "pretrain"}])):
        code = told.split("```python\n")[1].split("```")[0]
        compile(code, "card", "exec")
