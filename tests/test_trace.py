"""`trace` names what a step was made of, from the run's folder alone."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import tiny_mllm
from support.runs import PackedCorpora, Run, assert_one_message, train

from openqwen2vl.commands import _trace_run, trace
from openqwen2vl.data_modules.packed import PackedDataModule
from openqwen2vl.formats import decoders
from openqwen2vl.formats.errors import CheckpointError
from openqwen2vl.formats.images import PIXELS_VERSION
from openqwen2vl.packing.reader import Pack, PackFolder
from openqwen2vl.training.csv_log import read_rows
from openqwen2vl.training.document_loss import document_losses


def test_document_losses_average_to_the_packs_own(corpora: PackedCorpora) -> None:
    """And each is what the document costs alone: nothing of its neighbours is in it."""
    folder = PackFolder(corpora.packs("red", 3))
    spec = folder.manifest.spec
    model = tiny_mllm(grid=3, vocab_size=spec.vocab_size).eval()
    pack = folder.read(0)
    losses = document_losses(model, pack, spec)
    assert len(losses) == len(pack.documents) > 2
    first = 0
    for document, loss in zip(pack.documents, losses, strict=True):
        start, stop = document["start"], document["start"] + document["length"]
        inside = (pack.targets[:, 0] >= start) & (pack.targets[:, 1] <= stop)
        alone = type(pack)(
            ids=pack.ids[start:stop],
            targets=pack.targets[inside] - start,
            documents=[document | {"start": 0}],
            images=pack.images[first : first + document["images"]],
        )
        first += document["images"]
        assert document_losses(model, alone, spec) == pytest.approx([loss], rel=1e-5)


def test_a_picture_that_cannot_be_decoded_leaves_its_document_without_a_loss(
    corpora: PackedCorpora,
) -> None:
    folder = PackFolder(corpora.packs("red", 3))
    spec = folder.manifest.spec
    model = tiny_mllm(grid=3, vocab_size=spec.vocab_size).eval()
    pack = folder.read(0)
    pack.images[1] = b"no picture"
    losses = document_losses(model, pack, spec)
    assert losses[1] is None
    assert all(loss is not None for number, loss in enumerate(losses) if number != 1)


def a_run(
    corpora: PackedCorpora, path: Path, decoder: str, library: str, source: str = "red"
) -> Path:
    """The folder of a run that recorded how it read pictures; its checkpoint has no weights."""
    data = {
        "_target_": "openqwen2vl.data_modules.packed.PackedDataModule",
        "mixture": {"sources": {source: {"packs": [str(corpora.packs(source, 3))]}}},
        "resolution": {"plan": [{"grid": 3, "until": 1.0}]},
        "budget": {"steps": 4},
        "global_batch": 2,
        "isolate": True,
        "decoder": decoder,
    }
    order = PackedDataModule(**{k: v for k, v in data.items() if k[0] != "_"} | {"decoder": "auto"})
    facts = {
        "order": order.identity(),
        "phases": [asdict(phase) for phase in order.order.phases],
        "pictures": {"version": PIXELS_VERSION, "library": library, "draft": False},
    }
    (path / "checkpoints").mkdir(parents=True)
    torch.save(
        {"global_step": 2, "state_dict": {}, "openqwen2vl": facts},
        path / "checkpoints" / "step_00000002.ckpt",
    )
    (path / "config.json").write_text(
        json.dumps({"data": data, "tokenizer": str(corpora.tokenizer)})
    )
    return path


def test_losses_are_by_the_pixels_that_the_run_had(
    corpora: PackedCorpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is installed now; without losses nothing is decoded, so nothing is needed."""
    used: list[Any] = []

    def losses(model: Any, pack: Pack, spec: Any, isolate: bool, decode: Any) -> list[None]:
        used.append(decode)
        return [None] * len(pack.documents)

    monkeypatch.setattr(_trace_run, "load_model", lambda _: (tiny_mllm(grid=3), {}))
    monkeypatch.setattr(_trace_run, "document_losses", losses)
    monkeypatch.setattr(decoders, "_has_simplejpeg", lambda: True)
    run = _trace_run.open_run(a_run(corpora, tmp_path / "one", "auto", "pillow"), None)
    run.judge(run.documents(3), 3)
    assert {decode.library for decode in used} == {"pillow"}
    monkeypatch.setattr(decoders, "_has_simplejpeg", lambda: False)
    other = a_run(corpora, tmp_path / "other", "simplejpeg", "simplejpeg")
    run = _trace_run.open_run(other, None)
    found = run.documents(3)
    assert found
    with pytest.raises(CheckpointError, match=r"simplejpeg, which is not installed.*loss=false"):
        run.judge(found, 3)


