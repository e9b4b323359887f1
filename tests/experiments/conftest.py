"""What the tests of training by several rules share."""

import numpy as np
import pytest

from companion.experiments import Grid
from companion.experiments.gradient_rules import Study


@pytest.fixture
def make_study():
    """Return what makes a study of two seeds from a list of pairs for each rule."""

    def make(depths, **errors):
        table = np.zeros((len(errors), len(depths), 2, 2))
        table[..., 0] = list(errors.values())
        axes = {"rule": tuple(errors), "depth": depths, "seed": (0, 1)}
        return Study(Grid(axes, table[..., 0]), Grid(axes, table[..., 1]))

    return make
