"""The report of an ablation, made of what lies in its folder."""

import csv
import json
import random
from pathlib import Path

import pytest
from support.ablations import write_job, write_json, write_plan
from support.runs import PackedCorpora, Run, assert_one_message

from openqwen2vl.commands._ablate_plan import Plan
from openqwen2vl.commands._ablate_sweep import prepare
from openqwen2vl.evaluation.ablation.jobs import Job

NAMES = ("mix_plain", "mix_<good>", "mix_bad")
RIGHT = {"mix_plain": 0.5, "mix_<good>": 0.53, "mix_bad": 0.25}


@pytest.fixture
def ablation(corpora: PackedCorpora, tmp_path: Path) -> Path:
    """Three mixtures, two seeds, one job of which was never run."""
    out = tmp_path / "ablation"
    for name in NAMES:
        for seed in (0, 1):
            if (name, seed) == ("mix_bad", 1):
                continue
            rng = random.Random(f"{name}/{seed}")
            answers = {
                one: [float(rng.random() < RIGHT[name]) for _ in range(150)]
                for one in ("gqa", "pope")
            }
            more = {} if name == "mix_plain" else {"blue": 600.0}
            packs = {source: corpora.packs(source, 6) for source in ("red", "blue")}
            write_job(out, Job(name, seed), answers, {"red": 1000.0, **more}, packs)
    write_plan(out, NAMES, (0, 1), ("gqa", "pope"))
    return out


def test_a_report_is_made_of_the_folder_alone(call: Run, ablation: Path) -> None:
    code, out, _ = call("ablate", "only=report", f"out={ablation}", "draws=500", "json=true")
    assert code == 0
    figures = json.loads(out.splitlines()[-1])
    assert figures["baseline"] == "mix_plain"
    assert len(figures["effects"]) == 4
    real = {
        (one["mixture"], one["comparison"]["name"])
        for one in figures["effects"]
        if one["of_models"]
    }
    assert real == {("mix_bad", "gqa"), ("mix_bad", "pope")}
    assert list(figures["failed"]) == ["mix_bad/seed-1"]
    assert figures["device_hours"]["mix_plain"] == {"pretrain": 0.5, "sft": 0.5}
    assert "2 of 4 differences from mix_plain are shown of the trained models" in out
    assert "failed: mix_bad/seed-1: it was never started" in out


def test_the_page_stands_alone_and_shows_every_part(call: Run, ablation: Path) -> None:
    assert call("ablate", "only=report", f"out={ablation}", "draws=500")[0] == 0
    page = (ablation / "report.html").read_text()
    assert not any(mark in page for mark in ("http:", "https:", "<script", "<link", "src="))
    assert "mix_&lt;good&gt;" in page
    assert "<good>" not in page
    for title in ("What is shown", "Scores", "Differences from mix_plain", "Learning curves"):
        assert f"<h2>{title}</h2>" in page
    for title in ("Held-out red", "Shared documents", "Shared sources", "Cost", "Failed"):
        assert f"<h2>{title}</h2>" in page
    # What all names begin with is said once.
    assert "<td>C  bad</td>" in page
    assert "60.00% of its tokens" in page


def test_the_csv_holds_every_mixture_and_benchmark(call: Run, ablation: Path) -> None:
    assert call("ablate", "only=report", f"out={ablation}", "draws=500")[0] == 0
    with (ablation / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["mixture"], row["benchmark"]) for row in rows] == [
        (name, one) for name in NAMES for one in ("gqa", "pope")
    ]
    plain, bad = rows[0], rows[-1]
    assert (plain["difference"], plain["seeds"], plain["tokens"]) == ("", "0 1", "1000.0")
    assert (bad["verdict"], bad["seeds"], bad["failed_seeds"]) == ("these models", "0", "1")
    # Of two seeds against one of them.
    assert [row["p_over_seeds"] != "" for row in rows[::2]] == [False, True, False]
    assert float(bad["low"]) < float(bad["difference"]) < float(bad["high"]) < 0