def test_a_conversation_is_shown_without_its_template_and_what_is_left_out_is_told(
    corpora: PackedCorpora, call: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(corpora, tmp_path / "run", "auto", "pillow", source="text")
    (run / "metrics.csv").write_text("step,loss,grid\n1,0.3294219262529128,3\n")
    monkeypatch.setattr(trace, "_SHOWN", 3)
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = call("trace", f"run={run}", "step=1", "count=4", "json=true")
    assert code == 0, err
    figures = json.loads(out.splitlines()[-1])
    shown = out.split("step 1: ")[0]
    assert [shown.count(f"  {first}") for first in ("What color is the ", "->")] == [3, 0]
    assert shown.count("? -> It is ") >= 3
    assert "helpful assistant" not in shown + Path(figures["page"]).read_text()
    assert figures["documents"][0]["text"].startswith("system\nYou are a helpful assistant.")
    assert "step 1: loss 0.32942, grid 3\n" in out
    total = len(figures["documents"])
    assert f"{total} documents, {total - 3} of them not shown above, the first 4 on the page" in out


@pytest.fixture(scope="module")
def run_dir(corpora: PackedCorpora, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traced") / "run"
    done = train(corpora, path, budget__steps=4)
    assert done.returncode == 0, done.stderr
    return path


def traced(call: Run, *words: object) -> dict[str, Any]:
    code, out, err = call("trace", *(str(word) for word in words), "json=true")
    assert code == 0, err
    return dict(json.loads(out.splitlines()[-1]))


@pytest.mark.slow
def test_the_documents_of_a_step_are_those_that_it_counted(call: Run, run_dir: Path) -> None:
    _, rows = read_rows(run_dir / "metrics.csv")
    seen = []
    for number, row in enumerate(rows, 1):
        figures = traced(call, f"run={run_dir}", f"step={number}")
        documents = figures["documents"]
        assert sum(one["images"] for one in documents) == int(row["images"])
        assert {one["grid"] for one in documents} == {int(row["grid"])}
        assert figures["row"]["loss"] == row["loss"]
        seen += [(one["source"], one["pack"], one["uid"]) for one in documents]
    assert len(set(seen)) == len(seen)
    assert Path(figures["page"]).read_text().startswith("<!doctype html>")


@pytest.mark.slow
def test_losses_by_the_checkpoint_before_explain_the_steps_loss(call: Run, run_dir: Path) -> None:
    """Weighted by their targets they give the loss that the run logged for the step."""
    figures = traced(call, f"run={run_dir}", "step=3", "loss=true")
    assert figures["judged_by"].endswith("step_00000002.ckpt")
    losses = [one["loss"] for one in figures["documents"]]
    assert losses == sorted(losses, reverse=True)
    # Captions here are of like length, so that the plain mean is close.
    assert sum(losses) / len(losses) == pytest.approx(float(figures["row"]["loss"]), rel=0.05)


@pytest.mark.slow
def test_what_cannot_be_traced_is_told(call: Run, run_dir: Path, tmp_path: Path) -> None:
    for words, said in (
        ((f"run={tmp_path}", "step=1"), "holds no run"),
        ((f"run={run_dir}", "step=99"), "has 4 steps"),
        ((f"run={run_dir}", "step=0"), "both start at 1"),
    ):
        code, _, err = call("trace", *words)
        assert code == 2
        assert said in err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("[1]", "is not of a run"),
        ('{"model_type": "llava"}', "is not of a run (a model folder has one, too)"),
    ],
)
def test_a_folder_with_another_config_is_told(
    call: Run, tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "config.json").write_text(content)
    assert_one_message(call("trace", f"run={tmp_path}", "step=1"), message)


def test_a_strangers_run_calls_nothing_but_our_classes(call: Run, tmp_path: Path) -> None:
    trap = {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path"}}
    for data in (trap, {"_target_": "openqwen2vl.data_modules.packed.X", "mixture": [trap]}):
        (tmp_path / "config.json").write_text(json.dumps({"data": data, "tokenizer": "x"}))
        told = call("trace", f"run={tmp_path}", "step=1")
        assert_one_message(told, "names pathlib.Path.touch as a part of its data")
