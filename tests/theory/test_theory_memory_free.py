"""The theorems on memory-free sweeps, checked by value; where a bound is sharp, sharpness too."""

import math

import pytest
import torch
from torch import nn

from companion import Constant, OdeBlock, PiecewiseConstant, PiecewiseLinear, odeint
from companion.analysis.bounds import Constants, euler_bounds, heun_bounds
from companion.gradients import Reconstruct
from companion.observe import fit_slope

F64 = torch.float64


def tanh_weights(sets, dim=3, seed=0):
    """Unrelated weights for every layer or node."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(sets, dim, dim, generator=generator, dtype=F64) / dim**0.5
    return weight, torch.randn(sets, dim, generator=generator, dtype=F64)


def tanh_block(weight, bias, method, gradient="backprop"):
    """The network with these weights as a block of the companion."""
    modules = []
    for w, b in zip(weight, bias, strict=True):
        linear = nn.Linear(*w.shape, dtype=F64)
        linear.weight.data, linear.bias.data = w.clone(), b.clone()
        modules.append(nn.Sequential(linear, nn.Tanh()))
    steps = len(weight) - (method == "heun")
    basis = PiecewiseLinear(steps) if method == "heun" else PiecewiseConstant(steps)
    return OdeBlock.from_modules(modules, basis, method=method, steps=steps, gradient=gradient)


def linear_block(rate, steps, method, gradient="backprop"):
    """x' = rate x."""
    linear = nn.Linear(1, 1, bias=False, dtype=F64)
    linear.weight.data.fill_(rate)
    return OdeBlock(linear, Constant(), method=method, steps=steps, gradient=gradient)


# Reverse Euler


@pytest.mark.parametrize("steps", [1, 5, 50])
@pytest.mark.parametrize("rate", [1.7, -0.9])
def test_a_round_trip_of_euler_multiplies_by_a_closed_form(rate, steps):
    """(1 - rate^2/N^2)^N. For L = x^2/2 the gradients at the reversed states are closed forms."""
    block = linear_block(rate, steps, "euler", Reconstruct())
    x0, h = torch.tensor([[1.3]], dtype=F64), 1 / steps
    (got,) = torch.autograd.grad(0.5 * block(x0).square().sum(), tuple(block.parameters()))
    end = 1.3 * (1 + rate * h) ** steps
    rebuilt = [end * (1 - rate * h) ** (steps - n) for n in range(steps)]
    adjoints = [end * (1 + rate * h) ** (steps - n - 1) for n in range(steps)]  # a_{n+1}
    wanted = h * sum(x * a for x, a in zip(rebuilt, adjoints, strict=True))
    assert got.item() == pytest.approx(wanted, rel=1e-12)
    assert rebuilt[0] == pytest.approx((1 - rate**2 * h**2) ** steps * 1.3, rel=1e-12)


def test_euler_bounds_are_attained_by_a_linear_layer():
    """One layer x + a x: states and gradients have exactly the error of the bound."""
    a, x0 = 0.8, 1.3
    block = linear_block(a, 1, "euler")
    start = torch.tensor([[x0]], dtype=F64)
    param = tuple(block.parameters())
    grads = [
        torch.autograd.grad(block.with_graph(gradient=g)(start).sum(), param)[0].item()
        for g in ("backprop", Reconstruct())
    ]
    c = Constants(value=a * x0, slope=a, curvature=0.0, weight_slope=x0, mixed=1.0)
    bounds = euler_bounds(c, 1, adjoint=1.0)
    assert abs(grads[0] - grads[1]) == pytest.approx(bounds.gradients[0], rel=1e-12)
    assert bounds.states[0] == pytest.approx(a**2 * x0, rel=1e-12)  # x0 - (1 - a^2) x0


def test_scaled_errors_tend_to_the_solution_of_an_ode():
    """N (x~_n - x_n) -> rho(n/N) with rho' = J rho + J f, rho(1) = 0, at the rate 1/N."""
    W, B = tanh_weights(2, seed=4)[0]
    x0 = torch.tensor([0.3, -1.0, 0.7], dtype=F64)

    def f(t, x):
        return torch.tanh((W + math.sin(2 * math.pi * t) * B) @ x)

    def coupled(t, z):
        x, rho = z
        slope = f(t, x)
        _, pushed = torch.func.jvp(lambda y: f(t, y), (x,), (rho + slope,))
        return torch.stack([slope, pushed])

    end = odeint(f, x0, [0.0, 1.0], method="rk4", steps=400)[-1]
    errors = []
    for steps in (32, 64, 128, 256):
        h = 1 / steps
        x = [x0]
        for n in range(steps):
            x.append(x[-1] + h * f(n * h, x[-1]))
        y = [x[-1]]
        for n in reversed(range(steps)):
            y.insert(0, y[0] - h * f(n * h, y[0]))
        times = torch.linspace(1, 0, steps + 1, dtype=F64)
        final = torch.stack([end, torch.zeros(3, dtype=F64)])
        rho = odeint(coupled, final, times, method="rk4", steps=2)[:, 1].flip(0)
        gap = (torch.stack(y) - torch.stack(x)) * steps - rho
        errors.append(gap.norm(dim=1).max().item())
    assert rho.norm(dim=1).max() > 0.1
    assert fit_slope([32, 64, 128, 256], errors).value == pytest.approx(-1, abs=0.1)


