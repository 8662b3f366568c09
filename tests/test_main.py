import json
import subprocess
from pathlib import Path

import pytest
import yaml
from support.runs import PackedCorpora, Run, assert_one_message, command, environment

from openqwen2vl import __version__, conf
from openqwen2vl.__main__ import verbs
from openqwen2vl.commands._help import purpose


def test_no_verb_lists_the_verbs_with_what_they_are_for(call: Run) -> None:
    code, out, _ = call()
    assert code == 0
    assert {"train", "pack"} <= set(verbs())
    for verb in verbs():
        (line,) = [line for line in out.splitlines() if line.startswith(f"  {verb} ")]
        assert line.removeprefix(f"  {verb} ").strip().endswith(".")


def test_the_version_is_the_packages(call: Run) -> None:
    assert call("--version") == (0, f"openqwen2vl {__version__}\n", "")


def test_an_unknown_verb_is_answered_with_the_nearest(call: Run) -> None:
    assert_one_message(call("trian"), "no command 'trian'; did you mean 'train'?", "pack, ")
    assert_one_message(call("qqqq"), "no command 'qqqq'; there are: ")


def test_an_unknown_stage_lists_the_stages(call: Run) -> None:
    assert_one_message(call("train", "stage=pretrian"), "'stage/pretrian'", "pretrain", "sft")


def test_no_stage_is_answered_with_the_stages(call: Run) -> None:
    assert_one_message(call("train"), "You must specify 'stage'", "\tpretrain")


def test_a_key_that_does_not_exist_is_answered_with_the_nearest(call: Run) -> None:
    told = call("train", "stage=pretrain", "optim.weight_decy=0.1")
    assert_one_message(told, "Could not override 'optim.weight_decy'", "mean 'weight_decay'?")


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("budget.step=6", "did you mean 'steps'?"),  # trace has a step
        ("callbacks.spike.action=skip", "did you mean 'spikes'?"),
        ("trainr.devices=2", "did you mean 'trainer'?"),
        ("mixture.sources.mine.packs=[a]", "write +mixture.sources.mine.packs=..."),
    ],
)
def test_the_hint_is_of_the_place_where_the_word_stands(
    call: Run, override: str, hint: str
) -> None:
    assert_one_message(call("train", "stage=pretrain", override), "Could not override", hint)


@pytest.mark.parametrize(
    ("word", "hint"), [("--input", "input=VALUE"), ("--out=packs", "written out=packs")]
)
def test_a_key_written_as_a_flag_is_answered(call: Run, word: str, hint: str) -> None:
    assert_one_message(call("pack", word), f"{word} is no flag", hint)


@pytest.mark.parametrize("verb", verbs())
def test_help_says_what_a_verb_is_for_and_all_its_keys(call: Run, verb: str) -> None:
    code, out, err = call(verb, "--help")
    assert (code, err) == (0, "")
    shipped = yaml.safe_load((Path(conf.__path__[0]) / f"{verb}.yaml").read_text())
    assert out.startswith(purpose(verb).splitlines()[0])
    for name in set(shipped) - {"defaults"}:
        assert f"\n{name}:" in out
    groups = [part for part in shipped["defaults"] if isinstance(part, dict)]
    for name in (name for part in groups for name in part if " " not in name):
        assert f"\n  {name} (" in out


def test_help_of_a_verb_that_is_built_on_another_has_that_ones_keys(call: Run) -> None:
    out = call("plan", "-h")[1]
    assert "\n  stage (must be chosen): align, pretrain, sft\n" in out
    assert "\nAnd those of train:\nstage: ???" in out
    assert "defaults:" not in out


def test_a_flags_value_stays_behind_it(call: Run) -> None:
    code, out, _ = call("train", "stage=pretrain", "--cfg", "job")
    assert code == 0
    assert yaml.safe_load(out)["stage"] == "pretrain"


def test_a_word_that_is_no_override_is_answered(call: Run) -> None:
    assert_one_message(call("train", "stage=pretrain", "sdfsdf"), "sdfsdf")


def test_faults_of_a_config_come_in_one_message(call_train: Run) -> None:
    told = call_train("+trainer.max_stps=3", "+budget.step=4")
    assert_one_message(told, "2 faults in the config:", "'max_steps'?", "'steps'?")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainable.llm=maybe", "trainable.llm is 'maybe'; expected true or false"),
        ("seed=abc", "data.seed is 'abc'; expected a whole number"),
        ("clip=0", "clip is 0; expected the gradient's largest norm"),
        ("trainer.devices=2", "2 processes, but strategy=single trains one"),
        ("trainer.devices=abc", "trainer.devices is 'abc'; expected a number or auto"),
        ("data.micro_batch=0", "data.micro_batch is 0 packs"),
        ("optim.lr=-1", "optim.lr is -1"),
        ("precision=foo", "precision is 'foo'; there are auto, 32-true, bf16-mixed"),
        ("strategy.device=cuda:7", "strategy.device is 'cuda:7'; there are auto, cpu"),
        ("data=null", "data cannot be null; leave it away or choose of online, packed"),
        ("optim=null", "optim cannot be null"),
        ("trainer=null", "trainer cannot be null; leave it away or choose of cpu, gpu"),
        ("+mixture.sources.red.weigth=1", "red.weigth: mixture.sources.red has no such key"),
        ("+mixture.sources.red.weight=-1", "must be above 0, found [-1, 1.0]"),
    ],
)
def test_values_that_cannot_be_meant_are_answered(
    call_train: Run, override: str, message: str
) -> None:
    assert_one_message(call_train(override), message)


def test_a_mixture_that_names_a_folder_without_packs_is_refused(
    call_train: Run, tmp_path: Path
) -> None:
    told = call_train(f"+mixture.sources.gone.packs={tmp_path}/nowhere")
    assert_one_message(told, f"no manifest.json in {tmp_path}/nowhere")
    assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_divide_is_answered_with_the_nearest(call_train: Run) -> None:
    told = call_train("data.global_batch=7", "data.micro_batch=2")
    assert_one_message(told, "data.global_batch is 7 packs", "nearest: 6 or 8")


def test_a_run_ends_with_one_line_of_json_and_is_not_started_twice(
    call_train: Run, tmp_path: Path
) -> None:
    code, out, err = call_train("json=true")
    assert code == 0, err
    figures = json.loads(out.splitlines()[-1])
    assert (figures["state"], figures["step"], figures["steps"]) == ("finished", 2, 2)
    assert Path(figures["checkpoint"]) == tmp_path / "run/checkpoints/step_00000002.ckpt"
    assert_one_message(
        call_train(), f"{tmp_path}/run holds a run already", "resume=last", "name=OTHER"
    )
    ledger = tmp_path / "run" / "corrupt-rank0.jsonl"
    ledger.write_text('{"step": 1, "uid": "one"}\n' * 2 + '{"step": 2, "uid": "two"}\n')
    code, out, err = call_train("resume=auto")
    assert code == 0, err
    assert "run was at step 2 of 2 already: nothing was left to train" in out
    assert f"finished at step 2 of 2, loss {figures['loss']:.5g}: " in out
    assert "2 pictures could not be read" in out
    assert str(ledger) in out


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
    # The data module finds no sources, which is no mistake of a known kind.
    words = command(corpora, tmp_path / "run", {"data.mixture": "{}"})
    done = subprocess.run(
        words, env=environment(), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
