"""The theorems of the adjoint chapter against closed forms, and its experiments in small."""

import math

import pytest
import torch
from torch import nn

from companion import odeint
from companion.exercises import WrongAnswer
from companion.exercises.adjoint import BOUNCE, FIT, GAP, JUMPS, LINEAR, RETRACE, SPACING
from companion.experiments import run
from companion.experiments.adjoint.c18_a8_backward_errors import Braking, linear
from companion.experiments.adjoint.random_field import TanhField, relative_error
from companion.observe import fit_slope

F64 = torch.float64
X0, RATE, START, END = 0.8, 0.7, 0.3, 1.6
FIXED = {"method": "rk4", "steps": 200}
ADAPTIVE = {"method": "dopri5", "rtol": 1e-10, "atol": 1e-10}


class Swelling(nn.Module):
    """x' = rate t x: time enters, the state is multiplied, everything has a closed form."""

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(RATE, dtype=F64))

    def forward(self, t, x):
        return self.rate * t * x


def _swelling(t):
    """x(t), with dx/drate, dx/dt0 and dx/dt."""
    x = X0 * math.exp(RATE * (t**2 - START**2) / 2)
    return x, x * (t**2 - START**2) / 2, -RATE * START * x, RATE * t * x


def _euler_adjoints(steps):
    """States and gradients dL/dx_n of x' = x (1 - x), L = x(2)^2 / 2, by autograd through Euler."""
    h = 2 / steps
    xs = [torch.tensor(0.2, dtype=F64, requires_grad=True)]
    for _ in range(steps):
        xs.append(xs[-1] + h * xs[-1] * (1 - xs[-1]))
    return torch.stack(xs).detach(), torch.stack(torch.autograd.grad(xs[-1] ** 2 / 2, xs))


def test_backprop_tends_to_the_adjoint():
    """Closed form: x = 1 / (1 + 4 exp(-t)) and a(t) = x(2) dx(2)/dx(t), uniformly in t."""
    counts = [64, 128, 256, 512]
    errors = []
    for steps in counts:
        _, adjoints = _euler_adjoints(steps)
        t = torch.linspace(0, 2, steps + 1, dtype=F64)
        x = 1 / (1 + 4 * torch.exp(-t))
        final = x[-1]
        exact = final * final * (1 - final) / (x * (1 - x))
        errors.append((adjoints - exact).abs().max().item())
    assert fit_slope(counts, errors).value == pytest.approx(-1, abs=0.05)
    assert errors[-1] < 2e-3


