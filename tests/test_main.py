import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from support.runs import PackedCorpora, command, environment

from openqwen2vl import __version__
from openqwen2vl.__main__ import main, verbs

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _tidy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Call commands in this process as if each had one of its own."""
    monkeypatch.setattr(sys, "argv", ["openqwen2vl"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:], logging.root.level = handlers, level
    GlobalHydra.instance().clear()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Call `openqwen2vl` and give its exit code, stdout and stderr."""

    def called(*words: str) -> tuple[int, str, str]:
        code = main(list(words))
        told = capsys.readouterr()
        return code, told.out, told.err

    return called


@pytest.fixture
def train(run: Run, corpora: PackedCorpora, tmp_path: Path) -> Run:
    """Call a training run of two small steps, changed by some overrides."""

    def called(*changes: str) -> tuple[int, str, str]:
        settings = {
            "budget.steps": 2,
            "data.global_batch": 2,
            "strategy.device": "cpu",
            "resolution": "tiny",
            "callbacks.checkpoints.every_n_steps": 1000,
        }
        words = command(corpora, tmp_path / "run", settings)
        return run(*words[words.index("train") :], *changes)

    return called


def assert_one_message(told: tuple[int, str, str], *parts: str) -> None:
    """Exit code 2 and one short message without a traceback."""
    code, out, err = told
    assert code == 2
    assert "Traceback" not in out + err
    assert len(err.strip().splitlines()) <= 12
    for part in parts:
        assert part in err
        assert err.count(part) == 1


def test_no_verb_lists_the_verbs_with_what_they_are_for(run: Run) -> None:
    code, out, _ = run()
    assert code == 0
    assert {"train", "pack"} <= set(verbs())
    for verb in verbs():
        (line,) = [line for line in out.splitlines() if line.startswith(f"  {verb} ")]
        assert line.removeprefix(f"  {verb} ").strip().endswith(".")


def test_the_version_is_the_packages(run: Run) -> None:
    assert run("--version") == (0, f"openqwen2vl {__version__}\n", "")


def test_an_unknown_verb_is_answered_with_the_nearest(run: Run) -> None:
    assert_one_message(run("trian"), "no command 'trian'; did you mean 'train'?", "pack, ")
    assert_one_message(run("qqqq"), "no command 'qqqq'; there are: ")


def test_an_unknown_stage_lists_the_stages(run: Run) -> None:
    assert_one_message(run("train", "stage=pretrian"), "'stage/pretrian'", "pretrain", "sft")


def test_no_stage_is_answered_with_the_stages(run: Run) -> None:
    assert_one_message(run("train"), "You must specify 'stage'", "\tpretrain")


def test_a_key_that_does_not_exist_is_answered_with_the_nearest(run: Run) -> None:
    told = run("train", "stage=pretrain", "optim.weight_decy=0.1")
    assert_one_message(told, "Could not override 'optim.weight_decy'", "mean 'weight_decay'?")


def test_a_word_that_is_no_override_is_answered(run: Run) -> None:
    assert_one_message(run("train", "stage=pretrain", "sdfsdf"), "sdfsdf")


def test_faults_of_a_config_come_in_one_message(train: Run) -> None:
    told = train("+trainer.max_stps=3", "+budget.step=4")
    assert_one_message(told, "2 faults in the config:", "'max_steps'?", "'steps'?")


def test_a_mixture_that_names_a_folder_without_packs_is_refused(train: Run, tmp_path: Path) -> None:
    told = train(f"+mixture.sources.gone.packs={tmp_path}/nowhere")
    assert_one_message(told, f"no manifest.json in {tmp_path}/nowhere")
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_a_batch_that_does_not_divide_is_answered_with_the_nearest(train: Run) -> None:
    told = train("data.global_batch=7", "data.micro_batch=2")
    assert_one_message(told, "data.global_batch is 7 packs", "nearest: 6 or 8")


def test_a_run_ends_with_one_line_of_json_and_is_not_started_twice(
    train: Run, tmp_path: Path
) -> None:
    code, out, err = train("json=true")
    assert code == 0, err
    figures = json.loads(out.splitlines()[-1])
    assert (figures["state"], figures["step"], figures["steps"]) == ("finished", 2, 2)
    assert Path(figures["checkpoint"]) == tmp_path / "run/checkpoints/step_00000002.ckpt"
    assert_one_message(train(), f"{tmp_path}/run holds a run already", "resume=last", "name=OTHER")


@pytest.mark.slow
def test_the_module_runs_as_a_program_and_its_mistakes_have_exit_code_2(
    corpora: PackedCorpora, tmp_path: Path
) -> None:
    words = command(corpora, tmp_path / "run", {"optim.lrr": 1})
    assert words[1:3] == ["-m", "openqwen2vl"]
    done = subprocess.run(
        words, env=environment(), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert_one_message((done.returncode, done.stdout, done.stderr), "'optim.lrr'")


@pytest.mark.slow
def test_a_crash_is_no_users_mistake_and_keeps_its_traceback(
    corpora: PackedCorpora, tmp_path: Path
) -> None:
    # The data module's constructor fails over something that is no mistake of a known kind.
    words = command(corpora, tmp_path / "run", {"data.mixture": 3})
    done = subprocess.run(
        words, env=environment(), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
