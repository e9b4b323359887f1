"""The experiments of chapter 2: errors by other means, counts by hand, and their claims."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from companion.experiments import run
from companion.experiments.solvers.detest import PROBLEMS
from companion.experiments.solvers.fw12_stiff_costs import Follower, break_even, exact

# Q20-ERR: orders on the pendulum


@pytest.mark.parametrize(
    ("scheme", "order", "errors"),
    [
        ("euler", 1, [0.524, 0.251]),
        ("midpoint", 2, [7.38e-5, 1.62e-5]),
        ("heun", 2, [3.02e-4, 7.24e-5]),
        ("rk4", 4, [5.71e-9, 3.72e-10]),
        ("rk4_38", 4, [5.38e-9, 3.61e-10]),
    ],
)
def test_errors_on_the_pendulum(scheme, order, errors):
    """The errors are those of an independent implementation in NumPy."""
    result = run("Q20-ERR", schemes=(scheme,), steps=(400, 800), local_steps=(200, 400))
    np.testing.assert_allclose(result[f"global_{scheme}"], errors, rtol=5e-3)
    assert result.claim("CL24").holds
    assert result[f"order_{scheme}"] == pytest.approx(order, abs=0.25)
    assert result[f"local_order_{scheme}"] == pytest.approx(order + 1, abs=0.1)


def test_a_grid_before_the_asymptotic_range_misses():
    result = run("Q20-ERR", schemes=("midpoint",), steps=(50, 100, 200), local_steps=(100, 200))
    assert not result.claim("CL24").holds


# FW11: work and precision


def test_the_problems_are_those_of_detest():
    """At their start, and what they conserve: B1 has an invariant, the orbit an energy."""
    slopes = {
        "A3": [1.0], "B1": [-4.0, 0.0], "D3": [0.0, math.sqrt(3), -4.0, 0.0], "E2": [0.0, -2.0],
    }  # fmt: skip
    for name, problem in PROBLEMS.items():
        start = torch.tensor(problem.start, dtype=torch.float64)
        found = problem.field(torch.zeros((), dtype=torch.float64), start)
        torch.testing.assert_close(found, torch.tensor(slopes[name], dtype=torch.float64))
    prey, predators = torch.tensor([0.7, 1.9], dtype=torch.float64)
    change = PROBLEMS["B1"].field(torch.tensor(0.0), torch.stack([prey, predators]))
    gradient = torch.stack([1 - 1 / prey, 2 - 2 / predators])
    assert float(gradient @ change) == pytest.approx(0, abs=1e-12)
    away = torch.tensor([0.8, 0.6, 0.3, -1.1], dtype=torch.float64)  # at distance 1
    change = PROBLEMS["D3"].field(torch.tensor(0.0), away)
    assert float(torch.cat([away[:2], away[2:]]) @ change) == pytest.approx(0, abs=1e-12)


def test_work_and_precision_by_other_means():
    """A3 has the solution exp(sin t); SciPy's own count is what is recorded for it."""
    result = run("FW11", problems=("A3",), methods=("bosh3", "dopri5"), tolerances=(1e-4, 1e-6))
    for k, tol in enumerate((1e-4, 1e-6)):
        solved = solve_ivp(
            lambda t, y: y * np.cos(t), (0, 20), [1.0], method="RK45", rtol=tol, atol=tol
        )
        assert result["nfe_A3_RK45"][k] == solved.nfev
        assert result["steps_A3_RK45"][k] == len(solved.t) - 1
        error = abs(solved.y[0, -1] / math.exp(math.sin(20)) - 1)
        assert result["error_A3_RK45"][k] == pytest.approx(error, rel=1e-4)
    assert result["difference"] == np.abs(result["nfe_A3_dopri5"] / result["nfe_A3_RK45"] - 1).max()
    ratio = result["nfe_A3_dopri5"][1] / result["nfe_A3_dopri5"][0]
    assert result["slope_A3"] == pytest.approx(-math.log(ratio) / math.log(100))
    assert result["slope_least"] == result["slope_most"] == result["slope_A3"]
    assert result["tight_least"] == pytest.approx(result["slope_A3"])
    attempts = (result["nfe_A3_dopri5"] - 2) / 6
    assert result["rejected_tight"] == 1 - result["steps_A3_dopri5"][1] / attempts[1]
    assert result["gain_A3_bosh3"] < 1


def test_the_gain_is_read_at_one_error():
    """Two lines of slope -1/2 and -1/4 in one another's range, crossed by hand."""
    from companion.experiments import Grid
    from companion.experiments.solvers.fw11_work_precision import _gain

    error = np.array([1e-2, 1e-4, 1e-6])
    one, other = (
        Grid({"tolerance": (1, 2, 3)}, np.stack([c * error**p, error, error], axis=1))
        for c, p in ((10.0, -0.25), (2.0, -0.5))
    )
    assert _gain(one, other) == pytest.approx(10 * 10.0 ** (4 / 4) / (2 * 10.0 ** (4 / 2)))


# FW12: stiffness


def test_the_follower_has_the_solution_stated():
    for ratio in (1.0, 40.0):
        field = Follower(ratio)
        solved = solve_ivp(
            lambda t, y, field=field: field(t, torch.from_numpy(y)).numpy(),
            (0, 3), [1.0, 0.0, 0.0], method="Radau", rtol=1e-9, atol=1e-11,
        )  # fmt: skip
        np.testing.assert_allclose(solved.y[:, -1], exact(ratio, 3.0), atol=1e-7)


def test_explicit_costs_follow_the_region_of_stability():
    """dopri5 is stable up to 3.31: so many steps of six evaluations at least, and not many more."""
    result = run("FW12", ratios=(1.0, 200.0, 400.0), time=2.0)
    for ratio, nfe in zip(result["ratios"][1:], result["nfe_dopri5"][1:], strict=True):
        least = 6 * ratio * 2.0 / 3.31
        assert 0.95 * least < nfe < 1.35 * least
    assert result.claim("CL20").observed == result["growth_dopri5"] > 5
    for method in ("LSODA", "Radau"):
        counts = result[f"nfe_{method}"]
        growth = result[f"growth_{method}"]
        assert growth == counts[2] / counts[0] < result["growth_dopri5"] / 5
        assert result[f"error_{method}"].max() < 1e-3


def test_calls_for_the_jacobian_are_counted():
    """Radau's own count leaves out the difference quotients."""
    result = run("FW12", ratios=(10.0, 20.0), time=1.0)
    own = solve_ivp(
        lambda t, y: Follower(10.0)(t, torch.from_numpy(y)).numpy(),
        (0, 1.0), [1.0, 0.0, 0.0], method="Radau", rtol=1e-5, atol=1e-5,
    )  # fmt: skip
    assert result["nfe_Radau"][0] == own.nfev + 3 * own.njev


def test_curves_break_even_where_they_cross_for_good():
    ratios = (1.0, 10.0, 100.0)
    explicit = np.array([10.0, 10.0, 1000.0])
    assert break_even(ratios, explicit, np.array([100.0, 5.0, 100.0])) == pytest.approx(
        1.0 * 10 ** (math.log(10) / math.log(20))
    )
    assert break_even(ratios, explicit, np.array([20.0, 100.0, 100.0])) == pytest.approx(
        10 * 10**0.5
    )
    assert break_even(ratios, explicit, np.array([20.0, 20.0, 2000.0])) == math.inf
