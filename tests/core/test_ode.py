"""``odeint``: states, times, dtypes, counts and derivatives with respect to the times."""

import math

import numpy as np
import pytest
import torch
from fields import Tanh, gradients, knobs, randn
from loops import loop

from companion import Stats, counting, odeint
from companion.methods import ADAPTIVE, METHODS
from companion.schemes import SCHEMES

FIXED = pytest.mark.parametrize("method", list(SCHEMES))
SOLVES = {"rk4": {"method": "rk4", "steps": 40}, "dopri5": {"method": "dopri5"}}


@pytest.mark.parametrize("solve", list(SOLVES))
@loop("shape", [(), (1,), (3,), (2, 3), (4, 1, 2)])
def test_outputs_are_stacked_over_time(solve, shape, device, dtype):
    y0 = randn(*shape, device=device)
    t = [0.0, 0.5, 2.0]
    ys = odeint(lambda t, y: -y, y0, t, **SOLVES[solve])
    assert ys.shape == (3, *shape)
    assert torch.equal(ys[0], y0)
    decay = torch.tensor(t, device=device, dtype=dtype).neg().exp()
    torch.testing.assert_close(ys, torch.stack([y0 * d for d in decay]), rtol=1e-6, atol=1e-7)


def test_an_empty_batch_passes_through(device):
    y0 = torch.zeros(0, 3, device=device)
    assert odeint(lambda t, y: -y, y0, [0.0, 1.0], method="rk4").shape == (2, 0, 3)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "explicit_adams"])
@loop("low", [torch.float32, torch.float64])
def test_the_field_gets_time_and_state_in_the_states_dtype_and_device(method, low, device):
    """Also where ``t`` itself has another dtype."""

    def func(t, y):
        assert t.shape == ()
        assert t.dtype == y.dtype == low
        assert t.device == y.device == y0.device
        assert y.shape == (2, 3)
        return -y * t

    y0 = torch.ones(2, 3, device=device, dtype=low)
    for t in ([0, 1], [0.0, 1.0], torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]).double()):
        ys = odeint(func, y0, t, method=method, **knobs(method, steps=10, rtol=1e-4, atol=1e-4))
        assert ys.dtype == low
        assert ys.device == y0.device
        assert ys[-1].mean().item() == pytest.approx(math.exp(-0.5), abs=0.05)


@pytest.mark.parametrize(
    "make", [list, tuple, np.array, torch.tensor, lambda t: torch.tensor(t, dtype=torch.float32)],
    ids=["list", "tuple", "array", "tensor", "float32 tensor"],
)  # fmt: skip
def test_times_may_come_as_any_sequence_of_numbers(make, device, dtype):
    y0 = randn(3, device=device)
    expected = odeint(Tanh(device), y0, [0.0, 0.25, 1.0], method="rk4")
    assert torch.equal(odeint(Tanh(device), y0, make([0.0, 0.25, 1.0]), method="rk4"), expected)


def test_small_steps_far_from_zero_keep_their_size_in_float32(device):
    """Times are Python floats inside: in float32, 10000 + 1e-4 is 10000."""
    y0 = torch.zeros(1, device=device, dtype=torch.float32)
    t = [10_000.0, 10_000.0 + 1e-4]
    ys = odeint(lambda t, y: torch.ones_like(y), y0, t, method="rk4", steps=4)
    assert ys[-1].item() == pytest.approx(1e-4, rel=1e-5)


@FIXED
def test_steps_are_equal_steps_between_consecutive_outputs(method, device, dtype):
    """Solving over all outputs is solving interval by interval, bit for bit."""
    field, y = Tanh(device), randn(3, device=device)
    t = [0.0, 0.5, 2.0, 1e3 / 256]
    ys = odeint(field, y, t, method=method, steps=3)
    for i in range(3):
        y = odeint(field, y, t[i : i + 2], method=method, steps=3)[-1]
        assert torch.equal(ys[i + 1], y)


@FIXED
def test_more_steps_is_a_denser_output(method, device, dtype):
    field, y0 = Tanh(device), randn(3, device=device)
    dense = odeint(field, y0, [0.0, 0.25, 0.5, 0.75, 1.0], method=method)
    assert torch.equal(odeint(field, y0, [0.0, 1.0], method=method, steps=4)[-1], dense[-1])


