import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.shards import SENTENCES
from tokenizers import AddedToken

from openqwen2vl.formats.documents import IMAGE, Document, Turn
from openqwen2vl.formats.errors import ConfigError, UserError
from openqwen2vl.formats.said import said_turns
from openqwen2vl.formats.templates import (
    TEMPLATES,
    encode_document,
    encode_documents,
    prompt_ids,
    template,
)
from openqwen2vl.formats.tokens import end_of_chunk, special_tokens, train_tokenizer

TOKENIZER = train_tokenizer(SENTENCES, 400)
WITH_CHUNKS = train_tokenizer(SENTENCES, 400)
WITH_CHUNKS.add_tokens([AddedToken("<|endofchunk|>", normalized=False, special=True)])
SPECIAL = special_tokens(TOKENIZER)
QWEN, V1 = template("qwen2_5"), template("open_qwen2vl_v1")
# Qwen2.5's chat template in words: each turn between its marks, a newline after each.
QWEN_CHAT = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant."
    "<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def document(*turns):
    return Document("s", "0", "k", "u", tuple(turns))


def caption(text):
    return document(Turn("caption", (IMAGE, text)))


def spoken(ids):
    return TOKENIZER.decode(ids, clean_up_tokenization_spaces=False)


def interleaved(*parts):
    return document(Turn("interleaved", parts))


words = st.text(min_size=1).filter(str.strip)
conversations = st.lists(st.tuples(words, words), min_size=1, max_size=3).map(
    lambda rounds: [
        turn
        for number, (question, answer) in enumerate(rounds)
        for turn in (
            Turn("user", (IMAGE, "\n" + question) if number == 0 else (question,)),
            Turn("assistant", (answer,)),
        )
    ]
)


@settings(deadline=None)
@given(words, st.sampled_from([QWEN, V1]))
def test_a_caption_is_bos_image_newline_text_end(text, chosen):
    encoded = encode_document(caption(text), TOKENIZER, chosen)
    assert encoded.ids[:2] == [SPECIAL.bos, SPECIAL.image]
    assert encoded.num_images == encoded.ids.count(SPECIAL.image) == 1
    assert encoded.targets == [(2, len(encoded.ids))]
    assert spoken(encoded.ids[2:]) == f"\n{text}<|im_end|>"


def test_marks_written_in_a_caption_stay_text():
    text = "see <image> and <|im_end|> and <|image_pad|>"
    encoded = encode_document(caption(text), TOKENIZER, QWEN)
    assert encoded.ids.count(SPECIAL.image) == 1
    assert encoded.ids.count(SPECIAL.im_end) == 1
    assert spoken(encoded.ids[2:-1]) == "\n" + text


@settings(deadline=None)
@given(conversations)
def test_the_targets_of_a_conversation_decode_to_its_answers(turns):
    for chosen in TEMPLATES.values():
        encoded = encode_document(document(*turns), TOKENIZER, chosen)
        answers = [turn.text for turn in turns if turn.role == "assistant"]
        assert [spoken(encoded.ids[a:b]) for a, b in encoded.targets] == [
            f"{answer}<|im_end|>" for answer in answers
        ]


@settings(deadline=None)
@given(conversations)
def test_a_prompt_is_how_training_starts_the_last_answer(turns):
    for chosen in TEMPLATES.values():
        encoded = encode_document(document(*turns), TOKENIZER, chosen)
        prompt = prompt_ids(turns[:-1], TOKENIZER, chosen)
        assert encoded.ids[: encoded.targets[-1][0]] == prompt


def test_a_conversation_is_tokenized_as_qwens_own_chat_template_does():
    TOKENIZER.chat_template = QWEN_CHAT
    turns = [
        Turn("user", ("What color is the circle?",)),
        Turn("assistant", ("The circle is red.",)),
        Turn("user", ("How many squares are there?",)),
        Turn("assistant", ("There are two squares.",)),
    ]
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    theirs = TOKENIZER.apply_chat_template(messages, tokenize=False)
    ours = encode_document(document(*turns), TOKENIZER, QWEN).ids
    assert ours == TOKENIZER(theirs, add_special_tokens=False).input_ids
    prompt = TOKENIZER.apply_chat_template(messages[:3], tokenize=False, add_generation_prompt=True)
    assert spoken(prompt_ids(turns[:3], TOKENIZER, QWEN)) == prompt


def test_a_system_turn_of_ones_own_replaces_the_default():
    turns = [Turn("system", ("Be brief.",)), Turn("user", ("Hi",)), Turn("assistant", ("Hi",))]
    text = spoken(encode_document(document(*turns), TOKENIZER, QWEN).ids)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi")


def test_the_released_format_puts_a_single_image_before_everything():
    turns = [Turn("user", (IMAGE, "\nWhat?")), Turn("assistant", ("Red.",))]
    assert spoken(encode_document(document(*turns), TOKENIZER, V1).ids) == (
        "<|image_pad|>\n<s><|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nWhat?<|im_end|>assistant\nRed.<|im_end|>\n"
    )


def test_the_released_format_leaves_several_images_in_place():
    turns = [Turn("user", (IMAGE, "\n", IMAGE, "\nSame?")), Turn("assistant", ("No.",))]
    text = spoken(encode_document(document(*turns), TOKENIZER, V1).ids)
    assert text.startswith("<s><|im_start|>system")
    assert "user\n<|image_pad|>\n<|image_pad|>\nSame?" in text


