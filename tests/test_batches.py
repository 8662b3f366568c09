import logging

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.samples import LengthScorer, samples_of

from openqwen2vl.curation.batches import MOST_FAILURES, Batches, is_out_of_memory
from openqwen2vl.formats.errors import ShardError


@pytest.fixture
def samples(tmp_path):
    return samples_of(tmp_path / "00000.tar", captions=["x" * (i + 1) for i in range(13)])


@pytest.mark.parametrize("most", [13, 12, 5, 1])
def test_a_batch_that_does_not_fit_is_halved_until_it_does(samples, most, caplog):
    scorer = LengthScorer(most=most, batch_size=13)
    batches = Batches(scorer)
    with caplog.at_level(logging.WARNING):
        assert batches.score(samples)["length"] == [float(i + 1) for i in range(13)]
    halves = {13: [], 12: [6], 5: [6, 3], 1: [6, 3, 1]}[most]
    said = [record.getMessage() for record in caplog.records]
    assert [int(text.rpartition(" ")[2]) for text in said] == halves
    assert batches.halved_to == (halves[-1] if halves else None)


def test_a_later_batch_begins_with_what_fitted(samples, caplog):
    batches = Batches(LengthScorer(most=4))
    batches.score(samples)
    said = len(caplog.records)
    assert batches.score(samples)["length"] == [float(i + 1) for i in range(13)]
    assert len(caplog.records) == said


@settings(max_examples=40, deadline=None)
@given(
    words=st.lists(st.sampled_from(["a", "bb", "boom", "nan"]), min_size=1, max_size=12),
    most=st.integers(1, 12),
)
def test_whatever_fails_costs_its_own_sample(tmp_path_factory, words, most):
    samples = samples_of(tmp_path_factory.mktemp("s") / "00000.tar", captions=words)
    scores = Batches(LengthScorer(most=most)).score(samples)
    fair = {"a": 1.0, "bb": 2.0}
    assert scores["length"] == [fair.get(word) for word in words]
    said = {"boom": "KeyError: 'boom'", "nan": "length is nan"}
    assert scores["length_error"] == [said.get(word) for word in words]


def test_one_sample_that_is_too_large_is_the_only_one_lost(samples):
    class Greedy(LengthScorer):
        def score(self, samples):
            if any(len(sample.caption) == 5 for sample in samples):
                raise MemoryError("no room")
            return super().score(samples)

    scores = Batches(Greedy()).score(samples)
    assert [i for i, value in enumerate(scores["length"]) if value is None] == [4]
    assert scores["length_error"][4] == "MemoryError: no room"


def test_an_error_of_the_users_ends_the_run(samples):
    class Misplaced(LengthScorer):
        def score(self, samples):
            raise ShardError("no weights there")

    with pytest.raises(ShardError, match="no weights there"):
        Batches(Misplaced()).score(samples)


def test_a_scorer_that_fails_on_all_is_told_from_bad_samples(tmp_path):
    captions = ["boom"] * (MOST_FAILURES - 1) + ["fair"] + ["boom"] * MOST_FAILURES
    samples = samples_of(tmp_path / "00000.tar", captions=captions)
    batches = Batches(LengthScorer())
    scores = batches.score(samples[:MOST_FAILURES])
    assert sum(value is None for value in scores["length"]) == MOST_FAILURES - 1
    with pytest.raises(RuntimeError, match=r"failed on 100 .*tiny/00000/00199: KeyError: 'boom'"):
        batches.score(samples[MOST_FAILURES:])


@pytest.mark.parametrize(
    "given", [{}, {"length": [1.0]}, {"length": [1.0] * 13, "width": [1] * 13}], ids=str
)
def test_a_scorer_that_breaks_its_promise_is_a_fault_of_the_program(samples, given):
    class Careless(LengthScorer):
        def score(self, samples):
            return given

    with pytest.raises(ValueError, match=r"length gave .* for 13 samples of"):
        Batches(Careless()).score(samples)


def test_what_a_scorer_says_itself_is_kept_and_its_lists_are_left_alone(samples):
    given = {"length": [float("inf")] * 13, "length_error": [None] * 12 + ["too odd"]}

    class Candid(LengthScorer):
        def score(self, samples):
            return given

    scores = Batches(Candid()).score(samples)
    assert scores["length"] == [None] * 13
    assert scores["length_error"] == ["length is inf"] * 12 + ["too odd"]
    assert given["length"] == [float("inf")] * 13


def test_texts_and_whole_numbers_pass_unchanged(samples):
    class Reader(LengthScorer):
        @property
        def columns(self):
            return {"word": pa.string(), "count": pa.int32()}

        def score(self, samples):
            return {"word": ["nan"] * len(samples), "count": [3] * len(samples)}

    assert Batches(Reader()).score(samples)["word"] == ["nan"] * 13


def test_lack_of_memory_is_known_by_kind_and_by_words():
    torch = pytest.importorskip("torch")
    assert is_out_of_memory(torch.OutOfMemoryError("whatever"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(ValueError("out of memory"))
