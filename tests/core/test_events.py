"""Solves that stop where a function changes its sign: where, how, and how differentiated."""

import math

import pytest
import torch
from loops import loop
from torch import nn

from companion import counting, odeint
from companion.methods import ADAPTIVE

F64 = torch.float64
G = 9.81
GRADIENTS = ["backprop", "checkpoint", "adjoint"]
TIGHT = {"rtol": 1e-9, "atol": 1e-10}


def one(*values):
    return torch.tensor(values or (1.0,), dtype=F64)


def falling(t, y):
    return torch.stack([y[1], torch.full_like(y[1], -G)])


def turning(t, y):
    return torch.stack([y[1], -y[0]])


def height(t, y):
    return y[0]


@pytest.mark.parametrize("method", ADAPTIVE)
@loop("back", [False, True])
def test_the_oscillator_crosses_zero(method, back):
    """cos t is zero at pi / 2: time and state to the tolerance, the outputs before it kept."""
    sign = -1 if back else 1
    t = [0.0, sign * 0.5, sign * 1.0, sign * 2.0, sign * 9.0]
    event_t, ys = odeint(turning, one(1.0, 0.0), t, method=method, event_fn=height, **TIGHT)
    assert event_t.shape == ()
    assert event_t.dtype == F64
    assert event_t.item() == pytest.approx(sign * math.pi / 2, abs=2e-8)
    assert ys.shape == (4, 2)
    torch.testing.assert_close(ys[-1], one(0.0, -sign), rtol=0, atol=2e-8)
    plain = odeint(turning, one(1.0, 0.0), t[:3], method=method, **TIGHT)
    torch.testing.assert_close(ys[:3], plain, rtol=0, atol=2e-8)


def test_it_is_found_to_rounding_on_the_solution():
    """The state at the event makes the function zero, whatever the tolerance of the solve."""
    for tolerance in (1e-2, 1e-6):
        _, ys = odeint(turning, one(1.0, 0.0), [0.0, 9.0], rtol=tolerance, atol=tolerance,
                       event_fn=height)  # fmt: skip
        assert abs(ys[-1, 0].item()) < 1e-14


def test_nothing_happens():
    t = [0.0, 1.0, 1.5]
    event_t, ys = odeint(turning, one(1.0, 0.0), t, event_fn=lambda t, y: y[0] + 5)
    assert event_t.item() == 1.5
    assert torch.equal(ys, odeint(turning, one(1.0, 0.0), t))
    for function, status, end in ((lambda t, y: y[0] + 5, "end", 1.5),
                                  (lambda t, y: y[0] - 0.5, "event", math.pi / 3)):  # fmt: skip
        solution = odeint(turning, one(1.0, 0.0), t, event_fn=function, dense=True, **TIGHT)
        assert solution.status == status
        assert solution.event_t.item() == pytest.approx(end, abs=1e-8)
        assert torch.equal(solution(solution.t[-1]), solution.ys[-1])
        assert solution.t[-1] == solution.event_t.item()
        assert solution(end / 2)[0].item() == pytest.approx(math.cos(end / 2), abs=1e-7)
    with pytest.raises(ValueError, match=r"the solution is known from 0.0 to 1.04"):
        solution(1.2)


def test_the_first_of_several():
    """Several values, several in one step, and an event of the time alone."""
    for function, expected in [
        (lambda t, y: torch.stack([y[0] + 0.5, y[0] - 0.2, y[1] - 3]), math.acos(0.2)),
        (lambda t, y: torch.stack([1.6 - t, t - 1.2, y[0] + 9]), 1.2),
        (lambda t, y: (t - 0.61) * (t - 0.7) * (t - 0.9) + 0 * y[0], 0.61),
        (lambda t, y: ((y[0] - 0.3) * one(1.0, -1.0)).view(1, 2), math.acos(0.3)),
    ]:
        for method in ADAPTIVE:
            event_t, _ = odeint(turning, one(1.0, 0.0), [0.0, 3.0], event_fn=function,
                                method=method, **TIGHT)  # fmt: skip
            assert event_t.item() == pytest.approx(expected, abs=2e-8)
    # The field is so simple that one step covers all three.
    event_t, _ = odeint(lambda t, y: torch.zeros_like(y), one(), [0.0, 1.0],
                        event_fn=lambda t, y: (t - 0.21) * (t - 0.5) * (t - 0.9))  # fmt: skip
    assert event_t.item() == pytest.approx(0.21, abs=1e-14)


