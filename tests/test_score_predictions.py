"""Predictions on disk to scores on disk, and predictions that are not scored."""

import json
import random
import time
from dataclasses import replace

import pytest
from support.mini_benchmarks import MINI, write_mini

from openqwen2vl.evaluation.benchmarks.known import BENCHMARKS
from openqwen2vl.evaluation.predictions import Answered, Header, read_predictions
from openqwen2vl.evaluation.protocols import protocol
from openqwen2vl.evaluation.score import score_predictions, write_scores
from openqwen2vl.evaluation.score_files import read_scores
from openqwen2vl.formats.errors import UserError

SAID = ["A", "B.", "(C)", "The answer is D", "yes", "no", "Yes.", "", "14", "1.45", "sun", "猫"]


@pytest.fixture
def reading(tmp_path):
    write_mini(tmp_path, "mmbench")
    return BENCHMARKS["mmbench"].read(tmp_path)


def score_file(path):
    """Score a file of predictions, or that of a folder, and write the scores beside it."""
    scores = score_predictions(*read_predictions(path))
    write_scores(path if path.is_dir() else path.parent, scores)
    return scores


def header_of(name, reading, **changes):
    made = Header(
        benchmark=name,
        file_hash=reading.file_hash,
        n=len(reading.questions),
        protocol="standard",
        protocol_version=protocol("standard").version,
        template_hash="t",
        decoding={"method": "greedy"},
        model_hash="m",
        model="tiny",
        dtype="float32",
    )
    return replace(made, **changes)


def answered(reading, seed=0):
    rng = random.Random(seed)
    return [
        Answered(
            id=q.id, cluster=q.cluster, fields=q.fields, output=rng.choice(SAID), prompt_hash=""
        )
        for q in reading.questions
    ]


def write(folder, header, rows):
    folder.mkdir(exist_ok=True)
    lines = [header.line(), *(row.line() for row in rows)]
    (folder / "predictions.jsonl").write_bytes(b"".join(lines))
    return folder


def test_scores_say_what_was_scored_and_how(tmp_path, reading):
    header, rows = header_of("mmbench", reading), answered(reading)
    rows[3] = replace(rows[3], output="", error="no picture")
    scores = score_file(write(tmp_path / "out", header, rows))
    head = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert head == scores.head
    told = ("benchmark", "protocol", "protocol_version", "file_hash", "n", "decoding", "dtype")
    assert all(head[name] == getattr(header, name) for name in told)
    assert head["headline"] in head["metrics"]
    assert head["counts"]["failed"] == 1
    assert head["counts"]["unread"] > 1
    lines = (tmp_path / "out" / "scored.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert set(first) == {"id", "cluster", "correct", "read", "how"}
    read = read_scores(tmp_path / "out" / "scored.jsonl")
    assert 100 * read.correct.mean() == pytest.approx(head["metrics"]["row"])
    assert sorted(read.ids) == sorted(q.id for q in reading.questions)


def test_scoring_again_and_in_another_order_writes_the_same_bytes(tmp_path, reading):
    header, rows = header_of("mmbench", reading), answered(reading)
    first, again = (tmp_path / name for name in "ab")
    score_file(write(first, header, rows))
    score_file(write(again, header, rows[::-1]))
    for name in ("scores.json", "scored.jsonl"):
        bytes_before = (first / name).read_bytes()
        assert (again / name).read_bytes() == bytes_before
        score_file(first)
        assert (first / name).read_bytes() == bytes_before


@pytest.mark.parametrize("name", ["pope", "mmmu", "textvqa", "mantis"])
def test_what_comes_back_from_disk_scores_the_same(tmp_path, name):
    write_mini(tmp_path, name)
    reading = BENCHMARKS[name].read(tmp_path)
    header, rows = header_of(name, reading), answered(reading)
    direct = score_predictions(header, rows)
    assert score_file(write(tmp_path / "out", header, rows)).head == direct.head


def refused(folder, match):
    with pytest.raises(UserError, match=match):
        score_file(folder)
    assert not (folder / "scores.json").exists()


def test_predictions_that_are_not_whole_are_refused(tmp_path, reading):
    header, rows = header_of("mmbench", reading), answered(reading)
    folder = write(tmp_path / "out", header, rows)
    path = folder / "predictions.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    refused(folder, "half a line|answers to 18 questions")
    path.write_bytes(whole[: whole[:-1].rfind(b"\n") + 1])
    refused(folder, "17 answers to 18 questions")
    write(folder, header, [*rows[:-1], rows[0]])
    refused(folder, f"the id '{rows[0].id}' twice")


def test_predictions_of_something_else_are_refused(tmp_path, reading):
    rows = answered(reading)
    for change, match in (
        ({"benchmark": "chess"}, "benchmark is 'chess'; there are mmmu"),
        ({"protocol": "mine"}, "protocol is 'mine'"),
        ({"protocol_version": 7}, "asked for by protocol standard version 7; this is version 1"),
    ):
        refused(write(tmp_path / "out", header_of("mmbench", reading, **change), rows), match)
    bare = [replace(row, fields={"question": "?"}) for row in rows]
    refused(write(tmp_path / "out", header_of("mmbench", reading), bare), "lacks 'options'")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MINI if name != "coco_captions"])
def test_scoring_is_quick(tmp_path, name):
    """It reaches 50,000 rows a second on an idle core; here a fifth of that must do."""
    write_mini(tmp_path, name)
    asked = BENCHMARKS[name].read(tmp_path).questions
    rng, count = random.Random(0), 10_000
    rows = [
        Answered(
            id=str(number),
            cluster=str(number // 4),
            fields=asked[number % len(asked)].fields,
            output=rng.choice(SAID),
            prompt_hash="",
        )
        for number in range(count)
    ]
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        BENCHMARKS[name].score(rows, protocol("standard"))
        seconds.append(time.perf_counter() - start)
    assert count / min(seconds) > 10_000
