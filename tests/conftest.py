"""What test files share: one thread, a device to run on, a browser, and scripts on the path."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "book")]  # the latter: data of figures


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device of the numerical tests: cpu, cuda, …")


def pytest_configure() -> None:
    torch.set_num_threads(1)  # sums come out the same on any number of cores


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def dtype() -> torch.dtype:
    """Values are compared in double precision unless a test is about another."""
    return torch.float64


NAMES_OF_CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    """One browser for all files: Playwright starts once in a process."""
    path = next(filter(None, map(shutil.which, NAMES_OF_CHROMIUM)), None)
    if path is None:
        reason = f"no browser: none of {', '.join(NAMES_OF_CHROMIUM)} is on the path"
        if os.environ.get("CD_REQUIRE_BROWSER") == "1":
            pytest.fail(f"{reason}, and CD_REQUIRE_BROWSER=1 asks for one")
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright  # numerical tests run without it

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield running
        running.close()
