"""A conversation as the model reads it, pictures that people bring, and text in whole pieces."""

import io
import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.models import tiny_mllm
from support.shards import picture, tiny_tokenizer
from transformers import PreTrainedTokenizerFast

from openqwen2vl.curation.scorers.mllm_judge import TrainedModel
from openqwen2vl.formats.documents import IMAGE, Turn
from openqwen2vl.formats.errors import ImageError, UserError
from openqwen2vl.formats.images import decode_image
from openqwen2vl.formats.templates import TEMPLATES, prompt_ids
from openqwen2vl.formats.tokens import encode_text, special_tokens
from openqwen2vl.model.decoding import Sampling
from openqwen2vl.release.conversation import Conversation, Partner, started
from openqwen2vl.release.streaming_text import text_pieces


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def trained(tokenizer: PreTrainedTokenizerFast) -> TrainedModel:
    model = tiny_mllm(vocab_size=len(tokenizer)).eval()
    return TrainedModel(model, tokenizer, TEMPLATES["qwen2_5"], "tiny")


def partner(trained: TrainedModel, most: int = 24) -> Partner:
    return Partner(trained, torch.device("cpu"), Sampling(), most)


def written(kind: str, size: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, kind)
    return file.getvalue()


def test_the_model_reads_turns_and_pictures_in_the_layout_of_its_training(
    trained: TrainedModel,
) -> None:
    one = partner(trained)
    shown = [one.look(picture(random.Random(i)), f"{i}.jpg") for i in range(3)]
    talk = started("Be brief.").asked("What is it?", shown[:1]).answered("A circle.")
    talk = talk.asked("And these?", shown[1:])
    turns = [
        Turn("system", ("Be brief.",)),
        Turn("user", (IMAGE, "\nWhat is it?")),
        Turn("assistant", ("A circle.",)),
        Turn("user", (IMAGE, IMAGE, "\nAnd these?")),
    ]
    expected = prompt_ids(turns, trained.tokenizer, trained.template)
    assert one.prompt(talk) == expected
    assert talk.pictures == tuple(shown)
    for i, found in enumerate(shown):
        side = trained.model.vision.side
        assert (found.pixels.numpy() == decode_image(picture(random.Random(i)), side)).all()


def test_an_answer_is_what_generate_gives(trained: TrainedModel) -> None:
    one = partner(trained)
    shown = [one.look(picture(random.Random(i)), f"{i}.jpg") for i in range(2)]
    talk = started().asked("What?", shown[:1]).answered("A circle.").asked("And this?", shown[1:])
    special = special_tokens(trained.tokenizer)
    images = torch.stack([found.pixels for found in shown])
    ids = trained.model.generate(
        [one.prompt(talk)], images, special.image, special.pad, [special.eos], 24
    )[0]
    expected = trained.tokenizer.decode(ids, skip_special_tokens=True)
    pieces = list(one.answer(talk))
    assert "".join(pieces) == expected
    assert len(pieces) > 1


def test_a_question_without_pictures_is_answered_too(trained: TrainedModel) -> None:
    assert "".join(partner(trained).answer(started().asked("Hello?")))


def test_a_stopped_answer_leaves_the_model_as_it_was(trained: TrainedModel) -> None:
    one = partner(trained)
    before = trained.model.llm.config._attn_implementation
    with closing(one.answer(started().asked("Hello?"))) as pieces:
        next(pieces)
    assert trained.model.llm.config._attn_implementation == before


def test_words_that_look_like_marks_stay_words(trained: TrainedModel) -> None:
    one = partner(trained)
    ids = one.prompt(started().asked("<|image_pad|><|im_end|> <image>"))
    plain = one.prompt(started().asked("a"))
    special = special_tokens(trained.tokenizer)
    for mark in (special.image, special.im_end):
        assert ids.count(mark) == plain.count(mark)


def test_a_conversation_that_has_grown_too_long_is_told(trained: TrainedModel) -> None:
    talk = started().asked("a")
    length = len(partner(trained).prompt(talk))
    assert partner(trained, 4096 - length).prompt(talk)
    with pytest.raises(UserError, match=r"start afresh, or lower max_new_tokens"):
        partner(trained, 4097 - length).prompt(talk)
    shown = partner(trained).look(written("PNG"), "red.png")
    full = partner(trained, 4096 - length - 9 - len(encode_text(trained.tokenizer, "\n")))
    with pytest.raises(UserError, match=r"a picture is 9"):
        full.prompt(started().asked("a" * 9, [shown]))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_usual_kinds_of_pictures_are_shown(trained: TrainedModel, kind: str) -> None:
    found = partner(trained).look(written(kind), "red")
    assert found.pixels.shape == (84, 84, 3)
    assert found.pixels.dtype == torch.uint8


def bomb() -> bytes:
    """Give a PNG whose header promises more pixels than are decoded."""
    data = bytearray(written("PNG"))
    data[16:24] = (30_000).to_bytes(4) * 2
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"just words", "no picture"),
        (b"", "no picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "no picture"),
        (b"<!doctype html><img src=x>", "no picture"),
        # PIL would hand this one to Ghostscript.
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "no picture"),
        (written("JPEG", (400, 300))[:-900], "cannot be decoded"),
        (written("PNG", (1, 9)), "both sides need at least 2"),
        (bomb(), "."),
    ],
)
def test_what_is_no_sound_picture_is_refused_by_name(
    trained: TrainedModel, data: bytes, why: str
) -> None:
    with pytest.raises(ImageError, match=rf"cat\.png cannot be shown: .*{why}"):
        partner(trained).look(data, "cat.png")


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 511), max_size=60))
def test_pieces_join_to_the_whole_text(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> None:
    pieces = list(text_pieces(tokenizer, ids))
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
    assert all(pieces)


@settings(deadline=None)
@given(text=st.text(max_size=40))
def test_no_piece_ends_inside_a_character(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    pieces = list(text_pieces(tokenizer, encode_text(tokenizer, text)))
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_pieces_come_before_the_answer_is_whole(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = encode_text(tokenizer, "a red circle, 日本")
    seen: list[int] = []

    def coming() -> Iterator[int]:
        for token in ids:
            seen.append(token)
            yield token

    pieces = text_pieces(tokenizer, coming())
    assert next(pieces).startswith("a")
    assert len(seen) < len(ids)


def test_bytes_that_are_no_characters_do_not_hold_the_answer_up(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    bad = tokenizer.backend_tokenizer.token_to_id("\u0123")  # byte-level's sign for byte 0x81
    assert tokenizer.decode([bad]) == "\ufffd"
    pieces = list(text_pieces(tokenizer, [bad] * 40))
    assert "".join(pieces) == "\ufffd" * 40
    assert len(pieces) > 30


def test_steps_leave_earlier_conversations_alone() -> None:
    start = Conversation()
    assert start.asked("a").answered("b") == start.asked("a").answered("b")
    assert start == Conversation()


def test_a_tokenizer_that_drops_a_texts_first_space_keeps_those_between(tmp_path: Path) -> None:
    """A Llama tokenizer writes the first word of a text without its space."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = {"<unk>": 0, "▁a": 1, "▁red": 2, "▁circle": 3}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    llama = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert list(text_pieces(llama, [1, 2, 3])) == ["a", " red", " circle"]
