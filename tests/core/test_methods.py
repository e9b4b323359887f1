"""Methods by name, and torchdiffeq's solvers behind the package's interface."""

import math

import pytest
import torch
import torchdiffeq
from fields import knobs

from companion import counting, odeint
from companion.leapfrog import AsyncLeapfrog
from companion.methods import ADAPTIVE, METHODS, MULTISTEP, SCIPY, TorchdiffeqSolver, get_solver
from companion.schemes import SCHEMES
from companion.solve import FixedStep

OTHERS = [*ADAPTIVE, *MULTISTEP, SCIPY]


def solver(method="dopri5", **options):
    return get_solver(method, **options)


def test_names_lead_to_their_solvers():
    assert (*SCHEMES, "async_leapfrog", *OTHERS) == METHODS
    assert solver("async_leapfrog", steps=7) == AsyncLeapfrog(7)
    for name in SCHEMES:
        assert solver(name, steps=7) == FixedStep(SCHEMES[name], 7)
    for name in OTHERS:
        options = knobs(name, steps=7, rtol=1e-3, atol=1e-4)
        assert solver(name, **options) == TorchdiffeqSolver(name, **options)
    assert solver(None).method == "dopri5"


def test_every_other_name_is_one_of_torchdiffeq():
    from torchdiffeq._impl.odeint import SOLVERS

    assert set(OTHERS) <= set(SOLVERS)


# Relative errors at rtol = 1e-6. Some pairs are far from it at output times: torchdiffeq
# interpolates there, to an order lower than the step's.
ACHIEVED = {
    "dopri5": 5e-6, "dopri8": 5e-4, "bosh3": 1e-3, "fehlberg2": 5e-4, "adaptive_heun": 5e-6,
    "implicit_adams": 1e-9, "scipy_solver": 5e-5,
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


@pytest.mark.parametrize("back", [False, True], ids=["forward", "backward"])
def test_explicit_adams_integrates_a_function_of_time(back, device, dtype):
    """Its orders up to twelve leave hardly any room for stability: a pure quadrature is safe."""
    t = [2.0, 1.3, 1.0, 0.0] if back else [0.0, 0.3, 1.0, 2.0]
    y0 = torch.full((2,), math.sin(t[0]), device=device, dtype=dtype)
    ys = odeint(lambda t, y: torch.cos(t) + 0 * y, y0, t, method="explicit_adams", steps=40)
    expected = torch.tensor([[math.sin(x)] * 2 for x in t], device=device, dtype=dtype)
    torch.testing.assert_close(ys, expected, rtol=1e-6, atol=1e-6)


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


@pytest.mark.parametrize("method", ADAPTIVE)
def test_steps_are_counted_as_torchdiffeq_takes_them(method, device, dtype):
    class Field:
        accepted = rejected = calls = 0

        def __call__(self, t, y):
            self.calls += 1
            return torch.sin(30 * t) * y * 10

        def callback_accept_step(self, t0, y0, dt):
            self.accepted += 1

        def callback_reject_step(self, t0, y0, dt):
            self.rejected += 1

    y0 = torch.ones(1, device=device, dtype=dtype)
    theirs = Field()
    t = torch.tensor([0.0, 0.5, 1.0], device=device, dtype=dtype)
    torchdiffeq.odeint(theirs, y0, t, method=method, rtol=1e-4, atol=1e-4)
    with counting() as stats:
        odeint(Field(), y0, t, method=method, rtol=1e-4, atol=1e-4)
    assert stats.nfe == theirs.calls
    assert (stats.steps, stats.rejected) == (theirs.accepted, theirs.rejected)
    assert stats.rejected > 0


def test_run_returns_the_last_step_and_starts_with_the_one_given(device, dtype):
    first = solver(rtol=1e-3, atol=1e-3)
    y0 = torch.ones(1, device=device, dtype=dtype)
    times = []

    def field(t, y):
        times.append(t.item())
        return -y

    _, last = first.run(field, y0, [0.0, 5.0])
    assert 0.1 < last < 10
    times.clear()
    first.run(field, y0, [5.0, 0.0], first_step=0.5)
    assert times[:4] == pytest.approx([5.0, 4.9, 4.85, 4.6], abs=1e-12)  # c = 0, 1/5, 3/10, 4/5


def test_norm_decides_what_an_error_is(device, dtype):
    """Ignoring the fast component must cost fewer evaluations than watching it."""
    counts = []
    for norm in (None, lambda e: e[..., :1].abs().max()):
        calls = []

        def field(t, y, calls=calls):
            calls.append(t)
            return torch.stack([-y[0], -200 * y[1]])

        y0 = torch.ones(2, device=device, dtype=dtype)
        solver(rtol=1e-6, atol=1e-6).run(field, y0, [0.0, 0.05], norm=norm)
        counts.append(len(calls))
    assert counts[1] < 0.7 * counts[0]


@pytest.mark.parametrize("method", ["dopri5", "bosh3", "dopri8", SCIPY])
def test_a_solve_that_cannot_go_on_names_the_time(method, device, dtype):
    """y' = y^2 from 1 blows up at t = 1; torchdiffeq alone gives an AssertionError, scipy loops."""
    y0 = torch.ones(1, device=device, dtype=dtype)
    with pytest.raises(ValueError, match=r"^y0: .* t = (1:|1;|0\.99|1\.0)"):
        odeint(lambda t, y: y * y, y0, [0.0, 2.0], method=method, rtol=1e-5, atol=1e-5)


def test_assertions_of_the_field_itself_pass_through(device, dtype):
    def field(t, y):
        raise AssertionError("my own")

    with pytest.raises(AssertionError, match="my own"):
        odeint(field, torch.ones(1, device=device, dtype=dtype), [0.0, 1.0])


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
