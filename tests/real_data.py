"""Real data sets for tests that need them, or the reason why they are skipped."""

import os
from pathlib import Path

import pytest

from companion.data.official import VARIABLE


def real(*folders: str) -> Path:
    """Return the data folder if it holds one of ``folders``; skip the test otherwise."""
    root = os.environ.get(VARIABLE)
    if not root:
        pytest.skip(f"needs {folders[0]}: set {VARIABLE} to a folder that holds it")
    if not any((Path(root) / folder).is_dir() for folder in folders):
        pytest.skip(f"needs {folders[0]}, which {VARIABLE}={root} does not hold")
    return Path(root)
