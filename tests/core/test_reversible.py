"""The asynchronous leapfrog and its exact gradients at constant memory."""

import pytest
import torch
from fields import Tanh, gradients, largest_difference, randn
from torch import nn

from companion import OdeBlock, PiecewiseConstant, counting, odeint
from companion.observe import fit_slope, saved_bytes
from companion.solve import NonFiniteError


def solve(field, y0, t, steps=7, gradient="backprop"):
    return odeint(field, y0, t, method="async_leapfrog", steps=steps, gradient=gradient)


def test_one_step_is_its_formula(device):
    field, y0 = Tanh(device), randn(2, 3, device=device)
    h, t = 0.3, torch.tensor(0.2, dtype=torch.float64, device=device)
    v = field(t, y0)
    middle = y0 + h / 2 * v
    v = 2 * field(t + h / 2, middle) - v
    expected = middle + h / 2 * v
    found = solve(field, y0, [0.2, 0.5], steps=1)[-1]
    torch.testing.assert_close(found, expected, rtol=1e-15, atol=1e-15)


def test_it_is_of_order_two(device):
    field, y0 = Tanh(device), randn(2, 3, device=device)
    true = odeint(field, y0, [0.0, 1.0], method="rk4", steps=400)[-1]
    counts = (20, 40, 80, 160)
    errors = [(solve(field, y0, [0.0, 1.0], n)[-1] - true).norm().item() for n in counts]
    assert fit_slope(counts, errors).value == pytest.approx(-2, abs=0.1)


@pytest.mark.parametrize("t", [[0.1, 0.6, 1.0], [1.0, 0.7, 0.0]], ids=["forward", "backward"])
def test_gradients_are_backprops(t, device):
    """For the start, both kinds of times (first, others) and all parameters."""
    found = []
    for gradient in ("backprop", "reversible"):
        field = Tanh(device)
        y0 = randn(2, 3, device=device).requires_grad_()
        times = torch.tensor(t, device=device, dtype=torch.float64, requires_grad=True)
        ys = solve(field, y0, times, gradient=gradient)
        weights = randn(*ys.shape, device=device, seed=9)
        loss = (ys * weights + 0.3 * ys.square()).sum()
        found.append([ys, *gradients(loss, [y0, times, *field.parameters()])])
    assert largest_difference(*found) < 1e-13


def test_a_net_with_weights_of_its_own_in_every_layer(device):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = OdeBlock(
            lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.Tanh()).double(),
            PiecewiseConstant(9), method="async_leapfrog", steps=9, scale=1.5,
        ).to(device)  # fmt: skip
    x, found = randn(8, 3, device=device), []
    for gradient in ("backprop", "reversible"):
        other = block.with_graph(gradient=gradient)
        y = other(x)
        counts = other.weights.stacks.get_buffer("0.num_batches_tracked").clone()
        found.append(gradients(y.square().sum(), list(block.parameters())))
        assert torch.equal(other.weights.stacks.get_buffer("0.num_batches_tracked"), counts)
    assert largest_difference(*found) < 1e-12
    assert counts.tolist() == [4, *[2] * 8]  # two solves; the first cell starts them too


def test_dropout(device):
    """Masks drawn again; the gradient that of finite differences under one seed."""
    layer = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Tanh()).double().to(device)
    block = OdeBlock(layer, PiecewiseConstant(5), method="async_leapfrog", steps=5,
                     gradient="reversible")  # fmt: skip
    x, direction = randn(4, 3, device=device), randn(4, 3, device=device, seed=2)

    def loss(x):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return block(x).sum()

    x.requires_grad_()
    (found,) = torch.autograd.grad(loss(x), x)
    with torch.no_grad():
        moved = [loss(x.detach().requires_grad_() + s * 1e-6 * direction) for s in (1, -1)]
    # without gradients the masks come from torch's generator itself, so keep the graph on
    moved = [loss((x + s * 1e-6 * direction).detach().requires_grad_()).item() for s in (1, -1)]
    assert (found * direction).sum().item() == pytest.approx((moved[0] - moved[1]) / 2e-6, rel=1e-6)


def test_bytes_do_not_depend_on_steps(device):
    x, kept = randn(16, 3, device=device), []
    field = Tanh(device)
    for steps in (4, 256):
        with saved_bytes(exclude=(x, *field.parameters())) as saved:
            solve(field, x, [0.0, 1.0], steps, "reversible")
        kept.append(saved.total)
    assert kept[0] == kept[1] == 2 * x.numel() * 8  # state and velocity


def test_evaluations(device):
    with counting() as stats:
        ys = solve(Tanh(device), randn(3, device=device), [0.0, 0.5, 1.0], 5, "reversible")
    ys.sum().backward()
    assert (stats.nfe, stats.nfe_backward, stats.steps) == (12, 12, 10)


def test_the_velocity_is_only_neutrally_stable(device):
    """y' = -50 y with h = 0.1: beyond the stability of the scheme, as of all explicit ones."""
    y0 = torch.ones(1, dtype=torch.float64, device=device)
    assert solve(lambda t, y: -50 * y, y0, [0.0, 5.0], 50)[-1].abs() > 1e3
    with pytest.raises(NonFiniteError, match="finite at t"):
        solve(lambda t, y: -500 * y**3, 100 * y0, [0.0, 5.0], 50)
