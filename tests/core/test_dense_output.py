"""Solutions at any time, and steps that end where the field jumps."""

import math

import pytest
import torch
from fields import Tanh, gradients, largest_difference, randn
from loops import loop

from companion import Stats, counting, odeint
from companion.gradients import Adjoint
from companion.methods import ADAPTIVE
from companion.observe import fit_slope

F64 = torch.float64


def one(*values):
    return torch.tensor(values or (1.0,), dtype=F64)


def decay(t, y):
    return -y


# --- dense output ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ADAPTIVE)
@loop("back", [False, True])
def test_a_solution_is_known_at_any_time(method, back):
    t = [2.0, 0.5, 0.0] if back else [0.0, 0.5, 2.0]
    field, y0 = Tanh("cpu"), randn(2, 3, device="cpu")
    options = {"method": method, "rtol": 1e-8, "atol": 1e-9}
    solution = odeint(field, y0, t, dense=True, **options)
    ys = odeint(field, y0, t, **options)
    assert torch.equal(solution.ys, ys)
    assert (solution.t, solution.status, solution.event_t) == (t, "end", None)
    for i in range(3):
        assert torch.equal(solution(t[i]), ys[i])
    many = torch.linspace(0, 2, 33, dtype=F64)
    shuffled = many[torch.randperm(33, generator=torch.Generator().manual_seed(0))]
    found = solution(shuffled)
    assert found.shape == (33, 2, 3)
    dense = many.flip(0) if back else many
    expected = dict(zip(dense.tolist(), odeint(field, y0, dense, **options), strict=True))
    for t, y in zip(shuffled.tolist(), found, strict=True):
        torch.testing.assert_close(y, expected[t], rtol=1e-12, atol=1e-12)
        assert torch.equal(solution([t])[0], solution(torch.tensor(t, dtype=F64)))


def test_a_solution_counts_its_own_work_and_that_of_whoever_counts_around_it():
    with counting() as stats:
        odeint(decay, one(), [0.0, 1.0])
        first = Stats(**vars(stats))
        solution = odeint(decay, one(), [0.0, 1.0], dense=True)
    assert solution.stats == first
    assert (stats.nfe, stats.steps) == (2 * first.nfe, 2 * first.steps)


def test_a_solution_of_a_tuple():
    y0 = (one(1.0, 2.0), torch.zeros((), dtype=F64))
    solution = odeint(lambda t, y: (-y[0], y[0].sum()), y0, [0.0, 1.0], dense=True)
    u, v = solution(0.5)
    torch.testing.assert_close(u, y0[0] * math.exp(-0.5), rtol=1e-7, atol=0)
    assert v.item() == pytest.approx(3 * (1 - math.exp(-0.5)), rel=1e-7)
    assert [part.shape for part in solution([0.1, 0.2, 0.3])] == [(3, 2), (3,)]
    assert [part.shape for part in solution.ys] == [(2, 2), (2,)]


def test_a_solution_is_differentiable_inside_steps():
    w, y0 = one(0.7).requires_grad_(), one(2.0).requires_grad_()
    solution = odeint(lambda t, y: -w * y, y0, [0.0, 1.0], dense=True, rtol=1e-9, atol=1e-10)
    for t in (0.123, 0.5, 0.987):
        grad_w, grad_y = torch.autograd.grad(solution(t).sum(), [w, y0], retain_graph=True)
        assert grad_w.item() == pytest.approx(-2 * t * math.exp(-0.7 * t), abs=2e-8)
        assert grad_y.item() == pytest.approx(math.exp(-0.7 * t), abs=2e-8)


