import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.runs import PackedCorpora, assert_one_message, train
from torch.utils.data import SequentialSampler

from openqwen2vl.data_modules.packed import PackedDataModule
from openqwen2vl.formats.decoders import PictureDecoder
from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.training.checkpoint import newest, read_facts
from openqwen2vl.training.loading import auto_workers, check_loading, rank_cores


def manifest(tokens_per_image=172, image_bytes=59_000, images=1000, written=True):
    counts = SimpleNamespace(images=images, tokens=images * tokens_per_image or 1000)
    shards = [SimpleNamespace(bytes=image_bytes * images)] if written else []
    return SimpleNamespace(counts=counts, shards=shards)


@pytest.mark.parametrize(("cores", "workers"), [(1, 0), (2, 1), (16, 1)])
def test_a_cpu_gets_one_process_where_there_is_a_core_for_it(cores, workers):
    assert auto_workers([manifest()], cores, gpu=False) == workers


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (2, 1), (3, 2), (16, 2)])
def test_a_gpu_gets_two_for_small_pictures_within_its_cores(cores, workers):
    assert auto_workers([manifest()], cores, gpu=True) == workers


def test_heavier_pictures_get_more_processes_and_the_heaviest_source_decides():
    heavy = manifest(image_bytes=600_000)
    alone = auto_workers([heavy], 64, gpu=True)
    assert alone == auto_workers([manifest(), heavy], 64, gpu=True) > 4
    assert auto_workers([heavy], 4, gpu=True) == 3
    # More visual tokens an image, fewer images for as many tokens.
    assert auto_workers([manifest(760, 600_000)], 64, gpu=True) < alone


def test_text_alone_and_packs_that_are_not_written_have_an_answer():
    assert auto_workers([manifest(images=0, written=False)], 16, gpu=True) == 2
    unwritten = auto_workers([manifest(20, written=False)], 64, gpu=True)
    assert unwritten == auto_workers([manifest(20, 60_000)], 64, gpu=True) > 2


def test_ranks_of_a_machine_share_its_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    assert rank_cores(1, {}) == 16
    assert rank_cores(4, {"LOCAL_WORLD_SIZE": "4"}) == 4
    assert rank_cores(32, {}) == 1
    # srun has given this task its own; torchrun within a job shares them.
    assert rank_cores(4, {"SLURM_CPUS_PER_TASK": "12"}) == 12
    assert rank_cores(4, {"SLURM_CPUS_PER_TASK": "16", "LOCAL_WORLD_SIZE": "4"}) == 4


@pytest.mark.parametrize(
    "settings",
    [
        (-1, 2, 1, False),
        ("many", 2, 1, False),
        ("auto", 0, 1, "auto"),
        (2, 2, 0, True),
        (2, 2, 1, "yes"),
    ],
)
def test_settings_that_no_loader_could_have_are_refused(settings):
    with pytest.raises(ConfigError, match="expected auto or at least 0"):
        check_loading(*settings)
    check_loading("auto", 1, 1, "auto")
    check_loading(0, 1, 1, False)


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True)])
def test_auto_pins_and_helps_by_the_ranks_device(
    corpora: PackedCorpora, monkeypatch: pytest.MonkeyPatch, device: str, pinned: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr("openqwen2vl.data_modules.packed.DataLoader", lambda rows, **how: how)
    made = PackedDataModule(
        mixture={"sources": {"red": {"packs": str(corpora.packs("red", 3))}}},
        resolution={"plan": [{"grid": 3, "until": 1.0}]},
        budget={"steps": 2},
        image_side=28,
        global_batch=2,
        num_workers="auto",
        pin_memory="auto",
    )
    strategy = SimpleNamespace(root_device=torch.device(device))
    made.trainer = SimpleNamespace(
        global_rank=0, world_size=1, global_step=0, num_devices=1, strategy=strategy
    )
    how = made._loader(made.mixture, SequentialSampler([]))
    assert how["pin_memory"] is pinned
    manifests = [folder.manifest for folder in made.mixture.folders[3]]
    assert how["num_workers"] == auto_workers(manifests, 8, pinned) > (1 if pinned else 0)
    assert how["prefetch_factor"] == 2


@pytest.mark.slow
def test_a_run_records_how_it_decodes_and_is_resumed_with_no_other_pixels(
    corpora: PackedCorpora, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = {"budget__steps": 2, "data__num_workers": "auto", "data__decoder": "pillow"}
    done = train(corpora, run, **settings)
    assert done.returncode == 0, done.stderr
    assert "JPEGs by pillow, in full" in done.stdout
    facts = PictureDecoder("pillow").facts()
    assert read_facts(newest(run))["pictures"] == facts
    assert json.loads((run / "run.json").read_text())["pictures"] == facts
    told = train(corpora, run, **settings, resume="last", data__draft="true")
    assert_one_message(
        (told.returncode, told.stdout, told.stderr), "now it is data.draft=True", "init_from="
    )


def test_a_resumed_module_decodes_as_the_run_began(corpora: PackedCorpora) -> None:
    settings = {
        "mixture": {"sources": {"red": {"packs": str(corpora.packs("red", 3))}}},
        "resolution": {"plan": [{"grid": 3, "until": 1.0}]},
        "budget": {"steps": 2},
        "global_batch": 2,
    }
    fast, pillow = PictureDecoder("simplejpeg"), PictureDecoder("pillow")
    made = PackedDataModule(**settings)
    made.pictures = made.decode = pillow  # as where simplejpeg was not installed
    made.keep_pictures(pillow.facts())
    assert made.pictures == made.decode == pillow
    made.decode = stand_in = lambda data, side: None  # a dry run's stays
    made.keep_pictures(None)
    assert (made.pictures, made.decode) == (pillow, stand_in)
    named = PackedDataModule(**settings, decoder="pillow")
    named.keep_pictures(fast.facts())
    assert named.decode == pillow
