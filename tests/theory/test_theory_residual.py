"""The theorems of chapter 1, checked by value; where a bound is sharp, sharpness too."""

import math

import numpy as np
import pytest
import torch
from numpy.polynomial import Polynomial
from scipy.integrate import cumulative_trapezoid
from sklearn.isotonic import IsotonicRegression

from companion import Constant, OdeBlock, PiecewiseConstant, odeint
from companion.experiments import run

# One step, then many: consistency gives convergence


def euler_path(field, x, steps):
    states = [x]
    for n in range(steps):
        states.append(states[-1] + field(n / steps, states[-1]) / steps)
    return np.array(states)


def wave(rate):
    """A field with Lipschitz constant ``rate`` whose solution from 0 is sin(t)."""
    return lambda t, x: rate * np.sin(x - np.sin(t)) + np.cos(t)


@pytest.mark.parametrize("rate", [0.5, 2.0, 4.0])
@pytest.mark.parametrize("steps", [4, 16, 64])
def test_global_error_is_at_most_the_accumulated_local_error(rate, steps):
    """At every node, E <= max(tau) / h * (exp(rate t) - 1) / rate, tau measured."""
    field, t = wave(rate), np.linspace(0, 1, steps + 1)
    exact = np.sin(t)
    local = np.abs(exact[:-1] + field(t[:-1], exact[:-1]) / steps - exact[1:]).max()
    error = np.abs(euler_path(field, 0.0, steps) - exact)
    bound = local * steps * np.expm1(rate * t) / rate
    assert np.all(error <= bound + 1e-15)
    assert error[-1] > bound[-1] / 60  # not so slack that anything passes


@pytest.mark.parametrize("steps", [3, 10])
def test_that_bound_is_attained_when_the_field_ignores_the_state(steps):
    """x' = a t: the local error is a h^2/2, the global error a h/2, the bound the same."""
    a = 1.7
    error = abs(euler_path(lambda t, x: a * t, 0.0, steps)[-1] - a / 2)
    assert error == pytest.approx(a / (2 * steps), rel=1e-12)


# Existence and uniqueness


def test_picard_iterates_of_growth_are_taylor_sums():
    iterate = Polynomial([1.0])
    for n in range(1, 9):
        iterate = 1 + iterate.integ()
        taylor = [1 / math.factorial(k) for k in range(n + 1)]
        np.testing.assert_allclose(iterate.coef, taylor, rtol=1e-14)


def weighted(path, t, lipschitz):
    return np.max(np.exp(-2 * lipschitz * t) * np.abs(path))


def test_picard_map_halves_weighted_distances():
    t = np.linspace(0, 2, 20001)
    lipschitz, rng = 3.0, np.random.default_rng(0)

    def picard(path):
        return 0.4 + cumulative_trapezoid(np.sin(lipschitz * path) + t, t, initial=0)

    for _ in range(10):
        x, y = (np.polynomial.chebyshev.chebval(t - 1, rng.normal(size=6)) for _ in range(2))
        ratio = weighted(picard(x) - picard(y), t, lipschitz) / weighted(x - y, t, lipschitz)
        assert ratio <= 0.5 + 1e-6


def test_one_half_is_the_best_such_factor():
    """x' = L x and two paths that differ by exp(2 L t) come as close to 1/2 as L T allows."""
    t, lipschitz = np.linspace(0, 2, 20001), 3.0
    difference = np.exp(2 * lipschitz * t)
    image = cumulative_trapezoid(lipschitz * difference, t, initial=0)
    ratio = weighted(image, t, lipschitz) / weighted(difference, t, lipschitz)
    assert ratio == pytest.approx((1 - math.exp(-12)) / 2, rel=1e-6)


# Trajectories keep their distance


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_both_exponential_bounds_are_attained(sign):
    x = torch.tensor([[0.3], [-1.1]], dtype=torch.float64)
    end = odeint(lambda t, x: sign * 1.8 * x, x, [0.0, 1.0], method="rk4", steps=200)[-1]
    assert ((end[0] - end[1]) / (x[0] - x[1])).item() == pytest.approx(math.exp(sign * 1.8))