@FIXED
def test_backward_time_is_the_mirrored_problem(method, device, dtype):
    """y(t) on [1, 0] is z(s) = y(1 - s) with dz/ds = -f(1 - s, z) on [0, 1]."""
    field, y0 = Tanh(device), randn(3, device=device)
    back = odeint(field, y0, [1.0, 0.25, 0.0], method=method, steps=4)
    mirrored = odeint(lambda s, z: -field(1 - s, z), y0, [0.0, 0.75, 1.0], method=method, steps=4)
    torch.testing.assert_close(back, mirrored, rtol=1e-14, atol=1e-14)


def test_the_default_is_dopri5_at_its_tolerances(device, dtype):
    field, y0 = Tanh(device), randn(3, device=device)
    expected = odeint(field, y0, [0.0, 2.0], method="dopri5", rtol=1e-7, atol=1e-9)
    assert torch.equal(odeint(field, y0, [0.0, 2.0]), expected)


@pytest.mark.parametrize("solve", list(SOLVES))
def test_a_tuple_is_solved_like_the_parts_in_one_vector(solve, device, dtype):
    a, b = randn(2, 3, device=device), randn(4, device=device, seed=2)

    def parts(t, y):
        assert isinstance(y, tuple)
        u, v = y
        return torch.sin(t) * u * v.sum(), -v + u.sum()

    def joined(t, y):
        u, v = parts(t, (y[:6].reshape(2, 3), y[6:]))
        return torch.cat([u.reshape(-1), v])

    us, vs = odeint(parts, (a, b), [0.0, 0.5, 1.0], **SOLVES[solve])
    ys = odeint(joined, torch.cat([a.reshape(-1), b]), [0.0, 0.5, 1.0], **SOLVES[solve])
    assert us.shape == (3, 2, 3)
    assert vs.shape == (3, 4)
    found = torch.cat([us.flatten(1), vs], 1)
    if solve == "rk4":
        assert torch.equal(found, ys)
    # The errors of parts are measured apart: the steps are others.
    torch.testing.assert_close(found, ys, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "adjoint"])
def test_gradients_reach_every_part_of_a_tuple(gradient, device, dtype):
    """The scalar part is integrated beside the state, as a density is."""
    a = randn(2, 3, device=device).requires_grad_()
    b = torch.zeros((), device=device, dtype=dtype, requires_grad=True)
    us, vs = odeint(
        lambda t, y: (-y[0], y[0].square().sum()), (a, b), [0.0, 1.0], method="rk4", steps=40,
        gradient=gradient,
    )  # fmt: skip
    grad_a, grad_b = gradients(us[-1].sum() + 3 * vs[-1], [a, b])
    # u(1) = a / e; v(1) = b + sum a^2 (1 - e^-2) / 2
    expected = math.exp(-1) + 3 * a.detach() * (1 - math.exp(-2))
    torch.testing.assert_close(grad_a, expected, rtol=1e-7, atol=1e-7)
    assert grad_b.item() == 3.0


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "bosh3", "rk4", "implicit_adams"])
def test_tight_solves_agree_with_the_matrix_exponential(method, device, dtype):
    a = randn(4, 4, device=device) / 2
    y0 = randn(4, device=device, seed=2)
    t = [0.0, 0.7, 1.5]
    tight = {"rtol": 1e-10, "atol": 1e-12, "steps": 300}
    ys = odeint(lambda t, y: a @ y, y0, t, method=method, **knobs(method, **tight))
    expected = torch.stack([torch.matrix_exp(a * x) @ y0 for x in t])
    torch.testing.assert_close(ys, expected, rtol=0, atol=1e-8)


# --- counts ---------------------------------------------------------------------------------------


@FIXED
@loop("gradient", ["backprop", "checkpoint", "adjoint"])
def test_counts_of_fixed_steps(method, gradient, device, dtype):
    """Stages x steps x intervals; backprop evaluates nothing again, the others all of it."""
    y0 = randn(3, device=device).requires_grad_()
    with counting() as stats:
        ys = odeint(Tanh(device), y0, [0.0, 0.5, 2.0], method=method, steps=5, gradient=gradient)
    evaluations = SCHEMES[method].stages * 5 * 2
    assert stats == Stats(nfe=evaluations, steps=10)
    ys.sum().backward()
    again = 0 if gradient == "backprop" else evaluations
    assert stats == Stats(nfe=evaluations, nfe_backward=again, steps=10)


def test_counts_add_up_over_solves(device, dtype):
    stats = Stats()
    for _ in range(2):
        with counting(stats):
            odeint(lambda t, y: -y, randn(3, device=device), [0.0, 1.0], method="heun")
    odeint(lambda t, y: -y, randn(3, device=device), [0.0, 1.0], method="heun")  # outside
    assert stats == Stats(nfe=4, steps=2)


