"""`curate` of conversations in the layouts in which they are delivered: what pack reads of the new
shards is what it would read of the corpus."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from support.curated import STEPS, tree
from support.packs import pack
from support.runs import Run
from support.shards import tiny_tokenizer
from support.talks import LAYOUTS, NAME, curated, read, talks

from openqwen2vl.curation import shards
from openqwen2vl.curation.samples import Sample, read_samples
from openqwen2vl.curation.shards import name_in_uids, shard_name, shards_of
from openqwen2vl.packing.reader import PackFolder

TALKS = talks()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_kept_is_read_as_it_was(tmp_path: Path, call: Run, layout: str) -> None:
    path, root = given = LAYOUTS[layout](tmp_path / "data", TALKS)
    out = tmp_path / "out"
    rule = f"+selection.sources.it={{input: {NAME}, keep: 'words >= 14'}}"
    funnel = curated(call, given, out, rule)["funnel"]["it"]
    assert funnel["delivered"] == {"samples": len(TALKS)}
    assert funnel["unreadable"] == funnel["deduplicate"] == funnel["reshard"] == {}
    kept = pl.read_parquet(out / "kept" / "it.parquet")["uid"].to_list()
    before, after = read(path, root), read(out / "shards" / "it")
    assert len(before) == len(TALKS)
    assert 1 < len(kept) < len(TALKS)
    # No conversation names a uid: it is then told from those of other sources.
    assert after == {f"{NAME}/{uid}": before[uid] for uid in kept}
    assert min(len(images) for _, images in after.values()) == 0  # those of text alone stay
    assert max(len(images) for _, images in after.values()) > 1
    assert not (out / "shards" / "it" / ".work").exists()
    page = (out / "report.html").read_text()
    assert "What colour is the" in page
    assert "data:image/jpeg" in page
    assert "never by a picture alone" in page


@pytest.mark.parametrize(
    "layout",
    ["llava", "tables"]
    + [
        pytest.param(one, marks=pytest.mark.slow)
        for one in LAYOUTS
        if one not in ("llava", "tables")
    ],
)
def test_packs_of_the_new_shards_hold_the_documents_of_the_old(
    tmp_path: Path, call: Run, layout: str
) -> None:
    path, root = given = LAYOUTS[layout](tmp_path / "data", TALKS)
    curated(call, given, tmp_path / "out")
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    pack(path, tmp_path / "old", tokenizer, image_root=root)
    pack(tmp_path / "out" / "shards" / NAME, tmp_path / "new", tokenizer)
    old, new = (dict(documents(tmp_path / name)) for name in ("old", "new"))
    assert len(old) == len(TALKS)
    assert new == {f"{NAME}/{uid}": document for uid, document in old.items()}


def documents(folder: Path) -> Iterator[tuple[str, tuple[list[int], list[bytes]]]]:
    """Give of each packed document the token ids and the pictures."""
    packs = PackFolder(folder)
    for number in range(len(packs)):
        one, at = packs.read(number), 0
        for told in one.documents:
            ids = one.ids[told["start"] : told["start"] + told["length"]].tolist()
            yield told["uid"], (ids, one.images[at : at + told["images"]])
            at += told["images"]


@pytest.fixture
def runs_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut listings into runs of four entries."""
    monkeypatch.setattr(shards, "_ENTRIES", 4)


@pytest.mark.usefixtures("runs_of_four")
@pytest.mark.parametrize("layout", ["llava", pytest.param("tables", marks=pytest.mark.slow)])
def test_workers_and_starting_again_change_no_byte(tmp_path: Path, call: Run, layout: str) -> None:
    given = LAYOUTS[layout](tmp_path / "data", TALKS)
    curated(call, given, tmp_path / "one", "window=2")
    expected = tree(tmp_path / "one")
    assert {name.split("/")[0] for name in expected} == set(STEPS)
    assert sum(name.startswith(f"scores/{NAME}/image/") for name in expected) == 3
    curated(call, given, tmp_path / "two", "window=2", "only=score")
    # Scores and a shard that went are made again, the others stay.
    (scores, *_) = sorted((tmp_path / "two" / "scores" / NAME / "image").glob("*.parquet"))
    scores.unlink()
    curated(call, given, tmp_path / "two", "window=2", "workers=2")
    assert tree(tmp_path / "two") == expected
    (lost, *_) = sorted((tmp_path / "two" / "shards" / NAME).glob("*.tar"))
    lost.unlink()
    curated(call, given, tmp_path / "two", "window=2", "only=reshard")
    assert tree(tmp_path / "two") == expected


@pytest.mark.slow
@pytest.mark.usefixtures("runs_of_four")
def test_ray_writes_what_this_process_writes(
    tmp_path: Path, call: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    if ray.is_initialized():
        ray.shutdown()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    given = LAYOUTS["llava"](tmp_path / "data", TALKS)
    curated(call, given, tmp_path / "here", "window=2")
    curated(call, given, tmp_path / "there", "window=2", "engine=ray")
    assert tree(tmp_path / "there") == tree(tmp_path / "here")


@pytest.mark.usefixtures("runs_of_four")
def test_runs_of_a_listing_are_shards_whose_uids_are_those_of_packs(tmp_path: Path) -> None:
    path, root = LAYOUTS["mammoth"](tmp_path / "data", TALKS)
    found = shards_of(path, root)
    assert [shard_name(shard) for shard in found] == [f"mix665k~{n:05d}" for n in range(3)]
    assert {name_in_uids(shard_name(shard)) for shard in found} == {"mix665k"}
    samples = [item for shard in found for item in read_samples(shard, "s")]
    assert [sample.uid for sample in samples] == list(read(path, root))
    assert [sample.shard for sample in samples[3:5]] == ["mix665k~00000", "mix665k~00001"]


@pytest.mark.parametrize("layout", ["llava", "finevision"])
def test_new_shards_can_be_curated_again(tmp_path: Path, call: Run, layout: str) -> None:
    given = LAYOUTS[layout](tmp_path / "data", TALKS)
    curated(call, given, tmp_path / "out")
    once = tmp_path / "out" / "shards" / NAME
    curated(call, (once, None), tmp_path / "again")
    assert read(tmp_path / "again" / "shards" / NAME) == read(once)
    (sample, *_) = read_samples(shards_of(once)[0], "s")
    assert isinstance(sample, Sample)
    assert sample.fields["origin"]["source"] == NAME
    assert sample.fields["uid"].startswith(f"{NAME}/")
