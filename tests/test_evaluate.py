"""``openqwen2vl evaluate`` from a run folder and local files to scores, through every mistake."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.evaluations import write_benchmarks, write_run
from support.runs import Run, assert_one_message, environment, kill_tree

from openqwen2vl.commands._evaluate_words import reword
from openqwen2vl.evaluation.predictions import read_predictions

ROWS = 20


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmarks(tmp_path_factory.mktemp("data") / "benchmarks", ROWS)


def words(run: Path, data: Path, out: Path, *more: str, benchmark: str = "mmbench") -> list[str]:
    return [
        "evaluate",
        *reword([f"model={run}", f"benchmark={benchmark}"]),
        f"data_root={data}",
        f"out={out}",
        "trainer.accelerator=cpu",
        "data.num_workers=0",
        *more,
    ]


def figures(told: tuple[int, str, str]) -> Any:
    code, out, err = told
    assert code == 0, err
    return json.loads(out.splitlines()[-1])


def test_two_steps_are_one(run_folder: Path, data_root: Path, tmp_path: Path, call: Run) -> None:
    both = "mmbench,ai2d_likelihood"
    one, two = tmp_path / "one", tmp_path / "two"
    told = call(*words(run_folder, data_root, one, "json=true", benchmark=both))
    scores = figures(told)["scores"]
    assert set(scores) == {"mmbench", "ai2d_likelihood"}
    for line in ("mmbench", "ai2d_likelihood", "circular", "standard, version 1"):
        assert line in told[1]
    assert "note: mmbench has 20 questions here; 4377 or 4329 are known" in told[1]
    call(*words(run_folder, data_root, two, "only=generate", benchmark=both))
    assert not (two / "mmbench" / "scores.json").exists()
    again = call(*words(Path("/none"), Path("/none"), two, "only=score", benchmark=both))
    assert again[0] == 0
    for name in scores:
        for file in ("predictions.jsonl", "scores.json", "scored.jsonl"):
            assert (one / name / file).read_bytes() == (two / name / file).read_bytes()
        head = json.loads((one / name / "scores.json").read_text())
        assert head == scores[name]
        assert (head["decoding"], head["dtype"]) == ({"method": "greedy"}, "float32")
        header, rows = read_predictions(one / name)
        assert (header.n, len(rows)) == (ROWS, ROWS)
        assert header.model_hash == head["model_hash"]
        assert header.model_hash.endswith("-g6")
    letters = read_predictions(one / "ai2d_likelihood")[1]
    assert all(len(row.logprobs) == 4 and row.output == "" for row in letters)


def test_every_number_of_questions_at_once_gives_the_same_answers(
    run_folder: Path, data_root: Path, tmp_path: Path, call: Run
) -> None:
    for size in ("1", "32"):
        call(*words(run_folder, data_root, tmp_path / size, f"batch_size={size}"))
    one, many = ((tmp_path / s / "mmbench/predictions.jsonl").read_bytes() for s in ("1", "32"))
    assert one == many
    outputs = {row.output for row in read_predictions(tmp_path / "1" / "mmbench")[1]}
    assert len(outputs) > ROWS // 4


def test_the_papers_protocol_asks_in_plain_text(
    run_folder: Path, data_root: Path, tmp_path: Path, call: Run
) -> None:
    for protocol in ("standard", "oqvl-paper"):
        told = call(*words(run_folder, data_root, tmp_path / protocol, f"protocol={protocol}"))
        assert told[0] == 0, told[2]
    one, other = (read_predictions(tmp_path / p / "mmbench") for p in ("standard", "oqvl-paper"))
    assert other[0].protocol == "oqvl-paper"
    assert {row.prompt_hash for row in one[1]}.isdisjoint(row.prompt_hash for row in other[1])
    assert all(not {".", ",", "\n"} & set(row.output) for row in other[1])
    assert_one_message(
        call(*words(run_folder, data_root, tmp_path / "oqvl-paper", "only=score")),
        "protocol oqvl-paper",
    )


def test_another_model_needs_another_folder_or_overwrite(
    run_folder: Path, data_root: Path, tmp_path: Path, call: Run
) -> None:
    other = write_run(tmp_path / "other", seed=1)
    out = tmp_path / "out"
    call(*words(run_folder, data_root, out))
    before = read_predictions(out / "mmbench")
    told = call(*words(other, data_root, out))
    assert_one_message(told, "model_hash", "overwrite=true")
    assert read_predictions(out / "mmbench") == before
    told = call(*words(other, data_root, out, "overwrite=true", "only=generate"))
    assert told[0] == 0, told[2]
    assert read_predictions(out / "mmbench")[0].model_hash != before[0].model_hash
    assert not (out / "mmbench" / "scores.json").exists()


def test_predictions_that_cannot_be_scored_are_told(
    run_folder: Path, data_root: Path, tmp_path: Path, call: Run
) -> None:
    call(*words(run_folder, data_root, tmp_path, "only=generate"))
    path = tmp_path / "mmbench" / "predictions.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    half, twice = whole[:-20], b"".join([*lines, lines[3]])
    moved = tmp_path / "ai2d_likelihood"
    moved.mkdir()
    (moved / path.name).write_bytes(whole)
    other = call(*words(Path(), Path(), tmp_path, "only=score", benchmark="ai2d_likelihood"))
    assert_one_message(other, "holds answers to mmbench")
    for content, said in (
        (half, "ends in half a line"),
        (b"".join(lines[:-1]), "holds 19 answers to 20 questions"),
        (twice, "the id '2' twice"),
        (b"".join(lines[1:]), "does not begin as openqwen2vl.predictions"),
        (b"{}\n", "line 1 lacks cluster"),
        (b"nothing\n", "line 1 is not JSON"),
    ):
        path.write_bytes(content)
        assert_one_message(call(*words(Path(), Path(), tmp_path, "only=score")), said)
    path.unlink()
    assert_one_message(call(*words(Path(), Path(), tmp_path, "only=score")), "only=generate makes")


def test_what_scoring_lacks_is_told_before_anything_is_asked(
    run_folder: Path, tmp_path: Path, call: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    told = call(*words(run_folder, tmp_path, tmp_path, benchmark="coco_captions,mmbench"))
    assert_one_message(told, "CIDEr")
    asked = call(*words(run_folder, tmp_path, tmp_path, "only=generate", benchmark="coco_captions"))
    assert_one_message(asked, "no files of coco_captions")


def test_a_benchmark_that_could_not_be_asked_has_no_score(
    run_folder: Path, data_root: Path, tmp_path: Path, call: Run
) -> None:
    both = "ai2d,mmbench"
    call(*words(run_folder, data_root, tmp_path, "only=generate", benchmark=both))
    path = tmp_path / "ai2d" / "predictions.jsonl"
    header, *rows = map(json.loads, path.read_text().splitlines())
    failed = [{**row, "output": "", "error": "the picture is none"} for row in rows]
    path.write_text("".join(json.dumps(record) + "\n" for record in (header, *failed)))
    code, out, err = call(*words(Path(), Path(), tmp_path, "only=score", benchmark=both))
    assert (code, "circular" in out, "not one question could be asked" in err) == (2, True, True)
    assert (tmp_path / "mmbench" / "scores.json").exists()
    assert not (tmp_path / "ai2d" / "scores.json").exists()


def test_fetch_prints_commands_and_wants_nothing_else(call: Run) -> None:
    told = call("evaluate", "benchmark=[mmbench,gqa_8shot]", "fetch=true", "data_root=/data/x")
    assert told[0] == 0, told[2]
    lines = told[1].splitlines()
    assert len(lines) == 2
    assert all(line.startswith("hf download ") for line in lines)
    assert all("--repo-type dataset" in line for line in lines)
    assert lines[0].endswith("--local-dir /data/x/mmbench")
    assert "train" in lines[1]
    assert "train" not in lines[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("benchmark=mmbnch",), "did you mean 'mmbench'?"),
        (("benchmark=[mmbench,ai3d]",), "did you mean 'ai2d'?"),
        (("data_root=/nowhere",), "fetch=true"),
        (("protocol=lmms",), "there are standard, oqvl-paper"),
        (("only=judge",), "there are null, generate, score"),
        (("model={path:/nowhere}",), "/nowhere"),
        (("model={path:null}", "out=null"), "model, out: must be given"),
        (("batch_size=0",), "batch_size is 0"),
        (("temperature=-1",), "temperature is -1"),
        (("temperature=1e-45",), "temperature is 1e-45; take 0 for the likeliest"),
        (("seed=-1",), "seed is -1; expected 0 to"),
        (("dtype=float8",), "bfloat16"),
        (("data.num_workrs=1",), "did you mean 'num_workers'?"),
        (("btch_size=1",), "batch_size"),
        (("out=/proc/none",), "give another out"),
        (("trainer.devices=0",), "trainer: `Trainer(devices=0)` value is not a valid input"),
    ],
)
def test_mistakes_get_one_message(
    run_folder: Path,
    data_root: Path,
    tmp_path: Path,
    call: Run,
    changes: tuple[str, ...],
    said: str,
) -> None:
    assert_one_message(call(*words(run_folder, data_root, tmp_path), *changes), said)


def test_words_are_put_for_hydra_once() -> None:
    assert reword(["model=runs/a b=c", "benchmark=a,b", "out=x,y"]) == [
        "model={path:'runs/a b=c'}",
        "benchmark=[a,b]",
        "out=x,y",
    ]
    assert reword(["-m", "model=a,b", "benchmark=a,b"]) == [
        "-m",
        "model={path:'a'},{path:'b'}",
        "benchmark=a,b",
    ]
    assert reword(["model=null", "benchmark=a"]) == ["model={path:null}", "benchmark=a"]


@given(st.lists(st.text(max_size=12), max_size=3))
def test_putting_words_twice_changes_nothing(values: list[str]) -> None:
    given = [f"{key}={value}" for key, value in zip(("model", "benchmark", "x"), values)]  # noqa: B905
    assert reword(reword(given)) == reword(given)


@pytest.mark.slow
def test_one_rank_or_two_and_two_kills_give_the_file_of_an_unbroken_run(tmp_path: Path) -> None:
    rows = 60
    run, data = write_run(tmp_path / "run"), write_benchmarks(tmp_path / "data", rows)
    command = [sys.executable, "-m", "openqwen2vl"]

    def asked(out: Path, *more: str, **named: str) -> list[str]:
        return [*command, *words(run, data, out, "only=generate", "batch_size=2", *more, **named)]

    def finish(out: Path, *more: str) -> Path:
        done = subprocess.run(
            asked(out, *more, benchmark="mmbench,ai2d_likelihood"),
            env=environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return out

    unbroken, out = finish(tmp_path / "unbroken"), tmp_path / "killed"
    folder, letters = out / "mmbench", Path("ai2d_likelihood", "predictions.jsonl")
    first = kill_when_answered(asked(out, "trainer.devices=2"), folder, rows // 5)
    assert rows // 5 <= first < rows
    second = kill_when_answered(asked(out), folder, first + 8)
    assert first + 8 <= second < rows
    # Of the other benchmark one question is left, so one rank has nothing to do.
    (out / letters).parent.mkdir()
    lines = (unbroken / letters).read_bytes().splitlines(keepends=True)
    (out / letters).write_bytes(b"".join(lines[:-1]))
    finish(out, "trainer.devices=2")
    same = Path("mmbench", "predictions.jsonl")
    assert (out / same).read_bytes() == (unbroken / same).read_bytes()
    assert len(read_predictions(out / letters)[1]) == rows
    assert not list(out.rglob(".predictions.rank-*"))


def kill_when_answered(command: list[str], folder: Path, count: int) -> int:
    """Kill a run's whole tree with SIGKILL after some answers; gives how many it left."""
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while answered(folder) < count and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    kill_tree(process.pid)
    process.wait()
    return answered(folder)


def answered(folder: Path) -> int:
    files = [folder / "predictions.jsonl", *folder.glob(".predictions.rank-*.jsonl")]
    return sum(file.read_bytes().count(b'\n{"id"') for file in files if file.exists())
