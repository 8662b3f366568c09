import logging

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.samples import LengthScorer, samples_of

from openqwen2vl.curation.batches import Batches, is_out_of_memory
from openqwen2vl.formats.errors import ImageError, ShardError, UserError
from openqwen2vl.formats.rejects import Unusable


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
    words=st.lists(st.sampled_from(["a", "bb", "cut", "odd", "nan"]), min_size=1, max_size=12),
    most=st.integers(1, 12),
)
def test_a_fault_of_a_sample_costs_that_sample_alone(tmp_path_factory, words, most):
    faults = {"cut": ImageError("is cut off"), "odd": Unusable("bad_text", "no text")}

    class Choosy(LengthScorer):
        def score(self, samples):
            found = super().score(samples)
            for sample in samples:
                if sample.caption in faults:
                    raise faults[sample.caption]
            return found

    samples = samples_of(tmp_path_factory.mktemp("s") / "00000.tar", captions=words)
    scores = Batches(Choosy(most=most)).score(samples)
    fair = {"a": 1.0, "bb": 2.0}
    assert scores["length"] == [fair.get(word) for word in words]
    said = {"cut": "ImageError: is cut off", "odd": "Unusable: no text", "nan": "length is nan"}
    assert scores["length_error"] == [said.get(word) for word in words]


class Failing(LengthScorer):
    """Raises for captions of five letters, so many times; notes how many samples it was given."""

    def __init__(self, error, times):
        super().__init__()
        self.error, self.times, self.calls = error, times, []

    def score(self, samples):
        self.calls.append(len(samples))
        if self.times and any(len(sample.caption) == 5 for sample in samples):
            self.times -= 1
            raise self.error
        return super().score(samples)


def test_an_error_that_is_no_samples_fault_is_never_a_score(samples):
    scorer = Failing(RuntimeError("CUDA error: device-side assert"), times=100)
    with pytest.raises(RuntimeError, match=r"length failed twice on .*00004 of .*tiny/00000") as it:
        Batches(scorer).score(samples)
    assert "RuntimeError: CUDA error: device-side assert" in str(it.value)
    assert it.value.__cause__ is scorer.error
    assert scorer.calls == [13, *[1] * 6]


@pytest.mark.parametrize("times", [1, 2])
def test_an_error_that_does_not_come_back_costs_nothing(samples, times, caplog):
    scorer = Failing(OSError("a stutter"), times)
    scores = Batches(scorer).score(samples)
    assert scores["length"] == [float(i + 1) for i in range(13)]
    assert scores["length_error"] == [None] * 13
    assert "length failed on 13 samples at once (OSError: a stutter)" in caplog.text


def test_a_single_sample_that_memory_does_not_hold_is_the_users_to_mend(samples):
    scorer = Failing(MemoryError("no room"), times=100)
    with pytest.raises(UserError, match=r"length ran out of memory on one sample, 00004 of .*take"):
        Batches(scorer).score(samples)
    assert scorer.calls == [13, 6, 3, 3, 1, 1, 1]
    fits = Failing(MemoryError("no room"), times=4)
    assert Batches(fits).score(samples)["length"] == [float(i + 1) for i in range(13)]


def test_an_error_of_the_users_ends_the_run(samples):
    class Misplaced(LengthScorer):
        def score(self, samples):
            raise ShardError("no weights there")

    with pytest.raises(ShardError, match="no weights there"):
        Batches(Misplaced()).score(samples)


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
    with pytest.raises(RuntimeError) as refused:
        torch.empty(10**14)  # more than any machine's
    assert is_out_of_memory(refused.value)
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(ValueError("out of memory"))
