"""Adaptive solves: the controller against scipy's, states inside steps, limits and refusals."""

import math

import numpy as np
import pytest
import torch
from fields import Tanh, gradients, largest_difference, randn
from loops import loop
from scipy.integrate import solve_ivp
from torch import nn

from companion import counting, odeint
from companion.adaptive import Adaptive
from companion.gradients import Adjoint, Checkpoint
from companion.methods import ADAPTIVE, get_solver
from companion.observe import saved_bytes
from companion.solve import NonFiniteError, StepLimitError

F64 = torch.float64
SCIPYS = {"dopri5": "RK45", "bosh3": "RK23"}


def one(*values):
    return torch.tensor(values or (1.0,), dtype=F64)


# --- the controller -------------------------------------------------------------------------------

DETEST = {
    "A3": (lambda t, y: y * torch.cos(t), [1.0]),
    "B1": (lambda t, y: torch.stack([2 * (y[0] - y[0] * y[1]), y[0] * y[1] - y[1]]), [1.0, 3.0]),
    "D3": (
        lambda t, y: torch.cat([y[2:], -y[:2] / y[:2].norm() ** 3]),
        [0.5, 0.0, 0.0, math.sqrt(3)],
    ),
    "E2": (lambda t, y: torch.stack([y[1], (1 - y[0] ** 2) * y[1] - y[0]]), [2.0, 0.0]),
}
"""Hull et al. 1972."""


@pytest.mark.parametrize("method", list(SCIPYS))
@loop("name", DETEST)
@loop("tolerance", [1e-3, 1e-6])
@loop("back", [False, True])
def test_steps_are_scipys(method, name, tolerance, back):
    """The same evaluations, and the same states to rounding: at the end and inside the steps."""
    func, start = DETEST[name]
    times = [0.0, 0.1, 0.2, 3.0, 7.0]
    times = [-t for t in times] if back else times
    calls = []

    def counted(t, y):
        calls.append(t)
        return func(torch.tensor(t, dtype=F64), torch.tensor(y, dtype=F64)).numpy()

    scipys = solve_ivp(
        counted, (times[0], times[-1]), start, method=SCIPYS[method], t_eval=times,
        rtol=tolerance, atol=tolerance / 10,
    )  # fmt: skip
    with counting() as stats:
        ys = odeint(func, one(*start), times, method=method, rtol=tolerance, atol=tolerance / 10)
    assert stats.nfe == len(calls)
    assert stats.steps + stats.rejected == (len(calls) - 2) / (6 if method == "dopri5" else 3)
    np.testing.assert_allclose(ys.numpy(), scipys.y.T, rtol=1e-7, atol=1e-7)


def test_tsit5_takes_about_as_many_evaluations_as_dopri5_for_an_error():
    """Over the four problems: a wrong error estimate or controller would cost far more."""
    work = {}
    for method in ("dopri5", "tsit5"):
        with counting() as stats:
            for func, start in DETEST.values():
                odeint(func, one(*start), [0.0, 20.0], method=method, rtol=1e-6, atol=1e-6)
        work[method] = stats.nfe
    assert 0.8 < work["tsit5"] / work["dopri5"] < 1.1


@loop("method", ADAPTIVE)
@loop("tolerance", [1e-4, 1e-8])
def test_errors_are_about_the_tolerance_at_outputs_inside_steps_too(method, tolerance):
    t = torch.linspace(0, 10, 57, dtype=F64)
    ys = odeint(DETEST["A3"][0], one(), t, method=method, rtol=tolerance, atol=tolerance)
    error = (ys[:, 0] - t.sin().exp()).abs().max().item()
    assert tolerance / 100 < error < 60 * tolerance


