"""Model folders to convert back, without the process that opens each with transformers."""

from pathlib import Path
from typing import Any

import pytest

from openqwen2vl.release import export as exporting
from support.exports import request


def export_unchecked(monkeypatch: pytest.MonkeyPatch, path: Path, out: Path, **more: Any) -> Path:
    """Export a checkpoint; that transformers opens the folder is what export's own tests say."""
    monkeypatch.setattr(exporting, "reload", lambda *_, **__: {})
    monkeypatch.setattr(exporting, "judge", lambda *_, **__: None)
    exporting.export(request(path, **more), out)
    return out
