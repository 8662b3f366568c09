import pytest
from support.packs import pack
from support.shards import tiny_tokenizer, write_caption_shard, write_conversation_shard

from openqwen2vl.formats.documents import Document
from openqwen2vl.formats.errors import PackError
from openqwen2vl.formats.raw import read_raw_shard
from openqwen2vl.formats.templates import encode_document, template
from openqwen2vl.packing.plan import Selection
from openqwen2vl.packing.reader import PackFolder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_overlong_conversations_go_in_without_their_last_turns(tokenizer, tmp_path):
    write_conversation_shard(tmp_path / "raw" / "0.tar", 20, seed=1, max_images=2, max_rounds=6)
    keys = {"context": 110, "selection": Selection(validation=0.2)}
    rejected = pack(tmp_path / "raw", tmp_path / "whole", tokenizer, **keys)
    shortened = pack(
        tmp_path / "raw", tmp_path / "short", tokenizer, overlong="drop_last_turns", **keys
    )
    assert rejected.rejects["too_long"] > 3
    held = [PackFolder(tmp_path / "short" / s).manifest for s in ("", "validation")]
    lost = [PackFolder(tmp_path / "whole" / s).manifest for s in ("", "validation")]
    for short, whole in zip(held, lost, strict=True):
        assert short.shortened == whole.rejects.get("too_long", 0) - short.rejects.get(
            "too_long", 0
        )
        assert short.counts.documents == whole.counts.documents + short.shortened
        assert (short.overlong, whole.overlong, whole.shortened) == ("drop_last_turns", "reject", 0)
    assert shortened.shortened > 0
    packs = PackFolder(tmp_path / "short")
    originals = {
        d.uid: encode_document(d, tokenizer, template("qwen2_5"))
        for d in read_raw_shard(tmp_path / "raw" / "0.tar", "tiny")
        if isinstance(d, Document)
    }
    for number in range(len(packs)):
        one = packs.read(number)
        for document in one.documents:
            ids = one.ids[document["start"] : document["start"] + document["length"]].tolist()
            assert ids == originals[document["uid"]].ids[: len(ids)]


def test_an_unknown_overlong_is_refused(tokenizer, tmp_path):
    write_caption_shard(tmp_path / "raw" / "0.tar", 1)
    with pytest.raises(PackError, match="overlong is 'cut'; there are reject, drop_last_turns"):
        pack(tmp_path / "raw", tmp_path / "out", tokenizer, overlong="cut")
