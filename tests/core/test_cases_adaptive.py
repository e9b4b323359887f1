"""Small inputs on which solvers of this field have failed, and what is right."""

import math

import numpy as np
import pytest
import torch
from fields import knobs
from loops import loop
from scipy.integrate import solve_ivp
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from companion import OdeBlock, PiecewiseConstant, counting, odeint
from companion.adams import MULTISTEP
from companion.methods import ADAPTIVE, METHODS

F64 = torch.float64
CONTROLLED = [*ADAPTIVE, "scipy_solver"]


def one(*values, dtype=F64):
    return torch.tensor(values or (1.0,), dtype=dtype)


# --- domains --------------------------------------------------------------------------------------


@loop("method", ADAPTIVE)
@loop("tolerance", [1e-3, 1e-7])
def test_fields_that_end_where_the_interval_does(method, tolerance):
    """sqrt(1 - t) on [0, 1] is 2/3; no field may be asked beyond, in either direction."""
    for field, t, exact in [
        (lambda t, y: torch.sqrt(1 - t).expand_as(y), [0.0, 1.0], 2 / 3),
        (lambda t, y: torch.sqrt(t).expand_as(y), [1.0, 0.0], -2 / 3),
        (lambda t, y: torch.log(1 + 1e-9 - t).expand_as(y), [0.0, 1.0], -1.0),
        (lambda t, y: (1 - t).pow(1.5).expand_as(y), [0.0, 0.25, 1.0], 0.4),
    ]:
        y = odeint(field, one(0.0), t, method=method, rtol=tolerance, atol=tolerance)[-1]
        assert y.item() == pytest.approx(exact, abs=20 * tolerance)


def test_the_first_size_stays_inside():
    """bosh3 at 1e-3 asked a field at t = 4.85 of [0, 1]."""
    for method in ADAPTIVE:
        for scale in (1e-12, 1.0, 1e6):
            times = []

            def field(t, y, times=times, scale=scale):
                times.append(t.item())
                return y * 1e-3 / scale

            odeint(field, one(), [0.0, scale], method=method, rtol=1e-3, atol=1e-3)
            assert max(times) == scale
            assert min(times) == 0.0


def test_nan_in_a_trial_step_is_no_end():
    y = odeint(lambda t, y: -y.sqrt(), one(), [0.0, 1.9], rtol=1e-3, atol=1e-3)[-1]
    assert y.item() == pytest.approx(0.0025, abs=1e-3)


# --- what an error is -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ADAPTIVE)
def test_a_large_part_does_not_drown_a_small_one(method):
    """One root mean square over 300,000 zeros and an oscillator left an error of 0.53."""
    y0 = (torch.zeros(300_000), torch.tensor([1.0, 0.0]))

    def field(t, y):
        return torch.zeros_like(y[0]), torch.stack([y[1][1], -y[1][0]])

    _, oscillator = odeint(field, y0, [0.0, 10.0], method=method, rtol=1e-4, atol=1e-4)
    alone = odeint(lambda t, y: torch.stack([y[1], -y[0]]), y0[1], [0.0, 10.0], method=method,
                   rtol=1e-4, atol=1e-4)  # fmt: skip
    torch.testing.assert_close(oscillator, alone)
    assert oscillator[-1, 0].item() == pytest.approx(math.cos(10), abs=3e-3)


# --- dtypes and devices ---------------------------------------------------------------------------

HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("method", METHODS)
@loop("dtype", HALVES)
def test_half_precision_states_decay(method, dtype):
    """bfloat16 lost every increment: 0.996 with the defaults, 1.0 after 1,024 Euler steps."""
    options = knobs(method, steps=1024 if method == "euler" else 100)
    gradient = "adjoint" if method == "scipy_solver" else "backprop"
    y0 = one(1.0, 2.0, dtype=dtype).requires_grad_()
    ys = odeint(lambda t, y: -y, y0, [0.0, 0.5, 1.0], method=method, gradient=gradient, **options)
    assert ys.dtype == dtype
    near = 0.02 if dtype == torch.bfloat16 else 0.003
    expected = torch.outer(torch.tensor([0.0, -0.5, -1.0]).exp(), torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(ys.float(), expected, rtol=near, atol=0)
    ys[-1].sum().backward()
    assert y0.grad.dtype == dtype
    torch.testing.assert_close(y0.grad.float(), torch.full((2,), 1 / math.e), rtol=near, atol=0)


@loop("gradient", ["backprop", "checkpoint", "adjoint", "reconstruct", "reversible"])
@loop("dtype", HALVES)
def test_half_precision_blocks_and_tuples(gradient, dtype):
    """A block's weights have the state's dtype, and so have their gradients."""
    method = "async_leapfrog" if gradient == "reversible" else "euler"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.Linear(4, 4)
    x, outputs = torch.linspace(-1, 1, 8).view(2, 4), []
    for kind in (torch.float32, dtype):
        block = OdeBlock(layer, PiecewiseConstant(4), method, 256, gradient).to(kind)
        y = block(x.to(kind))
        y.sum().backward()
        grads = [p.grad for p in block.parameters()]
        assert {y.dtype, *(g.dtype for g in grads)} == {kind}
        outputs.append([y, block.states(x.to(kind))[-1], *grads])
    for one_, other in zip(*outputs, strict=True):
        torch.testing.assert_close(one_, other.float(), rtol=0.05, atol=0.05)

    def pair(t, y):
        assert t.dtype == y[0].dtype == y[1].dtype == dtype
        return -y[0], y[0].sum()

    y0 = (torch.ones(2, dtype=dtype), torch.zeros((), dtype=dtype))
    u, v = odeint(pair, y0, [0.0, 1.0])
    assert u.dtype == v.dtype == dtype
    assert v[-1].item() == pytest.approx(2 - 2 / math.e, rel=0.02)


class NoFloat64(TorchDispatchMode):
    """A device without double precision: no operation may make such a tensor."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        assert all(x.dtype not in (F64, torch.complex128) for x in made), func
        return result


REFUSED = {
    *((method, "checkpoint") for method in (*MULTISTEP, "scipy_solver", "async_leapfrog")),
    ("scipy_solver", "backprop"),
    ("async_leapfrog", "adjoint"),
}


@pytest.mark.parametrize("method", [m for m in METHODS if m not in MULTISTEP])
@loop("gradient", ["backprop", "checkpoint", "adjoint"])
def test_no_tensor_of_double_precision_is_made(method, gradient):
    """The Adams methods are torchdiffeq's, with tables in double precision."""
    if (method, gradient) in REFUSED:
        return
    layer = nn.Linear(3, 3)
    t = [0.0, 0.3, 1.0] if method == "scipy_solver" else torch.tensor([0.0, 0.3, 1.0])
    options = knobs(method, rtol=1e-4, atol=1e-4, steps=3)
    with NoFloat64():
        for times in (t, t if isinstance(t, list) else t.clone().requires_grad_()):
            y0 = torch.ones(2, 3, requires_grad=True)
            ys = odeint(lambda t, y: torch.tanh(layer(y)) * t, y0, times, method=method,
                        gradient=gradient, params=tuple(layer.parameters()), **options)  # fmt: skip
            ys.square().sum().backward()
        if method in ADAPTIVE:
            solution = odeint(lambda t, y: -y, torch.ones(2), [0.0, 2.0], dense=True,
                              knots=[0.5], event_fn=lambda t, y: y[0] - 0.3)  # fmt: skip
            solution(torch.linspace(0, 1, 5))
    assert solution.status == "event" if method in ADAPTIVE else True


@pytest.mark.parametrize("method", CONTROLLED)
def test_times_keep_double_precision_where_the_state_is_single(method):
    """An interval of 1e-4 at 10,000 is gone in float32."""
    t = [10_000.0, 10_000.0 + 1e-4]
    ys = odeint(lambda t, y: torch.ones_like(y), torch.zeros(1), t, method=method)
    assert ys[-1].item() == pytest.approx(1e-4, rel=1e-4)


# --- scipy ----------------------------------------------------------------------------------------


def test_scipys_lsoda_is_scipys():
    """With times in float32 it took 4,209 evaluations for an error of 2e-7."""
    y0, t = one(0.0), [0.0, 3.0]
    for tolerance in (1e-6, 1e-9):
        scipys = solve_ivp(lambda t, y: 10 * np.cos(10 * t) + 0 * y, t, [0.0], method="LSODA",
                           rtol=tolerance, atol=tolerance)  # fmt: skip
        with counting() as stats:
            ys = odeint(lambda t, y: 10 * torch.cos(10 * t) + 0 * y, y0, t, method="scipy_solver",
                        rtol=tolerance, atol=tolerance)  # fmt: skip
        assert abs(stats.nfe / scipys.nfev - 1) < 0.02
        theirs = abs(scipys.y[0, -1] - math.sin(30))
        assert abs(ys[-1].item() - math.sin(30)) < 1.1 * theirs + 1e-12


def test_a_stiff_problem_of_three_rates():
    """Robertson to t = 40."""

    def field(t, y):
        a, b = 0.04 * y[0] - 1e4 * y[1] * y[2], 3e7 * y[1] ** 2
        return torch.stack([-a, a - b, b])

    y = odeint(field, one(1.0, 0.0, 0.0), [0.0, 40.0], method="scipy_solver", rtol=1e-8,
               atol=1e-10)[-1]  # fmt: skip
    expected = one(0.7158270688, 9.185534765e-6, 0.2841637457)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=0)


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "adjoint"])
def test_a_field_that_reads_the_time_as_a_number(gradient):
    """torchdiffeq differentiates through its steps, and then the gradient is 6e-4 off at 1e-8."""
    w = one(1.3).requires_grad_()

    def field(t, y):
        return w * y * math.cos(3 * float(t))

    for method in ADAPTIVE:
        y0 = one(0.7).requires_grad_()
        ys = odeint(field, y0, [0.0, 2.0], method=method, rtol=1e-8, atol=1e-8, gradient=gradient,
                    params=(w,))  # fmt: skip
        grad_y, grad_w = torch.autograd.grad(ys[-1].sum(), [y0, w])
        s = math.sin(6) / 3
        assert grad_y.item() == pytest.approx(math.exp(1.3 * s), abs=1e-7)
        assert grad_w.item() == pytest.approx(0.7 * s * math.exp(1.3 * s), abs=1e-7)


