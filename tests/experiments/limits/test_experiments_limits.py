"""The experiments of chapter 5: parts by other means, and numbers that follow from one another."""

import numpy as np
import pytest
import torch
from scipy.integrate import RK45, solve_ivp

from companion import odeint
from companion.experiments import run
from companion.experiments.limits.c18_e7_crossing_maps import _stretches
from companion.experiments.limits.error_estimates import solve_with_estimates
from companion.experiments.limits.fw10_s_stiff_surrogates import Oscillator, lienard
from companion.experiments.limits.separator import Separator, disc_and_ring, wrong
from companion.train import seeded

# The disc in the ring


def test_points_are_spread_evenly_over_disc_and_ring():
    x, y = disc_and_ring(40000, torch.Generator().manual_seed(0))
    radius, angle = x.norm(dim=1), torch.atan2(x[:, 1], x[:, 0])
    disc = y < 0
    assert disc.sum() == 20000
    assert radius[disc].max() <= 0.5
    assert radius[~disc].min() >= 1.0
    assert radius[~disc].max() <= 1.5
    # A quarter of the disc's area lies within half of its radius, 45 % of the ring's below 1.25.
    assert (radius[disc] < 0.25).double().mean() == pytest.approx(0.25, abs=0.01)
    assert (radius[~disc] < 1.25).double().mean() == pytest.approx(0.45, abs=0.01)
    assert angle.mean() == pytest.approx(0, abs=0.05)
    assert wrong(y, y) == 0
    assert wrong(-y, y) == 1


# FW10: costs on the flow


def test_error_estimates_are_those_of_scipy():
    """Its RK45 takes the same steps and keeps the slopes of each."""
    matrix = np.array([[-0.5, 2.0], [-2.0, -0.1]])

    def field(t, y):
        return np.cos(3 * t) * (matrix @ y)

    solver = RK45(field, 0.0, np.array([1.0, 0.5]), 1.0, rtol=1e-4, atol=1e-4)
    total = 0.0
    while solver.status == "running":
        solver.step()
        h = solver.step_size
        total += h * np.linalg.norm(h * solver.K.T @ solver.E)
    tensor = torch.from_numpy(matrix)
    end, estimates = solve_with_estimates(
        lambda t, y: torch.cos(3 * t) * (y @ tensor.T),
        torch.tensor([[1.0, 0.5]], dtype=torch.float64), 1e-4,
    )  # fmt: skip
    np.testing.assert_allclose(end[0], solver.y, rtol=1e-12)
    assert estimates.item() == pytest.approx(total, rel=1e-9)


def test_error_estimates_have_gradients():
    """Halving the field costs a solver less: the derivative by a factor on it is positive."""
    factor = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64)

    def estimates(factor):
        def field(t, y):
            return factor * 5 * torch.stack([-y[:, 1], y[:, 0]], 1)

        return solve_with_estimates(field, y0, 1e-3)[1]

    (slope,) = torch.autograd.grad(estimates(factor), factor)
    assert slope > 0


def test_numbers_of_regularised_flows_follow_from_the_curves():
    result = run(
        "FW10", rules=("none", "both", "estimate"), seeds=2, updates=3, points=20, hidden=8, seed=7
    )
    none, both = (result[f"nfe_{rule}_1.0"] for rule in ("none", "both"))
    np.testing.assert_array_equal(none[:, 0], both[:, 0])  # the same start
    ratios = both[:, -1] / none[:, -1]
    assert result["ratio_both"] == pytest.approx(np.sqrt(ratios.prod()))
    assert result["worst_both"] == ratios.max()
    growth = none[:, -1] / none[:, 0]
    assert result["growth_none"] == pytest.approx(np.sqrt(growth.prod()))
    errors = [result[f"error_{rule}_1.0"][:, -1].mean() for rule in ("none", "both")]
    assert result["error_both"] == pytest.approx(errors[1] - errors[0])
    work = [result[f"work_{rule}_1.0"].sum() for rule in ("none", "both")]
    assert result["work_both"] == pytest.approx(work[1] / work[0])
    assert (result["coarse_none_1.0"] <= none).all()


# C18-E7: what a flow cannot do


def test_stretches_of_flows_that_are_known():
    with seeded(0, dtype=torch.float64):
        net = Separator(extra=1, hidden=4)
    last = net.field.last
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([1.0, -2.0, 0.3]))  # all points move alike
    torch.testing.assert_close(_stretches(net), torch.ones(441, 2, dtype=torch.float64))


def test_stretches_by_differences():
    with seeded(1, dtype=torch.float64):
        net = Separator(extra=0, hidden=6)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2)
    origin, h = torch.zeros(1, 2, dtype=torch.float64), 1e-5
    ends = [
        odeint(net.field, origin + h * torch.tensor(d), [0.0, 1.0], rtol=1e-10, atol=1e-12)[-1]
        for d in ([[1.0, 0]], [[-1.0, 0]], [[0, 1.0]], [[0, -1.0]])
    ]
    dense = torch.stack([ends[0] - ends[1], ends[2] - ends[3]], -1)[0].detach() / (2 * h)
    at_origin = _stretches(net)[441 // 2]
    torch.testing.assert_close(at_origin, torch.linalg.svdvals(dense), rtol=1e-3, atol=1e-4)


def test_numbers_of_crossing_maps_follow_from_the_curves():
    result = run(
        "C18-E7", extras=(0, 1), seeds=2, updates=40, ring_updates=2, points=20, hidden=8, seed=9
    )
    assert result["line_loss"].shape == (2, 2)
    assert result["excess"] == pytest.approx(result["line_loss"][0].min() / (11 / 30))
    assert result["excess"] >= 1
    assert (result["forced"] >= result["needed"] - 1e-6)[1].all()
    assert (result["steep"] * (1 + 1e-6) >= result["forced"]).all()
    assert result["line_1"] == result["line_loss"][1].max()
    assert result["saved_1"] == result["ring_nfe"][1].mean() / result["ring_nfe"][0].mean()
    assert (result["widest"] >= result["narrowest"]).all()


# FW10-S: stiffness


def test_the_oscillator_is_that_of_van_der_pol():
    """In the usual coordinates: x'' = mu (1 - x^2) x' - x."""
    rate, state = 7.0, torch.tensor([[1.3, -0.4]], dtype=torch.float64)
    field = Oscillator(lienard, rate)
    velocity, push = torch.func.jvp(lambda x: field(0.0, x), (state,), (field(0.0, state),))
    x, speed, acceleration = state[0, 0], velocity[0, 0], push[0, 0]
    torch.testing.assert_close(acceleration, rate * (1 - x**2) * speed - x)


def test_evaluations_of_the_equation_are_those_of_scipy():
    result = run(
        "FW10-S",
        rates=(2.0, 20.0),
        methods=("dopri5", "bosh3", "scipy_solver"),
        seeds=1,
        updates=2,
        seed=3,
    )
    for method, name in (("dopri5", "RK45"), ("bosh3", "RK23")):
        for k, rate in enumerate((2.0, 20.0)):
            field = Oscillator(lienard, rate)
            solved = solve_ivp(
                lambda t, y, f=field: f(t, torch.from_numpy(y)[None])[0].numpy(),
                (0, 5), [2.0, 2 / 3], method=name, rtol=1e-4, atol=1e-4,
            )  # fmt: skip
            assert result[f"true_{method}"][0, k] == pytest.approx(solved.nfev, rel=0.03)
    counts = result["nfe_dopri5"]
    assert result["growth_dopri5"] == pytest.approx((counts[:, 1] / counts[:, 0]).mean())
