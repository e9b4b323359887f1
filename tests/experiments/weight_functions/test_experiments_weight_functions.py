"""The experiments on weights as functions of depth, in small, against values of another origin."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from companion import PiecewiseConstant
from companion.experiments import run
from companion.experiments.depth_study import (
    initial_states,
    random_block,
    solve_block,
    solve_naively,
)
from companion.schemes import SCHEMES

CPU = torch.device("cpu")


def assert_all_hold(result):
    for claim in result.findings.claims:
        assert claim.holds, (claim.text, claim.observed)


# Q20-X1


def test_the_reference_is_the_solution_of_the_equation():
    """Cell by cell with another package."""
    block, x = random_block(PiecewiseConstant(4), 0, CPU), initial_states(0, CPU)
    weight, bias = (p.detach().numpy() for p in block.weights.parameters())
    state = x.numpy()
    for k in range(4):

        def field(t, y, k=k):
            return np.tanh(y.reshape(8, 4) @ weight[k].T + bias[k]).ravel()

        solved = solve_ivp(field, (0, 0.25), state.ravel(), "DOP853", rtol=1e-12, atol=1e-12)
        state = solved.y[:, -1].reshape(8, 4)
    got = solve_block(block, x, "rk4", 512).numpy()
    np.testing.assert_allclose(got, state, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", SCHEMES)
def test_naive_stages_read_the_cell_that_begins_at_a_knot(name):
    """The scheme written with fractions: stage (n + c)/N reads cell floor(M (n + c)/N)."""
    scheme, steps = SCHEMES[name], 4
    block, x = random_block(PiecewiseConstant(2), 0, CPU), initial_states(0, CPU)
    weight, bias = block.weights.parameters()
    y = x
    for n in range(steps):
        slopes = []
        for c, row in zip(scheme.c, scheme.a, strict=True):
            cell = min(int(2 * (n + c) / steps), 1)
            inner = y + sum((float(a) / steps * k for a, k in zip(row, slopes, strict=True)), 0)
            slopes.append(torch.tanh(inner @ weight[cell].T + bias[cell]))
        y = y + sum(float(b) / steps * k for b, k in zip(scheme.b, slopes, strict=True))
    torch.testing.assert_close(solve_naively(block, x, name, steps), y, rtol=0, atol=1e-13)


def test_x1_tells_the_orders_apart():
    result = run("Q20-X1", fields=1, steps=(32, 64), finest=512)
    assert_all_hold(result)
    assert len(result.findings.claims) == 5 * 3
    assert result["naive_aligned_rk4"].shape == (1, 2)
    lost = result["naive_aligned_rk4"][:, -1] / result["one_sided_aligned_rk4"][:, -1]
    assert (lost > 1e4).all()


# FW1


def test_fw1_finds_the_orders_and_half_the_parameters():
    result = run("FW1", fields=1, steps=(61, 121), finest=600, seeds=1, epochs=1, graphs=(4, 8))
    *orders, gap, share = result.findings.claims
    assert len(orders) == 5 * 5
    for claim in orders:
        expected = (claim.low + claim.high) / 2
        assert claim.observed == pytest.approx(expected, abs=0.2), claim.text
    assert share.observed == 0.5
    assert result["error_chebyshev"].shape == (1, 4, 2)
    assert gap.observed == result["mean_trained_chebyshev"] - result["mean_trained_constant"]


@pytest.mark.parametrize("knot", [Fraction(1, 4), Fraction(1, 2), Fraction(3, 4)])
def test_the_three_eighths_rule_integrates_kinks_at_quarters(knot):
    """So 4 cells on a grid of 4 m + 1 steps would show another order than the rest."""

    def error(name, knot):
        scheme = SCHEMES[name]
        found = sum(b * max(c - knot, 0) for b, c in zip(scheme.b, scheme.c, strict=True))
        return found - (1 - knot) ** 2 / 2

    assert error("rk4_38", knot) == 0
    assert all(error(name, Fraction(k, 5)) for name in SCHEMES for k in range(1, 5))