@loop("method", ADAPTIVE)
@loop("span", [(0.0, 1.0), (1.0, 0.0), (3.0, -0.7)])
@loop("tolerance", [1e-2, 1e-7])
def test_the_field_is_never_evaluated_outside_the_interval(method, span, tolerance):
    """Also on an interval much shorter than the first size would be, and one without errors."""
    seen = []

    def field(t, y):
        seen.append(t.item())
        return torch.cos(3 * t) - y * 0.01

    t0, t1 = span
    for end in (t1, t0 + (t1 - t0) * 1e-9):
        seen.clear()
        for f in (field, lambda t, y: field(t, y) * 0):
            odeint(f, one(), [t0, end], method=method, rtol=tolerance, atol=tolerance)
            assert min(t0, end) <= min(seen) <= max(seen) <= max(t0, end)
            assert seen[-1] == end


def test_parts_of_a_tuple_are_measured_apart():
    """A part of 300,000 zeros would drown the oscillator in one root mean square over all."""
    start = (torch.zeros(1000), torch.tensor([1.0, 0.0]), torch.zeros(0))

    def field(t, y):
        return torch.zeros_like(y[0]), torch.stack([y[1][1], -y[1][0]]), y[2]

    counts = []
    for state in (start, start[1]):
        f = field if isinstance(state, tuple) else lambda t, y: torch.stack([y[1], -y[0]])
        with counting() as stats:
            ys = odeint(f, state, [0.0, 10.0], rtol=1e-4, atol=1e-4)
        counts.append(stats.nfe)
        found = ys[1] if isinstance(ys, tuple) else ys
        assert found[-1, 0].item() == pytest.approx(math.cos(10), abs=2e-3)
    assert counts[0] == counts[1]


# --- what stops a solve ---------------------------------------------------------------------------


@loop("method", ADAPTIVE)
def test_trials_that_are_not_finite_are_halved(method):
    """Each field is not finite beyond its domain, which a long trial step enters."""
    rejected = 0
    for field, y0, t, exact in [
        (lambda t, y: -y.sqrt(), 1.0, [0.0, 1.9], 0.0025),
        (lambda t, y: -1 / y, 1.0, [0.0, 0.49], math.sqrt(0.02)),
        (lambda t, y: -y * torch.where(y > 0.3, 1.0, torch.nan), 1.0, [0.0, 1.2], math.exp(-1.2)),
        (lambda t, y: torch.where(y > 0.1, -2 * y, torch.inf), 1.0, [0.0, 1.1], math.exp(-2.2)),
    ]:  # fmt: skip
        with counting() as stats:
            y = odeint(field, one(y0), t, method=method, rtol=1e-3, atol=1e-3)[-1]
        assert y.item() == pytest.approx(exact, abs=5e-3)
        assert stats.nfe < 2000
        rejected += stats.rejected
    assert rejected > 3


@loop("method", ADAPTIVE)
def test_a_limit_of_steps_says_where_and_how_small(method):
    def stiff(t, y):
        return -1000 * (y - torch.cos(t))

    with (
        counting() as stats,
        pytest.raises(
            StepLimitError,
            match=rf"max_steps: {method} took 50 steps .* t = 0\.\d+.*steps of .*stiff",
        ),
    ):
        odeint(stiff, one(), [0.0, 1.0], method=method, rtol=1e-6, atol=1e-6, max_steps=50)
    assert stats.steps + stats.rejected == 50
    with counting() as stats:
        odeint(stiff, one(), [0.0, 1.0], method=method, rtol=1e-3, atol=1e-3)
    taken = stats.steps + stats.rejected
    odeint(stiff, one(), [0.0, 1.0], method=method, rtol=1e-3, atol=1e-3, max_steps=taken)
    for bad in (0, 2.5, True, "9"):
        with pytest.raises(ValueError, match=r"max_steps: .* is not allowed"):
            odeint(stiff, one(), [0.0, 1.0], method=method, max_steps=bad)
    with pytest.raises(ValueError, match="max_steps: 9 is not allowed; method='rk4'"):
        odeint(stiff, one(), [0.0, 1.0], method="rk4", max_steps=9)


