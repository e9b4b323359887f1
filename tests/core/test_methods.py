"""Methods by name, the knobs they take, and what they all solve."""

import math

import pytest
import torch
from fields import knobs

from companion import counting, odeint
from companion.adams import MULTISTEP, Adams
from companion.adaptive import Adaptive
from companion.leapfrog import AsyncLeapfrog
from companion.methods import ADAPTIVE, METHODS, get_solver
from companion.pairs import PAIRS
from companion.schemes import SCHEMES
from companion.scipy_solver import SCIPY, ScipySolver
from companion.solve import FixedStep

OTHERS = [*ADAPTIVE, *MULTISTEP, SCIPY]


def solver(method="dopri5", **options):
    return get_solver(method, **options)


def test_names_lead_to_their_solvers():
    assert (*SCHEMES, "async_leapfrog", *OTHERS) == METHODS
    assert solver("async_leapfrog", steps=7) == AsyncLeapfrog(7)
    for name in SCHEMES:
        assert solver(name, steps=7) == FixedStep(SCHEMES[name], 7)
    for name in ADAPTIVE:
        found = solver(name, rtol=1e-3, atol=1e-4, max_steps=9)
        assert found == Adaptive(PAIRS[name], 1e-3, 1e-4, 9)
    assert solver("explicit_adams", steps=7) == Adams("explicit_adams", 7)
    assert solver("implicit_adams", rtol=1e-3) == Adams("implicit_adams", 1, 1e-3, 1e-9)
    assert solver(SCIPY, atol=1e-4) == ScipySolver(1e-7, 1e-4, 20_000)
    assert solver(None).method == "dopri5"


def test_names_that_are_gone_name_their_replacement():
    for name, instead in [("dopri8", "'tsit5'"), ("fehlberg2", "'bosh3'"), ("heun3", "'kutta3'"),
                          ("adaptive_heun", "'bosh3'"), ("heun2", "'heun'")]:  # fmt: skip
        with pytest.raises(ValueError, match=f"method: '{name}' is not allowed; use .*{instead}"):
            solver(name)


# Relative errors at rtol = 1e-6.
ACHIEVED = {
    "dopri5": 5e-6, "tsit5": 5e-6, "bosh3": 5e-6, "implicit_adams": 1e-8, "explicit_adams": 2e-6,
    "scipy_solver": 5e-5,
}  # fmt: skip


@pytest.mark.parametrize("method", list(ACHIEVED))
@pytest.mark.parametrize("back", [False, True], ids=["forward", "backward"])
def test_every_method_solves_a_problem_with_a_closed_form(method, back, device, dtype):
    """y' = 2 t y, y = exp(t^2): several uneven outputs, both directions."""
    t = [0.0, 0.3, 1.0, 1.25]
    t = t[::-1] if back else t
    y0 = torch.full((2,), math.exp(t[0] ** 2), device=device, dtype=dtype)
    options = knobs(method, steps=100, rtol=1e-6, atol=1e-7)
    ys = odeint(lambda t, y: 2 * t * y, y0, t, method=method, **options)
    expected = torch.tensor([[math.exp(x * x)] * 2 for x in t], device=device, dtype=dtype)
    assert ys.dtype == dtype
    torch.testing.assert_close(ys, expected, rtol=ACHIEVED[method], atol=0)


@pytest.mark.parametrize("method", MULTISTEP)
@pytest.mark.parametrize("rate", [1.0, 10.0])
def test_adams_methods_stay_stable(method, rate, device, dtype):
    """At torchdiffeq's highest order the explicit one gives 0.7354 for a rate of 1."""
    y0 = torch.ones(1, device=device, dtype=dtype)
    ys = odeint(lambda t, y: -rate * y, y0, [0.0, 1.0], method=method, steps=100)
    assert ys[-1].item() == pytest.approx(math.exp(-rate), rel=1e-3)  # order 5, at most


@pytest.mark.parametrize("method", [*ADAPTIVE, SCIPY])
def test_tolerances_reach_the_solver(method, device, dtype):
    """Tightening both by a factor of 10^3 must cut the error, and cost more evaluations."""
    y0 = torch.ones(1, device=device, dtype=dtype)
    errors, counts = [], []
    for tolerance in (1e-2, 1e-5):
        with counting() as stats:
            ys = odeint(
                lambda t, y: 2 * t * y, y0, [0.0, 1.0], method=method, rtol=tolerance,
                atol=tolerance,
            )  # fmt: skip
        errors.append(abs(ys[-1].item() - math.e))
        counts.append(stats.nfe)
    assert errors[1] < errors[0] / 3
    assert counts[1] > counts[0]


@pytest.mark.parametrize("t", [[0.0, 0.5, 1.0], [0.0, 0.9, 1.0]], ids=["even", "uneven"])
def test_multistep_methods_start_afresh_where_the_step_changes(t, device, dtype):
    """Past slopes a different step apart spoil the extrapolation: 1e-5 then instead of 1e-9."""
    errors = []
    for steps in (20, 40, 80):
        y0 = torch.ones(1, device=device, dtype=dtype)
        with counting() as stats:
            ys = odeint(lambda t, y: 2 * t * y, y0, t, method="implicit_adams", steps=steps)
        assert stats.steps == 2 * steps
        errors.append(abs(ys[-1].item() - math.e))
    assert errors[0] < 1e-6
    assert errors[0] > 20 * errors[1] > 400 * errors[2]


@pytest.mark.parametrize("method", [*ADAPTIVE, SCIPY])
def test_a_solve_that_cannot_go_on_names_the_time(method, device, dtype):
    """y' = y^2 from 1 blows up at t = 1; steps shrink for ever, and scipy loops."""
    y0 = torch.ones(1, device=device, dtype=dtype)
    with pytest.raises(ValueError, match=r"^y0: .* t = (1:|1;|0\.99|1\.0)"):
        odeint(lambda t, y: y * y, y0, [0.0, 2.0], method=method, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("what", ["y0", "parameter", "t", "closure"])
def test_backprop_refuses_scipy_whatever_needs_the_gradient(what, device, dtype):
    """Each would otherwise give no gradient, or half of one, without a word."""
    w = torch.ones(1, device=device, dtype=dtype, requires_grad=what in ("parameter", "closure"))
    y0 = torch.ones(1, device=device, dtype=dtype, requires_grad=what == "y0")
    t = torch.tensor([0.0, 1.0], device=device, dtype=dtype, requires_grad=what == "t")

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(w)

        def forward(self, t, y):
            return self.w * y

    func = Module() if what == "parameter" else lambda t, y: w * y
    with pytest.raises(ValueError, match=r"'backprop' cannot see inside scipy_solver.*'adjoint'"):
        odeint(func, y0, t, method=SCIPY)
    with torch.no_grad():
        assert odeint(func, y0, t, method=SCIPY)[-1].item() == pytest.approx(math.e, abs=1e-6)
