"""What every test shares."""

import os

# Before anything imports the libraries that read it.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from support.runs import PackedCorpora, build_corpora

# Small tensors gain nothing from threads, and several tests run processes beside this one.
torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave tests for a GPU out where there is none: they could only be skipped."""
    if torch.cuda.is_available():
        return
    without_gpu = [item for item in items if item.get_closest_marker("gpu") is None]
    config.hook.pytest_deselected(items=[item for item in items if item not in without_gpu])
    items[:] = without_gpu


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> PackedCorpora:
    """Small packed corpora for training runs; tests only read them."""
    return build_corpora(tmp_path_factory.mktemp("corpora"))
