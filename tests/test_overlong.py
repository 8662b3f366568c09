import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.shards import SENTENCES

from openqwen2vl.formats.documents import IMAGE, Document, ImageRef, Turn
from openqwen2vl.formats.overlong import drop_last_turns
from openqwen2vl.formats.templates import encode_document, template
from openqwen2vl.formats.tokens import train_tokenizer

PER_IMAGE = 10


def length(document):
    """Letters and images stand for tokens; a turn costs one more."""
    turns = document.turns
    return len(turns) + sum(len(t.text) + PER_IMAGE * t.num_images for t in turns)


TOKENIZER = train_tokenizer(SENTENCES, 400)


def made(turns):
    num_images = sum(turn.num_images for turn in turns)
    images = tuple(ImageRef("x", number, 1, "jpg") for number in range(num_images))
    return Document("s", "0", "k", "u", tuple(turns), images)


exchanges = st.tuples(
    st.text("q", max_size=8), st.integers(0, 2), st.text("a", min_size=1, max_size=8)
)
conversations = st.builds(
    lambda rounds, system, asked: made(
        [Turn("system", ("be brief",))] * system
        + [
            turn
            for question, num_images, answer in rounds
            for turn in (
                Turn("user", (*[IMAGE] * num_images, question)),
                Turn("assistant", (answer,)),
            )
        ]
        + [Turn("user", ("and?",))] * asked
    ),
    st.lists(exchanges, min_size=1, max_size=6),
    st.booleans(),
    st.booleans(),
)


@given(conversations, st.integers(0, 120))
def test_what_is_left_is_the_longest_beginning_that_ends_with_an_answer_and_fits(document, limit):
    short = drop_last_turns(document, limit, length)
    beginnings = [
        made(document.turns[:number])
        for number in range(1, len(document.turns) + 1)
        if number == len(document.turns) or document.turns[number - 1].role == "assistant"
    ]
    fitting = [beginning for beginning in beginnings if length(beginning) <= limit]
    assert short == (fitting[-1] if fitting else None)


@given(conversations)
def test_images_are_as_many_as_the_marks_that_are_left(document):
    short = drop_last_turns(document, length(document) - 1, length)
    if short is not None:
        assert len(short.images) == sum(turn.num_images for turn in short.turns)
        assert short.images == document.images[: len(short.images)]
        assert (short.uid, short.key) == (document.uid, document.key)


def test_a_document_that_fits_is_given_back_as_it_is():
    document = made([Turn("user", ("q",)), Turn("assistant", ("a",))])
    assert drop_last_turns(document, length(document), length) is document


def test_captions_and_pages_are_never_shortened():
    for role in ("caption", "interleaved"):
        assert drop_last_turns(made([Turn(role, (IMAGE, "text"))]), 5, length) is None


def test_an_answer_in_two_turns_is_not_parted_and_an_empty_one_does_not_count():
    turns = [
        Turn("user", ("q",)),
        Turn("assistant", (" ",)),
        Turn("user", ("q",)),
        Turn("assistant", ("a",)),
        Turn("assistant", ("b",)),
        Turn("user", ("q",)),
        Turn("assistant", ("c",)),
    ]
    left = [drop_last_turns(made(turns), limit, length) for limit in (13, 10, 9, 8)]
    assert [None if d is None else len(d.turns) for d in left] == [5, 5, None, None]


def test_few_lengths_are_asked_for():
    turns = [Turn("user", ("q",)), Turn("assistant", ("a",))] * 500
    calls = []
    drop_last_turns(made(turns), 100, lambda d: calls.append(d) or length(d))
    assert len(calls) <= 11


@pytest.mark.parametrize("name", ["qwen2_5", "open_qwen2vl_v1"])
@settings(deadline=None, max_examples=30)
@given(document=conversations, limit=st.integers(20, 160))
def test_the_length_may_be_that_of_the_encoded_document(name, document, limit):
    def encoded_length(shorter):
        code = encode_document(shorter, TOKENIZER, template(name))
        return len(code.ids) + code.num_images * (PER_IMAGE - 1)

    short = drop_last_turns(document, limit, encoded_length)
    if short is None:
        assert encoded_length(document) > limit
    else:
        assert encoded_length(short) <= limit
        # One exchange more would have been too long.
        longer = made(document.turns[: len(short.turns) + 2])
        assert longer == short or encoded_length(longer) > limit
