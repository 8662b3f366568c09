import random
import re
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from support.compose import choices, composed
from support.selections import add_scores, opened, uid, write_table

from openqwen2vl.commands._curate_config import SCHEMA, read_request
from openqwen2vl.config import check
from openqwen2vl.curation.selection.expression import ExpressionError, parse_expression
from openqwen2vl.curation.selection.frames import TableError
from openqwen2vl.curation.selection.ranks import tie_hash
from openqwen2vl.curation.selection.select import (
    Rule,
    Selection,
    SelectionError,
    export_uids,
    select,
)
from openqwen2vl.curation.selection.uids import UidError, read_uids, write_uids
from openqwen2vl.formats.errors import ConfigError

CONF = Path(__file__).parents[1] / "conf"
COLUMNS = ("shard", "key", "uid")
BOTH = "clip_similarity >= 0.3 and semantic_understanding >= 85"


def selected(root, keep, source=None, out="out", lists=None, name="mine"):
    """Select from one source; gives figures, what stays and what goes."""
    source = source or opened(root)
    rules = Selection(sources={name: Rule(input="src", keep=keep)}, lists=lists or {})
    figures = select(rules, {"src": source}, root / out)[name]
    return figures, *(
        pl.read_parquet(root / out / path)
        for path in (f"selection/{name}.parquet", f"dropped/select-{name}.parquet")
    )


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if not p.is_dir()}


@pytest.fixture
def scored(tmp_path):
    """Make two shards: one sample for each thing that can happen to one."""
    for number in range(2):
        clip = [0.4, 0.4, 0.2, None, float("nan"), None, 0.1]
        errors = [None] * 5 + ["broken image", "broken image"]
        columns = {"clip_similarity": pa.array(clip, pa.float32()), "clip_error": errors}
        add_scores(tmp_path, "clip", f"{number:05d}", columns, rejects={"missing_image": 2})
        metric = [90, 80, 90, 90, 90, 90, 70]
        columns = {"semantic_understanding": pa.array(metric, pa.float32())}
        add_scores(tmp_path, "mlm_filter", f"{number:05d}", columns)
    return tmp_path


def test_each_sample_stays_or_goes_for_its_reason(scored):
    figures, kept, dropped = selected(scored, BOTH)
    assert kept.rows() == [("00000", "0000", uid(0)), ("00001", "0000", uid(1000))]
    first, second = BOTH.split(" and ")
    assert dropped.filter(shard="00001").drop("shard", "uid").rows() == [
        ("0001", "selection", second),
        ("0002", "selection", first),
        ("0003", "unscored", first),
        ("0004", "unscored", first),
        ("0005", "unreadable", "broken image"),
        ("0006", "selection", first),
    ]
    assert figures == {
        "seen": 14,
        "kept": 2,
        "dropped": {"selection": 6, "unscored": 4, "unreadable": 2},
        "terms": {first: 10, second: 4},
        "rejects": {"missing_image": 4},
        "nan": {"clip_similarity": 2},
        "unparsed": {},
    }


def test_what_is_written_is_plain_and_the_same_every_time(scored, monkeypatch):
    selected(scored, BOTH)
    selected(scored, BOTH, out="again")
    assert files(scored / "out") == files(scored / "again")
    monkeypatch.setattr("openqwen2vl.curation.selection.spines.SHARDS", 1)
    whole, pieces = (selected(scored, BOTH, out=out) for out in ("out", "pieces"))
    assert pieces[0] == whole[0]
    assert all(part.equals(other) for part, other in zip(pieces[1:], whole[1:], strict=True))
    schema = pq.read_schema(scored / "out/dropped/select-mine.parquet")
    assert schema == pa.schema(dict.fromkeys((*COLUMNS, "reason", "detail"), pa.string()))


def test_what_later_steps_need_goes_along_from_scorers_that_saw_all(scored):
    for shard in ("00000", "00001"):
        columns = {
            "sha256": pa.array([bytes([n]) * 32 for n in range(7)], pa.binary(32)),
            "phash": pa.array([2**64 - 1 - n for n in range(7)], pa.uint64()),
            "width": pa.array(range(7), pa.int32()),
        }
        add_scores(scored, "image", shard, columns)
    add_scores(scored, "text", "00000", {"caption_hash": pa.array(range(7), pa.uint64())})
    _, kept, _ = selected(scored, "width in [2, 5]")
    assert kept.columns == [*COLUMNS, "sha256", "phash", "width"]
    assert kept["phash"].to_list() == [2**64 - 3, 2**64 - 6] * 2
    assert kept["sha256"].to_list() == [bytes([2]) * 32, bytes([5]) * 32] * 2
    types = pq.read_schema(scored / "out/selection/mine.parquet").types
    assert types == [pa.string()] * 3 + [pa.binary(), pa.uint64(), pa.int32()]


def test_all_keeps_even_what_no_scorer_could_read(scored):
    figures, kept, dropped = selected(scored, "all")
    assert (len(kept), len(dropped), figures["kept"]) == (14, 0, 14)


