"""How steep a field is between trajectories, by loops; the least constants are in tests/theory."""

import math

import pytest
import torch
from fields import Tanh, randn

from companion.analysis.reversal import best_angle, best_spiral, least_lipschitz, pair_rates


def test_rates_and_norms_by_loops():
    field, ys, times = Tanh("cpu"), randn(3, 4, 3, device="cpu"), [0.0, 0.4, 1.0]
    rates, norms = pair_rates(field, times, ys, between=1)
    for k, t in enumerate(times):
        t = torch.tensor(t, dtype=torch.float64)
        y, speed = ys[k], field(t, ys[k]).detach()
        found = max(
            float((speed[i] - speed[j]).norm() / (y[i] - y[j]).norm())
            for i in range(4) for j in range(i)
        )  # fmt: skip
        assert rates[k].item() == pytest.approx(found, rel=1e-12)
        places = [y[0] * (1 - s) + y[j] * s for j in range(4) for s in (0, 0.5, 1)]
        dense = [torch.func.jacrev(lambda z, t=t: field(t, z))(p).detach() for p in places]
        steep = max(float(torch.linalg.svdvals(j)[0]) for j in dense)
        assert norms[k].item() == pytest.approx(steep, rel=1e-9)


def test_costs_rise_with_the_factor_from_a_quarter_turn_on():
    """Whoever shrinks the line to almost nothing still has to turn it past the vertical."""
    costs = [least_lipschitz(c) for c in (1e-9, 1e-3, 0.3, 1.0, 2.0, 8.0, 100.0)]
    assert costs == sorted(costs)
    assert costs[0] == pytest.approx(math.pi / 2, abs=1e-3)


@pytest.mark.parametrize("past", [1e-300, 1e-30, 1e-12, 1e-3, 0.4216, 1.0, 1.5, 1.566])
def test_the_least_constant_from_its_angle(past):
    """At the root the growth is -b tan b, so the angle gives the factor and the constant."""
    angle = math.pi / 2 + past
    factor = math.sin(past) * math.exp(angle * math.tan(past))
    assert least_lipschitz(factor) == pytest.approx(angle / math.cos(past), rel=1e-12)
    assert best_angle(factor) == pytest.approx(angle, rel=1e-14)


def test_a_spiral_for_a_tiny_factor():
    """Growth and turn in closed form; the exponential itself rounds at 1e-16."""
    for factor in (1e-12, 1e-15):
        matrix = best_spiral(factor)
        first = math.exp(matrix[0, 0]) * math.cos(matrix[1, 0])
        assert first == pytest.approx(-factor, rel=1e-12)
    end = torch.linalg.matrix_exp(best_spiral(1e-12))[0, 0].item()
    assert end == pytest.approx(-1e-12, abs=1e-15)
    with pytest.raises(ValueError, match="factor: 1e-16 is not allowed; it must be at least 1e-15"):
        best_spiral(1e-16)


def test_equal_states_tell_nothing():
    """Their difference is 0 over 0, and the other pairs still count."""
    ys = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]]], dtype=torch.float64)
    turn = torch.tensor([[0.0, -3.0], [3.0, 0.0]], dtype=torch.float64)
    rates, norms = pair_rates(lambda t, y: y @ turn.T, [0.0], ys)
    assert (rates.item(), norms.item()) == pytest.approx((3.0, 3.0))
    assert pair_rates(lambda t, y: y @ turn.T, [0.0], ys[:, :2])[0].item() == 0.0


def test_states_that_have_no_pairs_are_refused():
    ys = torch.ones(2, 3, 2)
    for wrong in (ys[:, :1], ys[0]):
        with pytest.raises(ValueError, match=r"ys: shape .* is not allowed; it must be \(times, "):
            pair_rates(lambda t, y: y, [0.0, 1.0], wrong)
    with pytest.raises(ValueError, match="times: 3 are not allowed; there are states at 2"):
        pair_rates(lambda t, y: y, [0.0, 0.5, 1.0], ys)
    with pytest.raises(ValueError, match="between: -1 is not allowed"):
        pair_rates(lambda t, y: y, [0.0, 1.0], ys, between=-1)


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf])
def test_factors_that_are_refused(factor):
    for call in (least_lipschitz, best_spiral):
        with pytest.raises(ValueError, match="factor: "):
            call(factor)
