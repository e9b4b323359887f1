"""Pairs of least cost against brute force, and against sorting on the line."""

from itertools import permutations

import pytest
import torch
from fields import randn

from companion.data.couplings import optimal_pairs


def cost(x0, x1):
    return float((x0 - x1).square().sum())


def test_no_permutation_costs_less():
    x0, x1 = randn(6, 3, device="cpu"), randn(6, 3, device="cpu", seed=2)
    least = min(cost(x0, x1[list(p)]) for p in permutations(range(6)))
    assert cost(x0, x1[optimal_pairs(x0, x1)]) == pytest.approx(least, abs=1e-12)


def test_on_the_line_the_smallest_goes_with_the_smallest():
    """Strictly convex costs: absolute values, whose best pairs are not unique, would not do."""
    x0, x1 = randn(200, 1, device="cpu"), randn(200, 1, device="cpu", seed=2)
    order = optimal_pairs(x0, x1, block=200)
    assert torch.equal(x1[order][x0.argsort(0).squeeze()], x1.sort(0).values)


def test_blocks_are_matched_within_themselves():
    """The second block is smaller."""
    x0, x1 = randn(10, 2, device="cpu"), randn(10, 2, device="cpu", seed=2)
    order = optimal_pairs(x0, x1, block=6)
    assert torch.equal(order.sort().values, torch.arange(10))
    assert set(order[:6].tolist()) == set(range(6))
    assert torch.equal(order[:6], optimal_pairs(x0[:6], x1[:6]))
    assert torch.equal(order[6:], 6 + optimal_pairs(x0[6:], x1[6:]))
    assert torch.equal(optimal_pairs(x0, x1, block=1), torch.arange(10))


def test_larger_blocks_cost_less_than_chance():
    x0, x1 = randn(128, 2, device="cpu"), randn(128, 2, device="cpu", seed=2)
    costs = [cost(x0, x1[optimal_pairs(x0, x1, block=b)]) for b in (1, 2, 4, 16, 64, 128)]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] == cost(x0, x1)
    assert costs[-1] < costs[0] / 5


def test_images_are_vectors():
    x0, x1 = randn(5, 1, 2, 2, device="cpu"), randn(5, 1, 2, 2, device="cpu", seed=2)
    assert torch.equal(optimal_pairs(x0, x1), optimal_pairs(x0.flatten(1), x1.flatten(1)))


def test_bad_arguments_are_named():
    x = torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"x1: shape \(3, 2\) "):
        optimal_pairs(x, x[:3])
    with pytest.raises(ValueError, match=r"x0: shape \(0, 2\) "):
        optimal_pairs(x[:0], x[:0])
    with pytest.raises(ValueError, match="block: 0 "):
        optimal_pairs(x, x, block=0)
    with pytest.raises(ValueError, match="not finite"):
        optimal_pairs(x, x / 0)
    with pytest.raises(TypeError, match="x0: "):
        optimal_pairs([0.0], x)