def test_without_rules_every_input_stays_whole(scored):
    figures = select(Selection(sources={}), {"src": opened(scored)}, scored / "out")
    assert {name: found["kept"] for name, found in figures.items()} == {"src": 14}


def test_the_papers_expressions_split_a_corpus_by_list_and_score(scored):
    path = scored / "dfn.npy"
    write_uids(path, pl.Series([uid(n) for n in (1, 2, 1002, 5555)]))
    rules = yaml.safe_load((CONF / "selection/paper.yaml").read_text())["sources"]
    rules = {name: Rule(input="src", keep=rule["keep"]) for name, rule in rules.items()}
    lists = {"dfn": str(path)}
    select(Selection(sources=rules, lists=lists), {"src": opened(scored)}, scored / "out")
    kept = {n: pl.read_parquet(scored / f"out/selection/{n}.parquet")["uid"] for n in rules}
    assert kept["datacomp_dfn"].to_list() == [uid(1), uid(2), uid(1002)]
    expected = [uid(n) for n in (0, 3, 4, 5, 1000, 1001 + 2, 1004, 1005)]
    assert kept["su85_minus_dfn"].to_list() == expected
    union = "uids('dfn') or semantic_understanding >= 85"
    _, both, _ = selected(scored, union, lists=lists)
    assert sorted(both["uid"]) == sorted([*kept["datacomp_dfn"], *kept["su85_minus_dfn"]])


def write_ranked(root, rows, sizes):
    """Write rows (uid, value) as shards of these sizes."""
    for number, size in enumerate(sizes):
        part, rows = rows[:size], rows[size:]
        columns = {
            "uid": [u for u, _ in part],
            "value": pa.array([v for _, v in part], pa.float64()),
        }
        add_scores(root, "s", f"{number:05d}", columns)


