"""What `curate` does with conversations that it does not do with pairs: which are duplicates, which
show an evaluation's picture, what scorers of pairs leave, and what becomes of bad ones."""

import io
import json
import shutil
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from PIL import Image
from support.runs import Run, assert_one_message
from support.samples import LengthScorer, encoded, photo
from support.selections import write_table
from support.shards import write_caption_shard, write_conversation_shard, write_tar
from support.talks import LAYOUTS, NAME, Talk, curated, read, talks, told

from openqwen2vl.curation import shards
from openqwen2vl.curation.duplicates.deduplicate import DuplicateRules
from openqwen2vl.curation.request import Curation
from openqwen2vl.curation.scorers.image import ImageScorer
from openqwen2vl.curation.selection.select import Rule, Selection
from openqwen2vl.curation.steps import curate
from openqwen2vl.formats.errors import ConfigError, ShardError

A, B, C = (encoded(photo(seed), quality=90) for seed in range(3))
A_AGAIN = encoded(Image.open(io.BytesIO(A)), "PNG")
SAID, OTHER = ("Where is the cat?", "On the mat."), ("What is on the mat?", "A cat.")


def dropped(out: Path) -> dict[str, str]:
    """Give by the key why de-duplication dropped a conversation."""
    table = pl.read_parquet(out / "dropped" / f"deduplicate-{NAME}.parquet")
    return {str(int(key)): reason for key, reason in table.select("key", "reason").iter_rows()}


def test_one_picture_may_be_asked_about_often_and_one_conversation_stays_once(
    tmp_path: Path, call: Run
) -> None:
    given = [
        Talk(SAID, (A,)),
        Talk(OTHER, (A,)),  # another question about the same picture
        Talk(SAID, (B,)),  # the same question about another
        Talk(SAID, (A,)),
        Talk((" where is  the CAT?", "On the mat."), (A_AGAIN,)),  # written and encoded anew
        Talk(SAID, (A, B)),
        Talk(SAID, (A, C)),  # the first picture alone is the same
        Talk(SAID, (A_AGAIN, B)),
        Talk(SAID, (B, A)),
        Talk(SAID),
        Talk(OTHER),
        Talk(SAID),
    ]
    corpus = LAYOUTS["llava"](tmp_path / "data", given)
    funnel = curated(call, corpus, tmp_path / "out")["funnel"][NAME]
    assert dropped(tmp_path / "out") == dict.fromkeys(("3", "4", "7", "11"), "duplicate_pair")
    assert funnel["deduplicate"] == {"duplicate_pair": 4}


def test_equal_uids_are_duplicates_and_listings_of_one_name_share_none(
    tmp_path: Path, call: Run
) -> None:
    files = {
        f"{key}.json": json.dumps(
            {
                "uid": "the same",
                "messages": [{"role": r, "content": key} for r in ("user", "assistant")],
            }
        ).encode()
        for key in "ab"
    }
    write_tar(tmp_path / "a" / "0.tar", files)
    curated(call, (tmp_path / "a", None), tmp_path / "out")
    table = pl.read_parquet(tmp_path / "out" / "dropped" / f"deduplicate-{NAME}.parquet")
    assert table["reason"].to_list() == ["duplicate_uid"]
    one, root = LAYOUTS["llava"](tmp_path / "one", talks(3, seed=1))
    two, _ = LAYOUTS["llava"](tmp_path / "two", [Talk(SAID)] * 1)
    words = [f"input={{one: {one}, two: {two}}}", f"image_root={root}", "json=true", "workers=1"]
    code, stdout, stderr = call("curate", *words, f"out={tmp_path / 'both'}")
    assert code == 0, stderr
    funnels = json.loads(stdout.splitlines()[-1])["funnel"]
    assert [funnels[name]["kept"]["samples"] for name in ("one", "two")] == [3, 1]


def test_pairs_beside_conversations_are_compared_as_ever(tmp_path: Path, call: Run) -> None:
    path, root = LAYOUTS["llava"](tmp_path / "data", [Talk(SAID, (A,)), Talk(OTHER, (A,))])
    files = {f"{n}.jpg": data for n, data in enumerate((A, B, B))}
    files |= {f"{n}.txt": f"words of {n} and more".encode() for n in range(3)}
    write_tar(tmp_path / "pairs" / "0.tar", dict(sorted(files.items())))
    words = [f"input={{pairs: {tmp_path / 'pairs'}, {NAME}: {path}}}", f"image_root={root}"]
    code, stdout, stderr = call("curate", *words, f"out={tmp_path / 'o'}", "json=true", "workers=1")
    assert code == 0, stderr
    funnels = json.loads(stdout.splitlines()[-1])["funnel"]
    assert funnels["pairs"]["deduplicate"] == {"duplicate_image": 1}
    assert funnels[NAME]["deduplicate"] == {}