@loop("method", ["dopri5", "scipy_solver"])
def test_a_stiff_adjoint_ends(method):
    """Going back it grows like exp(1000 t): an error after a bound of steps, or the right value."""
    k = one(1000.0).requires_grad_()
    options = {"method": method, "gradient": "adjoint", "params": (k,), "max_steps": 500}
    ys = odeint(lambda t, y: -k * (y - torch.cos(t)), one(), [0.0, 1.0], rtol=1e-5, atol=1e-5,
                **options)  # fmt: skip
    with pytest.raises(ValueError, match=r"^gradient: the adjoint's backward solve did not "):
        ys[-1].sum().backward()
    exact = odeint(lambda t, y: -k * (y - torch.cos(t)), one(), [0.0, 1.0], rtol=1e-9, atol=1e-11,
                   gradient="checkpoint", params=(k,))  # fmt: skip
    (grad,) = torch.autograd.grad(exact[-1].sum(), k)
    assert grad.item() == pytest.approx(-8.404e-7, abs=2e-10)


def test_tolerances_of_zero():
    """Without an absolute one, an entry that stays zero has no error."""
    ys = odeint(lambda t, y: -y, one(1.0, 0.0), [0.0, 1.0], rtol=1e-8, atol=0)
    torch.testing.assert_close(ys[-1], one(math.exp(-1), 0.0), rtol=1e-7, atol=0)
    odeint(lambda t, y: -y, one(), [0.0, 1.0], rtol=0, atol=1e-8)
    with pytest.raises(ValueError, match="rtol, atol: 0 and 0 are not allowed together"):
        odeint(lambda t, y: -y, one(), [0.0, 1.0], rtol=0, atol=0)


def test_a_slope_that_is_not_finite_at_the_start_is_said_at_once():
    for value in (math.nan, math.inf):
        with (
            counting() as stats,
            pytest.raises(NonFiniteError, match=r"cannot go on at t = 2"),
        ):
            odeint(lambda t, y, v=value: y * v, one(), [2.0, 3.0])
        assert stats.nfe == 1


# --- gradients of the accepted steps --------------------------------------------------------------

TIMES = [0.1, 0.6, 0.65, 2.0]


def by_value(gradient, device="cpu", field=None, times=TIMES, **options):
    """Return gradients of a loss on all outputs: for y0 and every parameter."""
    field = Tanh(device) if field is None else field
    y0 = randn(2, 3, device=device).requires_grad_()
    ys = odeint(field, y0, times, gradient=gradient, **options)
    weights = randn(*ys.shape, device=device, seed=9)
    loss = (ys * weights + 0.3 * ys.square()).sum()
    return gradients(loss, [y0, *field.parameters()])


@pytest.mark.parametrize("method", ADAPTIVE)
@loop("times", [TIMES, TIMES[::-1], torch.linspace(0, 1, 50).tolist()])
def test_checkpoint_is_backprop_of_the_accepted_steps(method, times):
    options = {"method": method, "rtol": 1e-4, "atol": 1e-4, "times": times}
    with counting() as plain:
        expected = by_value("backprop", **options)
    for every in (1, 3, 1000):
        with counting() as stats:
            found = by_value(Checkpoint(every=every), **options)
        assert largest_difference(found, expected) < 1e-12
        assert (stats.nfe, stats.steps) == (plain.nfe, plain.steps)
        stages = 6 if method != "bosh3" else 3
        assert stages * stats.steps <= stats.nfe_backward <= (stages + 1) * stats.steps
    assert plain.nfe_backward == 0


