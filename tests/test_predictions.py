"""Files of answers: what ranks leave behind is taken in once, and what is not ours is refused."""

import gc
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.asking import HEADER

from openqwen2vl.evaluation.collector import uncollected
from openqwen2vl.evaluation.predictions import (
    Answered,
    Header,
    json_line,
    parse_line,
    read_predictions,
)
from openqwen2vl.evaluation.unfinished import Unfinished
from openqwen2vl.formats.errors import UserError

COUNT = 9
HERE = replace(HEADER, n=COUNT)
IDS = [f"q{number}" for number in range(COUNT)]
PROMPTS = {name: f"hash of {name}" for name in IDS}


def answer(name: str, output: str = "said") -> Answered:
    return Answered(
        id=name,
        cluster=name,
        output=f"{output} {name}",
        fields={"answer": "A", "options": {"A": "one\u2028line"}},
        prompt_hash=PROMPTS[name],
    )


def written(folder: Path, rank: int, ranks: int, names: list[str], header: Header = HERE) -> None:
    """Leave what a rank had answered when it was killed."""
    folder.mkdir(parents=True, exist_ok=True)
    store = Unfinished(folder)
    store.open(header, rank, ranks)
    store.add([answer(name) for name in names])
    store.close()


def started(folder: Path, overwrite: bool = False, header: Header = HERE) -> Unfinished:
    store = Unfinished(folder)
    store.start(header, PROMPTS, overwrite)
    return store


@settings(max_examples=30, deadline=None)
@given(
    ranks=st.lists(st.sampled_from(["main", "0", "1", "2", "none"]), min_size=9, max_size=9),
    cut=st.integers(0, 25),
)
def test_all_that_ranks_left_behind_is_taken_in_once(
    tmp_path_factory: pytest.TempPathFactory, ranks: list[str], cut: int
) -> None:
    folder = tmp_path_factory.mktemp("out")
    held = {key: [n for n, r in zip(IDS, ranks, strict=True) if r == key] for key in set(ranks)}
    written(folder, 0, 1, held.get("main", []))
    for rank in range(3):
        # A kill between taking a part in and removing it leaves its answers in both.
        written(folder, rank, 3, [*held.get("main", [])[:1], *held.get(str(rank), [])])
    half = answer("q0").line()[:cut]
    for path in folder.glob("*predictions*"):
        path.write_bytes(path.read_bytes() + half)
    store = started(folder)
    done = {name for name, rank in zip(IDS, ranks, strict=True) if rank != "none"}
    assert store.finished() == done
    assert [path.name for path in folder.glob("*predictions*")] == ["predictions.jsonl"]
    store.open(HERE, 0, 1)
    store.add([answer(name) for name in reversed(IDS) if name not in done])
    found = store.finish(IDS)
    store.close()
    assert found == [answer(name) for name in IDS]
    assert read_predictions(folder) == (HERE, found)
    assert (folder / "predictions.jsonl").read_bytes() == b"".join(
        [HERE.line(), *(answer(name).line() for name in IDS)]
    )


def test_parts_of_something_else_are_refused_or_go(tmp_path: Path) -> None:
    written(tmp_path, 1, 2, ["q1"], replace(HERE, model_hash="1" * 16))
    with pytest.raises(UserError, match="model_hash"):
        started(tmp_path)
    store = started(tmp_path, overwrite=True)
    assert store.finished() == set()
    assert not list(tmp_path.glob(".predictions.rank-*"))


def test_overwriting_takes_the_old_scores_along_and_going_on_does_not(tmp_path: Path) -> None:
    written(tmp_path, 0, 1, ["q1"])
    scores = [tmp_path / name for name in ("scores.json", "scored.jsonl")]
    for path in scores:
        path.write_text("old")
    started(tmp_path, overwrite=True).close()
    assert all(path.exists() for path in scores)
    started(tmp_path, True, replace(HERE, file_hash="0" * 64)).close()
    assert not any(path.exists() for path in scores)


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    first = started(tmp_path)
    with pytest.raises(UserError, match="another process is writing"):
        started(tmp_path)
    first.close()
    started(tmp_path).close()


def test_a_question_without_an_answer_is_told(tmp_path: Path) -> None:
    written(tmp_path, 0, 1, IDS[:-1])
    store = started(tmp_path)
    with pytest.raises(UserError, match="8 answers to 9 questions"):
        store.finish(IDS)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"[1]\n", "is list, no answer"),
        (b'{"id": "q1"}\n', "lacks cluster, fields, output, prompt_hash"),
        (b"\x00\x00\n", "is not JSON"),
        (answer("q0").line().replace(b'"q0"', b"7"), "line 2: id is 7; expected str"),
        (answer("q0").line().replace(b'"fields": {', b'"fields": null, "x": {'), "fields is None"),
        (answer("q0").line()[:-2] + b', "logprobs": null}\n', "logprobs is None; expected a list"),
        (answer("q0").line()[:-2] + b', "logprobs": ["a"]}\n', "expected a list of numbers"),
        (answer("q0").line() * 2, "the id 'q0' twice"),
        (answer("q0").line().replace(b"hash of", b"other"), "1 prompts, the first of question q0"),
    ],
)
def test_lines_that_are_no_answers_of_this_run_are_refused(
    tmp_path: Path, line: bytes, said: str
) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(HERE.line() + line)
    with pytest.raises(UserError, match=said):
        started(tmp_path)
    assert path.read_bytes() == HERE.line() + line


def test_a_header_without_a_version_we_know_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    record = json.loads(HERE.line())
    for change in ({"version": 2}, {"kind": "other"}):
        path.write_text(json.dumps(record | change) + "\n")
        with pytest.raises(UserError, match="of version 1"):
            read_predictions(path)
    del record["decoding"]
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(UserError, match="lacks decoding"):
        read_predictions(path)


def test_numbers_that_an_old_header_names_among_decoding_are_found(tmp_path: Path) -> None:
    here = replace(HERE, n=1, dtype="bfloat16")
    old = json.loads(here.line())
    old["decoding"]["dtype"] = old.pop("dtype")
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(f"{json.dumps(old)}\n".encode() + answer("q0").line())
    assert read_predictions(path) == (here, [answer("q0")])
    store = started(tmp_path, header=here)  # and such a run goes on
    assert store.finished() == {"q0"}
    store.close()
    with pytest.raises(UserError, match="dtype bfloat16 there, float32 here"):
        started(tmp_path, header=replace(here, dtype="float32"))


@settings(max_examples=200, deadline=None)
@given(
    value=st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**64 - 1)
        | st.floats(allow_nan=False)
        | st.text(st.characters(exclude_categories=())),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=12,
    )
)
def test_a_line_is_read_as_the_standard_library_reads_it(value: object) -> None:
    """Infinities and lone halves of surrogate pairs too, which stricter readers refuse."""
    line = json_line({"value": value})
    assert parse_line(line) == json.loads(line)


@pytest.mark.parametrize("line", [b"", b"{", b"nonsense", b'{"a": 1} x', b"\xff\xfe", b"[1,]"])
def test_what_is_no_json_is_no_line(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"Expecting|Extra|Illegal|codec"):
        parse_line(line)


def test_the_collector_is_as_it_was(tmp_path: Path) -> None:
    for was in (True, False):
        (gc.enable if was else gc.disable)()
        try:
            with uncollected():
                assert not gc.isenabled()
            with pytest.raises(UserError):
                read_predictions(tmp_path)
            assert gc.isenabled() is was
        finally:
            gc.enable()
