"""Chromium of the system, for tests that look at pages as a person would."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def browser_of_the_system() -> Iterator[Any]:
    """Chromium of the system; where there is none the test is skipped, or fails where CI asks for it."""
    needed = os.environ.get("LLM_RERANK_NEEDS_BROWSER") == "1"
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    if CHROMIUM is None or sync_playwright is None:
        what = "no chromium on PATH (apt-get install chromium)" if CHROMIUM is None else "playwright is not installed"
        (pytest.fail if needed else pytest.skip)(f"no page can be looked at: {what}")
    with sync_playwright() as play:
        # root may not use Chromium's sandbox; containers have a small /dev/shm
        started = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield started
        started.close()
