"""From a real sharded run to a folder that a stranger opens, and back to the same answers."""

import json
from pathlib import Path

import pytest
import torch
from support.batches import random_images
from support.runs import PackedCorpora, Run, train

from openqwen2vl.release.trained import load_model


@pytest.mark.slow
def test_a_sharded_run_of_two_processes_becomes_a_folder(
    corpora: PackedCorpora, call: Run, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = train(
        corpora,
        run,
        strategy="fsdp",
        strategy__param_dtype="fp32",
        trainer__devices=2,
        data__micro_batch=1,
        budget__steps=2,
        callbacks__checkpoints__every_n_steps=1000,
    )
    assert done.returncode == 0, done.stderr
    assert next((run / "checkpoints").iterdir()).is_dir()
    words = [f"checkpoint={run}", f"out={tmp_path}/out", "dtype=fp32", "json=true"]
    code, out, err = call("export", *words)
    assert code == 0, err
    told = json.loads(out.splitlines()[-1])
    assert told["check"]["logits"] < 1e-4
    assert told["grid"] == 6
    (stage,) = json.loads((tmp_path / "out" / "config.json").read_text())["openqwen2vl"][
        "provenance"
    ]["stages"]
    assert stage["devices"] == 2
    assert stage["sources"]["red"]["documents"] > 0
    before, _ = load_model(run)
    after, _ = load_model(tmp_path / "out")
    for name, value in before.weights().items():
        torch.testing.assert_close(after.weights()[name], value, rtol=0, atol=0)
    images = random_images(1)
    assert torch.equal(before.image_rows(images), after.image_rows(images))