class Small(nn.Module):
    """A network of 2, 50 and 2 units at its usual start."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2)).double()

    def forward(self, t, y):
        return self.net(y)


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "adjoint"])
@loop("times", [[0.0, 10.0], torch.linspace(0, 10, 41).tolist()])
def test_gradients_meet_a_tight_reference(gradient, times):
    """At tolerance 1e-6 within 3e-6 of the largest gradient, at outputs inside steps too."""
    field, y0 = Small(), randn(8, 2, device="cpu").requires_grad_()

    def found(gradient, **options):
        ys = odeint(field, y0, times, gradient=gradient, **options)
        return gradients(ys[1:].square().mean(), [y0, *field.parameters()])

    expected = found("backprop", rtol=1e-11, atol=1e-12)
    scale = max(g.abs().max().item() for g in expected)
    for method in ("dopri5", "tsit5"):
        rough = found(gradient, method=method, rtol=1e-6, atol=1e-6)
        assert largest_difference(rough, expected) < 3e-6 * scale
    tight = found(gradient, rtol=1e-9, atol=1e-10)
    assert largest_difference(tight, expected) < 1e-8 * scale


def test_steps_are_held_fixed():
    """The gradient is that of the steps taken, written out with plain operations."""
    seen = []

    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(one(0.7))

        def forward(self, t, y):
            seen.append(float(t))  # as a field does that looks something up by time
            return self.w * y * math.sin(4 * float(t))

    field, y0 = Field(), one().requires_grad_()
    with counting() as stats:
        ys = odeint(field, y0, [0.0, 2.0], method="bosh3", rtol=1e-3, atol=1e-3)
    found = torch.autograd.grad(ys[-1].sum(), [y0, field.w])
    attempts, ends = [seen[2 + 3 * i : 5 + 3 * i] for i in range((len(seen) - 2) // 3)], [0.0]
    y, t = y0, 0.0
    kept = [a for a, b in zip(attempts, [*attempts[1:], None], strict=True)
            if b is None or b[0] > a[-1]]  # fmt: skip
    assert len(kept) == stats.steps
    for *_, end in kept:
        h, f = end - t, lambda s, y: field.w * y * math.sin(4 * s)
        k1 = f(t, y)
        k2 = f(t + h / 2, y + h / 2 * k1)
        k3 = f(t + 3 * h / 4, y + 3 * h / 4 * k2)
        y, t = y + h * (2 * k1 + 3 * k2 + 4 * k3) / 9, end
        ends.append(end)
    assert y.item() == pytest.approx(ys[-1].item(), rel=1e-14)
    for a, b in zip(found, torch.autograd.grad(y.sum(), [y0, field.w]), strict=True):
        assert a.item() == pytest.approx(b.item(), rel=1e-12)


def test_what_is_kept_is_a_state_a_step():
    field, y0 = Tanh("cpu"), randn(200, 3, device="cpu").requires_grad_()
    state = 200 * 3 * 8
    for every in (1, 4):
        with counting() as stats, saved_bytes(exclude=[y0, *field.parameters()]) as saved:
            odeint(field, y0, [0.0, 1.0], rtol=1e-6, atol=1e-6, gradient=Checkpoint(every=every))
        segments = math.ceil(stats.steps / every)
        assert (segments - 1) * state <= saved.total <= (segments + 1) * state
    with counting() as stats, saved_bytes(exclude=[*field.parameters()]) as saved:
        odeint(field, y0[:10].detach().clone().requires_grad_(), [0.0, 9.0], gradient="checkpoint")
    assert saved.total <= (math.ceil(stats.steps / 8) + 2) * 10 * 3 * 8  # several at once


def test_rejected_attempts_leave_no_graph():
    """The bytes of a solve with rejections are those of its accepted steps."""

    def field(t, y):
        return torch.tanh(y * torch.sin(20 * t) * 10)

    y0 = randn(100, device="cpu").requires_grad_()
    with counting() as stats:
        ys = odeint(field, y0, [0.0, 2.0], rtol=1e-5, atol=1e-5)
    assert stats.rejected > 5
    nodes, todo = set(), [ys.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            todo += [n for n, _ in node.next_functions]
    tanhs = sum(node.name() == "TanhBackward0" for node in nodes)
    assert tanhs <= 6 * stats.steps + 1


class Dropped(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.3)

    def forward(self, t, y):
        return -1e-4 * self.drop(y)


class Counts(nn.Module):
    """Reads a buffer that it changes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("n", torch.zeros((), dtype=F64))

    def forward(self, t, y):
        self.n += 1e-6
        return -y * (1 + self.n)


