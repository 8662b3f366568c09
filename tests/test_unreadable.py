"""What cannot be read costs its own sample and is told of by name, whoever reads it and how often."""

import html
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from support.runs import Run
from support.samples import LengthScorer
from support.shards import caption, picture, write_caption_shard, write_tar

from openqwen2vl.curation.samples import read_samples
from openqwen2vl.curation.score import score_source
from openqwen2vl.curation.unreadable import Ledger, join_ledgers, ledgers, look_through
from openqwen2vl.engine.local import map_inline
from openqwen2vl.formats.errors import ShardError, UserError
from openqwen2vl.formats.rejects import Reject

NAMES = ["shard", "key", "uid", "reason", "detail"]
# Of each shard that `write_bad_shard` writes: what is told of it.
LOST = {"half": "missing_image", "json": "bad_json", "text": "missing_text", "": "truncated_shard"}


def write_bad_shard(path: Path, seed: int) -> None:
    """Write five good pairs, one of each fault, a corrupt picture, and half of a last pair."""
    rng = random.Random(seed)
    image = picture(rng)
    files: dict[str, bytes] = {}
    for key in "abcde":
        files |= {f"{key}.jpg": picture(rng, (64, 40 + seed)), f"{key}.txt": caption(rng).encode()}
        files[f"{key}.json"] = json.dumps({"uid": f"{rng.getrandbits(128):032x}"}).encode()
    files |= {"half.txt": b"no picture", "half.json": b'{"uid": "its own"}'}
    files |= {"json.jpg": image, "json.txt": b"words of it", "json.json": b"{"}
    files |= {"corrupt.jpg": image[:200], "corrupt.txt": b"a red circle of some size"}
    files |= {"text.jpg": image}
    files |= {"cut.jpg": bytes(4_000)}
    write_tar(path, files)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 4_000)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    for number in range(3):
        write_bad_shard(tmp_path / "raw" / f"{number:05d}.tar", number)
    write_caption_shard(tmp_path / "raw" / "00003.tar", 4, seed=3)
    return tmp_path / "raw"


def run(call: Run, raw: Path, out: Path, *more: str) -> dict[str, Any]:
    words = [f"input={{bad: {raw}}}", f"out={out}", "json=true", "workers=1"]
    code, stdout, stderr = call("curate", *words, *more)
    assert code == 0, stderr
    told: dict[str, Any] = json.loads(stdout.splitlines()[-1])
    return told


STEPS = ("deduplicate", "reshard", "select", "unreadable")


def dropped(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "dropped").glob("*"))}


