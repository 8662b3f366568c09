"""What every test shares."""

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> "PackedCorpora":  # noqa: F821
    """Small packed corpora for training runs."""
    from support.runs import build_corpora

    root: Path = tmp_path_factory.mktemp("corpora")
    return build_corpora(root)