@pytest.mark.parametrize("layout", ["llava", "tars"])
def test_every_picture_is_compared_with_the_evaluations(
    tmp_path: Path, call: Run, layout: str
) -> None:
    given = [
        Talk(SAID, (B,)),
        Talk(SAID, (A,)),
        Talk(SAID, (B, C, A_AGAIN)),
        Talk(SAID, (C, A)),
        Talk(SAID),
        Talk(OTHER, (C,)),
    ]
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "a.jpg").write_bytes(A)
    corpus = LAYOUTS[layout](tmp_path / "data", given)
    against = f"contamination.against={{bench: {tmp_path / 'tests'}}}"
    figures = curated(call, corpus, tmp_path / "out", against)
    assert dropped(tmp_path / "out") == dict.fromkeys("123", "contaminated")
    (counts,) = figures["deduplicate"]["contamination"].values()
    assert counts == {"pictures": 1, "unreadable": 0, "shown": 1, "samples": 3}
    hits = pl.read_parquet(tmp_path / "out" / "contamination" / "hits.parquet")
    bits = {int(key): bits for key, bits in hits.select("key", "bits").iter_rows()}
    assert (bits[1], bits[3]) == (-1, -1)
    assert 0 <= bits[2] <= 4


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[Path, Path | None]:
    return LAYOUTS["llava"](tmp_path / "data", talks(4))


def curation(
    corpus: tuple[Path, Path | None], keep: str, by: tuple[str, ...] = ("uid",)
) -> Curation:
    path, root = corpus
    return Curation(
        inputs={NAME: path},
        image_roots={NAME: root} if root else {},
        out=path.parent.parent / "out",
        scorers=[ImageScorer(), LengthScorer()],
        selection=Selection(sources={NAME: Rule(input=NAME, keep=keep)}),
        duplicates=DuplicateRules(by=by),
    )


def test_a_scorer_of_pairs_says_nothing_of_conversations_and_drops_none(
    tmp_path: Path, corpus: tuple[Path, Path | None]
) -> None:
    found = curate(curation(corpus, "missing(length) or length > 3"))
    assert found["score"][NAME]["unscored"] == {"length": {"conversation": 4}}
    (path,) = (tmp_path / "out" / "scores" / NAME / "length").glob("*.parquet")
    shutil.copy(path, path.with_name("gone.parquet"))  # as of a shard that went away
    found = curate(curation(corpus, "missing(length) or length > 3"))
    assert found["score"][NAME]["unscored"] == {"length": {"conversation": 4}}
    path.with_name("gone.parquet").unlink()
    table = pl.read_parquet(path)
    assert table["length"].null_count() == 4
    assert set(table["length_error"]) == {"conversation"}
    assert found["reshard"][NAME]["samples"] == 4
    again = curate(curation(corpus, "length > 3 or pictures == 2"), steps=("select",))
    assert again["select"]["sources"][NAME]["dropped"] == {
        "selection": 0,
        "unscored": 3,
        "unreadable": 0,
    }
    table = pl.read_parquet(tmp_path / "out" / "dropped" / f"select-{NAME}.parquet")
    assert set(table["detail"]) == {"conversation"}


def test_a_selection_that_only_asks_scorers_of_pairs_is_refused_before_any_work(
    tmp_path: Path, corpus: tuple[Path, Path | None]
) -> None:
    for keep in ("length > 3", "pictures < 5 and not length > 3"):
        with pytest.raises(ConfigError, match="length does not score"):
            curate(curation(corpus, keep))
    assert not (tmp_path / "out").exists()


def test_criteria_of_pictures_alone_are_told_of(
    corpus: tuple[Path, Path | None], caplog: pytest.LogCaptureFixture
) -> None:
    found = curate(curation(corpus, "all", ("image", "near")))
    assert "none are compared by image and near" in caplog.text
    assert found["deduplicate"]["sources"][NAME]["kept"] == 4


def test_bad_conversations_are_told_of_by_name_and_the_rest_goes_on(
    tmp_path: Path, call: Run
) -> None:
    path, root = LAYOUTS["llava"](tmp_path / "data", talks(6))
    entries = json.loads(path.read_text())
    assert root is not None
    (root / entries[1]["image"]).unlink()
    (root / entries[2]["image"][1]).write_bytes(b"no picture")
    entries += [{"conversations": "not a list"}, {"conversations": []}, {"text": "a cat"}]
    entries += [{"conversations": [{"from": "human", "value": "<image>?"}]}]
    path.write_text(json.dumps(entries)[:-40])
    out = tmp_path / "out"
    funnel = curated(call, (path, root), out)["funnel"][NAME]
    assert funnel["unreadable"] == {
        "bad_conversation": 2,
        "missing_image": 1,
        "missing_text": 1,
        "truncated_shard": 1,
    }
    assert funnel["selection"] == {"unreadable": 1}
    (row,) = pl.read_parquet(out / "dropped" / f"select-{NAME}.parquet").iter_rows(named=True)
    assert (int(row["key"]), row["reason"]) == (2, "unreadable")
    assert row["detail"].startswith("image 1: cannot be decoded")
    ledger = pl.read_parquet(out / "dropped" / f"unreadable-{NAME}.parquet")
    assert ledger.row(0)[:4] == ("mix665k~00000", "000000001", "mix665k/000000001", "missing_image")
    assert len(read(out / "shards" / NAME)) == 4


