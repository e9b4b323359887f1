"""How steep a field is between trajectories, by loops; the least constants are in tests/theory."""

import math

import pytest
import torch
from fields import Tanh, randn

from companion.analysis.reversal import best_spiral, least_lipschitz, pair_rates


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


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf])
def test_factors_that_are_refused(factor):
    for call in (least_lipschitz, best_spiral):
        with pytest.raises(ValueError, match="factor: "):
            call(factor)
