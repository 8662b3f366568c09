import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.duplicates import read, rows_of, run, simple, write

from openqwen2vl.curation.duplicates import independent, outcome, selected
from openqwen2vl.curation.duplicates.deduplicate import (
    CRITERIA,
    DuplicateRules,
    Removed,
)
from openqwen2vl.curation.duplicates.selected import Selected

SEEN = (0, 1, 3, 7, 0xFF, 2**63, 2**63 + 1)


row = st.tuples(
    st.sampled_from([None, "own", "a", "b", f"{10:032x}", f"{11:032x}"]),
    st.sampled_from([None, 1, 2, 3]),
    st.sampled_from([None, *SEEN]),
    st.sampled_from([None, 5, 6]),
    st.sampled_from([None, 0.0, 0.95, 0.99]),
)
mixtures = st.lists(st.lists(row, max_size=9), min_size=1, max_size=3).map(
    lambda sources: {f"s{i}": rows_of(f"s{i}", drawn) for i, drawn in enumerate(sources)}
)
rules = st.builds(
    DuplicateRules,
    by=st.lists(st.sampled_from(list(CRITERIA)), unique=True).map(tuple),
    distance=st.sampled_from([0, 1, 3]),
)


def alike(a, b, rule: DuplicateRules):
    """Say by which criterion two rows are alike: the definition."""

    def same(name):
        return a[name] is not None and a[name] == b[name]

    looked_at = all(
        r["phash"] is not None and (r["blank_share"] or 0) <= np.float32(0.95) for r in (a, b)
    )
    uids = [
        (r["source"], r["uid"]) if r["uid"] == f"{r['shard']}/{r['key']}" else r["uid"]
        for r in (a, b)
    ]
    tests = {
        "uid": lambda: same("uid") and uids[0] == uids[1],
        "image": lambda: same("sha256"),
        "pair": lambda: same("caption_hash") and (same("sha256") or (looked_at and same("phash"))),
        "near": lambda: looked_at and (a["phash"] ^ b["phash"]).bit_count() <= rule.distance,
    }
    return next((name for name in CRITERIA if name in rule.by and tests[name]()), None)


def reference(mixture, rule: DuplicateRules):
    """Go through all rows in order and compare each with all that stay."""
    kept, dropped = [], []
    for row in (row for rows in mixture.values() for row in rows):
        found = [(alike(row, other, rule), other) for other in kept]
        for name in CRITERIA:
            first = next((other for how, other in found if how == name), None)
            if first is not None:
                break
        if first is None:
            kept.append(row | {"sources": {row["source"]}})
            continue
        first["sources"].add(row["source"])
        detail = f"{first['source']}/{first['shard']}/{first['key']}"
        dropped.append(
            (row["source"], row["shard"], row["key"], row["uid"], CRITERIA[name], detail)
        )
    return [
        (r["source"], r["shard"], r["key"], r["uid"], [s for s in mixture if s in r["sources"]])
        for r in kept
    ], dropped


# One row is a pair with two that stay, by its look and by its bytes: the first is to be named.
TWO_WAYS = {
    "s0": rows_of("s0", [(None, None, 0, 6, None), (None, 2, None, 6, None)]),
    "s1": rows_of("s1", [(None, 2, 0, 6, None)]),
}


@settings(deadline=None, max_examples=100)
@given(mixtures, rules, st.sampled_from([0, 2048]))
@example(TWO_WAYS, DuplicateRules(by=("pair",), distance=0), 0)
def test_it_is_what_the_definition_gives(tmp_path_factory, mixture, rule, block):
    folder = tmp_path_factory.mktemp("duplicates")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(independent.first_independent, "__defaults__", (block,))
        counts = run(folder, write(folder / "in", mixture), rule)
    kept, dropped = reference(mixture, rule)
    assert read(folder, mixture) == (kept, dropped)
    for name, rows in mixture.items():
        found = counts[name]
        assert found.selected == len(rows)
        assert found.kept == sum(row[0] == name for row in kept)
        assert sum(found.dropped.values()) == found.selected - found.kept
        assert sum(found.for_source.values()) == found.selected - found.kept


@settings(deadline=None, max_examples=30)
@given(mixtures, rules)
def test_each_dropped_one_names_one_that_stays(tmp_path_factory, mixture, rule):
    folder = tmp_path_factory.mktemp("duplicates")
    run(folder, write(folder / "in", mixture), rule)
    kept, dropped = read(folder, mixture)
    stays = {f"{source}/{shard}/{key}" for source, shard, key, *_ in kept}
    assert len(stays) + len(dropped) == sum(map(len, mixture.values()))
    assert all(row[-1] in stays for row in dropped)