def test_backprop_through_euler_is_euler_backwards():
    """a_n = a_{n+1} + h f'(x_n) a_{n+1}: Jacobian of the left state, adjoint of the right one."""
    xs, adjoints = _euler_adjoints(50)
    expected = adjoints[1:] + 2 / 50 * (1 - 2 * xs[:-1]) * adjoints[1:]
    torch.testing.assert_close(adjoints[:-1], expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("how", [FIXED, ADAPTIVE], ids=["fixed", "adaptive"])
def test_adjoint_gives_all_gradients(how):
    """L = x(T)^2 / 2: the state, the parameter, both times."""
    field = Swelling()
    x0 = torch.tensor([X0], dtype=F64, requires_grad=True)
    t = torch.tensor([START, END], dtype=F64, requires_grad=True)
    x = odeint(field, x0, t, **how, gradient="adjoint")
    got = torch.autograd.grad(x[-1, 0] ** 2 / 2, (x0, field.rate, t))
    end, by_rate, by_start, by_end = _swelling(END)
    torch.testing.assert_close(got[0].item(), end**2 / X0, rtol=1e-8, atol=0)
    torch.testing.assert_close(got[1].item(), end * by_rate, rtol=1e-8, atol=0)
    torch.testing.assert_close(got[2].tolist(), [end * by_start, end * by_end], rtol=1e-8, atol=0)


@pytest.mark.parametrize("how", [FIXED, ADAPTIVE], ids=["fixed", "adaptive"])
def test_adjoint_jumps_at_observations(how):
    """L = sum_i w_i x(t_i), the first time included: every loss term and every time counts."""
    field = Swelling()
    x0 = torch.tensor([X0], dtype=F64, requires_grad=True)
    times, weights = [START, 0.7, 1.1, END], [0.9, -1.3, 0.4, 1.7]
    t = torch.tensor(times, dtype=F64, requires_grad=True)
    xs = odeint(field, x0, t, **how, gradient="adjoint")
    loss = (xs[:, 0] * torch.tensor(weights, dtype=F64)).sum()
    got = torch.autograd.grad(loss, (x0, field.rate, t))
    known = [_swelling(time) for time in times]
    by_x0 = sum(w * x / X0 for w, (x, *_) in zip(weights, known, strict=True))
    by_rate = sum(w * d for w, (_, d, _, _) in zip(weights, known, strict=True))
    by_start = sum(w * d for w, (_, _, d, _) in zip(weights[1:], known[1:], strict=True))
    by_later = [w * d for w, (*_, d) in zip(weights[1:], known[1:], strict=True)]
    torch.testing.assert_close(got[0].item(), by_x0, rtol=1e-8, atol=0)
    torch.testing.assert_close(got[1].item(), by_rate, rtol=1e-8, atol=0)
    torch.testing.assert_close(got[2].tolist(), [by_start, *by_later], rtol=1e-8, atol=0)


def test_gap_falls_with_the_order():
    result = run("C18-A6", fields=2, steps=(8, 16, 32))
    assert [claim.text.split()[-1] for claim in result.claims] == [
        "euler", "midpoint", "heun", "rk4",
    ]  # fmt: skip
    assert not result.misses


@pytest.mark.parametrize(("method", "brackets"), [("midpoint", -1 / 4), ("heun", 0.0)])
def test_bracket_decides_the_gap(method, brackets):
    """One step: adjoint minus backprop is -h^3 (alpha + beta) (J'M' + M'J') a to leading order."""
    field = TanhField(3, 5, torch.Generator().manual_seed(1))
    field.time.data.zero_()
    x0 = torch.tensor([0.4, -0.3, 0.8], dtype=F64, requires_grad=True)
    a, h = torch.tensor([1.0, -2.0, 0.5], dtype=F64), 1e-3

    def jacobian(x):
        return torch.func.jacrev(lambda y: field(0.0, y))(x)

    x = x0.detach()
    J, M = jacobian(x), torch.func.jvp(jacobian, (x,), (field(0.0, x),))[1]
    gaps = []
    for gradient in ("adjoint", "backprop"):
        end = odeint(field, x0, [0.0, h], method=method, steps=1, gradient=gradient)[-1]
        gaps.append(torch.autograd.grad(end, x0, a)[0])
    leading = (J.T @ M.T + M.T @ J.T).detach() @ a
    got = (gaps[0] - gaps[1]) / h**3
    torch.testing.assert_close(got, -brackets * leading, rtol=0, atol=0.02 * leading.norm().item())


def test_errors_grow_backwards():
    """Both bounds of the proposition, on -2 x + 0.5 sin x, and equality on -lambda x."""

    def field(t, x):
        return -2 * x + 0.5 * torch.sin(x)

    ends = torch.tensor([[0.3], [0.3 + 1e-6]], dtype=F64)
    starts = odeint(field, ends, [1.0, 0.0], method="rk4", steps=200)[-1]
    growth = (starts[1] - starts[0]).item() / 1e-6
    assert math.exp(1.5) < growth < math.exp(2.5)
    slopes = [-2 + 0.5 * math.cos(x) for x in (0.3, starts[0].item())]
    assert math.exp(-max(slopes)) < growth < math.exp(-min(slopes))  # cos falls along the way
    result = run("C18-A8", rates=(1.0, 5.0, 10.0))
    assert not result.misses


def test_an_accurate_solve_can_have_a_wrong_adjoint():
    """A braking body: the adjoint's error grows like exp(rate), not that of backprop."""
    result = run("C18-A8", rates=(1.0, 10.0, 20.0))
    assert (result["forward"] < 1e-5).all()
    assert (result["gradient_backprop"] < 1e-4).all()
    assert result["gradient_adjoint_1"] < 1e-4
    assert 10 < result["gradient_adjoint_20"] < 1e4  # exp(20) times an error of about 1e-6
    growth = result["gradient_adjoint_20"] / result["gradient_adjoint_10"]
    assert 0.1 < growth / math.exp(10) < 10  # the errors at the end differ, too


def test_braking_is_its_formula():
    x = odeint(Braking(2.0), torch.tensor([0.5, 3.0], dtype=F64), [0.0, 1.0], rtol=1e-10)[-1]
    stopped = 3 * math.exp(-2)
    torch.testing.assert_close(x.tolist(), [0.5 + (3 - stopped) / 2, stopped], rtol=1e-7, atol=0)


def test_rotation_field_turns_without_growth():
    x = odeint(linear(2.0, True), torch.tensor([1.0, 0.0], dtype=F64), [0.0, 1.0], rtol=1e-10)[-1]
    torch.testing.assert_close(x.tolist(), [math.cos(2), math.sin(2)], rtol=1e-7, atol=0)


def test_memory_of_the_adjoint_is_flat():
    result = run("C18-A7", steps=(8, 16, 64), outputs=(2, 10, 100), batch=64)
    assert not result.misses
    assert len(set(result["bytes_adjoint"])) == 1
    ratio = result["bytes_backprop"][-1] / result["bytes_backprop"][0]
    assert 7.5 <= ratio <= 8.5
    states = result["output_bytes_adjoint"] / result["state_bytes"]
    assert states.tolist() == [2, 10, 100]  # the output and nothing else
    assert result["bytes_adjoint"][-1] < result["bytes_checkpoint"][-1] < ratio * 1e5


def test_gradients_agree_with_central_differences():
    result = run("C18-A5", fields=2)
    assert not result.misses
    assert result["max_backprop"] < 1e-6


def test_evaluations_are_counted_alike_here_and_in_torchdiffeq():
    result = run("C18-E2", fields=1, tolerances=(1e-3, 1e-5), outputs=(2, 10))
    assert (result["forward"] == result["torchdiffeq_forward"]).all()
    assert (result["backward"] > 0.6 * result["forward"]).all()
    assert (result["outputs_backward"][-1] < result["outputs_torchdiffeq_backward"][-1]).all()
    assert (result["error_adjoint"][-1] < 1e-3).all()
    assert (result["error_adjoint"][-1] < result["error_adjoint"][0]).all()
    assert {claim.id for claim in result.misses} == {"C18-E2"}
    assert all(claim.note for claim in result.misses)


def test_random_field_is_its_formula():
    field = TanhField(2, 5, torch.Generator().manual_seed(3))
    t, x = torch.tensor(0.3, dtype=F64), torch.tensor([0.1, -0.4], dtype=F64)
    hidden = torch.tanh(field.inner.detach() @ x + 0.3 * field.time.detach() + field.bias.detach())
    torch.testing.assert_close(field(t, x).detach(), field.outer.detach() @ hidden)


def test_a_field_in_another_form_is_solved_and_left_as_it_is():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(20.0))

        def forward(self, t, x):
            return [x[1], -self.rate * x[1]]

    field = Listed()
    assert BOUNCE.check([field, [0.0, 1.0], 1]).startswith("Right")
    assert field.rate.dtype == torch.float32
    assert FIT.check(FIT.solution.float()).startswith("Right")
    FIT.solution.double()