def test_a_start_at_zero_takes_the_sign_that_comes_next():
    """sin t starts at zero and returns at pi; so does what is off by rounding on either side."""
    for start in (0.0, 1e-17, -1e-17):
        event_t, _ = odeint(turning, one(start, 1.0), [0.0, 5.0], event_fn=height, **TIGHT)
        assert event_t.item() == pytest.approx(math.pi, abs=2e-8)
    event_t, _ = odeint(turning, one(-1e-3, 1.0), [0.0, 5.0], event_fn=height, **TIGHT)
    assert event_t.item() == pytest.approx(1e-3, abs=1e-8)


def test_a_ball_that_bounces():
    """Five bounces, each from the state that the event left: every flight takes 0.8 of the last."""
    t, y, times = 0.0, one(1.0, 0.0), []
    for _ in range(5):
        event_t, ys = odeint(falling, y, [t, t + 10], event_fn=height, **TIGHT)
        t, y = event_t.item(), ys[-1] * one(1.0, -0.8)
        times.append(t)
    first = math.sqrt(2 / G)
    gaps = [2 * first * 0.8**k for k in range(1, 5)]
    expected = [first + sum(gaps[:k]) for k in range(5)]
    assert times == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_time_and_state_of_an_event_are_differentiable(gradient):
    """A fall from h with g: t = sqrt(2 h / g), v = -sqrt(2 g h)."""
    for back in (False, True):
        sign = -1 if back else 1
        h, g = one(3.0).requires_grad_(), one(G).requires_grad_()
        y0 = torch.cat([h, torch.zeros(1, dtype=F64)])
        event_t, ys = odeint(
            lambda t, y: torch.cat([y[1:], -g]), y0, [0.0, sign * 5.0], gradient=gradient,  # noqa: B023
            event_fn=height, params=(g,), **TIGHT,
        )  # fmt: skip
        time, speed = sign * math.sqrt(6 / G), -sign * math.sqrt(6 * G)
        assert event_t.item() == pytest.approx(time, abs=1e-9)
        found = [*torch.autograd.grad(event_t, [h, g], retain_graph=True),
                 *torch.autograd.grad(ys[-1, 1], [h, g], retain_graph=True)]  # fmt: skip
        expected = [time / 6, -time / (2 * G), speed / 6, speed / (2 * G)]
        assert [x.item() for x in found] == pytest.approx(expected, abs=1e-8)
        # On the ground the height stays zero, whatever moves.
        assert max(x.abs().item() for x in torch.autograd.grad(ys[-1, 0], [h, g])) < 1e-8


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_gradients_of_a_nonlinear_event_against_finite_differences(gradient):
    """Parameters of the field and of the event, an event that depends on the time, an output."""

    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(one(1.1, 0.3))

        def forward(self, t, y):
            return torch.stack(
                [y[1], -self.w[0] * torch.sin(y[0]) - self.w[1] * y[1] * torch.cos(t)]
            )

    field, level = Field(), one(-0.2)

    def loss(y0, w, level):
        with torch.no_grad():
            field.w.copy_(w)
        event_t, ys = odeint(field, y0, [0.0, 0.4, 9.0], gradient=gradient, rtol=1e-10, atol=1e-11,
                             event_fn=lambda t, y: y[0] - level[0] * (1 + t))  # fmt: skip
        return event_t * 2 + ys[-1].square().sum() + 3 * ys[-1, 1] + ys[1, 0]

    inputs = [one(1.0, 0.1).requires_grad_(), field.w, level.requires_grad_()]
    found = torch.autograd.grad(loss(inputs[0], one(1.1, 0.3), level), inputs)
    points = [one(1.0, 0.1), one(1.1, 0.3), one(-0.2)]
    with torch.no_grad():
        for i, grad in enumerate(found):
            for k in range(len(grad)):
                ends = []
                for sign in (1, -1):
                    moved = [p.clone() for p in points]
                    moved[i][k] += sign * 1e-5
                    ends.append(loss(*moved).item())
                assert grad[k].item() == pytest.approx(
                    (ends[0] - ends[1]) / 2e-5, rel=2e-6, abs=2e-6
                )


