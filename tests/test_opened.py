"""Trained models are opened alike, whatever form they lie in: asked, judged by, trained on."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from support.converted import export_unchecked
from support.evaluations import write_benchmarks
from support.exports import write_run
from support.models import tiny_mllm
from support.released import llava_model, repository_folder, with_tokenizer
from support.runs import Run, assert_one_message
from support.shards import picture, write_caption_shard

from openqwen2vl.curation.scorers.judge import Question
from openqwen2vl.formats.errors import CheckpointError, UserError
from openqwen2vl.release.opened import KEY, known_facts, open_trained
from openqwen2vl.release.trained import initial_weights, load_model, load_trained, trained_judge


@pytest.fixture
def forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """One model as a run, as its checkpoint, and as a model folder."""
    made = write_run(tmp_path / "run", grid=4)
    export_unchecked(monkeypatch, made.checkpoint, tmp_path / "folder")
    return {"run": made.run, "checkpoint": made.checkpoint, "folder": tmp_path / "folder"}


def test_every_form_is_the_same_model(forms: dict[str, Path]) -> None:
    models = {name: load_trained(path) for name, path in forms.items()}
    first = models["run"]
    for trained in models.values():
        assert trained.model.projector.grid == 4
        assert trained.template == first.template
        assert trained.tokenizer.get_vocab() == first.tokenizer.get_vocab()
        for name, value in first.model.weights().items():
            assert torch.equal(trained.model.weights()[name], value), name


def test_a_folder_is_whole_without_its_run(forms: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "tokenizer").rename(tmp_path / "gone")
    assert load_trained(forms["folder"]).name == "folder"
    with pytest.raises(UserError, match="tokenizer"):
        load_trained(forms["run"])


def test_the_grid_of_the_folder_counts(forms: dict[str, Path]) -> None:
    config = json.loads((forms["folder"] / "config.json").read_text())
    config[KEY]["grid"] = 2
    (forms["folder"] / "config.json").write_text(json.dumps(config))
    assert load_model(forms["folder"])[0].projector.grid == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "format 2, this version reads 1"),
        ({"facts": {}}, "does not tell its model, llm_config"),
        ({"facts": {"text": {}, "tower": 3}}, "tower.name, tower.hash, text.tokenizer"),
        ({"grid": None}, "says grid None"),
    ],
)
def test_a_folder_that_tells_too_little_is_refused(
    forms: dict[str, Path], change: dict[str, Any], said: str
) -> None:
    config = json.loads((forms["folder"] / "config.json").read_text())
    config[KEY] |= change
    (forms["folder"] / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=said):
        open_trained(forms["folder"])


@pytest.mark.parametrize("form", ["run", "folder"])
def test_training_starts_from_either(forms: dict[str, Path], form: str) -> None:
    source = load_model(forms[form])[0]
    fresh = tiny_mllm(grid=3, vocab_size=520, trainable_tower=False, seed=8)
    if form == "run":
        # Its checkpoint knows the frozen tower by name and hash alone; the folder holds it.
        fresh.vision.load_state_dict(source.vision.state_dict())
    initial_weights(fresh, forms[form])
    for name, value in source.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name
    assert fresh.vision.weights_hash() == source.vision.weights_hash()
    facts = known_facts(forms[form])
    assert facts is not None
    assert facts["text"] == open_trained(forms["run"]).facts["text"]


def test_training_starts_from_a_folder_of_others(tmp_path: Path) -> None:
    folder = tmp_path / "llava"
    llava_model("siglip", with_tokenizer(folder, chat=False)).save_pretrained(folder)
    assert known_facts(folder) is None
    given = load_model(folder, template="qwen2_5")[0]
    again = load_model(folder, template="qwen2_5")[0]
    for weight in again.parameters():
        weight.data.zero_()
    initial_weights(again, folder)
    for name, value in given.weights().items():
        assert torch.equal(again.weights()[name], value), name


def test_benchmarks_are_asked_of_every_form(
    forms: dict[str, Path], tmp_path: Path, call: Run
) -> None:
    data = write_benchmarks(tmp_path / "benchmarks", rows=4)
    answers = []
    for name in ("run", "folder"):
        out = tmp_path / "scores" / name
        words = (f"model.path={forms[name]}", "benchmark=ai2d", f"data_root={data}", f"out={out}")
        code, _, err = call(
            "evaluate", *words, "trainer.accelerator=cpu", "data.num_workers=0", "json=true"
        )
        assert code == 0, err
        lines = (out / "ai2d" / "predictions.jsonl").read_text().splitlines()
        answers.append([json.loads(line) for line in lines])
    run, folder = answers
    assert run[0]["model_hash"] == folder[0]["model_hash"]
    assert run[1:] == folder[1:]


def test_a_released_scorer_judges(tmp_path: Path, call: Run) -> None:
    folder, checkpoint = tmp_path / "scorer", tmp_path / "judge.ckpt"
    settings = {"mm_num_image_tokens": 16, "mm_vision_select_layer": -1}
    repository_folder(folder, tmp_path / "tower", "aapool_mlp", **settings)
    assert call("convert", f"source={folder}", f"out={checkpoint}")[0] == 0
    data = picture(random.Random(0))
    replies, prints = [], []
    for place in (checkpoint, folder):
        judge = trained_judge(str(place), device="cpu")
        question = Question(judge.picture(data), "Judge: ", "a red circle", " How good?", " ")
        replies.append(judge.ask([question], 3, True)[0])
        prints.append(judge.fingerprint())
    assert replies[0] == replies[1]
    assert prints[0]["weights"] == prints[1]["weights"]
    assert prints[0]["grid"] == 4


def test_pairs_are_scored_by_a_released_scorer_with_its_own_questions(
    tmp_path: Path, call: Run
) -> None:
    folder, checkpoint = tmp_path / "scorer", tmp_path / "judge.ckpt"
    repository_folder(folder, tmp_path / "tower", "aapool_mlp", mm_num_image_tokens=9)
    assert call("convert", f"source={folder}", f"out={checkpoint}")[0] == 0
    write_caption_shard(tmp_path / "raw" / "00000.tar", 3, seed=0)
    asked = {"semantic_understanding": "Text Caption: {caption} How rich?", "answer_start": " "}
    (tmp_path / "questions.json").write_text(json.dumps(asked))
    settings = {
        "judge._target_": "openqwen2vl.release.trained.trained_judge",
        "judge.model": checkpoint,
        "judge.device": "cpu",
        "metrics": "[semantic_understanding]",
        "prompt_file": tmp_path / "questions.json",
        "expected": "true",
        "least_chance": 0.0,
    }
    words = [f"scorers.mlm_filter.{key}={value}" for key, value in settings.items()]
    places = (f"input={tmp_path / 'raw'}", f"out={tmp_path / 'out'}")
    code, _, err = call(
        "curate",
        *places,
        "scorers=[mlm_filter]",
        "duplicates=null",
        "only=score",
        "workers=1",
        *words,
    )
    assert code == 0, err
    (table,) = (tmp_path / "out" / "scores").rglob("*.parquet")
    scores = pq.read_table(table)["semantic_understanding_expected"].to_pylist()
    assert len(scores) == 3
    assert all(0 <= score <= 100 for score in scores)


def test_what_is_no_model_is_told(tmp_path: Path, call: Run) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    data = write_benchmarks(tmp_path / "benchmarks", rows=2)
    words = ("benchmark=ai2d", f"data_root={data}", f"out={tmp_path / 'o'}")
    told = call("evaluate", f"model.path={tmp_path}", *words, "trainer.accelerator=cpu")
    assert_one_message(told, "of model_type 'bert'")
    told = call("evaluate", f"model.path={tmp_path}", *words, "template=nope")
    assert_one_message(told, "template is 'nope'")
