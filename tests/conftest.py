"""What every test file shares: one thread, a device to run on, and the tools on the path."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))


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