def test_a_narrow_terminal_cuts_no_name_and_no_figure(
    call: Run, ablation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(columns: int) -> list[list[str]]:
        monkeypatch.setenv("COLUMNS", str(columns))
        out = call("ablate", "only=report", f"out={ablation}", "draws=500")[1]
        return [line.split() for line in out.splitlines() if line.split()[0] in ("mixture", *NAMES)]

    wide, narrow = rows(120), rows(36)
    assert [row[0] for row in wide] == ["mixture", *NAMES]
    assert wide[0] == ["mixture", "gqa", "pope", "mean", "tokens"]
    # The same in two tables, one below the other.
    assert [
        first + second[1:] for first, second in zip(narrow[:4], narrow[4:], strict=True)
    ] == wide


def test_another_baseline_can_be_taken_afterwards(call: Run, ablation: Path) -> None:
    words = ("ablate", "only=report", f"out={ablation}", "baseline=mix_bad", "draws=500")
    code, out, _ = call(*words)
    assert code == 0
    assert "4 of 4 differences from mix_bad are shown of the trained models" in out
    told = call(*words[:3], "baseline=mix_none")
    assert_one_message(told, "baseline is 'mix_none'", "holds mix_plain, ")


def test_a_figure_that_is_no_mean_over_rows_is_named(call: Run, ablation: Path) -> None:
    for path in ablation.rglob("job.json"):
        record = json.loads(path.read_text())
        record["scores"]["gqa"]["headline"] = "macro"
        write_json(path, record)
    code, out, _ = call("ablate", "only=report", f"out={ablation}", "draws=500", "json=true")
    told = "gqa: scores are its macro, differences are of the mean over its rows"
    assert code == 0
    assert told in out
    assert json.loads(out.splitlines()[-1])["remarks"] == [
        told,
        "pre-training was not equal: the largest took 60% more tokens than the smallest; "
        "budget.tokens makes it so",
    ]
    assert told in (ablation / "report.html").read_text()
    with (ablation / "report.csv").open() as file:
        assert {row["figure"] for row in csv.DictReader(file)} == {"macro", "accuracy"}


def test_mixtures_that_had_to_repeat_documents_are_named(call: Run, ablation: Path) -> None:
    for path in ablation.glob("mix_bad/*/job.json"):
        record = json.loads(path.read_text())
        record["consumed"]["pretrain"]["blue"]["passes"] = 3.96
        write_json(path, record)
    out = call("ablate", "only=report", f"out={ablation}", "draws=500")[1]
    told = "pre-training repeated documents: mix_bad up to 4.0 times; equal tokens are then not"
    assert told in out
    assert told in (ablation / "report.html").read_text()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("ablation.json", '{"mixtures": [', "ablation.json is damaged ("),
        ("ablation.json", "[1, 2]", "ablation.json is damaged ("),
        ("ablation.json", '{"mixtures": []}', "ablation.json lacks seeds, benchmarks"),
        ("mix_bad/seed-0/job.json", '{"version": 1', "job.json is damaged ("),
        ("mix_bad/seed-0/job.json", '{"version": 1}', "job.json lacks scores, consumed"),
        (
            "mix_bad/seed-0/job.json",
            '{"version": 0, "scores": {}, "consumed": {}}',
            "job.json is of version 0, this is version 1",
        ),
    ],
)
def test_a_damaged_folder_is_told(
    call: Run, ablation: Path, name: str, text: str, message: str
) -> None:
    (ablation / name).write_text(text)
    assert_one_message(call("ablate", "only=report", f"out={ablation}", "draws=500"), message)


def test_mixtures_that_a_new_plan_leaves_out_are_told(
    ablation: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = dict.fromkeys(("pretrain", "sft", "evaluate"), ())
    plan = Plan(ablation, ["mix_new", "mix_bad"], [0], ["gqa"], Path(), "standard", words, [])
    prepare(plan, {}, [])
    told = f"not in this report, though they lie in {ablation}: mix_plain, mix_<good>"
    assert told in capsys.readouterr().out
    prepare(plan, {}, [])
    assert "not in this report" not in capsys.readouterr().out


def test_packs_that_are_gone_cost_only_their_table(call: Run, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_job(tmp_path, Job(name, 0), {"gqa": [1.0, 0.0, 1.0]})
    write_plan(tmp_path, ("one", "two"), (0,), ("gqa",))
    assert call("ablate", "only=report", f"out={tmp_path}", "draws=500")[0] == 0
    page = (tmp_path / "report.html").read_text()
    assert "<p>Not known: " in page
    assert "not equal" not in page
    assert "<h2>Shared sources</h2>" in page


def test_there_is_no_report_on_nothing(call: Run, tmp_path: Path) -> None:
    told = call("ablate", "only=report", f"out={tmp_path}")
    assert_one_message(told, "holds no ablation; run one there first")
    write_plan(tmp_path, ("one",), (0,), ("gqa",))
    told = call("ablate", "only=report", f"out={tmp_path}")
    assert_one_message(told, "is done: one/seed-0: it was never started")