def test_what_a_solution_refuses():
    solution = odeint(decay, one(), [0.0, 1.0], dense=True)
    for t in (-1e-9, 1.1, [0.5, 2.0], torch.tensor([0.5, math.nan])):
        with pytest.raises(ValueError, match=r"t: .* is not allowed; the solution is known from 0"):
            solution(t)
    with pytest.raises(ValueError, match="t: a solution is not differentiated by the times"):
        solution(torch.tensor(0.5, requires_grad=True))
    y0, t = one().requires_grad_(), one(0.0, 1.0)
    for gradient in ("checkpoint", "adjoint"):
        with pytest.raises(ValueError, match=f"'{gradient}' .*'backprop' with dense=True"):
            odeint(decay, y0, t, dense=True, gradient=gradient)
        odeint(decay, one(), t, dense=True, gradient=gradient)
    for method in ("rk4", "implicit_adams", "scipy_solver", "async_leapfrog"):
        with pytest.raises(ValueError, match=f"dense: True .* method='{method}'.*dopri5"):
            odeint(decay, one(), t, method=method, dense=True)
    with pytest.raises(ValueError, match="dense: 2 is not allowed"):
        odeint(decay, one(), t, dense=2)
    for bad in ([0.0], t.clone().requires_grad_()):
        with pytest.raises(ValueError, match=r"t: .* with dense= it must be two or more times"):
            odeint(decay, one(), bad, dense=True)


# --- knots ----------------------------------------------------------------------------------------

JUMPS = (0.3, 0.7)


def jumping(t, y):
    """Grows, decays and grows again: y(1) = exp(0.3 - 0.8 + 0.9)."""
    return torch.where(t < 0.3, 1.0, torch.where(t < 0.7, -2.0, 3.0)) * y * (1 + t - t)


EXACT = math.exp(0.3 - 0.8 + 0.9)


@pytest.mark.parametrize("method", ADAPTIVE)
@loop("gradient", ["backprop", "checkpoint", "adjoint"])
@loop("back", [False, True])
def test_steps_end_at_knots(method, gradient, back):
    """Fewer evaluations for a smaller error, both ways, and none on the wrong side."""
    t = [1.0, 0.0] if back else [0.0, 1.0]
    exact = 1 / EXACT if back else EXACT
    results = {}
    for knots in ((), JUMPS, (*JUMPS[::-1], 5.0, 0.0, 1.0)):
        y0, w = one().requires_grad_(), one(1.0).requires_grad_()
        with counting() as stats:
            ys = odeint(lambda t, y: w * jumping(t, y), y0, t, method=method, rtol=1e-7, atol=1e-9,  # noqa: B023
                        knots=knots, gradient=gradient, params=(w,))  # fmt: skip
        grads = torch.autograd.grad(ys[-1].sum(), [y0, w])
        errors = [ys[-1].item() / exact - 1, grads[0].item() / exact - 1,
                  grads[1].item() / (exact * math.log(exact)) - 1]  # fmt: skip
        results[knots] = (max(map(abs, errors)), stats.nfe, stats.rejected)
    without, inside, all_ = results.values()
    assert inside[0] < 5e-6
    assert all_[0] < 5e-6
    assert inside[1] < without[1] / 1.25
    assert inside[2] <= 2 < without[2]


