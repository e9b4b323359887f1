"""Q20-R1 in small: splits are exact, and a wrong one is seen."""

import pytest
import torch

from companion import PiecewiseConstant
from companion.experiments import run
from companion.experiments.depth_study import initial_states, random_block, solve_block
from companion.experiments.refinement import q20_r1_exact_splits as q20_r1

CPU = torch.device("cpu")


def test_r1_is_exact_in_weights_and_of_the_scheme_in_steps():
    result = run("Q20-R1", seeds=1, split_steps=(3,), steps=(32, 64))
    assert result.misses == ()
    block, x = random_block(PiecewiseConstant(4), 0, CPU), initial_states(0, CPU)
    change = solve_block(block, x, "heun", 128) - solve_block(block, x, "heun", 64)
    assert result["doubled_heun"][0, 1] == pytest.approx(change.norm(dim=1).max().item(), rel=1e-9)


def test_r1_sees_a_split_that_puts_the_halves_elsewhere(monkeypatch):
    block, x = q20_r1._conv_block(PiecewiseConstant(4), 0, torch.float32, CPU)
    monkeypatch.setattr(PiecewiseConstant, "refine", lambda self, c: torch.cat([c, c]))
    assert q20_r1._largest_change(block, x, (3,)) > 1e-3
