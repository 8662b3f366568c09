"""Memory that runs out, and threads: neither changes a CLIP score, and no picture is to blame."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.clips import clip_folder
from support.samples import samples_of
from support.shards import caption, picture

from openqwen2vl.curation.batches import Batches
from openqwen2vl.curation.samples import Sample
from openqwen2vl.curation.scorers.clip import ClipScorer
from openqwen2vl.curation.scorers.image import ImageScorer
from openqwen2vl.formats.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_folder(tmp_path_factory.mktemp("clip") / "tiny")


def drawn(path: Path, count: int, broken: int | None = None) -> list[Sample]:
    rng = random.Random(0)
    images = [picture(rng) if n != broken else b"no picture" for n in range(count)]
    return samples_of(path, images, [caption(rng) for _ in range(count)])


class Full:
    """An image tower whose memory holds so many pictures, and the numbers that it was given."""

    def __init__(self, encode: Callable[[torch.Tensor], torch.Tensor], most: int) -> None:
        self.encode, self.most, self.given = encode, most, list[int]()

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        self.given.append(len(pixels))
        if len(pixels) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.encode(pixels)


def test_memory_that_runs_out_halves_what_the_model_sees_and_says_so_once(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    scorer = ClipScorer(str(folder), batch_size=4)
    samples = drawn(tmp_path / "0.tar", 11, broken=1)
    wanted = scorer.score(samples)["clip_similarity"]
    network = scorer._clip().network
    full = Full(network.encode_image, most=2)
    monkeypatch.setattr(network, "encode_image", full)
    batches = Batches(scorer)
    assert batches.score(samples)["clip_similarity"] == pytest.approx(wanted, abs=1e-5)
    # Three pictures of four, which are one too many; then pairs, and what is left of one.
    assert full.given[:2] == [3, 1]
    full.given.clear()
    assert batches.score(samples)["clip_similarity"] == pytest.approx(wanted, abs=1e-5)
    assert max(full.given) == 1
    assert batches.halved_to is None
    said = [record.getMessage() for record in caplog.records]
    assert said == ["clip ran out of memory on 3 pairs at once; going on with 1"]


def test_memory_that_holds_no_pair_is_told_at_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = ClipScorer(str(folder), batch_size=4)
    network = scorer._clip().network
    full = Full(network.encode_image, most=0)
    monkeypatch.setattr(network, "encode_image", full)
    with pytest.raises(UserError, match=r"clip ran out of memory on one pair.*smaller model"):
        Batches(scorer).score(drawn(tmp_path / "0.tar", 9))
    assert full.given == [4, 2, 1]


def test_a_picture_that_the_machine_has_no_memory_for_is_not_called_broken(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    samples = drawn(tmp_path / "0.tar", 2)
    monkeypatch.setattr(Image, "open", no_memory)
    for scorer in (ClipScorer(str(folder)), ImageScorer()):
        with pytest.raises(MemoryError):
            scorer.score(samples)
        with pytest.raises(UserError, match="ran out of memory on one sample"):
            Batches(scorer).score(samples)


def test_threads_do_not_change_a_bit(folder: Path, tmp_path: Path) -> None:
    samples = drawn(tmp_path / "0.tar", 9)
    before, scores = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            scores.append(ClipScorer(str(folder), device="cpu").score(samples))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert scores[0] == scores[1] == scores[2]