# HeunNet


def heun_pieces(weight, bias, states, n, a):
    """The formula of the proposition: dL/dx_n and what theta_n and theta_{n+1} get from step n."""
    h, x = 1 / (len(weight) - 1), states[n]
    k0 = torch.tanh(weight[n] @ x + bias[n])
    y = x + h * k0
    k1 = torch.tanh(weight[n + 1] @ y + bias[n + 1])
    u0, u1 = 1 - k0**2, 1 - k1**2
    J0, J1 = u0[:, None] * weight[n], u1[:, None] * weight[n + 1]
    c = a + h * J1.T @ a
    by_state = a + h / 2 * J1.T @ a + h / 2 * J0.T @ c
    at_start = h / 2 * torch.cat([torch.outer(u0 * c, x).flatten(), u0 * c])
    at_end = h / 2 * torch.cat([torch.outer(u1 * a, y).flatten(), u1 * a])
    return by_state, at_start, at_end


def flat_grads(loss, block):
    grads = torch.autograd.grad(loss, tuple(block.parameters()))
    return torch.cat([g.flatten(1) for g in grads], 1)


def heun_states(weight, bias, x0):
    h, states = 1 / (len(weight) - 1), [x0]
    for n in range(len(weight) - 1):
        k0 = torch.tanh(weight[n] @ states[-1] + bias[n])
        k1 = torch.tanh(weight[n + 1] @ (states[-1] + h * k0) + bias[n + 1])
        states.append(states[-1] + h / 2 * (k0 + k1))
    return states