@loop("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_field_is_asked_on_the_side_of_the_step(dtype):
    """Never at a knot itself, in the precision in which the field sees the time."""
    seen = []

    def field(t, y):
        seen.append(t.clone())
        return torch.where(t < 0.3, 1.0, 2.0).to(y.dtype) + 0 * y

    for t, exact in (([0.0, 1.0], 1.7), ([1.0, 0.0], -1.7), ([0.3, 1.0], 1.4), ([0.0, 0.3], 0.3)):
        seen.clear()
        y0 = torch.zeros(1, dtype=dtype)
        ys = odeint(field, y0, t, knots=[0.3], rtol=1e-3, atol=1e-3)
        assert ys[-1].item() == pytest.approx(exact, rel=torch.finfo(dtype).eps * 4)
        knot = torch.tensor(0.3, dtype=dtype)
        assert not any(x == knot for x in seen)
        assert min(t) <= min(x.item() for x in seen)
        assert max(x.item() for x in seen) <= max(t) * (1 + torch.finfo(dtype).eps)


def test_the_order_is_kept_across_a_jump():
    """Work against error over five decades: with the knot as without a jump."""

    def field(t, y):
        return torch.where(t < 1 / 3, torch.cos(5 * t), -2 * torch.sin(3 * t)) * y

    exact = math.exp(math.sin(5 / 3) / 5 + 2 * (math.cos(3) - math.cos(1)) / 3)
    found = {}
    for knots in ((), (1 / 3,)):
        work, errors = [], []
        for k in range(4, 10):
            with counting() as stats:
                y = odeint(field, one(), [0.0, 1.0], rtol=10.0**-k, atol=10.0**-k, knots=knots)[-1]
            work.append(stats.nfe)
            errors.append(abs(y.item() - exact))
        found[knots] = work, errors
    work, errors = found[1 / 3,]
    assert fit_slope(work, errors).value < -4.5
    assert work[-1] < found[()][0][-1] / 2


def test_many_outputs_around_knots():
    """Outputs at the knots and beside them; the gradients of the three methods agree."""
    t = [0.0, 0.1, 0.3, 0.31, 0.69, 0.7, 1.0]
    found = []
    for gradient in ("backprop", "checkpoint", "adjoint"):
        field, y0 = Tanh("cpu"), randn(3, device="cpu").requires_grad_()
        ys = odeint(lambda t, y: field(t, y) * torch.where(t < 0.3, 1.0, -1.0), y0, t,  # noqa: B023
                    knots=JUMPS, gradient=gradient, params=tuple(field.parameters()), rtol=1e-8,
                    atol=1e-9)  # fmt: skip
        weights = randn(*ys.shape, device="cpu", seed=3)
        found.append(gradients((ys * weights).sum(), [y0, *field.parameters()]))
    assert largest_difference(found[0], found[1]) < 1e-12
    assert largest_difference(found[0], found[2]) < 1e-5


def test_what_knots_refuse():
    for method in ("rk4", "explicit_adams", "scipy_solver"):
        with pytest.raises(ValueError, match=r"knots: \(0.5,\) is not allowed; .*put them into t"):
            odeint(decay, one(), [0.0, 1.0], method=method, knots=[0.5])
    with pytest.raises(ValueError, match=r"knots: \[nan\] is not allowed"):
        odeint(decay, one(), [0.0, 1.0], knots=[math.nan])
    for bad in (0.5, ["a"], None):
        with pytest.raises(
            TypeError, match=r"knots: .* is not allowed; pass a sequence of numbers"
        ):
            odeint(decay, one(), [0.0, 1.0], knots=bad)
    y0 = one().requires_grad_()
    for backward in ("rk4", "implicit_adams", "scipy_solver"):
        with pytest.raises(ValueError, match=f"Adjoint\\(method='{backward}'\\) would step across"):
            odeint(decay, y0, [0.0, 1.0], knots=[0.5], gradient=Adjoint(method=backward))
    ys = odeint(decay, y0, [0.0, 1.0], knots=[0.5], gradient=Adjoint(method="tsit5"))
    ys[-1].sum().backward()
    assert y0.grad.item() == pytest.approx(1 / math.e, abs=1e-6)


def test_times_of_every_kind():
    solution = odeint(lambda t, y: -y, torch.ones(3), [0.0, 0.1], dense=True)
    assert solution(torch.empty(0)).shape == solution([]).shape == (0, 3)
    end = solution(0.1)
    # 0.1 in single precision lies beyond 0.1.
    assert torch.equal(solution(torch.tensor([0.1])), end.unsqueeze(0))
    assert torch.equal(solution(torch.tensor(0.1)), end)
    for t in (torch.rand(2, 3) / 20, None, "a", [None]):
        with pytest.raises(TypeError, match=r"is not allowed; pass a number, or a 1-D tensor"):
            solution(t)
    for t in (0.1 + 1e-12, torch.tensor(0.1 + 1e-6), math.nan, torch.tensor(0.1).double() + 1e-8):
        with pytest.raises(ValueError, match=r"not allowed; the solution is known from 0\.0 to"):
            solution(t)
