"""The command that ablates: its words, its plan, what it skips and refuses, and its jobs."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from support.ablations import write_answers, write_job, write_json, write_run
from support.evaluations import write_benchmarks
from support.runs import TINY_MODEL, PackedCorpora, Run, assert_one_message

from openqwen2vl.commands import _ablate_job, _ablate_sweep
from openqwen2vl.commands._ablate_job import run_job
from openqwen2vl.commands._ablate_plan import Plan
from openqwen2vl.commands._ablate_words import reword, split_items
from openqwen2vl.evaluation.ablation.jobs import Job, differences, fingerprint, read_failure
from openqwen2vl.formats.errors import UserError
from openqwen2vl.training.run_folder import RunFolder

ANSWERS = {"ai2d": [1.0, 0.0, 1.0, 1.0]}


class Ablation:
    """A command line over two small mixtures; the sweep itself is only recorded."""

    def __init__(self, call: Run, corpora: PackedCorpora, root: Path) -> None:
        self.call, self.out = call, root / "out"
        self.swept: list[str] = []
        overlay = root / "conf" / "mixture"
        overlay.mkdir(parents=True)
        for source in ("red", "blue"):
            packs = corpora.packs(source, 6)
            text = f"sources:\n  {source}: {{packs: {packs}}}\n"
            (overlay / f"only_{source}.yaml").write_text(text)
        (overlay / "gone.yaml").write_text("sources:\n  red: {packs: nowhere}\n")
        shared = [*TINY_MODEL, f"tokenizer={corpora.tokenizer}", "data.num_workers=0"]
        shared += ["data.global_batch=2", "data.documents_per_step=null", "logger=csv"]
        self.pretrain = [*shared, "budget.steps=3"]
        self.sft = [*shared, "budget.steps=2", "mixture=only_red"]
        self.root = f"data_root={write_benchmarks(root / 'benchmarks')}"
        self.overlay = f"--config-dir={overlay.parent}"

    def words(self, *changes: str, mixture: str = "glob(only_*)") -> list[str]:
        """Give the whole command line."""
        given = {"mixture": mixture, "out": str(self.out), "benchmarks": "ai2d"}
        given["pretrain"] = f"[{','.join(self.pretrain)}]"
        given["sft"] = f"[{','.join(self.sft)}]"
        given["evaluate"] = "[trainer.accelerator=cpu,data.num_workers=0]"
        settings = [f"{key}={value}" for key, value in given.items()]
        return ["ablate", self.overlay, self.root, *settings, "draws=500", *changes]

    def run(self, *changes: str, **given: str) -> tuple[int, str, str]:
        """Call it."""
        return self.call(*self.words(*changes, **given))

    def record(self, command: Sequence[str], log: Path | None = None) -> int:
        """Stand in for the sweep: every job is done at once."""
        (jobs,) = [word.removeprefix("job=") for word in command if word.startswith("job=")]
        self.command = list(command)
        for name in jobs.split(","):
            self.swept.append(name)
            settings = json.loads((self.out / name / "config.json").read_text())
            write_job(self.out, Job.parse(name), ANSWERS, settings=settings)
        return 0


@pytest.fixture
def ablation(
    call: Run, corpora: PackedCorpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Ablation:
    made = Ablation(call, corpora, tmp_path)
    monkeypatch.setattr(_ablate_sweep, "run_child", made.record)
    return made


def test_a_glob_and_a_number_of_seeds_give_the_jobs(ablation: Ablation) -> None:
    code, out, err = ablation.run("seeds=2", "hydra/launcher=basic", "-m")
    assert (code, err) == (0, "")
    jobs = [f"only_{name}/seed-{seed}" for seed in (0, 1) for name in ("blue", "red")]
    assert ablation.swept == jobs
    assert f"to do: {', '.join(jobs)}" in out
    assert {"-m", "only=job", ablation.overlay, "hydra/launcher=basic"} <= set(ablation.command)
    assert (ablation.out / "report.html").is_file()
    assert json.loads((ablation.out / "ablation.json").read_text())["seeds"] == [0, 1]


def test_what_is_done_is_skipped_and_what_is_new_is_run(ablation: Ablation) -> None:
    assert ablation.run(mixture="only_red")[0] == 0
    code, out, _ = ablation.run("seeds=[0,3]", "baseline=only_red")
    assert code == 0
    assert "done already: only_red/seed-0" in out
    assert ablation.swept == [
        *("only_red/seed-0", "only_blue/seed-0", "only_red/seed-3", "only_blue/seed-3")
    ]


def test_the_report_is_of_this_plan_whoever_else_works_in_the_folder(
    ablation: Ablation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def beside(command: Sequence[str], log: Path | None = None) -> int:
        plan = {"mixtures": ["only_blue"], "seeds": [9], "benchmarks": ["ai2d"]}
        write_json(ablation.out / "ablation.json", plan)
        return ablation.record(command)

    monkeypatch.setattr(_ablate_sweep, "run_child", beside)
    code, out, _ = ablation.run("json=true", mixture="only_red")
    assert code == 0
    assert list(json.loads(out.splitlines()[-1])["scores"]) == ["only_red"]


def test_a_job_of_other_settings_is_refused_by_the_keys_that_differ(ablation: Ablation) -> None:
    assert ablation.run()[0] == 0
    ablation.pretrain += ["optim.lr=0.5", "data.num_workers=1"]
    told = ablation.run()
    assert_one_message(told, "was begun with other settings: pretrain.optim.lr is 5e-05 there")
    assert "num_workers" not in told[2]
    assert len(ablation.swept) == 2


def test_how_many_are_asked_at_once_may_change(ablation: Ablation) -> None:
    assert ablation.run()[0] == 0
    assert ablation.run("evaluate=[trainer.accelerator=cpu,batch_size=2]")[0] == 0


def test_who_asks_otherwise_need_not_train_again(ablation: Ablation) -> None:
    assert ablation.run()[0] == 0
    otherwise = "evaluate=[trainer.accelerator=cpu,dtype=bfloat16]"
    told = ablation.run(otherwise)
    assert_one_message(
        told,
        "was begun with other settings: evaluate.keys is [",
        "or delete scores and job.json in every job's folder to ask the trained models again",
    )
    for job in ablation.swept:
        (ablation.out / job / "job.json").unlink()
        shutil.rmtree(ablation.out / job / "scores")
    assert ablation.run(otherwise)[0] == 0
    assert len(ablation.swept) == 4
    ablation.sft += ["optim.lr=0.5"]
    assert_one_message(ablation.run(otherwise), "sft.optim.lr is ", "or delete the folder")


def test_all_mixtures_that_do_not_fit_are_told_at_once(ablation: Ablation) -> None:
    code, _, err = ablation.run(mixture="[only_red,gone,ccs]")
    assert code == 2
    assert "mixture gone: no manifest.json in nowhere" in err
    assert "\nmixture ccs: " in err
    assert "fit to be trained: only_red; mixture= may name these alone" in err
    ablation.pretrain.append("budget.steps=null")
    err = ablation.run()[2]
    assert err.startswith("mixture only_blue, only_red: pretrain sets neither")


def test_jobs_that_fail_do_not_hide_and_the_code_is_1(
    ablation: Ablation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(command: Sequence[str], log: Path | None = None) -> int:
        kept = [word for word in command if not word.startswith("job=")]
        failed = {"stage": "sft", "message": "ended with code 1: out of memory"}
        write_json(ablation.out / "only_red" / "seed-0" / "failed.json", failed)
        return ablation.record([*kept, "job=only_blue/seed-0"])

    monkeypatch.setattr(_ablate_sweep, "run_child", half)
    with pytest.raises(SystemExit) as left:
        ablation.run()
    assert left.value.code == 1
    page = (ablation.out / "report.html").read_text()
    assert "only_red/seed-0: sft: ended with code 1: out of memory" in page
    # A page of other jobs is not left for one on these.
    monkeypatch.setattr(_ablate_sweep, "run_child", lambda command, log=None: 0)
    with pytest.raises(SystemExit) as left:
        ablation.run(mixture="only_red")
    assert left.value.code == 1
    assert not (ablation.out / "report.html").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["mixture=only_rde"], "mixture names 'only_rde'; did you mean 'only_red'?"),
        (["mixture='glob(none*)'"], "mixture=glob(none*) names none; there are "),
        (["mixture=gone"], "mixture gone: no manifest.json in nowhere"),
        (["seeds=0"], "seeds is 0; expected a number above 0 or a list"),
        (["seeds=[1,1]"], "seeds is [1, 1]; expected"),
        (["baseline=only_green"], "baseline is 'only_green'; did you mean"),
        (["benchmarks=null"], "benchmarks: must be given"),
        (["benchmarks=ai3d"], "benchmark is 'ai3d'; did you mean 'ai2d'?"),
        (["benchmarks=mmstar"], "no files of mmstar: neither"),
        (["only=all"], "only is 'all'; there are null, report, job"),
        (["alpha=0.7"], "alpha is 0.7; expected more than 0"),
        (["pretrain=[budget.steps=2,seed=3]"], "the ablation sets seed itself"),
        (["pretrain=[mixture=ccs]"], "the ablation sets mixture itself"),
        (["sft=[init_from=x]"], "the ablation sets init_from itself"),
        (["evaluate=[model=x]"], "the ablation sets model itself"),
        (["evaluate=fast"], "evaluate is 'fast'; expected a list"),
        (["sft=[fast]"], "sft holds 'fast'; expected KEY=VALUE"),
        (["only=job", "job=only_red/seed-0"], "was not made ready for job only_red/seed-0"),
        (["only=job", "job=only_red"], "job is 'only_red'; expected MIXTURE/seed-N"),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    ablation: Ablation, changes: list[str], message: str
) -> None:
    named = {word.partition("=")[0] for word in changes}
    words = [word for word in ablation.words() if word.partition("=")[0] not in named]
    if "only=job" in changes:
        words = reword(words)
    assert_one_message(ablation.call(*words, *changes), message)
    assert ablation.swept == []


@pytest.mark.parametrize(
    ("stage", "change", "message"),
    [
        ("pretrain", "budget.steps=null", "at unlike numbers of tokens"),
        ("pretrain", "optim.lrr=1", "Could not override 'optim.lrr'"),
        ("pretrain", "strategy=ddp,trainer.num_nodes=2", "pretrain sets trainer.num_nodes=2"),
        ("sft", "stage=align", "sft names stage=align"),
        ("sft", "clip=0", "clip is 0"),
    ],
)
def test_mistakes_of_a_stage_are_told_before_anything_runs(
    ablation: Ablation, stage: str, change: str, message: str
) -> None:
    getattr(ablation, stage).append(change)
    code, _, err = ablation.run()
    assert code == 2
    assert message in err
    assert ablation.swept == []


def test_words_become_what_hydra_reads_as_people_mean_them() -> None:
    items = ["stage=pretrain", "budget.tokens=1e6", "resolution.plan=[{grid: 3, until: 1.0}]"]
    items += ["+mixture.sources.a.packs=[x,y]", "name='a,b'", "x=it\\'s"]
    words = ["-m", "mixture=glob([a*,b*],exclude=c)", "benchmarks=ai2d,gqa", "sft=demo"]
    found = reword([*words, f"pretrain=[{','.join(items)}]", "mixture=[a,b]", "seeds=[1,2]"])
    read = [OverridesParser.create().parse_override(word) for word in found]
    values = [(one.key_or_group, one.value()) for one in read]
    assert values[:3] == [
        ("mixture", {"names": "glob([a*,b*],exclude=c)"}),
        ("benchmarks", ["ai2d", "gqa"]),
        ("sft", "demo"),
    ]
    assert values[3][1][:5] == items[:5]
    assert values[4:] == [("mixture", {"names": ["a", "b"]}), ("seeds", [1, 2])]
    assert reword(found) == found
    assert reword(["-m", "only=job", "mixture=a,b"]) == ["-m", "only=job", "mixture=a,b"]


@given(st.lists(st.text("ab=.:[]{}()", min_size=1, max_size=8), max_size=5))
def test_items_are_cut_outside_of_brackets_only(items: list[str]) -> None:
    closed = [f"({item.translate(dict.fromkeys(map(ord, '[](){}')))},)" for item in items]
    assert split_items(",".join(closed)) == closed


@given(st.dictionaries(st.text(max_size=3), st.integers(), max_size=3), st.integers())
def test_a_fingerprint_and_the_differences_tell_settings_apart(
    settings: dict[str, int], value: int
) -> None:
    before = {"train": settings, "other": [1]}
    changed: dict[str, Any] = {"train": {**settings, "new": value}, "other": [1]}
    assert list(differences(before, before)) == []
    assert (fingerprint(before) == fingerprint(changed)) == (settings == changed["train"])
    if settings != changed["train"]:
        old = settings.get("new", "absent")
        assert list(differences(before, changed)) == [f"train.new is {old} there and {value} here"]


@pytest.mark.parametrize("name", ["a/seed-0", "a_b/c/seed-12"])
def test_a_jobs_name_is_its_folder(name: str) -> None:
    assert Job.parse(name).name == name


class Stages:
    """Stands in for the commands of a job; one of them may fail once."""

    def __init__(self, folder: Path, fails: str) -> None:
        self.folder, self.fails = folder, fails
        self.ran: list[str] = []

    def __call__(self, command: Sequence[str], log: Path | None = None) -> int:
        """Do what the command would leave behind."""
        assert log is not None
        stage = log.stem
        self.ran.append(stage)
        with log.open("a") as file:
            file.write(f"{' '.join(command)}\nno luck with {stage}\n")
        if stage == self.fails:
            self.fails = ""
            return 1
        if stage == "evaluate":
            write_answers(self.folder / "scores", ANSWERS)
        else:
            write_run(self.folder / stage, {"red": 10.0})
        return 0


@pytest.mark.parametrize("fails", ["", "pretrain", "sft", "evaluate"])
def test_a_job_that_failed_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    words = {"pretrain": ["stage=pretrain"], "sft": ["stage=sft"], "evaluate": []}
    plan = Plan(tmp_path, ["red"], [0], ["ai2d"], tmp_path, "standard", words, [])
    (job,) = plan.jobs
    folder = tmp_path / job.name
    stages = Stages(folder, fails)
    monkeypatch.setattr(_ablate_job, "run_child", stages)
    with pytest.raises(UserError, match="was not made ready"):
        run_job(plan, job)
    write_json(folder / "config.json", {})
    order = ["pretrain", "sft", "evaluate"]
    if fails:
        assert run_job(plan, job) == {"job": "red/seed-0", "state": "failed"}
        told = json.loads((folder / "failed.json").read_text())
        assert told["stage"] == fails
        assert told["message"].startswith("ended with code 1: ")
        assert told["message"].endswith(f"no luck with {fails}")
        assert stages.ran == order[: order.index(fails) + 1]
        assert not (folder / "job.json").exists()
    assert run_job(plan, job) == {"job": "red/seed-0", "state": "done"}
    assert not (folder / "failed.json").exists()
    twice = order.index(fails) if fails else 3
    assert stages.ran == [*order[: twice + 1], *order[twice:]]
    record = json.loads((folder / "job.json").read_text())
    assert record["scores"] == {"ai2d": {"headline": "accuracy", "n": 4, "value": 75.0}}
    assert record["device_hours"] == {"pretrain": 0.25, "sft": 0.25}
    assert set(record["seconds"]) == set(order)
    said = (folder / "sft.log").read_text()
    assert f"init_from={folder / 'pretrain'}" in said
    assert "resume=auto" in said
    run_job(plan, job)
    assert len(stages.ran) == 3 + bool(fails)


def test_a_job_that_another_process_is_at_is_left_to_it(tmp_path: Path) -> None:
    plan = Plan(tmp_path, ["red"], [0], ["ai2d"], tmp_path, "standard", {}, [])
    (job,) = plan.jobs
    write_json(tmp_path / job.name / "config.json", {})
    other = RunFolder(tmp_path / job.name)
    other.lock()
    with pytest.raises(UserError, match="another process is at job red/seed-0 of"):
        run_job(plan, job)
    assert read_failure(tmp_path, job) == "another process is at it"


def test_a_seed_draws_the_order_and_the_first_weights(ablation: Ablation) -> None:
    assert ablation.run("seeds=[0,5]", mixture="only_red")[0] == 0
    first, second = (
        json.loads((ablation.out / f"only_red/seed-{seed}/config.json").read_text())
        for seed in (0, 5)
    )
    told = {line.partition(" is ")[0] for line in differences(first, second)}
    drawn = {f"pretrain.{part}.seed" for part in ("vision", "projector", "llm", "order")}
    assert told == {*drawn, "pretrain.seed", "sft.seed", "sft.order.seed"}