def test_what_is_of_the_other_kind_is_told_of(tmp_path: Path, call: Run) -> None:
    write_conversation_shard(tmp_path / "raw" / "0.tar", 3, seed=1)
    write_caption_shard(tmp_path / "raw" / "1.tar", 2)
    out = tmp_path / "out"
    funnel = curated(call, (tmp_path / "raw", None), out)["funnel"][NAME]
    assert funnel["unreadable"] == {"missing_text": 2}
    assert funnel["kept"] == {"samples": 3}
    table = pl.read_parquet(out / "dropped" / f"unreadable-{NAME}.parquet")
    assert Counter(table["shard"]) == {"1": 2}
    assert "is a pair of an image and a caption" in table["detail"][0]


def test_inputs_that_are_none_are_refused_in_one_message(tmp_path: Path, call: Run) -> None:
    path, root = LAYOUTS["llava"](tmp_path / "data", talks(2))
    assert_one_message(told(call, (path, None), tmp_path / "o"), "image_root is None")
    gone = told(call, (tmp_path / "no.json", root), tmp_path / "o")
    assert_one_message(gone, "no file", "no.json")
    assert_one_message(told(call, (path, tmp_path / "no"), tmp_path / "o"), "no folder", "images")
    assert_one_message(told(call, (path.parent, root), tmp_path / "o"), "mix665k.json lists")
    path.write_text('{"conversations": []}')
    assert_one_message(told(call, (path, root), tmp_path / "o"), "is not a JSON list")


def test_a_picture_that_went_after_it_was_scored_is_an_error(tmp_path: Path, call: Run) -> None:
    _, root = given = LAYOUTS["llava"](tmp_path / "data", talks(4))
    curated(call, given, tmp_path / "out", "only=score")
    curated(call, given, tmp_path / "out", "only=select")
    curated(call, given, tmp_path / "out", "only=deduplicate")
    assert root is not None
    (root / "coco" / "3" / "2.jpg").unlink()
    words = told(call, given, tmp_path / "out", "only=reshard")
    assert_one_message(words, "000000003", "bring them back")


@pytest.mark.parametrize("kind", ["tars", "tables"])
def test_faces_of_a_conversation_are_not_left_unblurred_in_silence(
    tmp_path: Path, kind: str
) -> None:
    turns, faces = Talk(SAID, (A,)).turns(), [[0.0, 0.0, 1.0, 1.0]]
    if kind == "tars":
        fields = json.dumps({"conversations": turns, "face_bboxes": faces}).encode()
        write_tar(tmp_path / "raw" / "0.tar", {"a.0.jpg": A, "a.json": fields})
    else:
        rows = {"conversations": [turns], "images": [[A]], "face_bboxes": [faces]}
        write_table(tmp_path / "raw" / "0.parquet", rows)
    asked = Curation(
        inputs={NAME: tmp_path / "raw"}, out=tmp_path / "out", blur=True, duplicates=None
    )
    with pytest.raises(ShardError, match="blur its pictures first"):
        curate(asked)


def test_a_wrong_folder_of_pictures_is_refused_and_leaves_no_scores(
    tmp_path: Path, call: Run
) -> None:
    path, _ = LAYOUTS["llava"](tmp_path / "data", [Talk(SAID)] * 40)
    entries = json.loads(path.read_text())
    with_picture = {"conversations": Talk(SAID, (A,)).turns(), "image": "coco/1.jpg"}
    path.write_text(json.dumps([*entries, *[with_picture] * 60]))
    refused = told(call, (path, tmp_path), tmp_path / "out", "only=score")
    assert_one_message(refused, "60 of the 100 conversations", "check image_root")
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_a_short_listing_without_any_picture_is_refused_and_the_short_end_of_a_long_one_is_not(
    tmp_path: Path, call: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, root = LAYOUTS["llava"](tmp_path / "data", [Talk(SAID, (A,))] * 3)
    refused = told(call, (path, tmp_path), tmp_path / "out", "only=score")
    assert_one_message(refused, "3 of the 3 conversations", "check image_root")
    assert root is not None
    (root / "coco" / "2" / "0.jpg").unlink()
    monkeypatch.setattr(shards, "_ENTRIES", 2)
    funnel = curated(call, (path, root), tmp_path / "out", "duplicates=null")["funnel"][NAME]
    assert funnel["unreadable"] == {"missing_image": 1}
    assert funnel["kept"] == {"samples": 2}
