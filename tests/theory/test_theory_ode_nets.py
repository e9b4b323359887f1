"""The theorem of chapter 4: what it costs samples to share their steps."""

import math

import pytest
import torch

from companion import counting, odeint

F64 = torch.float64


def densities(rows, times=400, seed=0):
    """Steps per unit of time that each sample needs, at midpoints of [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    t = (torch.arange(times, dtype=F64) + 0.5) / times
    place, width, height = torch.rand(3, rows, 1, generator=generator, dtype=F64)
    return 1 + 50 * height * torch.exp(-(((t - place) / (0.05 + 0.2 * width)) ** 2))


@pytest.mark.parametrize("q", [2, 4])
@pytest.mark.parametrize("rows", [1, 3, 50])
def test_sharing_costs_at_least_the_mean(rows, q):
    """All bounds, for densities that vary with time; equality for equal ones and no others."""
    own = densities(rows)
    power = 2 * (q + 1)
    shared = own.pow(power).mean(0).pow(1 / power)
    steps, together = own.mean(1), shared.mean()
    assert together >= steps.mean() * (1 - 1e-12)
    assert together >= rows ** (-1 / power) * steps.max() * (1 - 1e-12)
    assert together <= rows ** (-1 / power) * steps.sum() * (1 + 1e-12)
    if rows == 1:
        assert together == pytest.approx(steps.item())
    else:
        assert together > 1.05 * steps.mean()
    alike = own[:1].expand(rows, -1).pow(power).mean(0).pow(1 / power)
    torch.testing.assert_close(alike, own[0])


def test_sharing_can_cost_more_than_any_sample():
    """Short moments of need, one after another: together they last as long as their sum."""
    t = (torch.arange(1000, dtype=F64) + 0.5) / 1000
    own = torch.stack([1 + 99.0 * ((t > k / 4) & (t < k / 4 + 0.1)) for k in range(4)])
    shared = own.pow(10).mean(0).pow(0.1)
    assert shared.mean() > 2.5 * own.mean(1).max()


@pytest.mark.parametrize("rows", [2, 4, 10])
def test_the_bound_from_above_cannot_be_improved(rows):
    """One sample after the other has all the need: the sum, up to the root of the batch."""
    t = (torch.arange(1000, dtype=F64) + 0.5) / 1000
    own = torch.stack([1e-6 + 1.0 * ((t * rows).floor() == k) for k in range(rows)])
    shared = own.pow(10).mean(0).pow(0.1)
    bound = rows**-0.1 * own.mean(1).sum()
    assert 1 - 1e-4 < shared.mean() / bound <= 1 + 1e-12


def test_the_solver_shares_as_the_theorem_says():
    """Swings of one size and several rates: counts of steps are power means of the rates.

    The state is a sine from 0, solved to an absolute tolerance so tight that steps are short.
    """
    rates = torch.tensor([4.0, 8.0, 16.0, 32.0], dtype=F64) * math.pi
    knobs = {"method": "dopri5", "rtol": 0.0, "atol": 1e-9}

    def attempts(rates):
        def field(t, x):
            return rates.unsqueeze(1) * torch.cos(rates.unsqueeze(1) * t)

        with counting() as stats:
            odeint(field, torch.zeros(len(rates), 1, dtype=F64), [0.0, 1.0], **knobs)
        return stats.steps

    own = torch.tensor([attempts(rates[k : k + 1]) for k in range(4)], dtype=F64)
    predicted = own.pow(10).mean().pow(0.1).item()
    assert attempts(rates) == pytest.approx(predicted, rel=0.05)
    assert predicted > 1.5 * own.mean()
    assert predicted < 0.95 * own.max()
