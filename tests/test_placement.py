"""One process a GPU while GPUs are wanted, each seeing its own; else as many as there are cores."""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.samples import LengthScorer, samples_of

from openqwen2vl.commands import _curate_workers
from openqwen2vl.curation.score import score_source
from openqwen2vl.curation.scorer import device_of
from openqwen2vl.curation.scorers.clip import ClipScorer
from openqwen2vl.curation.scorers.mlm_filter import MlmFilterScorer
from openqwen2vl.engine.chosen import open_engine
from openqwen2vl.engine.local import map_shards
from openqwen2vl.engine.placement import VISIBLE, gpus_to_share, place_workers, visible_gpus
from openqwen2vl.engine.threads import keep_to_one_thread
from openqwen2vl.formats.errors import ConfigError

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


def test_scorers_on_a_gpu_come_first_and_take_no_others_with_them(tmp_path: Path) -> None:
    samples_of(tmp_path / "0.tar", captions=["a cat", "a dog"])
    calls: list[list[tuple[bool, list[str]]]] = []

    def mapper(function: Any, jobs: Sequence[Any]) -> Iterator[Any]:
        calls.append([(job.on_gpu, [task.scorer.name for task in job.tasks]) for job in jobs])
        return map(function, jobs)

    scorers = [LengthScorer(name="a"), OnGpu(name="b"), LengthScorer(name="c")]
    for _ in range(2):
        score_source([tmp_path / "0.tar"], "s", scorers, tmp_path / "out", mapper)
    assert calls == [[(True, ["b"])], [(False, ["a", "c"])]]
    assert len(list((tmp_path / "out").rglob("*.parquet"))) == 3


def test_a_shard_takes_one_of_rays_gpus_unless_a_share_is_asked_for() -> None:
    mixed = [LengthScorer(), OnGpu()]
    assert [_curate_workers.gpus_a_call(asked, mixed) for asked in (None, 0.25, 2.0)] == [
        1,
        0.25,
        2,
    ]
    assert _curate_workers.gpus_a_call(0.0, [LengthScorer()]) == 0
    with pytest.raises(ConfigError, match=r"num_gpus is 0\.5, but no scorer runs on a GPU"):
        _curate_workers.gpus_a_call(0.5, [LengthScorer()])


def test_workers_keep_what_is_loaded_to_one_thread_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("RAYON_NUM_THREADS", "2")
    torch.set_num_threads(2)
    keep_to_one_thread()
    assert torch.get_num_threads() == 1
    assert os.environ["OMP_NUM_THREADS"] == os.environ["RAYON_NUM_THREADS"] == "1"