def test_checkpoint_refuses_what_it_cannot_repeat():
    y0 = one(*range(1, 9)).requires_grad_()
    options = {"rtol": 1e-2, "atol": 1e-2, "gradient": "checkpoint"}
    with pytest.raises(ValueError, match=r"'checkpoint' of an adaptive .* random .*dropout"):
        odeint(Dropped(), y0, [0.0, 1.0], **options)
    odeint(Dropped().eval(), y0, [0.0, 1.0], **options)[-1].sum().backward()
    with pytest.raises(ValueError, match=r"'checkpoint' of an adaptive .* reads its buffer 'n'"):
        odeint(Counts(), y0, [0.0, 1.0], **options)


def test_batch_norm_is_repeated_and_its_statistics_are_not():
    """Rejected attempts update them too, as every evaluation of a forward solve does."""
    field = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Tanh()).double()

    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = field

        def forward(self, t, y):
            return self.net(y)

    grads = []
    for gradient in ("backprop", "checkpoint"):
        field[1].reset_running_stats()
        y0 = randn(6, 3, device="cpu").requires_grad_()
        with counting() as stats:
            ys = odeint(Field(), y0, [0.0, 2.0], rtol=1e-5, atol=1e-5, gradient=gradient)
        grads.append(gradients(ys.square().sum(), [y0, *field.parameters()]))
        assert field[1].num_batches_tracked == stats.nfe
    assert largest_difference(*grads) < 1e-11


# --- the adjoint ----------------------------------------------------------------------------------


class Padded(nn.Module):
    """Parameters that do nothing, in numbers."""

    def __init__(self):
        super().__init__()
        self.field, self.padding = Tanh("cpu"), nn.Parameter(torch.zeros(20_000, dtype=F64))

    def forward(self, t, y):
        return self.field(t, y) + 0 * self.padding[0]


class Still(nn.Module):
    """Neither the state nor the adjoint sees the rough part: its factor is zero."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=F64))

    def forward(self, t, y):
        return -y + self.w[0] * torch.cos(40 * t) + self.w[1] * y


def test_the_adjoints_norms():
    """The parameters' integral costs evaluations where it is measured, and gains accuracy."""
    counts, errors = [], []
    for norm in ("seminorm", "full"):
        field = Still()
        with counting() as stats:
            ys = odeint(field, one(), [0.0, 1.0], rtol=1e-6, atol=1e-6, gradient=Adjoint(norm=norm))
            ys[-1].sum().backward()
        counts.append(stats.nfe_backward)
        exact = (math.cos(40) + 40 * math.sin(40) - math.exp(-1)) / (1 + 1600)
        errors.append(abs(field.w.grad[0].item() - exact))
        assert field.w.grad[1].item() == pytest.approx(math.exp(-1), rel=1e-5)
    assert counts[1] > 2 * counts[0]
    assert errors[1] < 1e-6 < errors[0] / 100
    padded = []
    for field in (Tanh("cpu"), Padded()):
        with counting() as stats:
            by_value("adjoint", rtol=1e-4, atol=1e-4, field=field)
        padded.append(stats.nfe_backward)
    assert padded[0] == padded[1]
    with pytest.raises(ValueError, match="norm: 'rms' is not allowed; it must be one of seminorm"):
        Adjoint(norm="rms")
    with pytest.raises(ValueError, match=r"Adjoint\(norm='full'\) is for adaptive methods.*'rk4'"):
        by_value(Adjoint(norm="full"), method="rk4")


def test_the_adjoints_step_size_goes_on_from_interval_to_interval():
    """With 50 outputs an interval is about a step: no first step has to be searched for."""
    with counting() as stats:
        by_value("adjoint", times=torch.linspace(0, 5, 50).tolist(), rtol=1e-6, atol=1e-6)
    assert stats.nfe_backward < 1.4 * 7 * 49


def test_a_solver_is_data():
    assert get_solver("dopri5", rtol=1e-3) == get_solver(None, rtol=1e-3)
    assert isinstance(get_solver(None), Adaptive)
    assert not get_solver(None).on_grid
