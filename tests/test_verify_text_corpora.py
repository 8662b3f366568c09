import base64
import json
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.packs import pack
from support.shards import (
    picture,
    tiny_tokenizer,
    write_caption_shard,
    write_conversation_shard,
    write_tar,
)
from support.tampered import replace_word
from support.verified import rewrite_manifest, told
from transformers import PreTrainedTokenizerFast

from openqwen2vl.formats.corpora import open_corpus, read_shard
from openqwen2vl.formats.documents import Document
from openqwen2vl.formats.templates import encode_document, template
from openqwen2vl.packing.plan import Selection
from openqwen2vl.packing.proof.census import text_marks
from openqwen2vl.packing.proof.fates import Making, fates
from openqwen2vl.packing.proof.verify import Verification, VerifyRequest, verify

RNG = random.Random(0)
PICTURES = [picture(RNG) for _ in range(3)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def tables(raw: Path, word: str) -> Path:
    """Write captions, conversations and a page as tables."""
    raw.mkdir(exist_ok=True)
    captions = [{"caption": f"a {word} {i}", "jpg": PICTURES[i % 3]} for i in range(5)]
    pq.write_table(pa.Table.from_pylist(captions), raw / "a.parquet")
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a cat"}]
    spoken = [{"images": [{"bytes": PICTURES[0], "path": ""}], "conversations": turns}] * 3
    pq.write_table(pa.Table.from_pylist(spoken), raw / "b.parquet")
    return raw


def listing(raw: Path, word: str) -> Path:
    """Write a listing of conversations whose images are files."""
    raw.mkdir(exist_ok=True)
    (raw / "0.jpg").write_bytes(PICTURES[0])
    entries = [
        {
            "id": str(number),
            "image": "0.jpg",
            "conversations": [
                {"from": "human", "value": f"<image>\nwhat {number}?"},
                {"from": "gpt", "value": f"a {word if not number else 'cat'}"},
            ],
        }
        for number in range(6)
    ]
    entries.append(entries[0] | {"image": "gone.jpg"})
    (raw / "all.json").write_text(json.dumps(entries))
    return raw / "all.json"


def pages(raw: Path, word: str) -> Path:
    """Write pages that hold their images as base64."""
    infos = [{"image_base64": base64.b64encode(data).decode()} for data in PICTURES[:2]]
    files = {}
    for number in range(4):
        texts = [None, f"a red {word if not number else 'cat'}", None, "blue"]
        page = {"image_info": [infos[0], None, infos[1], None], "texts": texts}
        files[f"{number}.json"] = json.dumps(page).encode()
    write_tar(raw / "0.tar", files)
    return raw


def captions(raw: Path, word: str) -> Path:
    """Write tars as img2dataset does, one of them cut off."""
    texts = [f"a {word}", "", *["a cat"] * 3]
    write_caption_shard(raw / "0.tar", 5, captions=texts)
    write_caption_shard(raw / "1.tar", 5)
    whole = (raw / "1.tar").read_bytes()
    (raw / "1.tar").write_bytes(whole[: len(whole) // 2])
    return raw


@pytest.mark.parametrize("write", [tables, listing, pages, captions])
def test_a_word_is_found_in_a_corpus_of_any_kind(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, write: Callable[[Path, str], Path]
) -> None:
    root = tmp_path / "raw"
    corpus, packs = write(root, "dog"), tmp_path / "packs"
    pack(corpus, packs, tokenizer, image_root=root)

    def found() -> Verification:
        return verify(
            VerifyRequest(input=corpus, packs=(packs,), image_root=root, tokenizer=tokenizer)
        )

    assert told(found()) == ""
    assert found().texts == found().packed > 3
    write(root, "cow")
    changed = found()
    assert dict(changed.faults.counts) == {"text": 5 if write is tables else 1}
    assert "has other ids than the corpus gives" in told(changed)


@pytest.mark.parametrize("name", ["qwen2_5", "open_qwen2vl_v1"])
def test_parts_for_unlike_grids_pass_and_a_word_is_told_for_its_folder(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    raw = tmp_path / "raw"
    write_caption_shard(raw / "0.tar", 12)
    write_conversation_shard(raw / "1.tar", 12, max_images=2)
    folders = (tmp_path / "low", tmp_path / "high")
    for folder, part, grid in zip(folders, ((0.0, 0.5), (0.5, 1.0)), (2, 4), strict=True):
        selection = Selection(part, 0.1)
        pack(raw, folder, tokenizer, grid=grid, template=name, selection=selection)
    request = VerifyRequest(input=raw, packs=folders, tokenizer=tokenizer)
    assert told(verify(request)) == ""
    replace_word(raw / "0.tar", b" the ", b" our ")
    replace_word(raw / "1.tar", b"What color", b"What shade")
    found = verify(request)
    assert set(found.faults.counts) == {"text"}
    assert all(str(folder) in told(found) for folder in folders)


def test_shortened_documents_are_compared_with_what_is_left_of_them(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    raw, packs = tmp_path / "raw", tmp_path / "packs"
    write_conversation_shard(raw / "0.tar", 20, max_images=2, max_rounds=8)
    options = {"context": 150, "overlong": "drop_last_turns", "max_images": 1}
    manifest = pack(raw, packs, tokenizer, **options)
    assert manifest.shortened > 3
    assert manifest.rejects["too_many_images"] > 0
    request = VerifyRequest(input=raw, packs=(packs,), tokenizer=tokenizer)
    assert told(verify(request)) == ""
    # By a longer context fewer turns would have gone.
    spec = manifest.spec
    rewrite_manifest(packs, spec=type(spec)(**{**vars(spec), "context": 260}))
    found = verify(request)
    assert found.faults.counts["text"] > 3
    assert "has other ids than the corpus gives" in told(found)


def test_a_word_of_a_shortened_document_is_named(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    raw, packs = tmp_path / "raw", tmp_path / "packs"
    turns = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "a dog"}]
    fields = {"uid": "one", "conversations": turns * 40}
    write_tar(raw / "0.tar", {"0.json": json.dumps(fields).encode()})
    assert pack(raw, packs, tokenizer, overlong="drop_last_turns").shortened == 1
    request = VerifyRequest(input=raw, packs=(packs,), tokenizer=tokenizer)
    assert told(verify(request)) == ""
    replace_word(raw / "0.tar", b"a dog", b"a cow")
    found = verify(request)
    assert dict(found.faults.counts) == {"text": 1}
    assert "0/0 (uid one) in pack 0" in told(found)


def test_fates_are_those_of_each_document_alone(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    write_conversation_shard(tmp_path / "0.tar", 12, max_images=3, max_rounds=20)
    manifest = pack(tmp_path / "0.tar", tmp_path / "packs", tokenizer, max_images=2)
    items = [i for shard in open_corpus(tmp_path / "0.tar") for i in read_shard(shard, "s")]
    those = [item for item in items if isinstance(item, Document)]
    given = fates(those, Making.of(manifest), tokenizer)
    for document, fate in zip(those, given, strict=True):
        code = encode_document(document, tokenizer, template("qwen2_5"))
        if len(code.ids) + 15 * code.num_images > 256:
            assert fate == "too_long"
        else:
            assert fate == ("too_many_images" if code.num_images > 2 else code)
    assert len({fate if isinstance(fate, str) else "" for fate in given}) == 3


SPANS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=3)
TEXTS = st.lists(st.tuples(st.lists(st.integers(-1, 9), max_size=4), SPANS), max_size=8)


@given(TEXTS)
def test_marks_tell_ids_and_spans_apart(
    texts: list[tuple[list[int], list[tuple[int, int]]]],
) -> None:
    marks = text_marks(texts).tolist()
    by_text = {
        (tuple(ids), tuple(spans)): mark for (ids, spans), mark in zip(texts, marks, strict=True)
    }
    assert len(set(by_text.values())) == len(by_text)
    assert marks == [by_text[tuple(ids), tuple(spans)] for ids, spans in texts]


@pytest.mark.parametrize("wrong", [1.5, "1", None, 2**31])
def test_marks_need_whole_numbers(wrong: object) -> None:
    with pytest.raises((TypeError, OverflowError)):
        text_marks([([wrong], [])])
    with pytest.raises((TypeError, OverflowError)):
        text_marks([([], [(0, wrong)])])