def test_a_caption_prompt_stops_before_the_end():
    prompt = prompt_ids([Turn("caption", (IMAGE, ""))], TOKENIZER, QWEN)
    assert prompt[:2] == [SPECIAL.bos, SPECIAL.image]
    assert spoken(prompt[2:]) == "\n"


@settings(deadline=None)
@given(st.lists(st.one_of(words.map(caption), conversations.map(lambda t: document(*t)))))
def test_documents_together_give_what_each_gives_alone(documents):
    together = encode_documents(documents, TOKENIZER, QWEN)
    assert together == [encode_document(d, TOKENIZER, QWEN) for d in documents]


pages = st.lists(st.one_of(st.just(IMAGE), words), min_size=1, max_size=6)


@settings(deadline=None)
@given(pages)
def test_the_released_format_of_a_page_is_that_of_the_official_packer(parts):
    encoded = encode_document(interleaved(*parts), WITH_CHUNKS, V1)
    official = "".join(
        f"{part}<|endofchunk|>" if isinstance(part, str) else "<|image_pad|>\n" for part in parts
    )
    text = WITH_CHUNKS.decode(encoded.ids, clean_up_tokenization_spaces=False)
    assert text == f"<s>{official}<|im_end|>"
    assert encoded.num_images == encoded.ids.count(SPECIAL.image) == parts.count(IMAGE)


def test_marks_written_in_a_page_stay_text():
    page = interleaved(IMAGE, "<|endofchunk|><image>", IMAGE, "<|im_end|>")
    encoded = encode_document(page, WITH_CHUNKS, V1)
    ids = encoded.ids
    assert ids.count(end_of_chunk(WITH_CHUNKS)) == ids.count(SPECIAL.image) == 2
    assert ids.count(SPECIAL.im_end) == 1


@settings(deadline=None)
@given(pages)
def test_a_page_parts_its_texts_and_images_by_newlines(parts):
    encoded = encode_document(interleaved(*parts), TOKENIZER, QWEN)
    lines = "\n".join(p if isinstance(p, str) else "<|image_pad|>" for p in parts)
    end = "\n" if parts[-1] is IMAGE else ""
    assert spoken(encoded.ids) == f"<s>{lines}{end}<|im_end|>"
    assert encoded.num_images == encoded.ids.count(SPECIAL.image) == parts.count(IMAGE)


@settings(deadline=None)
@given(pages, st.sampled_from([QWEN, V1]))
def test_all_of_a_page_is_asked_for_but_its_beginning_and_its_images(parts, chosen):
    encoded = encode_document(interleaved(*parts), WITH_CHUNKS, chosen)
    asked = {place for start, stop in encoded.targets for place in range(start, stop)}
    rest = [encoded.ids[place] for place in range(len(encoded.ids)) if place not in asked]
    assert rest == [SPECIAL.bos] + [SPECIAL.image] * parts.count(IMAGE)


@settings(deadline=None)
@given(words)
def test_a_page_of_an_image_and_a_text_is_a_caption(text):
    page = encode_document(interleaved(IMAGE, text), TOKENIZER, QWEN)
    assert page == encode_document(caption(text), TOKENIZER, QWEN)


@settings(deadline=None)
@given(pages, st.sampled_from([QWEN, V1]))
def test_a_page_as_a_prompt_is_open_at_its_end(parts, chosen):
    encoded = encode_document(interleaved(*parts), WITH_CHUNKS, chosen)
    prompt = prompt_ids([Turn("interleaved", tuple(parts))], WITH_CHUNKS, chosen)
    closing = [SPECIAL.eos]
    if chosen is V1 and isinstance(parts[-1], str):
        closing = [end_of_chunk(WITH_CHUNKS), SPECIAL.eos]
    assert prompt + closing == encoded.ids


def test_a_tokenizer_without_the_mark_of_chunks_is_told_only_where_it_is_needed():
    with pytest.raises(UserError, match=r"lacks <\|endofchunk\|>, which template=open_qwen2vl_v1"):
        encode_document(interleaved("a"), TOKENIZER, V1)
    assert encode_document(caption("a"), TOKENIZER, V1).num_images == 1


@settings(deadline=None, max_examples=30)
@given(st.lists(st.one_of(words.map(caption), pages.map(lambda p: interleaved(*p))), max_size=5))
def test_pages_and_captions_together_give_what_each_gives_alone(documents):
    together = encode_documents(documents, WITH_CHUNKS, V1)
    assert together == [encode_document(d, WITH_CHUNKS, V1) for d in documents]


def test_a_hash_of_packs_made_before_templates_knew_pages_still_holds():
    assert QWEN.hash == "053e22ceaa3cfe3f"


def test_templates_have_hashes_of_their_content():
    assert QWEN.hash != V1.hash
    assert len(QWEN.hash) == 16


def test_an_unknown_template_is_told_with_those_there_are():
    with pytest.raises(
        ConfigError, match="template is 'chatml'; there are open_qwen2vl_v1, open_qwen2vl_v2"
    ):
        template("chatml")


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_what_is_said_reads_back_without_the_template(name):
    turns = [("user", "is it\nred?"), ("assistant", "no"), ("user", "blue?"), ("assistant", "yes")]
    made = document(*(Turn(role, (text,)) for role, text in turns))
    ids = encode_document(made, TOKENIZER, TEMPLATES[name]).ids
    (system, _), *said = said_turns(ids, TOKENIZER, SPECIAL)
    assert (system, said) == ("system", turns)
    assert (
        list(said_turns(encode_document(caption("a dog"), TOKENIZER, QWEN).ids, TOKENIZER, SPECIAL))
        == []
    )
