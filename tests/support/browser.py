"""A real browser for pages, where this machine has one."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def open_browser() -> Iterator[Any]:
    """Start a headless Chromium; without one the test is skipped, unless one was promised."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        names = ("chromium", "chromium-browser", "google-chrome")
        own = playwright.chromium.executable_path
        found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), own)
        if not Path(found).exists():
            # Where a browser was promised, as in CI, its absence is a failure.
            assert "CHROMIUM" not in os.environ, f"CHROMIUM is {found}, which is not there"
            pytest.skip("no Chromium: install one, or name it in the environment as CHROMIUM")
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()