@pytest.mark.filterwarnings("ignore:Functional iteration did not converge")
@pytest.mark.parametrize("method", [*ADAPTIVE, "implicit_adams", "scipy_solver"])
def test_counts_are_the_calls_of_the_field(method, device, dtype):
    calls = []

    def func(t, y):
        calls.append(torch.is_grad_enabled())
        return -y * torch.cos(5 * t)

    y0 = randn(3, device=device).requires_grad_()
    options = knobs(method, steps=5, rtol=1e-4, atol=1e-4)
    with counting() as stats:
        ys = odeint(func, y0, [0.0, 0.5, 2.0], method=method, gradient="adjoint", **options)
    assert stats.nfe == len(calls) > 10
    ys.sum().backward()
    assert stats.nfe + stats.nfe_backward == len(calls)


# --- times ----------------------------------------------------------------------------------------

TIMED = {
    "rk4": {"method": "rk4", "steps": 60},
    "dopri5": {"rtol": 1e-11, "atol": 1e-12},
    "bosh3": {"method": "bosh3", "rtol": 1e-8, "atol": 1e-9},
    "implicit_adams": {"method": "implicit_adams", "steps": 60, "rtol": 1e-11, "atol": 1e-12},
}


@pytest.mark.parametrize("solve", list(TIMED))
@loop("gradient", ["backprop", "checkpoint", "adjoint"])
@loop("back", [False, True])
def test_gradients_of_first_interior_and_last_time(solve, gradient, back, device, dtype):
    """Against the closed form of y' = 2 t y: y_i = y0 exp(t_i^2 - t_0^2), a loss on all outputs."""
    if gradient == "checkpoint" and solve == "implicit_adams":
        return  # refused
    values = [0.2, 0.5, 0.9, 1.1]
    values = values[::-1] if back else values
    t = torch.tensor(values, device=device, dtype=dtype, requires_grad=True)
    y0 = torch.tensor([0.5, -1.0], device=device, dtype=dtype, requires_grad=True)
    weights = randn(4, 2, device=device)
    ys = odeint(lambda t, y: 2 * t * y, y0, t, gradient=gradient, **TIMED[solve])
    found = gradients((ys * weights).sum(), [y0, t])
    flow = (t.square() - t[0].square()).exp()
    expected = gradients((flow[:, None] * y0 * weights).sum(), [y0, t])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("solve", ["rk4", "dopri5"])
def test_a_loss_on_the_first_output_alone_leaves_the_times_alone(solve, device, dtype):
    for gradient in ("backprop", "adjoint"):
        t = torch.tensor([0.0, 1.0], device=device, dtype=dtype, requires_grad=True)
        y0 = torch.ones(2, device=device, dtype=dtype, requires_grad=True)
        ys = odeint(lambda t, y: -y, y0, t, gradient=gradient, **SOLVES[solve])
        grad_y0, grad_t = gradients(ys[0].sum(), [y0, t])
        assert grad_y0.tolist() == [1.0, 1.0]
        assert grad_t.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "adjoint"])
@loop("shape", [(), (2,)])
def test_times_of_another_dtype_keep_the_states_dtype(gradient, shape, device):
    """A 0-d state must not be promoted by a 0-d time."""
    t = torch.tensor([0.0, 1.0], device=device, dtype=torch.float64, requires_grad=True)
    y0 = torch.ones(shape, device=device, dtype=torch.float32, requires_grad=True)
    ys = odeint(lambda t, y: -y, y0, t, method="rk4", steps=10, gradient=gradient)
    grad_y0, grad_t = gradients(ys[-1].sum(), [y0, t])
    assert ys.dtype == grad_y0.dtype == torch.float32
    assert grad_t.dtype == torch.float64
    n = max(1, y0.numel())
    assert grad_y0.sum().item() == pytest.approx(n * math.exp(-1), rel=1e-5)
    assert grad_t.tolist() == pytest.approx([n * math.exp(-1), -n * math.exp(-1)], rel=1e-5)


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "adjoint"])
def test_without_gradients_nothing_is_recorded(gradient, device, dtype):
    field = Tanh(device)
    t = torch.tensor([0.0, 1.0], device=device, dtype=dtype, requires_grad=True)
    with torch.no_grad():
        ys = odeint(field, randn(3, device=device), t, method="rk4", gradient=gradient)
    assert not ys.requires_grad
    for p in field.parameters():
        p.requires_grad_(False)
    ys = odeint(field, randn(3, device=device), [0.0, 1.0], method="rk4", gradient=gradient)
    assert not ys.requires_grad