@settings(deadline=None, max_examples=30)
@given(mixtures, rules)
def test_what_was_kept_is_kept_again_to_the_byte(tmp_path_factory, mixture, rule):
    folder = tmp_path_factory.mktemp("duplicates")
    run(folder, write(folder / "in", mixture), rule)
    again = [Selected(name, folder / "kept" / f"{name}.parquet") for name in mixture]
    counts = run(folder / "again", again, rule)
    assert all(not found.dropped for found in counts.values())
    for name in mixture:
        path = Path("kept") / f"{name}.parquet"
        assert (folder / "again" / path).read_bytes() == (folder / path).read_bytes()


def test_rows_that_go_over_several_batches_are_the_same(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    mixture = {
        name: rows_of(name, [(f"{rng.integers(40):032x}", None, None, None, None)] * 1)
        + [simple(key=f"k{i}", uid=f"{rng.integers(40):032x}", source=name) for i in range(50)]
        for name in ("a", "b")
    }
    selections = write(tmp_path / "in", mixture)
    run(tmp_path / "whole", selections, DuplicateRules(by=("uid",)))
    monkeypatch.setattr(selected, "ROWS", 7)
    monkeypatch.setattr(outcome, "ROWS", 7)
    run(tmp_path / "parts", selections, DuplicateRules(by=("uid",)))
    assert read(tmp_path / "parts", mixture) == read(tmp_path / "whole", mixture)
    assert read(tmp_path / "whole", mixture) == reference(mixture, DuplicateRules(by=("uid",)))
    parts = pq.ParquetFile(tmp_path / "parts" / "kept" / "a.parquet").metadata
    assert [parts.row_group(i).num_rows for i in range(parts.num_row_groups - 1)] == [
        7 for _ in range(parts.num_row_groups - 1)
    ]


def test_uids_that_repeat_shard_and_key_are_names_within_their_corpus(tmp_path):
    drawn = [("own", None, None, None, None)]
    mixture = {name: rows_of(name, drawn) for name in ("a", "b", "c")}
    selections = write(tmp_path, mixture, {"b": "x", "c": "x"})
    counts = run(tmp_path, selections, DuplicateRules(by=("uid",)))
    assert [counts[name].kept for name in mixture] == [1, 1, 0]
    assert counts["c"].for_source == {"b": 1}


def test_contaminated_rows_go_first_and_nothing_gives_way_to_them(tmp_path):
    mixture = {"a": [simple(key=str(i), uid="same", source="a") for i in range(3)]}
    removed = Removed(np.array([0]), ["mmmu.parquet row 7 (same bytes)"])
    rule = DuplicateRules(by=("uid",))
    counts = run(tmp_path, write(tmp_path, mixture), rule, contaminated=removed)
    assert counts["a"].dropped == {"contaminated": 1, "duplicate_uid": 1}
    _, dropped = read(tmp_path, mixture)
    assert [row[2:] for row in dropped] == [
        ("0", "same", "contaminated", "mmmu.parquet row 7 (same bytes)"),
        ("2", "same", "duplicate_uid", "a/00000/1"),
    ]


def test_rules_and_priority_are_noted_in_the_files(tmp_path):
    mixture = {"b": [simple()], "a": [simple()]}
    run(tmp_path, write(tmp_path, mixture), DuplicateRules(by=("near", "uid")))
    facts = json.loads(pq.read_schema(tmp_path / "kept" / "a.parquet").metadata[b"openqwen2vl"])
    assert facts["sources"] == ["b", "a"]
    assert facts["rules"] == {"by": ["uid", "near"], "distance": 4, "max_blank": 0.95}


def test_columns_of_the_selection_are_carried_over(tmp_path):
    table = pa.table({"shard": ["0"], "key": ["0"], "uid": ["u"], "clip_similarity": [0.3]})
    pq.write_table(table, tmp_path / "a.parquet")
    rule = DuplicateRules(by=("uid",))
    run(tmp_path, [Selected("a", tmp_path / "a.parquet")], rule)
    found = pq.read_table(tmp_path / "kept" / "a.parquet")
    assert found.drop_columns("sources").equals(table)
    assert found["sources"].to_pylist() == [["a"]]


def test_pairs_need_one_of_both_hashes(tmp_path):
    twin = simple(caption_hash=5, phash=9)
    mixture = {"a": [twin | {"key": "0"}, twin | {"key": "1", "uid": "v"}]}
    write(tmp_path, mixture)
    table = pq.read_table(tmp_path / "a.parquet").drop_columns(["sha256", "blank_share"])
    pq.write_table(table, tmp_path / "a.parquet")
    counts = run(tmp_path, [Selected("a", tmp_path / "a.parquet")], DuplicateRules(by=("pair",)))
    assert counts["a"].dropped == {"duplicate_pair": 1}