@pytest.mark.parametrize("method", METHODS)
@loop("shape", [(0, 3), (0,), (2, 0, 3)])
def test_a_batch_without_samples_has_zero_gradients(method, shape):
    """A share of a batch may be empty: all processes must find the same parameters in the graph."""
    layer = nn.Linear(3, 3) if len(shape) > 1 else nn.Identity()
    w = nn.Parameter(torch.ones(()))
    params = (w, *layer.parameters())
    for gradient in ("backprop", "adjoint", "checkpoint"):
        if (method, gradient) in REFUSED:
            continue
        y0 = torch.zeros(shape, requires_grad=True)
        ys = odeint(lambda t, y: layer(y) * w, y0, [0.0, 0.5, 1.0], method=method,
                    gradient=gradient, params=params)  # fmt: skip
        assert ys.shape == (3, *shape)
        grads = torch.autograd.grad(ys.sum(), [y0, *params])
        assert not any(g.any() for g in grads)
    block = OdeBlock(nn.Linear(3, 3), PiecewiseConstant(2), method=method,
                     gradient="adjoint" if method == "scipy_solver" else "backprop")  # fmt: skip
    block(torch.zeros(0, 3)).sum().backward()
    assert all(not p.grad.any() for p in block.parameters())


def test_a_batch_without_samples_and_many_steps():
    y0 = torch.zeros(0, 3, requires_grad=True)
    for method in MULTISTEP:
        ys = odeint(lambda t, y: -y, y0, [0.0, 1.0, 2.0], method=method, steps=5)
        assert ys.shape == (3, 0, 3)
        assert torch.autograd.grad(ys.sum(), y0)[0].shape == (0, 3)


# --- values that are not new ----------------------------------------------------------------------


class Reusing(nn.Module):
    """y' = -y, written into a buffer that is returned again and again."""

    def __init__(self, view):
        super().__init__()
        self.register_buffer("value", torch.zeros(2, dtype=F64))
        self.view = view

    def forward(self, t, y):
        value = self.value.copy_(-y)
        return value[:] if self.view else value


