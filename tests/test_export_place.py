"""Where an exported folder may go, and what it may replace."""

import json
from pathlib import Path

import pytest
from support.exports import Trained, beside, request, unchecked, write_run
from support.runs import Run, assert_one_message

from openqwen2vl.formats.errors import UserError
from openqwen2vl.release import export as exporting
from openqwen2vl.release.export import export


@pytest.fixture
def made(tmp_path: Path) -> Trained:
    return write_run(tmp_path / "run", grid=4)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "reload", unchecked)


def test_a_model_is_replaced_only_when_that_is_said(
    call: Run, made: Trained, tmp_path: Path
) -> None:
    words = ["export", f"checkpoint={made.run}", f"out={tmp_path}/out"]
    assert call(*words, "dtype=fp32")[0] == 0
    assert_one_message(call(*words), "holds a model already; set overwrite=true")
    code, out, err = call(*words, "overwrite=true", "json=true")
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["dtype"] == "bf16"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["openqwen2vl"]["dtype"] == "bf16"
    assert beside(tmp_path / "out") == {"out"}


def test_a_folder_of_something_else_is_never_replaced(
    call: Run, made: Trained, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    words = ["export", f"checkpoint={made.run}", f"out={tmp_path}/out", "overwrite=true"]
    assert_one_message(call(*words), "exists and is no model folder")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_a_run_and_a_model_of_others_are_never_replaced(
    call: Run, made: Trained, tmp_path: Path
) -> None:
    (made.run / "config.json").write_text("{}")
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text('{"model_type": "qwen2"}')
    for place in (made.run, base):
        before = {path.name for path in place.iterdir()}
        words = ["export", f"checkpoint={made.run}", f"out={place}", "overwrite=true"]
        assert_one_message(call(*words), "is no model folder that export wrote")
        assert {path.name for path in place.iterdir()} == before
    assert made.checkpoint.is_file()


def test_a_link_leads_to_where_the_folder_goes(
    made: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "out")
    (tmp_path / "disk").mkdir()
    for overwrite in (False, True):
        export(request(made.run), tmp_path / "link", overwrite=overwrite)
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["out"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is no model folder"):
        export(request(made.run), Path())


def test_without_an_exchange_of_names_it_is_replaced_all_the_same(
    made: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(request(made.run), tmp_path / "out")
    monkeypatch.setattr("openqwen2vl.release.publish._exchange", lambda one, other: False)
    export(request(made.run, dtype="bf16"), tmp_path / "out", overwrite=True)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["openqwen2vl"]["dtype"] == "bf16"
    assert beside(tmp_path / "out") == {"out"}


def test_what_a_killed_export_left_is_cleared(made: Trained, tmp_path: Path) -> None:
    for name in (".out.tmp", ".out.check"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").touch()
    export(request(made.run), tmp_path / "out")
    assert beside(tmp_path / "out") == {"out"}


def test_a_model_folder_is_no_checkpoint(call: Run, made: Trained, tmp_path: Path) -> None:
    export(request(made.run), tmp_path / "out")
    told = call("export", f"checkpoint={tmp_path}/out", f"out={tmp_path}/again")
    assert_one_message(told, "is a model folder already")
