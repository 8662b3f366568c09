import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.runs import Run, assert_one_message
from support.shards import tiny_tokenizer
from support.tampered import replace_word, reword_reject, swap_ids
from support.verified import check, documents, make, rewrite_manifest, rewrite_pack, told

from openqwen2vl.engine.local import map_shards
from openqwen2vl.formats.errors import PackError
from openqwen2vl.formats.manifest import Manifest
from openqwen2vl.packing.proof.faults import LISTED
from openqwen2vl.packing.proof.verify import Verification, VerifyRequest, verify


@pytest.fixture
def made(tmp_path: Path) -> SimpleNamespace:
    """Raw shards with every kind of document, packed with a validation split."""
    return make(tmp_path)


def check_text(made: SimpleNamespace, **changes: object) -> Verification:
    """Verify with the tokenizer that packed."""
    return check(made, tokenizer=made.tokenizer, **changes)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_text_of_what_was_packed_well_passes(made: SimpleNamespace, workers: int) -> None:
    request = VerifyRequest(input=made.raw, packs=(made.packs,), tokenizer=made.tokenizer)
    found = verify(request, lambda f, items: map_shards(f, items, workers))
    assert told(found) == ""
    assert found.texts == found.packed > 40
    assert check(made).texts is None


def test_a_changed_word_of_a_caption_is_named(made: SimpleNamespace) -> None:
    assert replace_word(made.raw / "00000.tar", b"circle", b"square") > 1
    assert told(check(made, deep=True)) == ""
    found = check_text(made)
    assert set(found.faults.counts) == {"text"}
    assert found.faults.counts["text"] > 1
    first = told(found).splitlines()[0]
    assert first.startswith("00000/00000")
    assert "in pack" in first
    assert "has other ids than the corpus gives, from id" in first
    assert "circle" in first
    assert "square" in first


def test_a_changed_answer_of_a_conversation_is_named(made: SimpleNamespace) -> None:
    assert replace_word(made.raw / "00001.tar", b'"It is blue', b'"It is gray') > 1
    assert told(check(made, deep=True)) == ""
    found = check_text(made)
    assert set(found.faults.counts) == {"text"}
    assert told(found).startswith("00001/")


def put(folder: Path, value: object) -> dict[str, object]:
    """Put something in the place of the first pack's last id but two; gives its document."""

    def change(content: dict[str, Any]) -> None:
        content["ids"][-3] = value if content["ids"][-3] != value else 8

    document = documents(folder, 0)[-1]
    rewrite_pack(folder, 0, change)
    return document


@pytest.mark.parametrize("split", [".", "validation"])
@pytest.mark.parametrize("value", [7, -1])
def test_a_changed_id_in_a_pack_is_named(made: SimpleNamespace, split: str, value: int) -> None:
    document = put(made.packs / split, value)
    assert told(check(made)) == ""
    found = check_text(made)
    assert dict(found.faults.counts) == {"text": 1}
    assert f"{document['shard']}/{document['key']} (uid {document['uid']}) in pack 0" in told(found)


def test_an_id_that_is_no_number_costs_its_pack(made: SimpleNamespace) -> None:
    put(made.packs, [])
    found = check_text(made)
    assert found.faults.counts["packed shard"] == 1
    assert "pack 0 of" in told(found)
    assert "cannot be read (TypeError" in told(found)


def test_a_moved_target_span_is_named(made: SimpleNamespace) -> None:
    def move(content: dict[str, Any]) -> None:
        content["targets"][0] = [edge - 1 for edge in content["targets"][0]]

    document = documents(made.packs, 0)[0]
    rewrite_pack(made.packs, 0, move)
    assert told(check(made)) == ""
    found = check_text(made)
    assert dict(found.faults.counts) == {"text": 1}
    assert f"{document['shard']}/{document['key']} (uid {document['uid']})" in told(found)
    assert "asks for the target spans [(" in told(found)


def test_the_swapped_ids_of_two_documents_are_named(made: SimpleNamespace) -> None:
    both = swap_ids(made.packs)
    assert told(check(made)) == ""
    found = check_text(made)
    assert dict(found.faults.counts) == {"text": 2}
    assert all(f"{d['shard']}/{d['key']} (uid {d['uid']})" in told(found) for d in both)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("too_long", "bad_text", "was left out as bad_text, by the corpus it is too_long"),
        (
            "empty_caption",
            "too_long",
            "was left out as too_long, by the corpus it is empty_caption",
        ),
        ("duplicate_uid", "too_long", "was left out as too_long, by the corpus it has"),
        (
            "too_long",
            "duplicate_uid",
            "was left out as duplicate_uid, by the corpus it is too_long",
        ),
    ],
)
def test_another_reason_in_the_ledger_is_named(
    made: SimpleNamespace, old: str, new: str, says: str
) -> None:
    row = reword_reject(made.packs, old, new)
    found = check_text(made)
    assert found.faults.counts["ledger"] >= 1
    assert f"{row['shard']}/{row['key']} (uid {row['uid']}) in" in told(found)
    assert says in told(found)


def test_a_packed_document_that_the_corpus_cannot_give_is_named(made: SimpleNamespace) -> None:
    replace_word(made.raw / "00003.tar", b"a dog", b"     ")
    found = check_text(made)
    assert dict(found.faults.counts) == {"text": 1}
    assert "would be left out of packs of the corpus: empty_caption" in told(found)


def test_of_very_many_differences_the_first_are_told_and_all_are_counted(
    made: SimpleNamespace,
) -> None:
    for path in made.raw.glob("*.tar"):
        replace_word(path, b" the ", b" our ")
    found = check_text(made)
    assert found.faults.counts["text"] > LISTED
    assert len(found.faults.told["text"]) == LISTED


def test_another_tokenizer_or_template_is_refused(made: SimpleNamespace, tmp_path: Path) -> None:
    other = tiny_tokenizer(tmp_path / "other", 400)
    with pytest.raises(PackError, match="give tokenizer= as it was given to pack"):
        check(made, tokenizer=other)
    spec = replace(Manifest.load(made.packs).spec, template_hash="0" * 16)
    rewrite_manifest(made.packs, spec=spec)
    with pytest.raises(PackError, match="template qwen2_5 of hash 0000000000000000"):
        check_text(made)


def test_the_command_says_whether_texts_were_compared(made: SimpleNamespace, call: Run) -> None:
    words = ("verify", f"input={made.raw}", f"packs={made.packs}", "workers=1", "json=true")
    code, out, _ = call(*words)
    assert code == 0
    assert json.loads(out.splitlines()[-1])["text_compared"] is False
    assert "not compared (give tokenizer=)" in out
    named = (*words, f"tokenizer={made.raw.parent / 'tokenizer'}")
    code, out, _ = call(*named)
    assert code == 0
    assert json.loads(out.splitlines()[-1])["text_compared"] is True
    assert "documents encoded again and compared" in out
    swap_ids(made.packs)
    assert_one_message(call(*named), "is not", "2 faults (2 text)")
    tiny_tokenizer(made.raw.parent / "other", 400)
    found = call(*words, f"tokenizer={made.raw.parent / 'other'}")
    assert_one_message(found, "were made with a tokenizer of hash")