@loop("method", [m for m in METHODS if m != "async_leapfrog"])
@loop("view", [False, True])
def test_a_field_that_writes_over_its_value_is_refused(method, view):
    """Its slopes would all be the last: .525 for y' = -y by dopri5 at 1, where .368 is right."""
    y0, t, steps = one(1.0, 1.0), [0.0, 1.0], knobs(method, steps=4)
    held = torch.zeros(2, dtype=F64)
    fields = (Reusing(view), lambda t, y: torch.neg(y, out=held))
    for field in fields:
        with pytest.raises(ValueError, match="func: wrote its value over the one"):
            odeint(field, y0, t, method=method, **steps)
    # A block hands out copies of buffers that change, where a graph may keep them.
    found = OdeBlock(Reusing(view), method=method, time=True, **steps)(y0)
    expected = odeint(lambda t, y: -y, y0, t, method=method, **steps)[-1]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    with torch.no_grad(), pytest.raises(ValueError, match="residual: wrote its value over the"):
        OdeBlock(Reusing(view), method=method, time=True, **steps)(y0)
    # A tensor that stays as it is may be returned again.
    ys = odeint(lambda t, y: y0, y0, t, method=method, **steps)
    torch.testing.assert_close(ys[-1], one(2.0, 2.0), rtol=1e-6, atol=0)


@loop("gradient", ["checkpoint", "adjoint", "backprop"])
def test_a_field_that_writes_over_its_value_is_refused_by_every_gradient(gradient):
    with pytest.raises(ValueError, match="wrote its value over"):
        odeint(Reusing(False), one(1.0, 1.0).requires_grad_(), [0.0, 1.0], gradient=gradient)
    with pytest.raises(ValueError, match="wrote its value over"):
        odeint(Reusing(False), one(1.0, 1.0), [0.0, 1.0], per_sample=True)


@loop("method", METHODS)
def test_a_solve_to_its_start_is_not_its_start(method):
    y0 = one()
    odeint(lambda t, y: -y, y0, [0.0], method=method).zero_()
    assert y0.item() == 1.0


def test_jump_times_have_no_gradient():
    """The derivative by a time of a jump is 4 here, and no solve gives it."""
    jump = torch.tensor([0.5], dtype=F64, requires_grad=True)

    def field(t, y):
        return torch.where(t < jump, y * 0 + 1, y * 0 - 3)

    for knots in (jump, [jump[0]], (0.2, jump[0])):
        with pytest.raises(ValueError, match="knots: times that need a gradient are not allowed"):
            odeint(field, one(), [0.0, 1.0], knots=knots)
    ys = odeint(field, one(0.0), [0.0, 1.0], knots=jump.detach())
    assert ys[-1].item() == pytest.approx(-1.0, abs=1e-9)


# --- torchdiffeq's names --------------------------------------------------------------------------


def test_torchdiffeqs_names_say_what_to_write():
    from companion import odeint_adjoint, odeint_event

    with pytest.raises(TypeError, match=r"odeint_adjoint: write odeint\(.*gradient='adjoint'"):
        odeint_adjoint(nn.Identity(), one(), [0.0, 1.0], adjoint_rtol=1e-3)
    with pytest.raises(TypeError, match=r"odeint_event: write odeint\(.*event_fn=event_fn\)"):
        odeint_event(nn.Identity(), one(), 0.0, event_fn=lambda t, y: y)
    for name, words in [("options", "steps="), ("adjoint_method", r"Adjoint\(method="),
                        ("adjoint_params", r"params=\("), ("adjoint_options", "norm="),
                        ("adjoint_atol", r"Adjoint\(atol="), ("max_num_steps", "max_steps="),
                        ("nonsense", "see its help")]:  # fmt: skip
        with pytest.raises(TypeError, match=f"^{name}: odeint has no such argument; .*{words}"):
            odeint(lambda t, y: -y, one(), [0.0, 1.0], **{name: None})


@loop("method", ADAPTIVE)
@loop("per_sample", [False, True])
def test_tolerances_below_rounding_are_not_chased(method, per_sample):
    """In single precision 1e-12 took the noise of the estimate for an error, and crawled."""
    y0, t = one(1.0, 2.0, dtype=torch.float32).unsqueeze(1), [0.0, 1.0]
    found = []
    for rtol in (1e-12, 2.0**-24):
        with counting() as stats:
            y = odeint(
                lambda t, y: -y, y0, t, method=method, rtol=rtol, atol=0, per_sample=per_sample
            )
        found.append((y, stats.nfe))
    (y, nfe), (other, count) = found
    assert torch.equal(y, other)
    assert nfe == count
    torch.testing.assert_close(y[-1], y0 * math.exp(-1), rtol=1e-5, atol=0)