@pytest.mark.parametrize("fraction", ["0.1", "0.29", "0.5", "1"])
def test_the_top_is_exact_and_knows_no_order_of_shards(tmp_path, fraction, monkeypatch):
    monkeypatch.setattr("openqwen2vl.curation.selection.spines.SHARDS", 2)
    rng = random.Random(int(float(fraction) * 100))
    rows = [(uid(n), rng.choice([None, float("nan"), 1.0, 2.0, 2.0, 3.0])) for n in range(101)]
    known = [(u, v) for u, v in rows if v is not None and v == v]
    size = int(round(float(fraction) * 100) * len(known) // 100)
    hashes = dict(zip([u for u, _ in rows], tie_hash(pl.Series([u for u, _ in rows])), strict=True))
    best = sorted(known, key=lambda row: (-row[1], hashes[row[0]]))[:size]
    for turn, sizes in enumerate(([101], [1, 50, 0, 20, 30], [40, 30, 31])):
        rng.shuffle(rows)
        (tmp_path / str(turn)).mkdir()
        write_ranked(tmp_path / str(turn), rows, sizes)
        figures, kept, _ = selected(tmp_path / str(turn), f"top(value, {fraction})")
        assert sorted(kept["uid"]) == sorted(u for u, _ in best)
        assert figures["dropped"]["unscored"] == 101 - len(known)


def test_ties_of_one_uid_are_cut_too_and_other_tops_keep_their_own(tmp_path):
    write_ranked(tmp_path, [("same", 1.0)] * 10 + [("other", 0.0)] * 5, [7, 8])
    _, kept, _ = selected(tmp_path, "top_n(value, 3) or top_n(-value, 2)")
    assert sorted(kept["uid"]) == ["other"] * 2 + ["same"] * 3
    assert selected(tmp_path, "top_n(value, 3)")[1].equals(kept.filter(pl.col("uid") == "same"))


def test_ties_are_cut_at_random(tmp_path):
    hashes = tie_hash(pl.Series([uid(n) for n in range(4000)])).astype(np.float64) / 2**64
    assert abs(hashes.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(hashes[:-1], hashes[1:])[0, 1]) < 0.05


def test_a_source_of_tables_gives_a_list_of_uids(tmp_path, monkeypatch):
    monkeypatch.setattr("openqwen2vl.curation.selection.frames.ROWS", 4)
    numbers = list(range(20))
    random.Random(0).shuffle(numbers)
    columns = {"uid": [uid(n) for n in numbers], "score": [n / 20 for n in numbers]}
    write_table(tmp_path / "src" / "part.parquet", columns, row_group_size=3)
    figures, kept, dropped = selected(tmp_path, "top(score, 0.3) and score < 0.9")
    assert kept["uid"].to_list() == [uid(n) for n in numbers if 14 <= n < 18]
    assert dropped["key"].to_list() == [
        f"{i:09d}" for i, n in enumerate(numbers) if n < 14 or n > 17
    ]
    assert figures["terms"] == {"top(score, 0.3)": 14, "score < 0.9": 2}
    path = tmp_path / "list.npy"
    assert export_uids(tmp_path / "out/selection/mine.parquet", path) == 0
    assert read_uids(path).contains(kept["uid"]).all()
    again = selected(tmp_path, "uids('mine')", lists={"mine": str(path)}, out="again")
    assert again[1].equals(kept)


def test_a_list_cannot_be_made_of_other_uids(scored):
    add_scores(scored, "clip", "00000", {"uid": ["00000/a"], "clip_similarity": [0.5]})
    selected(scored, "clip_similarity == 0.5")
    with pytest.raises(UidError, match=r"1 of 1 uids are not 32 hex digits"):
        export_uids(scored / "out/selection/mine.parquet", scored / "list.npy")


def test_identity_can_be_asked_for(scored):
    _, kept, _ = selected(scored, f"shard == '00001' and key > '0004' or uid == '{uid(2)}'")
    assert kept["key"].to_list() == ["0002", "0005", "0006"]


def test_nothing_left_says_what_each_condition_loses_and_writes_nothing(scored):
    keep = "clip_similarity >= 0.3 and semantic_understanding > 95 and (all or missing(uid))"
    with pytest.raises(SelectionError) as caught:
        selected(scored, keep)
    assert str(caught.value) == (
        "nothing of mine stays of 14 samples, 0 of them for want of a score; most are lost by "
        "'semantic_understanding > 95'. Each condition loses:\n"
        "  semantic_understanding > 95: 14\n"
        "  clip_similarity >= 0.3: 10\n"
        "  all or missing(uid): 0"
    )
    assert files(scored / "out") == {}


def test_a_source_without_samples_is_told(tmp_path):
    write_table(tmp_path / "src" / "a.parquet", {"uid": pa.array([], pa.string())})
    with pytest.raises(TableError, match="source mine has no sample"):
        selected(tmp_path, "all")


@pytest.mark.parametrize(
    ("keep", "error", "fault"),
    [
        (
            "clip_similarty > 0",
            ExpressionError,
            "keep of mine: there is no column 'clip_similarty'",
        ),
        ("clip_similarity > '0'", ExpressionError, "cannot be compared (character 1 of"),
        ("uids('dfm')", ExpressionError, "no list 'dfm'; did you mean 'dfn'?"),
        ("uids('dfn')", UidError, "keep of mine: no list of uids gone.npy"),
        ("clip_similarity >", ExpressionError, "keep of mine: invalid syntax"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_written(scored, keep, error, fault):
    good = Rule(input="src", keep="all")
    rules = {"good": good, "mine": Rule(input="src", keep=keep)}
    selection = Selection(sources=rules, lists={"dfn": "gone.npy"})
    with pytest.raises(error, match=re.escape(fault)):
        select(selection, {"src": opened(scored)}, scored / "out")
    assert not (scored / "out").exists()


def test_an_unknown_input_is_told(scored):
    selection = Selection(sources={"mine": Rule(input="scr", keep="all")})
    with pytest.raises(
        ConfigError, match=r"selects from 'scr', which is no input; did you mean 's"
    ):
        select(selection, {"src": opened(scored)}, scored / "out")


@pytest.mark.parametrize("name", choices("selection"))
def test_every_shipped_selection_composes_and_can_be_read(name, tmp_path):
    lists = yaml.safe_load((CONF / "selection" / f"{name}.yaml").read_text())["lists"]
    given = [f"selection.lists.{word}={tmp_path / 'list.npy'}" for word in lists]
    inputs = ("ccs", "datacomp", "laion")
    folders = f"input={{{', '.join(f'{one}: {tmp_path / one}' for one in inputs)}}}"
    words = (f"selection={name}", folders, f"out={tmp_path / 'out'}", "scorers=[image]", *given)
    config = composed(*words, name="curate")
    check(config, SCHEMA)
    selection = read_request(config).selection
    assert set(selection.lists) == set(lists)
    for rule in selection.sources.values():
        assert rule.input in inputs
        assert set(parse_expression(rule.keep).lists) <= set(lists)


def test_the_published_union_is_split_without_scores(scored):
    path = scored / "dfn.npy"
    write_uids(path, pl.Series([uid(n) for n in (1, 2, 1002, 5555)]))
    union, published = (
        yaml.safe_load((CONF / f"selection/{name}.yaml").read_text())["sources"]
        for name in ("paper_final", "paper_published")
    )
    assert list(published) == list(union)
    keep = [union["datacomp_dfn"]["keep"], union["su85_minus_dfn"]["keep"]]
    lists = {"dfn": str(path)}
    _, both, _ = selected(scored, f"({keep[0]}) or ({keep[1]})", lists=lists)
    # What was published is the union; of it, each source gets what the scores would give it.
    write_uids(scored / "union.npy", both["uid"])
    lists["union"] = str(scored / "union.npy")
    for name in ("datacomp_dfn", "su85_minus_dfn"):
        (expected, found) = (
            selected(scored, f"uids('union') and ({rules[name]['keep']})", lists=lists)[1]
            for rules in (union, published)
        )
        assert found.equals(expected)
