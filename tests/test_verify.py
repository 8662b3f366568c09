import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.packs import pack
from support.runs import Run, assert_one_message
from support.shards import tiny_tokenizer, write_caption_shard, write_tar
from support.verified import make, rewrite_manifest, told

from openqwen2vl.engine import local
from openqwen2vl.engine.local import map_shards
from openqwen2vl.formats.errors import UserError
from openqwen2vl.formats.manifest import Manifest
from openqwen2vl.packing.plan import Selection
from openqwen2vl.packing.proof.verify import VerifyRequest, verify


@pytest.fixture
def made(tmp_path: Path) -> SimpleNamespace:
    """Two raw shards with every kind of document, packed with a validation split."""
    return make(tmp_path)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_what_was_packed_well_passes(made: SimpleNamespace, deep: bool, workers: int) -> None:
    request = VerifyRequest(input=made.raw, packs=(made.packs,), deep=deep)
    found = verify(request, lambda f, items: map_shards(f, items, workers))
    assert told(found) == ""
    train, held_out = (Manifest.load(made.packs / name) for name in (".", "validation"))
    assert found.documents == 67
    assert found.packed == train.counts.documents + held_out.counts.documents
    assert found.rejected["empty_caption"] == 1
    assert found.rejected["too_long"] >= 1
    assert found.rejected["duplicate_uid"] == 4
    assert found.packed + found.rejected.total() == 67
    assert found.images == train.counts.images + held_out.counts.images
    assert (found.bytes > 0) == deep


def test_a_corpus_with_broken_shards_passes_too(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    write_caption_shard(raw / "00000.tar", 10, seed=0)
    write_caption_shard(raw / "00001.tar", 10, seed=1, uids=False)
    whole = (raw / "00001.tar").read_bytes()
    (raw / "00001.tar").write_bytes(whole[: len(whole) // 2])
    (raw / "00002.tar").write_bytes(b"")
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    folders = []
    for low, high in ((0.0, 0.5), (0.5, 1.0)):
        folders.append(tmp_path / f"packs-{low}")
        pack(raw, folders[-1], tokenizer, selection=Selection((low, high)))
    found = verify(VerifyRequest(input=raw, packs=tuple(folders), deep=True))
    assert told(found) == ""
    assert found.rejected["truncated_shard"] == 2
    assert (found.outside, found.packed) == (0, found.documents - 2)


def test_parts_are_proven_together_and_one_alone_leaves_the_rest_outside(
    made: SimpleNamespace, tmp_path: Path
) -> None:
    parts = {part: tmp_path / f"part-{part[0]}" for part in ((0.0, 0.6), (0.6, 1.0))}
    for part, folder in parts.items():
        pack(made.raw, folder, made.tokenizer, selection=Selection(part, validation=0.2))
    both = verify(VerifyRequest(input=made.raw, packs=tuple(parts.values()), deep=True))
    assert told(both) == ""
    assert both.outside == 0
    assert both.packed + both.rejected.total() == both.documents == 67
    held_out = Manifest.load(parts[0.0, 0.6] / "validation").counts.documents
    assert both.validation_again == held_out > 0
    one = verify(VerifyRequest(input=made.raw, packs=(parts[0.0, 0.6],)))
    assert told(one) == ""
    assert one.outside == Manifest.load(parts[0.0, 0.6]).outside_part > 0
    assert one.packed + one.rejected.total() + one.outside == 67


def test_documents_in_two_folders_are_named(made: SimpleNamespace, tmp_path: Path) -> None:
    other = tmp_path / "other"
    pack(made.raw, other, made.tokenizer, selection=Selection((0.0, 0.5)))
    found = verify(VerifyRequest(input=made.raw, packs=(made.packs, other)))
    assert set(found.faults.counts) == {"duplicate", "leak"}
    assert f"is in {made.packs} too" in told(found)
    # Trained on there and held out here.
    assert f"is in {made.packs}/validation too" in told(found)


def test_a_folder_that_is_no_folder_of_packs_is_refused(made: SimpleNamespace) -> None:
    with pytest.raises(UserError, match=r"no manifest\.json"):
        verify(VerifyRequest(input=made.raw, packs=(made.raw,)))
    with pytest.raises(UserError, match="name the folder above it"):
        verify(VerifyRequest(input=made.raw, packs=(made.packs / "validation",)))


def test_the_command_ends_with_json_and_faults_have_exit_code_2(
    made: SimpleNamespace, call: Run
) -> None:
    words = ("verify", f"input={made.raw}", f"packs={made.packs}", "workers=1", "json=true")
    code, out, err = call(*words)
    assert (code, err.strip()) == (0, "")
    figures = json.loads(out.splitlines()[-1])
    assert (figures["documents"], figures["faults"]) == (67, {})
    rewrite_manifest(made.packs, outside_part=9)
    code, out, err = call(*words)
    assert json.loads(out.splitlines()[-1])["faults"] == {"manifest": 1}
    assert_one_message((code, out, err), "1 fault (1 manifest)", "the manifest says 9")


def test_parts_are_given_as_a_list_and_few_documents_start_no_processes(
    made: SimpleNamespace, call: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("verify", f"input={made.raw}", f"packs=[{made.packs}]")
    monkeypatch.setattr(local, "_pooled", lambda *_: pytest.fail("a process was started"))
    code, out, _ = call(*words)
    assert code == 0
    assert "67" in out
    assert "validation" not in out
    monkeypatch.setattr(local, "_pooled", lambda function, items, *_: map(function, items))
    monkeypatch.setattr("openqwen2vl.commands.verify._FEW_DOCUMENTS", 10)
    monkeypatch.setattr("openqwen2vl.commands.verify.os.sched_getaffinity", lambda _: {0, 1})
    code, _, err = call(*words)
    assert code == 0
    assert "take census: 4 to do" in err


def test_validation_that_all_parts_hold_is_told(
    made: SimpleNamespace, call: Run, tmp_path: Path
) -> None:
    folders = [tmp_path / "low", tmp_path / "high"]
    for part, folder in zip(((0.0, 0.5), (0.5, 1.0)), folders, strict=True):
        pack(made.raw, folder, made.tokenizer, selection=Selection(part, validation=0.2))
    packs = ",".join(map(str, folders))
    code, out, err = call("verify", f"input={made.raw}", f"packs=[{packs}]", "json=true")
    assert code == 0, err
    again = json.loads(out.splitlines()[-1])["validation_again"]
    assert f" {again} documents are packed again: the folders of all parts hold" in out


def test_web_pages_that_choose_their_images_pass(tmp_path: Path) -> None:
    page = {"texts": ["one", None, "two", None], "images": [None, "1", None, "0"]}
    files = {"a.json": json.dumps(page).encode(), "a.0.jpg": b"first", "a.1.jpg": b"second one"}
    write_tar(tmp_path / "raw" / "00001.tar", files)
    write_caption_shard(tmp_path / "raw" / "00000.tar", 3)
    pack(tmp_path / "raw", tmp_path / "packs", tiny_tokenizer(tmp_path / "tokenizer"))
    request = VerifyRequest(input=tmp_path / "raw", packs=(tmp_path / "packs",), deep=True)
    found = verify(request)
    assert told(found) == ""
    assert found.documents == 4
    assert found.packed + found.rejected.total() == 4