def parts(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.parquet")}


def reference(raw: Path, name: str = "bad") -> list[tuple[str, ...]]:
    items = [item for path in sorted(raw.glob("*.tar")) for item in read_samples(path, name)]
    return [(i.shard, i.key, i.uid, i.reason, i.detail) for i in items if isinstance(i, Reject)]


def test_every_sample_of_a_bad_shard_is_kept_or_told_of_by_name(
    raw: Path, tmp_path: Path, call: Run
) -> None:
    told = run(call, raw, tmp_path / "out")["funnel"]["bad"]
    ledger = pl.read_parquet(tmp_path / "out" / "dropped" / "unreadable-bad.parquet")
    assert ledger.columns == NAMES
    assert ledger.rows() == reference(raw)
    assert told["unreadable"] == dict.fromkeys(sorted(LOST.values()), 3)
    assert Counter(ledger["reason"]) == told["unreadable"]
    assert set(ledger.select("key", "reason").rows()) == set(LOST.items())
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(html.escape(detail) in page for detail in ledger["detail"].head(4))
    # A picture that cannot be decoded goes, too, though this selection keeps everything.
    gone = pl.read_parquet(tmp_path / "out" / "dropped" / "select-bad.parquet")
    assert gone.select("key", "reason").rows() == [("corrupt", "unreadable")] * 3
    assert all("truncated" in detail or "decode" in detail for detail in gone["detail"])
    assert told["selection"] == {"unreadable": 3}
    tables = [tmp_path / "out" / "kept" / "bad.parquet"]
    tables += sorted((tmp_path / "out" / "dropped").glob("*.parquet"))
    rows = [r for path in tables for r in pl.read_parquet(path, columns=["shard", "key"]).rows()]
    assert len(rows) == len(set(rows)) == told["delivered"]["samples"] == 3 * 10 + 4


def test_without_scorers_the_same_is_told(raw: Path, tmp_path: Path, call: Run) -> None:
    run(call, raw, tmp_path / "out", "scorers=[]", "duplicates.by=[uid]")
    ledger = pl.read_parquet(tmp_path / "out" / "dropped" / "unreadable-bad.parquet")
    assert ledger.rows() == reference(raw)


@pytest.mark.slow
def test_a_new_start_and_workers_change_no_byte(raw: Path, tmp_path: Path, call: Run) -> None:
    run(call, raw, tmp_path / "one")
    expected, of_shards = dropped(tmp_path / "one"), parts(tmp_path / "one" / "unreadable")
    assert list(expected) == [f"{step}-bad.parquet" for step in STEPS]
    for step in ("score", "select", "deduplicate", "reshard"):
        run(call, raw, tmp_path / "two", f"only={step}", "workers=2")
    assert dropped(tmp_path / "two") == expected
    assert parts(tmp_path / "two" / "unreadable") == of_shards
    # A folder that was scored before there were ledgers, and one that lost some of them.
    shutil.rmtree(tmp_path / "one" / "unreadable")
    (tmp_path / "two" / "unreadable" / "bad" / "00001.parquet").unlink()
    for name in ("one", "two"):
        run(call, raw, tmp_path / name)
        assert dropped(tmp_path / name) == expected
        assert parts(tmp_path / name / "unreadable") == of_shards


@pytest.mark.slow
def test_ray_tells_the_same(raw: Path, tmp_path: Path, call: Run) -> None:
    pytest.importorskip("ray")
    run(call, raw, tmp_path / "local")
    run(call, raw, tmp_path / "ray", "engine=ray", "workers=2")
    assert dropped(tmp_path / "ray") == dropped(tmp_path / "local")


class Stopped(Exception):
    pass


def stopping(after: int) -> Callable[..., Any]:
    """Map until some items are done, then fail as a run does that is stopped."""

    def mapper(function: Callable[[Any], Any], items: Any) -> Any:
        for done, result in enumerate(map_inline(function, items)):
            yield result
            if done + 1 == after:
                raise Stopped

    return mapper


def test_a_run_that_was_stopped_goes_on_shard_by_shard(raw: Path, tmp_path: Path) -> None:
    shards = sorted(raw.glob("*.tar"))
    scorer = [LengthScorer()]
    score_source(shards, "bad", scorer, tmp_path / "s", unreadable=tmp_path / "whole")
    whole = parts(tmp_path / "whole")
    assert len(whole) == 4
    with pytest.raises(Stopped):
        score_source(shards, "bad", scorer, tmp_path / "t", stopping(2), unreadable=tmp_path / "u")
    before = parts(tmp_path / "u")
    assert before == {path: data for path, data in whole.items() if path.stem < "00002"}
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "u").rglob("*.parquet")}
    score_source(shards, "bad", scorer, tmp_path / "t", unreadable=tmp_path / "u")
    assert parts(tmp_path / "u") == whole
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_shard_that_changed_is_looked_through_again(raw: Path, tmp_path: Path) -> None:
    shards = sorted(raw.glob("*.tar"))
    found = ledgers(tmp_path / "u", "bad", shards)
    for ledger in found:
        look_through(ledger)
    assert [pq.read_metadata(ledger.path).num_rows for ledger in found] == [4, 4, 4, 0]
    write_caption_shard(shards[0], 3, seed=9)
    assert [ledger.is_current() for ledger in found] == [False, True, True, True]
    look_through(found[0])
    assert join_ledgers(found, tmp_path / "joined.parquet") == 8
    assert pl.read_parquet(tmp_path / "joined.parquet").rows() == reference(raw)
    # What a time is, is no part of what the joined one says.
    shards[1].touch()
    for ledger in found:
        look_through(ledger)
    join_ledgers(found, tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == (tmp_path / "joined.parquet").read_bytes()


def test_a_ledger_that_is_missing_or_damaged_is_named(raw: Path, tmp_path: Path) -> None:
    (ledger,) = ledgers(tmp_path, "bad", [raw / "00000.tar"])
    with pytest.raises(ShardError, match=r"00000\.parquet cannot be read"):
        join_ledgers([ledger], tmp_path / "joined.parquet")
    ledger.path.parent.mkdir(parents=True)
    ledger.path.write_bytes(b"PAR1")
    assert not ledger.is_current()
    look_through(ledger)
    assert ledger.is_current()
    with pytest.raises(UserError, match="missing"):
        look_through(Ledger(shard=raw / "9.tar", source="bad", path=tmp_path / "9.parquet"))


def test_pictures_that_could_not_be_blurred_are_in_funnel_and_ledger(
    tmp_path: Path, call: Run
) -> None:
    rng, face = random.Random(0), [[0.2, 0.2, 0.6, 0.6]]
    for shard in ("0", "1"):
        files: dict[str, bytes] = {}
        for key in "abc":
            image = picture(rng) if key != "b" else b"no picture"
            told = {"uid": f"{shard}{key}", "face_bboxes": face}
            files |= {f"{key}.jpg": image, f"{key}.txt": caption(rng).encode()}
            files[f"{key}.json"] = json.dumps(told).encode()
        write_tar(tmp_path / "raw" / f"{shard}.tar", files)
    # Nobody looks at the pictures before they are to be blurred.
    words = ["scorers=[text]", "duplicates.by=[uid]", "blur=true", "samples_per_shard=2"]
    told = run(call, tmp_path / "raw", tmp_path / "out", *words)["funnel"]["bad"]
    assert told["reshard"] == {"unreadable": 2}
    assert told["kept"] == {"samples": 4}
    manifest = json.loads((tmp_path / "out/shards/bad/manifest.json").read_text())
    assert manifest["funnel"] == told
    gone = pl.read_parquet(tmp_path / "out" / "dropped" / "reshard-bad.parquet")
    assert gone.columns == NAMES
    assert [*gone.select("shard", "key", "uid", "reason").rows()] == [
        ("0", "b", "0b", "unreadable"),
        ("1", "b", "1b", "unreadable"),
    ]
    again = run(call, tmp_path / "raw", tmp_path / "out", *words)["funnel"]["bad"]
    assert again == told
    run(call, tmp_path / "raw", tmp_path / "out", *words, "only=deduplicate")
    assert not (tmp_path / "out" / "dropped" / "reshard-bad.parquet").exists()