@pytest.mark.parametrize("memory_free", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_heun_gradients_are_the_formula(steps, memory_free):
    """Every theta_n sums its two contributions, in backprop and at the reversed states."""
    weight, bias = tanh_weights(steps + 1)
    generator = torch.Generator().manual_seed(9)
    x0, target = torch.randn(2, 3, generator=generator, dtype=F64)
    states = heun_states(weight, bias, x0)
    a = states[-1] - target
    if memory_free:
        h = 1 / steps
        for n in reversed(range(steps)):
            k1 = torch.tanh(weight[n + 1] @ states[n + 1] + bias[n + 1])
            k0 = torch.tanh(weight[n] @ (states[n + 1] - h * k1) + bias[n])
            states[n] = states[n + 1] - h / 2 * (k0 + k1)
    wanted = torch.zeros(steps + 1, 12, dtype=F64)
    for n in reversed(range(steps)):
        a, at_start, at_end = heun_pieces(weight, bias, states, n, a)
        wanted[n] += at_start
        wanted[n + 1] += at_end
    block = tanh_block(weight, bias, "heun", Reconstruct() if memory_free else "backprop")
    start = x0.clone().requires_grad_()
    loss = 0.5 * (block(start) - target).square().sum()
    (by_start,) = torch.autograd.grad(loss, start, retain_graph=True)
    torch.testing.assert_close(by_start, a, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(flat_grads(loss, block), wanted, rtol=1e-12, atol=1e-14)


def test_each_contribution_alone_is_right():
    """Copies of theta_n: one read at the start of a step, one at the end of the step before."""
    weight, bias = tanh_weights(3)
    x, a = torch.randn(2, 3, generator=torch.Generator().manual_seed(2), dtype=F64)
    w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    h = 1 / 2
    k0 = torch.tanh(w[0] @ x + b[0])
    after = x + h / 2 * (k0 + torch.tanh(w[1] @ (x + h * k0) + b[1]))
    by_weight, by_bias = torch.autograd.grad(after, (w, b), a)
    _, at_start, at_end = heun_pieces(weight, bias, [x], 0, a)
    both = torch.cat([by_weight.flatten(1), by_bias], 1)
    torch.testing.assert_close(both[0], at_start, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(both[1], at_end, rtol=1e-12, atol=1e-14)
    assert both[2].abs().max() == 0


# The defect of a Heun step


def defect(f, g, x, h):
    """psi(x + h phi(x)) - phi(x): what one step forth and back leaves, over h."""

    def phi(x):
        return (f(x) + g(x + h * f(x))) / 2

    def psi(x):
        return (g(x) + f(x - h * g(x))) / 2

    return psi(x + h * phi(x)) - phi(x)


def tanh_pair(seed=0):
    weight, bias = tanh_weights(2, seed=seed)
    return [lambda x, w=w, b=b: torch.tanh(w @ x + b) for w, b in zip(weight, bias, strict=True)]


def test_the_defect_has_its_leading_term_and_a_cubic_one_without_jumps():
    """(1/4N) (J' - J)(f' - f) + O(N^-2); equal fields leave O(N^-3)."""
    f, g = tanh_pair()
    x = torch.tensor([0.5, -0.2, 0.8], dtype=F64)
    J, K = (torch.func.jacrev(field)(x) for field in (f, g))
    counts = [32, 64, 128, 256, 512]
    jumping, tied = [], []
    for n in counts:
        leading = (K - J) @ (g(x) - f(x)) / (4 * n)
        jumping.append((defect(f, g, x, 1 / n) - leading).norm().item())
        tied.append(defect(f, f, x, 1 / n).norm().item())
    assert fit_slope(counts, jumping).value == pytest.approx(-2, abs=0.03)
    assert fit_slope(counts, tied).value == pytest.approx(-3, abs=0.03)


def test_the_defect_is_the_identity_of_the_proof():
    """(gamma + f(x - delta - h gamma) - f(x)) / 2, exactly, for steps of any size."""
    f, g = tanh_pair(seed=1)
    x = torch.tensor([0.5, -0.2, 0.8], dtype=F64)
    for h in (0.1, 1.0, 3.0):
        y = x + h * f(x)
        delta = h / 2 * (g(y) - f(x))
        gamma = g(y + delta) - g(y)
        wanted = (gamma + f(x - delta - h * gamma) - f(x)) / 2
        torch.testing.assert_close(defect(f, g, x, h), wanted, rtol=1e-12, atol=1e-14)


def test_both_ends_of_the_product_bound_are_attained():
    """x' = theta x: a^4 h^3/4 |x| without a jump, jump^2 h/4 |x| with jumps alone."""
    a, x, h = 0.8, 1.3, 0.1
    point = torch.tensor([x], dtype=F64)
    tied = defect(lambda x: a * x, lambda x: a * x, point, h).item()
    assert tied == pytest.approx(-(a**4) * h**3 / 4 * x, rel=1e-9)
    c = Constants(value=a * x, slope=a, curvature=0.0, weight_slope=x, mixed=1.0)
    bound = heun_bounds(c, round(1 / h), 1.0, jump=0.0).states[-2] / h
    assert bound == pytest.approx(abs(tied), rel=1e-9)
    jump, h = 0.5, 1e-6
    leading = defect(lambda x: a * x, lambda x: (a + jump) * x, point, h).item()
    assert leading == pytest.approx(jump**2 * h / 4 * x, rel=1e-4)


@pytest.mark.parametrize("steps", [1, 5, 50])
@pytest.mark.parametrize("rate", [1.7, -0.9])
def test_a_round_trip_of_heun_multiplies_by_a_closed_form(rate, steps):
    """(1 + rate^4/4N^4)^N, through the gradient that Reconstruct takes at the reversed states."""
    block = linear_block(rate, steps, "heun", Reconstruct())
    z = rate / steps
    forth, back = 1 + z + z**2 / 2, 1 - z + z**2 / 2
    loss = block(torch.tensor([[1.3]], dtype=F64)).sum()
    (got,) = torch.autograd.grad(loss, tuple(block.parameters()))
    end = 1.3 * forth**steps
    rebuilt = [end * back ** (steps - n) for n in range(steps)]
    by_rate = (1 + z) / steps  # derivative of forth
    wanted = sum(x * by_rate * forth ** (steps - n - 1) for n, x in enumerate(rebuilt))
    assert got.item() == pytest.approx(wanted, rel=1e-12)
    assert rebuilt[0] == pytest.approx((1 + z**4 / 4) ** steps * 1.3, rel=1e-12)


# Where no rule can go back


def test_three_inputs_share_one_output():
    """x - 2 tanh(x): 0 and two opposite points end at 0, so the output does not tell the input."""
    low, high = 1.0, 3.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if middle < 2 * math.tanh(middle) else (low, middle)
    for x in (0.0, low, -low):
        assert x - 2 * math.tanh(x) == pytest.approx(0, abs=1e-12)
    assert low > 1.9