def test_distances_of_solutions_stay_between_two_exponentials():
    result = run("C18-PL2", fields=4, pairs=20)
    assert -1 <= result["slowest"].min() < -0.1  # both sides are exercised
    assert 0.1 < result["fastest"].max() <= 1


def test_the_bound_with_weights_that_jump_uses_their_mean():
    generator = torch.Generator().manual_seed(1)
    layers = [torch.nn.Linear(3, 3).double() for _ in range(4)]
    for layer in layers:
        layer.weight.data = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    block = OdeBlock.from_modules(
        [torch.nn.Sequential(layer, torch.nn.Tanh()) for layer in layers], method="rk4", steps=80
    )
    x = torch.randn(2, 50, 3, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        y = block(x)
    mean = sum(torch.linalg.matrix_norm(layer.weight, 2).item() for layer in layers) / 4
    rates = ((y[0] - y[1]).norm(dim=1) / (x[0] - x[1]).norm(dim=1)).log() / mean
    assert rates.abs().max() <= 1


def test_no_increasing_map_beats_zero_on_reversal():
    line = np.linspace(-1, 1, 21)
    fit = IsotonicRegression().fit_transform(line, -line)
    np.testing.assert_allclose(fit, 0, atol=1e-15)
    best = np.mean((fit + line) ** 2)
    assert best == pytest.approx(0.11 * 10 / 3, rel=1e-12)  # 0.3667, the mean of x^2
    rng = np.random.default_rng(0)
    for _ in range(50):
        increasing = np.sort(rng.normal(size=21))
        assert np.mean((increasing + line) ** 2) >= best


# A single step


def perceptron(seed):
    """A random tanh perceptron on R^3 and the product of its layers' norms."""
    generator = torch.Generator().manual_seed(seed)
    v, w = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)
    bound = torch.linalg.matrix_norm(v, 2) * torch.linalg.matrix_norm(w, 2)
    return (lambda x: torch.tanh(x @ w.T) @ v.T), bound.item()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("product", [0.3, 0.99])
def test_short_steps_are_bi_lipschitz_and_invertible(seed, product):
    field, lipschitz = perceptron(seed)
    h = product / lipschitz
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 100, 3, generator=generator, dtype=torch.float64)
    y = x + h * field(x)
    ratio = (y[0] - y[1]).norm(dim=1) / (x[0] - x[1]).norm(dim=1)
    assert ratio.min() >= 1 - product
    assert ratio.max() <= 1 + product
    back = y
    for _ in range(3000):
        back = y - h * field(back)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("product", "factor"), [(0.4, 0.6), (1.0, 0.0), (1.5, -0.5)])
def test_the_step_bound_is_attained_and_reversal_starts_beyond_it(product, factor):
    block = OdeBlock(torch.nn.Linear(1, 1, bias=False).double(), Constant(), steps=1)
    block.weights.stacks.get_parameter("weight").data.fill_(-product)
    x = torch.tensor([[-1.0], [2.0]], dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(block(x), factor * x, rtol=0, atol=1e-15)


def test_layers_that_cross_are_steep_and_a_finer_graph_of_them_does_not():
    result = run("S22-F1", layers=120, few=6, copies=2, updates=2, rough_updates=150)
    assert result["crossings_crossing"].min() > 0
    assert result["lipschitz_crossing"].min() >= 120
    assert result["crossings_smooth"].max() == result["crossings_direct"].max() == 0


def test_an_euler_block_keeps_the_order_of_points_below_the_threshold():
    """Random networks just below Lip = N are increasing, layer by layer, on the whole line."""
    layers = 12
    generator = torch.Generator().manual_seed(3)
    modules = []
    for _ in range(layers):
        module = torch.nn.Sequential(
            torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
        ).double()
        w, v = module[0].weight.data, module[2].weight.data
        for p in (w, v, module[0].bias.data):
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
        v *= 0.999 * layers / (w.squeeze().abs() * v.squeeze().abs()).sum()
        modules.append(module)
    block = OdeBlock.from_modules(modules, PiecewiseConstant(layers))
    x = torch.linspace(-3, 3, 4001, dtype=torch.float64).unsqueeze(1)
    with torch.no_grad():
        assert block(x).diff(dim=0).min() > 0