def test_relative_error_takes_all_tensors_as_one_vector():
    got = relative_error(
        (torch.tensor([3.0]), torch.tensor([0.0])), (torch.zeros(1), torch.tensor([4.0]))
    )
    assert got == pytest.approx(5 / 4)


@pytest.mark.parametrize(
    ("exercise", "mistake", "hint"),
    [
        (LINEAR, "the adjoint decays on the way back", "adjoint at the start"),
        (LINEAR, "no integral over time", "does not depend on t"),
        (LINEAR, "the field at the start", "field at the end"),
        (JUMPS, "the loss at the first time is forgotten", "first time"),
        (JUMPS, "a jump replaces the adjoint", "add"),
        (JUMPS, "every term is pulled alone", "three pulls"),
        (SPACING, "a checkpoint every step", "stored states"),
        (SPACING, "a single checkpoint", "recomputed segment"),
        (JUMPS, "every term is pulled to the start", "interval"),
        (JUMPS, "jumps with a minus sign", "sign"),
        (JUMPS, "the last gradient counts twice", "twice"),
        (SPACING, "the root rounded up", "items"),
        (SPACING, "the root rounded", "For 20 steps|For 75 steps|items"),
        (GAP, "no gap", "evaluates everything there"),
        (FIT, "learned by heart", "new start"),
        (RETRACE, "the orders", "slopes of one way"),
        (BOUNCE, "contracts too slowly", "Errors grow"),
        (BOUNCE, "the end is below the tolerance", "solve itself"),
        (BOUNCE, "the gradient is below the tolerance", "gradient itself"),
        (BOUNCE, "the sum never changes", "gradient itself"),
    ],
)
def test_hint_names_the_mistake(exercise, mistake, hint):
    with pytest.raises(WrongAnswer, match=hint):
        exercise.check(exercise.wrong[mistake])


@pytest.mark.parametrize(("fractions", "retraces"), [((1.0,), True), ((0.25, 0.75), False)])
def test_a_symplectic_method_has_no_gap_only_if_it_is_symmetric(fractions, retraces):
    """Implicit midpoint steps of these fractions of h: symplectic, symmetric only if one."""
    field = TanhField(3, 16, torch.Generator().manual_seed(0))
    x0 = torch.tensor([0.8, -0.5, 1.1], dtype=F64, requires_grad=True)

    def steps(f, x, h):
        for c in 8 * fractions:
            k = f(x)
            for _ in range(80):
                k = f(x + c * h / 2 * k)
            x = x + c * h * k
        return x

    def both(z):
        velocity, pull = torch.func.vjp(lambda x: field(torch.zeros(()), x), z[0])
        return torch.stack([velocity, -pull(z[1])[0]])

    end = steps(lambda x: field(torch.zeros(()), x), x0, 1 / 8)
    (by_backprop,) = torch.autograd.grad(end.square().sum() / 2, x0)
    back = steps(both, torch.stack([end, end]).detach(), -1 / 8)
    back = back.detach()
    gap = relative_error((back[1],), (by_backprop,))
    round_trip = (back[0] - x0).norm()
    if retraces:
        assert max(gap, round_trip) < 1e-13
    else:
        assert min(gap, round_trip) > 1e-7