def test_events_of_tuples_and_dtypes():
    def field(t, y):
        return y[1], -y[0]

    for dtype, near in ((torch.float32, 1e-5), (torch.bfloat16, 0.03)):

        def event(t, y, dtype=dtype):
            assert t.dtype == y[0].dtype == dtype
            assert y[0].shape == (2, 1)
            return y[0].mean()

        y0 = (torch.ones(2, 1, dtype=dtype), torch.zeros(2, 1, dtype=dtype))
        event_t, (u, v) = odeint(field, y0, [0.0, 9.0], event_fn=event, rtol=1e-6, atol=1e-6)
        assert event_t.dtype == u.dtype == v.dtype == dtype
        assert event_t.item() == pytest.approx(math.pi / 2, abs=near)
        assert u.shape == (2, 2, 1)


@loop("gradient", GRADIENTS)
def test_counts_and_knots(gradient):
    """One solve for backprop and without gradients; the others solve once more."""
    for y0, solves in ((one(1.0, 0.0), 1), (one(1.0, 0.0).requires_grad_(), 2)):
        with counting() as plain:
            odeint(turning, y0.detach(), [0.0, 9.0], event_fn=height)
        with counting() as stats:
            odeint(turning, y0, [0.0, 9.0], event_fn=height, gradient=gradient)
        times = 1 if gradient == "backprop" else solves
        assert stats.nfe == pytest.approx(plain.nfe * times, rel=0.1)  # one step is cut short
    w = one(1.0).requires_grad_()
    event_t, _ = odeint(lambda t, y: torch.where(t < 1, w, 3 * w), one(0.0), [0.0, 9.0],
                        knots=[1.0], event_fn=lambda t, y: y - 4, gradient=gradient,
                        params=(w,))  # fmt: skip
    assert event_t.item() == pytest.approx(2.0, abs=1e-12)
    # w + 3 w (t - 1) = 4
    assert torch.autograd.grad(event_t, w)[0].item() == pytest.approx(-4 / 3, abs=1e-9)


@loop("function", [lambda t, y: y.sum() - 0.5, lambda t, y: y.sum() - 0.5 * t])
def test_an_event_has_first_derivatives_only(function):
    """y' = -y^2 reaches 1/2 at 2 - 1/y0: T' = 1/y0^2 is there, T'' = -2/y0^3 is refused."""

    def found(y0):
        return odeint(lambda t, y: -(y**2), y0, [0.0, 5.0], event_fn=function)

    y0 = torch.tensor([1.3], dtype=torch.float64)
    for which in (lambda y: found(y)[0], lambda y: found(y)[1][-1].sum()):
        torch.autograd.functional.jacobian(which, y0)
        with pytest.raises(ValueError, match=r"event_fn: .* have first derivatives only"):
            torch.autograd.functional.hessian(which, y0)
    slope = torch.autograd.functional.jacobian(lambda y: found(y)[1][:-1].sum(), y0)
    assert slope.item() == 1.0  # the start does not move with the event


def test_what_events_refuse():
    def solve(event_fn, t=(0.0, 1.0), **options):
        return odeint(turning, one(1.0, 0.0), t, event_fn=event_fn, **options)

    for bad in (3, "y"):
        with pytest.raises(TypeError, match=r"event_fn: .* is not allowed; it must be callable"):
            solve(bad)
    for value, found in ((1.0, "float"), (True, "bool"), (torch.tensor(True), "torch.bool")):
        with pytest.raises(TypeError, match=f"event_fn: returned {found}; it must return"):
            solve(lambda t, y, value=value: value)
    with pytest.raises(ValueError, match="event_fn: returned no number"):
        solve(lambda t, y: y[:0])
    with pytest.raises(ValueError, match="event_fn: returned nan at t = 0"):
        solve(lambda t, y: y[1].log() * 0 + y[1].sqrt() * math.nan)
    for method in ("rk4", "implicit_adams", "scipy_solver"):
        with pytest.raises(ValueError, match=rf"event_fn: .* is not allowed; method='{method}'"):
            solve(lambda t, y: y[0], method=method)
    for t in ([0.0], one(0.0, 1.0).requires_grad_()):
        with pytest.raises(ValueError, match=r"t: .* with event_fn= it must be two or more"):
            solve(lambda t, y: y[0], t=t)
