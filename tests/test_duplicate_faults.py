import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.duplicates import run, simple, write

from openqwen2vl.curation.duplicates import outcome
from openqwen2vl.curation.duplicates.deduplicate import DuplicateRules
from openqwen2vl.curation.duplicates.selected import Selected
from openqwen2vl.formats.errors import ConfigError, ShardError


@pytest.mark.parametrize(
    ("by", "column"),
    [("image", "sha256"), ("near", "phash"), ("pair", "caption_hash"), ("pair", "sha256")],
)
def test_a_column_that_a_rule_needs_is_asked_for(tmp_path, by, column):
    kinds = {"shard": "0", "key": "0", "uid": "u", "caption_hash": pa.scalar(1, pa.uint64())}
    if column == "caption_hash":
        kinds |= {"sha256": bytes(32)}
        del kinds["caption_hash"]
    pq.write_table(pa.table({k: [v] for k, v in kinds.items()}), tmp_path / "a.parquet")
    with pytest.raises(ShardError, match=f"no column {column}: duplicates by {by} need it"):
        run(tmp_path, [Selected("a", tmp_path / "a.parquet")], DuplicateRules(by=(by,)))
    assert not list(tmp_path.glob("kept/*"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"by": ("hash",)}, "'hash' are not known; expected some of uid, image, pair, near"),
        ({"distance": 40}, "distance is 40 of 64 bits"),
        ({"max_blank": 95}, "max_blank is 95; it is a share"),
    ],
)
def test_rules_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        DuplicateRules(**settings)


def test_files_that_cannot_be_read_are_named_and_nothing_is_written(tmp_path):
    rule = DuplicateRules(by=("uid",))
    (sound,) = write(tmp_path, {"a": [simple()]})
    with pytest.raises(ShardError, match="no selection"):
        run(tmp_path, [sound, Selected("b", tmp_path / "b.parquet")], rule)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ShardError, match="cannot be read"):
        run(tmp_path, [sound, Selected("b", tmp_path / "b.parquet")], rule)
    with pytest.raises(ShardError, match="two selections are named a"):
        run(tmp_path, [sound, sound], rule)
    pq.write_table(pa.table({"shard": ["0"], "key": ["0"]}), tmp_path / "b.parquet")
    with pytest.raises(ShardError, match="no column uid"):
        run(tmp_path, [sound, Selected("b", tmp_path / "b.parquet")], rule)
    many = [Selected(f"s{i}", sound.path) for i in range(65)]
    with pytest.raises(ConfigError, match="65 sources; at most 64"):
        run(tmp_path, many, rule)
    assert not list(tmp_path.glob("kept/*"))


def test_a_disk_that_fills_up_leaves_no_table_behind(tmp_path, monkeypatch):
    selections = write(tmp_path, {name: [simple()] for name in ("a", "b")})
    monkeypatch.setattr(outcome, "_dropped", lambda *_: (1 / 0 for _ in (1,)))
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, selections, DuplicateRules(by=("uid",)))
    assert [path for path in tmp_path.rglob("*") if path.parent != tmp_path] == []


def test_a_column_of_another_kind_is_named(tmp_path):
    table = pa.table({"shard": ["0"], "key": ["0"], "uid": ["u"], "sha256": ["ab"]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ShardError, match="column sha256 of a selection holds string"):
        run(tmp_path, [Selected("a", tmp_path / "a.parquet")], DuplicateRules(by=("image",)))
