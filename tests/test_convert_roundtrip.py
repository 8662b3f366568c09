"""convert(export(x)) = x: every weight, bit for bit, and what stands beside them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.converted import export_unchecked
from support.exports import PATCHES, write_run
from support.released import example, our_logits
from support.runs import Run, assert_one_message

from openqwen2vl.formats.tokens import train_tokenizer
from openqwen2vl.release.trained import load_model, load_trained

# Every projector, both grids, a tower that trained and one that did not, head tied or not.
RUNS: dict[str, dict[str, Any]] = {
    "stock": {"grid": PATCHES, "trainable_tower": True},
    "pooled": {"grid": 4, "template": "open_qwen2vl_v1", "tied": False, "sharded": True},
    "linear": {"grid": 3, "projector": "LinearProjector", "template": "open_qwen2vl_v2"},
    "mlp": {"grid": PATCHES, "projector": "MLPProjector"},
}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", list(RUNS))
def test_what_was_exported_converts_back_unchanged(
    tmp_path: Path, call: Run, monkeypatch: pytest.MonkeyPatch, name: str, dtype: str
) -> None:
    made = write_run(tmp_path / "run", **RUNS[name])
    export_unchecked(monkeypatch, made.checkpoint, tmp_path / "folder", dtype=dtype)
    code, out, err = call("convert", f"source={tmp_path / 'folder'}", f"out={tmp_path / 'y.ckpt'}")
    assert code == 0, err
    assert "a model folder of openqwen2vl" in out
    back, facts = load_model(tmp_path / "y.ckpt")
    before, after = made.model.weights(), back.weights()
    assert before.keys() == after.keys()
    for key, value in before.items():
        kept = value.bfloat16().float() if dtype == "bf16" else value
        assert torch.equal(after[key], kept), key
    assert back.projector.grid == RUNS[name]["grid"]
    assert type(back.projector) is type(made.model.projector)
    for fact in ("llm_config", "vocab_size", "text", "tower", "stage"):
        assert facts[fact] == made.facts[fact], fact
    if dtype == "fp32":
        inputs = example(grid=RUNS[name]["grid"])
        assert torch.equal(our_logits(back, inputs), our_logits(made.model, inputs))


def test_what_was_converted_exports_again(
    tmp_path: Path, call: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = write_run(tmp_path / "run", grid=4, trainable_tower=True)
    export_unchecked(monkeypatch, made.checkpoint, tmp_path / "one")
    assert call("convert", f"source={tmp_path / 'one'}", f"out={tmp_path / 'y.ckpt'}")[0] == 0
    export_unchecked(monkeypatch, tmp_path / "y.ckpt", tmp_path / "other")
    names = sorted(path.name for path in (tmp_path / "one").glob("*.safetensors"))
    assert names
    for name in names:
        one, other = ((tmp_path / place / name).read_bytes() for place in ("one", "other"))
        assert one == other
    assert load_trained(tmp_path / "other").template.name == "qwen2_5"


def test_a_folder_converts_with_its_own_tokenizer_or_not_at_all(
    tmp_path: Path, call: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = write_run(tmp_path / "run", grid=4)
    export_unchecked(monkeypatch, made.checkpoint, tmp_path / "folder")
    train_tokenizer(["another text"], 300).save_pretrained(tmp_path / "other")
    words = ["convert", f"source={tmp_path / 'folder'}", f"out={tmp_path / 'y.ckpt'}"]
    told = call(*words, f"tokenizer={tmp_path / 'other'}")
    assert_one_message(told, "was trained with tokenizer", "other is")
    (tmp_path / "folder" / "tokenizer.json").unlink()
    assert_one_message(call(*words), "give the model's own (tokenizer=DIR_OR_NAME)")
    assert not (tmp_path / "y.ckpt").exists()
    assert call(*words, f"tokenizer={tmp_path / 'tokenizer'}")[0] == 0
    assert load_model(tmp_path / "y.ckpt")[1]["tokenizer"] == str(tmp_path / "tokenizer")
