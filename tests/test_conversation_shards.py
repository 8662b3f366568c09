"""Which shards an input of conversations has is found out once, and what is missing is told."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.runs import Run, assert_one_message
from support.shards import write_caption_shard
from support.talks import LAYOUTS, NAME, talks, told

from openqwen2vl.curation import shards
from openqwen2vl.curation.duplicates.deduplicate import DuplicateRules
from openqwen2vl.curation.preflight import check_request
from openqwen2vl.curation.request import Curation
from openqwen2vl.curation.scorers.image import ImageScorer
from openqwen2vl.curation.scorers.text import TextScorer
from openqwen2vl.curation.shards import shards_of
from openqwen2vl.formats import listing
from openqwen2vl.formats.errors import ConfigError


def test_every_listing_of_many_is_looked_through_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [LAYOUTS["llava"](tmp_path / str(n), talks(1)) for n in range(9)]
    seen, cut = [], listing.listing_shards

    def counted(path: Path, *rest: Any) -> object:
        seen.append(path)
        return cut(path, *rest)

    monkeypatch.setattr(shards, "listing_shards", counted)
    for _ in range(3):
        for path, root in given:
            assert len(shards_of(path, root)) == 1
    assert seen == [path for path, _ in given]


def test_every_table_is_opened_once_and_again_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = LAYOUTS["tables"](tmp_path, talks(6))
    seen, read = [], pq.read_schema

    def counted(path: Path) -> object:
        seen.append(path.name)
        return read(path)

    monkeypatch.setattr(pq, "read_schema", counted)
    names = sorted(file.name for file in path.glob("*.parquet"))
    for _ in range(3):
        assert len(shards_of(path)) == 3
    assert seen == names
    LAYOUTS["tables"](tmp_path, talks(9))
    shards_of(path)
    assert seen == [*names, *names]


def test_a_tar_that_leads_nowhere_is_told(tmp_path: Path, call: Run) -> None:
    write_caption_shard(tmp_path / "raw" / "1.tar", 2)
    (tmp_path / "raw" / "0.tar").symlink_to(tmp_path / "gone.tar")
    assert_one_message(told(call, (tmp_path / "raw", None), tmp_path / "o"), "0.tar is missing")


def asked(folder: Path, **more: Any) -> Curation:
    path, root = LAYOUTS["llava"](folder / "data", talks(3))
    assert root is not None
    return Curation(
        inputs={NAME: path},
        image_roots={NAME: root},
        out=folder / "out",
        duplicates=DuplicateRules(by=("pair",)),
        **more,
    )


@pytest.mark.parametrize("hashed", ["sha256", "phash", None])
def test_pairs_of_conversations_are_compared_by_a_hash_of_their_pictures(
    tmp_path: Path, hashed: str | None
) -> None:
    image = ImageScorer(sha256=hashed == "sha256", phash=hashed == "phash")
    curation = asked(tmp_path, scorers=[image, TextScorer(language=False)])
    if hashed:
        check_request(curation)
        return
    with pytest.raises(ConfigError, match="pair need sha256 or phash"):
        check_request(curation)


def test_that_faces_of_conversations_are_not_blurred_is_said_before_any_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scorers = [ImageScorer(), TextScorer(language=False)]
    check_request(asked(tmp_path / "a", scorers=scorers))
    assert caplog.text == ""
    check_request(asked(tmp_path / "b", scorers=scorers, blur=True))
    assert f"{NAME} holds conversations, whose faces blur does not find" in caplog.text
