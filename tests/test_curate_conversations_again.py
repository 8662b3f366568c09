"""`curate` started again on conversations whose pictures came, went, moved or changed meanwhile."""

import shutil
from pathlib import Path

import polars as pl
import pytest
from support.curated import tree
from support.runs import Run, assert_one_message
from support.talks import LAYOUTS, NAME, curated, read, talks, told

from openqwen2vl.curation import samples, shards
from openqwen2vl.curation.resharding import reshard
from openqwen2vl.curation.resharding.rewrite import _Tars
from openqwen2vl.curation.samples import Sample, read_samples
from openqwen2vl.curation.shards import shards_of
from openqwen2vl.formats.errors import ShardError, UserError

TALKS = talks(12)
Given = tuple[Path, Path]


def ledger(out: Path) -> pl.DataFrame:
    return pl.read_parquet(out / "dropped" / f"unreadable-{NAME}.parquet")


def files_of(root: Path) -> list[Path]:
    """Give the pictures, the first of conversation 1 in front."""
    return sorted(root.rglob("*.jpg"), key=lambda path: int(path.parent.name))


@pytest.fixture(params=["llava", "paths"])
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Given:
    """Conversations whose pictures are files, in a listing cut into runs of four or in a table."""
    monkeypatch.setattr(shards, "_ENTRIES", 4)
    path, root = LAYOUTS[request.param](tmp_path / "data", TALKS)
    assert root is not None
    return path, root


def test_a_picture_that_came_is_looked_at_with_overwrite_and_no_other_run_is_scored(
    tmp_path: Path, call: Run, given: Given
) -> None:
    out, missing = tmp_path / "out", files_of(given[1])[0]
    data = missing.read_bytes()
    missing.unlink()
    assert curated(call, given, out)["funnel"][NAME]["unreadable"] == {"missing_image": 1}
    assert ledger(out).height == 1
    scores = sorted((out / "scores" / NAME / "image").glob("*.parquet"))
    before = [path.stat().st_mtime_ns for path in scores]
    curated(call, given, out, "overwrite=true")
    assert [path.stat().st_mtime_ns for path in scores] == before, "nothing came, nothing is scored"
    missing.write_bytes(data)
    assert curated(call, given, out)["funnel"][NAME]["unreadable"] == {"missing_image": 1}
    funnel = curated(call, given, out, "overwrite=true")["funnel"][NAME]
    assert funnel["unreadable"] == {}
    assert funnel["kept"] == {"samples": len(TALKS)}
    assert len(read(out / "shards" / NAME)) == len(TALKS)
    assert ledger(out).height == 0
    assert [path.stat().st_mtime_ns for path in scores[1:]] == before[1:]
    curated(call, given, tmp_path / "fresh")
    assert tree(out) == tree(tmp_path / "fresh")


def test_another_folder_of_pictures_is_another_input(
    tmp_path: Path, call: Run, given: Given
) -> None:
    (path, root), out = given, tmp_path / "out"
    for step in ("score", "select", "deduplicate"):
        curated(call, given, out, f"only={step}")
    other = (path, Path(shutil.copytree(root, tmp_path / "other")))
    files_of(other[1])[0].write_bytes(files_of(root)[3].read_bytes())
    assert_one_message(told(call, other, out, "only=reshard"), "inputs changed since")
    assert_one_message(told(call, other, out, "only=select"), "score it again")
    assert_one_message(told(call, other, out), "image_root was", "overwrite=true")
    curated(call, other, out, "overwrite=true")
    curated(call, other, tmp_path / "fresh")
    assert tree(out) == tree(tmp_path / "fresh")


def test_scores_made_again_tell_anew_what_cannot_be_read(
    tmp_path: Path, call: Run, given: Given
) -> None:
    out, missing = tmp_path / "out", files_of(given[1])[0]
    data = missing.read_bytes()
    missing.unlink()
    curated(call, given, out)
    missing.write_bytes(data)
    shutil.rmtree(out / "scores")
    funnel = curated(call, given, out, "overwrite=true")["funnel"][NAME]
    assert funnel["kept"] == {"samples": len(TALKS)}
    assert ledger(out).height == 0


def test_a_picture_that_changed_after_it_was_looked_up_is_not_cut(
    tmp_path: Path, call: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, root = LAYOUTS["llava"](tmp_path / "data", TALKS)
    assert root is not None
    given, out = (path, root), tmp_path / "out"

    def stop(*_: object) -> None:
        raise UserError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(reshard, "_check_space", stop)
        assert_one_message(told(call, given, out), "stopped")
    changed = files_of(root)[0]
    changed.write_bytes(changed.read_bytes() + bytes(1000))
    refused = told(call, given, out, "only=reshard")
    index = out / "shards" / NAME / ".work" / "located" / "mix665k~00000.parquet"
    assert_one_message(refused, str(changed), "since it was looked up", f"remove {index}")
    index.unlink()
    curated(call, given, out, "only=reshard")
    assert read(out / "shards" / NAME) == {
        f"{NAME}/{uid}": talk for uid, talk in read(path, root).items()
    }


def test_a_picture_that_may_not_be_read_costs_its_conversation_alone(
    tmp_path: Path, call: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, root = LAYOUTS["llava"](tmp_path / "data", TALKS)
    assert root is not None
    locked = str(files_of(root)[0])

    def refuse(path: str, *rest: object, **more: object) -> object:
        if str(path) == locked:
            raise PermissionError(13, "Permission denied", path)
        return open(path, *rest, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(samples, "open", refuse, raising=False)
    funnel = curated(call, (path, root), tmp_path / "out")["funnel"][NAME]
    assert funnel["selection"] == {"unreadable": 1}
    assert funnel["kept"] == {"samples": len(TALKS) - 1}
    table = pl.read_parquet(tmp_path / "out" / "dropped" / f"select-{NAME}.parquet")
    assert "may not be read" in table["detail"][0]


def test_a_picture_that_cannot_be_opened_is_no_fault_of_the_program(tmp_path: Path) -> None:
    path, root = LAYOUTS["llava"](tmp_path / "data", TALKS[:2])
    assert root is not None
    found = list(read_samples(shards_of(path, root)[0], "s"))
    lost = files_of(root)[0]
    lost.unlink()
    lost.symlink_to(lost)  # it leads round and round
    assert isinstance(found[1], Sample)
    with pytest.raises(ShardError, match="cannot be read"):
        found[1].read()
    with _Tars() as tars, pytest.raises(ShardError, match="cannot be read"):
        tars.read(lost, 0, 1)
