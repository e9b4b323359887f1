"""Q20-X6: cells by hand, and the block of the package as the reference."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from companion import OdeBlock
from companion.experiments import run
from companion.experiments.many_graphs import q20_x6_float_places as q20_x6
from companion.experiments.recipes import normal

HALF, ONE = Fraction(1, 2), Fraction(1)


def read(rule, steps, cells):
    """The cells of the stages at the start, in the middle and at the end of every step."""
    place = q20_x6.RULES[rule]
    return [[place(n, c, steps, cells) for c in (Fraction(0), HALF, ONE)] for n in range(steps)]


def test_a_nudge_is_lost_in_single_precision():
    """The least distance of numbers below 1 is 6e-8, and in double precision 1e-16."""
    assert read("single", 4, 4) == [[0, 0, 1], [1, 1, 2], [2, 2, 3], [3, 3, 3]]
    assert read("double", 4, 4) == read("fractions", 4, 4) == [[k, k, k] for k in range(4)]


def test_two_thirds_of_single_precision_lie_below_the_knot():
    assert read("single", 3, 3) == [[0, 0, 1], [1, 1, 1], [1, 2, 2]]
    assert read("fractions", 3, 3) == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]
    assert q20_x6.never_read(3, q20_x6.RULES["single"]) == {2}
    for rule, place in q20_x6.RULES.items():
        assert q20_x6.never_read(8, place) == set(), rule


def test_places_in_fractions_are_those_of_the_block():
    draw = normal(7)
    weights, x = draw(4, 4, 4), draw(8, 4)
    layers = [nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh()).double() for _ in range(4)]
    for layer, weight in zip(layers, weights, strict=True):
        layer[0].weight.data = weight
    block = OdeBlock.from_modules(layers, method="rk4", steps=8)
    mine = q20_x6.solve(weights, x, 8, q20_x6.RULES["fractions"])
    torch.testing.assert_close(mine, block(x), rtol=1e-12, atol=1e-12)
    other = q20_x6.solve(weights, x, 8, q20_x6.RULES["single"])
    assert (other - mine).norm() > 1e-2 * mine.norm()


def test_x6_small():
    result = run("Q20-X6", seed=2, seeds=1, steps=(16, 32), most=8)
    assert result.misses == ()
    assert result["unread_single"].tolist() == [0, 0, 1, 0, 0, 1, 1, 0]
    assert result["unread_fractions"].tolist() == [0] * 8
    assert result["skipping_single"] == pytest.approx(3 / 8)
    single, double = (np.log2(result[f"error_{r}"][0]) for r in ("single", "double"))
    assert single[0] - single[1] == pytest.approx(1, abs=0.1)
    assert double[0] - double[1] == pytest.approx(4, abs=0.2)
