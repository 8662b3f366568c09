import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.shards import SENTENCES, tiny_tokenizer
from transformers import PreTrainedTokenizerFast

from openqwen2vl.formats import tokens
from openqwen2vl.formats.errors import UserError
from openqwen2vl.formats.tokens import (
    encode_text,
    encode_texts,
    load_tokenizer,
    special_tokens,
    tokenizer_hash,
    train_tokenizer,
)

TOKENIZER = train_tokenizer(SENTENCES, 400)
MARKS = ("<s>", "<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|image_pad|>", "<image>")
TEXTS = st.lists(st.one_of(st.text(), st.sampled_from(MARKS))).map("".join)


@settings(deadline=None)
@given(TEXTS)
def test_no_text_ever_holds_a_special_token_and_decoding_gives_it_back(text):
    special = special_tokens(TOKENIZER)
    ids = encode_text(TOKENIZER, text)
    assert not set(ids) & {special.bos, special.eos, special.pad, special.image, special.im_start}
    assert TOKENIZER.decode(ids, clean_up_tokenization_spaces=False) == text


@settings(deadline=None)
@given(st.lists(TEXTS, max_size=5))
def test_a_batch_of_texts_gives_what_each_gives_alone(texts):
    assert encode_texts(TOKENIZER, texts) == [encode_text(TOKENIZER, text) for text in texts]


def test_encoding_text_leaves_the_callers_tokenizer_as_it_was():
    special = special_tokens(TOKENIZER)
    encode_text(TOKENIZER, "a <|im_end|>")
    assert special.im_end in TOKENIZER("a <|im_end|>", add_special_tokens=False).input_ids


def test_training_twice_gives_the_same_tokenizer():
    again = train_tokenizer(SENTENCES, 400)
    assert again.backend_tokenizer.to_str() == TOKENIZER.backend_tokenizer.to_str()


def test_a_saved_tokenizer_loads_with_the_same_ids_and_hash(tmp_path):
    saved = tiny_tokenizer(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert special_tokens(loaded) == special_tokens(saved)
    assert tokenizer_hash(loaded) == tokenizer_hash(saved)
    assert encode_text(loaded, SENTENCES[0]) == encode_text(saved, SENTENCES[0])
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == (
        "<s>",
        "<|im_end|>",
        "<|endoftext|>",
    )


def test_the_hash_tells_vocabularies_apart():
    assert tokenizer_hash(train_tokenizer(SENTENCES, 401)) != tokenizer_hash(TOKENIZER)
    assert tokenizer_hash(train_tokenizer(SENTENCES[:5], 400)) != tokenizer_hash(TOKENIZER)


def test_a_tokenizer_without_bos_gets_it_after_the_end_of_chunk_mark(tmp_path, monkeypatch):
    # Like Qwen2.5, which has every special token but <s>: there the released weights' id is +1.
    monkeypatch.setattr(tokens, "_SPECIAL", tuple(t for t in tokens._SPECIAL if t != "<s>"))
    train_tokenizer(SENTENCES, 300).save_pretrained(tmp_path)
    monkeypatch.undo()
    file = tmp_path / "tokenizer.json"
    fields = json.loads(file.read_text())
    fields["added_tokens"] = [t for t in fields["added_tokens"] if t["content"] != "<s>"]
    file.write_text(json.dumps(fields))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match="lacks <s>; load it with load_tokenizer"):
        special_tokens(PreTrainedTokenizerFast.from_pretrained(tmp_path))
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.convert_tokens_to_ids("<|endofchunk|>") == 300
    assert special_tokens(loaded).bos == 301
    assert len(loaded) == 302


def test_a_missing_folder_is_told_without_asking_the_hub(tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer folder .*absent; check the path"):
        load_tokenizer(str(tmp_path / "absent"))


def test_a_folder_without_a_tokenizer_is_told(tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer\.json in"):
        load_tokenizer(str(tmp_path))


def test_an_unreachable_hub_is_told_in_one_sentence(monkeypatch):
    def fail(error):
        def ask(name, *rest, **named):
            raise error("no route to host")

        return ask

    monkeypatch.setattr(tokens, "hf_hub_download", fail(tokens.LocalEntryNotFoundError))
    monkeypatch.setattr(tokens, "snapshot_download", fail(OSError))
    with pytest.raises(UserError, match=r"no tokenizer 'some/model': .* give its folder"):
        load_tokenizer("some/model")


def test_a_hub_name_that_is_cached_needs_no_network(tmp_path, monkeypatch):
    tiny_tokenizer(tmp_path)
    monkeypatch.setattr(
        tokens, "hf_hub_download", lambda name, file, local_files_only: str(tmp_path / file)
    )
    assert special_tokens(load_tokenizer("some/model")).bos >= 0


def test_a_vocabulary_too_small_for_the_bytes_is_refused():
    with pytest.raises(UserError, match=r"vocab_size is 260; .* need 261"):
        train_tokenizer(SENTENCES, 260)


@settings(max_examples=20, deadline=None)
@given(st.binary(max_size=40))
def test_every_byte_can_be_encoded(data):
    text = data.decode("latin-1")
    ids = encode_text(TOKENIZER, text)
    assert TOKENIZER.decode(ids, clean_up_tokenization_spaces=False) == text
