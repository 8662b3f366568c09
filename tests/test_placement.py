"""One process a GPU while GPUs are wanted, each seeing its own; else as many as there are cores."""

import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.samples import LengthScorer

from openqwen2vl.commands import _curate_workers
from openqwen2vl.curation.scorer import device_of
from openqwen2vl.curation.scorers.clip import ClipScorer
from openqwen2vl.curation.scorers.mlm_filter import MlmFilterScorer
from openqwen2vl.engine.chosen import open_engine
from openqwen2vl.engine.local import map_shards
from openqwen2vl.engine.placement import VISIBLE, gpus_to_share, place_workers, visible_gpus

NAMES = st.lists(st.sampled_from(["0", "1", "2", "7", "GPU-ab", "MIG-cd"]), unique=True)


@pytest.mark.parametrize(
    ("asked", "gpus", "expected"),
    [
        (None, (), (None, None, None)),
        (5, (), (None,) * 5),
        (None, ("0",), ("0",)),
        (None, ("0", "3"), ("0", "3")),
        (3, ("0", "3"), ("0", "3", "0")),
        (1, ("0", "3"), ("0",)),
        (None, (None,), (None,)),
        (2, (None,), (None, None)),
    ],
)
def test_workers_and_their_gpus(
    asked: int | None, gpus: tuple[str | None, ...], expected: tuple[str | None, ...]
) -> None:
    assert place_workers(asked, 3, gpus) == expected


@given(st.none() | st.integers(1, 20), st.integers(1, 64), NAMES)
def test_gpus_are_shared_evenly(asked: int | None, cores: int, gpus: list[str]) -> None:
    places = place_workers(asked, cores, gpus)
    assert len(places) == (asked or len(gpus) or cores)
    if gpus:
        counts = [places.count(gpu) for gpu in gpus]
        assert sum(counts) == len(places)
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    ("devices", "visible", "expected"),
    [
        (["cpu", "cpu"], ["0", "1"], ()),
        ([], ["0"], ()),
        (["cpu", "cuda"], ["0", "1"], ("0", "1")),
        (["cuda"], [], ()),
        (["cuda:1", "cpu"], ["0", "1"], (None,)),
        (["cuda:1", "cuda"], ["0", "1"], (None,)),
    ],
)
def test_what_there_is_to_share(
    devices: list[str], visible: list[str], expected: tuple[str | None, ...]
) -> None:
    assert gpus_to_share(devices, visible) == expected


@pytest.mark.parametrize(
    ("count", "named", "expected"),
    [
        (2, None, ("0", "1")),
        (0, None, ()),
        (2, "3,5", ("3", "5")),
        (1, "GPU-ab", ("GPU-ab",)),
        (1, "3, 99", ("3",)),  # CUDA stops at the first that is not there
        (0, "", ()),
    ],
)
def test_gpus_keep_the_names_that_the_environment_gives(
    count: int, named: str | None, expected: tuple[str, ...]
) -> None:
    assert visible_gpus(count, {} if named is None else {VISIBLE: named}) == expected


def seen_gpu(_: int) -> str | None:
    time.sleep(0.2)
    return os.environ.get(VISIBLE)


def test_each_process_sees_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VISIBLE, raising=False)
    assert set(map_shards(seen_gpu, range(8), 2, gpus=("7", "GPU-ab"))) == {"7", "GPU-ab"}
    assert VISIBLE not in os.environ
    with open_engine("local", 2) as engine:
        assert set(engine(seen_gpu, range(4))) == {None}
        assert set(engine(seen_gpu, range(4), gpus=("5",))) == {"5"}


class OnGpu(LengthScorer):
    device = "cuda"


def test_a_scorer_says_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.setattr(_curate_workers.torch.cuda, "device_count", lambda: 3)
    assert [device_of(scorer) for scorer in (LengthScorer(), OnGpu())] == ["cpu", "cuda"]
    clip = ClipScorer(model="ViT-B-32", pretrained="openai", device="cuda:1")
    assert device_of(clip) == "cuda:1"
    assert device_of(MlmFilterScorer(clip)) == "cuda:1"  # whoever the judge is
    assert _curate_workers.shared_gpus([LengthScorer()]) == ()
    assert _curate_workers.shared_gpus([LengthScorer(), OnGpu()]) == ("0", "1", "2")
    monkeypatch.setenv(VISIBLE, "4,6,7")
    assert _curate_workers.shared_gpus([OnGpu()]) == ("4", "6", "7")
