"""The bench of ablations: its corpus is what it says, its mixtures are eight, and it runs."""

import importlib
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from support.runs import environment

from openqwen2vl.corpus.handwriting import Number
from openqwen2vl.corpus.split import is_held_out
from openqwen2vl.evaluation.benchmarks.known import benchmark
from openqwen2vl.evaluation.prompts import IN_A_WORD
from openqwen2vl.formats.raw import raw_shards, read_raw_shard
from openqwen2vl.packing.reader import PackFolder

ROOT = Path(__file__).parents[1]
OPTIONAL = ("noisy", "handwriting", "mismatched")

Bench = Callable[[str], ModuleType]


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    """Give the bench's modules by name: they import each other as scripts do."""
    sys.path.insert(0, str(ROOT / "bench"))
    yield importlib.import_module
    sys.path.remove(str(ROOT / "bench"))


@pytest.fixture(scope="module")
def data(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus with packs and benchmarks; tests only read it."""
    root = tmp_path_factory.mktemp("data")
    bench("ablation_corpus").prepare(root, bench("ablation").QUICK)
    return root


def test_the_eight_mixtures_are_every_choice_beside_the_scenes() -> None:
    found = []
    for path in sorted((ROOT / "conf" / "mixture").glob("demo_ablation_*.yaml")):
        sources = yaml.safe_load(path.read_text())["sources"]
        assert path.stem == "_".join(["demo_ablation", *sources])
        for name, source in sources.items():
            assert source["packs"] == [f"${{packs_root}}/{name}-g{grid}" for grid in (3, 6)]
        found.append(tuple(sources))
    wanted = product(*((None, name) for name in OPTIONAL))
    assert sorted(found) == sorted(("scenes", *filter(None, one)) for one in wanted)


def test_every_source_is_packed_and_none_shares_a_document(bench: Bench, data: Path) -> None:
    corpus, sizes = bench("ablation_corpus"), bench("ablation").QUICK
    seen: set[int] = set()
    for source in corpus.CAPTIONS:
        folders = [PackFolder(data / "packs" / f"{source}-g{grid}") for grid in (3, 6)]
        held_out = [one for one in (folder.validation() for folder in folders) if one]
        ids = [int(i) for one in (*folders, *held_out) for i in one.uid_hashes()]
        # What is held out is so at every grid.
        assert len(set(ids)) == getattr(sizes, source)
        assert seen.isdisjoint(ids)
        seen |= set(ids)


def test_mismatched_captions_are_those_of_other_scenes(bench: Bench, data: Path) -> None:
    shards = list(raw_shards(data / "raw" / "mismatched"))
    texts = [d.turns[0].text for shard in shards for d in read_raw_shard(shard, "mismatched")]
    assert len(texts) == bench("ablation").QUICK.mismatched
    assert len(set(texts)) > len(texts) / 2


def test_questions_of_conversations_end_as_benchmarks_ask(bench: Bench, data: Path) -> None:
    (shard,) = raw_shards(data / "raw" / "conversations")
    asked = [t.text for d in read_raw_shard(shard, "talk") for t in d.turns if t.role == "user"]
    ends = [text.endswith(f"?\n{IN_A_WORD}") for text in asked]
    assert sum(ends) > len(ends) / 2
    assert not any(text.endswith("?") for text in asked)


def test_benchmarks_are_read_by_evaluate_and_ask_of_unseen_pictures(
    bench: Bench, data: Path
) -> None:
    corpus, sizes = bench("ablation_corpus"), bench("ablation").QUICK
    for name in corpus.BENCHMARKS:
        reading = benchmark(name).read(data / "benchmarks")
        assert len(reading.questions) == sizes.questions
        pictures = list((data / "benchmarks" / name).glob("*.jpg"))
        assert len(pictures) == sizes.questions
    for number in range(40):
        rng = random.Random(number)
        for reading_asked in (True, False):
            picture, question = corpus._asked(rng, corpus.load_scans(), reading=reading_asked)
            if not isinstance(picture.shows, Number):  # whose scans are split instead
                assert is_held_out(picture.shows.description)
            assert (question.topic in corpus.READING) is reading_asked


def test_another_corpus_in_the_same_place_is_refused(bench: Bench, tmp_path: Path) -> None:
    ablation = bench("ablation")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ablation.PREPARED).write_text("{}")
    with pytest.raises(SystemExit, match="holds another corpus"):
        ablation._prepare(tmp_path, replace(ablation.QUICK, seed=3))


@pytest.mark.slow
def test_it_runs_and_a_second_call_skips_what_is_done(tmp_path: Path) -> None:
    words = [sys.executable, ROOT / "bench" / "ablation.py", "--quick", "--out", tmp_path / "out"]
    words += ["--json", tmp_path / "figures.json"]
    told = []
    for _ in range(2):
        done = subprocess.run(
            [str(word) for word in words],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=1200,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        told.append(done.stdout)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert told[0].splitlines()[-1] == told[1].splitlines()[-1] == figures["headline"]
    assert (
        "2 differences from demo_ablation_scenes are shown of the trained models"
        in figures["headline"]
    )
    assert "to do: demo_ablation_scenes/seed-0" in told[0]
    assert "done already: demo_ablation_scenes/seed-0" in told[1]
    assert "to do" not in told[1]
    assert figures["failed"] == {}
    for name in ("report.html", "report.csv", "demo_ablation_scenes/seed-0/job.json"):
        assert (tmp_path / "out" / name).is_file()
