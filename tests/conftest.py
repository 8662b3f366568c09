"""What every test shares."""

import gc
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Before anything imports the libraries that read it.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hypothesis import settings
from support.runs import PackedCorpora, Run, build_corpora, command
from support.shards import tiny_tokenizer
from transformers import PreTrainedTokenizerFast

from openqwen2vl.__main__ import main
from openqwen2vl.formats.tokens import load_tokenizer

# Small tensors gain nothing from threads, and several tests run processes beside this one.
torch.set_num_threads(1)

# The same examples in every run: a red one is red for whoever runs it next. `--hypothesis-profile
# default` draws new ones.
settings.register_profile("fixed", derandomize=True)
settings.load_profile("fixed")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with files of slow tests, and leave those for a GPU out where there is none."""
    if hasattr(config, "workerinput"):
        # Files are dealt out in this order: a long one begun last would leave the others waiting.
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)
    if torch.cuda.is_available():
        return
    # They could only be skipped.
    without_gpu = [item for item in items if item.get_closest_marker("gpu") is None]
    config.hook.pytest_deselected(items=[item for item in items if item not in without_gpu])
    items[:] = without_gpu


def pytest_collection_finish() -> None:
    """Spare the imported libraries from every later garbage collection, which some code forces."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let them go at the end, where some libraries count what is left."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> PackedCorpora:
    """Small packed corpora for training runs; tests only read them."""
    return build_corpora(tmp_path_factory.mktemp("corpora"))


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny tokenizer; tests only read it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> PreTrainedTokenizerFast:
    """A tiny tokenizer, loaded as commands load one."""
    return load_tokenizer(str(tokenizer_folder))


@pytest.fixture
def _tidy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Call commands in this process as if each had one of its own."""
    monkeypatch.setattr(sys, "argv", ["openqwen2vl"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:], logging.root.level = handlers, level
    GlobalHydra.instance().clear()


@pytest.fixture
def call(_tidy: None, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call `openqwen2vl` and give its exit code, stdout and stderr."""

    def called(*words: str) -> tuple[int, str, str]:
        code = main(list(words))
        told = capsys.readouterr()
        return code, told.out, told.err

    return called


@pytest.fixture
def call_train(call: Run, corpora: PackedCorpora, tmp_path: Path) -> Run:
    """Call a training run of two small steps, changed by some overrides."""

    def called(*changes: str) -> tuple[int, str, str]:
        settings = {
            "budget.steps": 2,
            "data.global_batch": 2,
            "strategy.device": "cpu",
            "resolution": "tiny",
            "callbacks.checkpoints.every_n_steps": 1000,
        }
        words = command(corpora, tmp_path / "run", settings)
        return call(*words[words.index("train") :], *changes)

    return called
