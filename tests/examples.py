"""How property tests draw their examples. Without hypothesis, those test files are skipped."""

import pytest

pytest.importorskip("hypothesis")  # before their own import: a GPU machine may not have it

from hypothesis import settings

REPEATABLE = settings(deadline=None, derandomize=True, max_examples=25)
"""The same examples on every run, and no clock."""
