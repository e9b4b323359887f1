"""The bounds against networks reversed by plain loops, and against the recursions they solve."""

import math

import numpy as np
import pytest
import torch

from companion.analysis.bounds import Constants, euler_bounds, heun_bounds, tanh_constants

F64 = torch.float64
FAMILIES = {
    "tied": lambda n, steps: 0.0,
    "smooth": lambda n, steps: math.sin(2 * math.pi * n / steps),
    "zigzag, amplitude 1/N": lambda n, steps: (-1) ** n / steps,
    "zigzag, amplitude 1": lambda n, steps: (-1.0) ** n,
}


def layers(family, steps, seed=3, dim=4):
    """Weights (steps + 1, d, d) and biases of tanh layers; layer n is W0 + c_n W1."""
    generator = torch.Generator().manual_seed(seed)
    w0, w1 = torch.randn(2, dim, dim, generator=generator, dtype=F64)
    b0, b1 = torch.randn(2, dim, generator=generator, dtype=F64)
    c = torch.tensor([FAMILIES[family](n, steps) for n in range(steps + 1)], dtype=F64)
    w0, w1 = (scale * w / torch.linalg.matrix_norm(w, 2) for scale, w in ((1, w0), (0.4, w1)))
    return w0 + c[:, None, None] * w1, b0 + 0.5 * c[:, None] * b1


def swept(weight, bias, steps, heun):
    """Return true states, reversed states, and the gradients taken at each: plain loops."""
    generator = torch.Generator().manual_seed(1)
    x0, target = torch.randn(2, weight.shape[-1], generator=generator, dtype=F64)
    h = 1 / steps

    def f(x, k):
        return torch.tanh(weight[k] @ x + bias[k])

    def layer(x, n):
        first = f(x, n)
        return x + h / 2 * (first + f(x + h * first, n + 1)) if heun else x + h * first

    def back(x, n):
        if not heun:
            return x - h * f(x, n)
        first = f(x, n + 1)
        return x - h / 2 * (first + f(x - h * first, n))

    weight, bias = weight.requires_grad_(), bias.requires_grad_()
    with torch.no_grad():
        true = [x0]
        for n in range(steps):
            true.append(layer(true[-1], n))
        rebuilt = [true[-1]]
        for n in reversed(range(steps)):
            rebuilt.insert(0, back(rebuilt[0], n))
    results = []
    for states in (true, rebuilt):
        a = [true[-1] - target]
        total = [torch.zeros_like(weight), torch.zeros_like(bias)]
        for n in reversed(range(steps)):
            x = states[n].clone().requires_grad_()
            pulled, *grads = torch.autograd.grad(layer(x, n), (x, weight, bias), a[0])
            a.insert(0, pulled)
            total = [t + g for t, g in zip(total, grads, strict=True)]
        results.append((torch.stack(a), torch.cat([t.flatten(1) for t in total], 1)))
    (a, g), (a_, g_) = results
    reach = max(x.norm().item() for x in (*true, *rebuilt))
    errors = [(torch.stack(true) - torch.stack(rebuilt)).norm(dim=1), (a - a_).norm(dim=1)]
    gradients = (g - g_).norm(dim=1)[: steps + heun]
    return [*errors, gradients], a[1:].norm(dim=1).max().item(), reach


@pytest.mark.parametrize("heun", [False, True], ids=["euler", "heun"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("steps", [1, 2, 8, 32, 128])
def test_networks_stay_below_the_bounds_at_every_layer(family, steps, heun):
    """States, adjoints and gradients; no bound is so slack that a lost factor N would pass."""
    weight, bias = layers(family, steps)
    errors, adjoint, reach = swept(weight, bias, steps, heun)
    constants = tanh_constants(weight, reach + 2 / steps)  # 2 = sqrt(d) bounds the field
    if heun:
        both = torch.cat([weight.flatten(1), bias], 1).diff(dim=0)
        bounds = heun_bounds(constants, steps, adjoint, both.norm(dim=1).max().item())
    else:
        bounds = euler_bounds(constants, steps, adjoint)
    ratios = (1e-3, 1e-4, 1e-4) if heun else (5e-2, 2e-3, 1e-2)
    for measured, bound, least in zip(errors, bounds, ratios, strict=True):
        measured = measured.detach().numpy()
        assert measured.shape == bound.shape
        assert np.all(measured <= bound * (1 + 1e-12) + 1e-16)
        if bound.max() > 0:  # with one layer no adjoint between two layers is wrong
            assert measured.max() >= least * bound.max()


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_euler_bounds_solve_the_recursions_of_the_proof(steps):
    """r_n = q r_{n+1} + L C h^2, e_n = q e_{n+1} + h L_df G r_n, one layer after the other."""
    c, G, h = Constants(0.7, 1.3, 0.9, 1.7, 2.1), 0.6, 1 / steps
    r, e, g = [0.0], [0.0], []
    for _ in range(steps):
        r.insert(0, r[0] + h * c.slope * (r[0] + h * c.value))
        g.insert(0, h * (c.mixed * G * r[0] + c.weight_slope * e[0]))
        e.insert(0, e[0] + h * (c.slope * e[0] + c.curvature * G * r[0]))
    bounds = euler_bounds(c, steps, G)
    for got, wanted in zip(bounds, (r, e, g), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_heun_bounds_solve_the_recursions_of_the_proof(steps):
    c, G, h, jump = Constants(0.7, 1.3, 0.9, 1.7, 2.1), 0.6, 1 / steps, 0.4
    # Each line is one inequality of the proof.
    delta = h / 2 * (c.weight_slope * jump + c.slope * h * c.value)
    gamma = c.slope * delta
    turned = delta * (c.mixed * jump + c.curvature * h * c.value)
    defect = (turned + c.slope * h * gamma) / 2
    slope = (c.slope + c.slope * (1 + h * c.slope)) / 2
    inner = c.curvature * (1 + h * c.slope) ** 2 + c.slope * h * c.curvature
    bend = (c.curvature + inner) / 2
    r, e, g = [0.0], [0.0], [0.0]
    for _ in range(steps):
        r.insert(0, r[0] + h * (slope * r[0] + defect))
        at_far_end = c.mixed * (1 + h * c.slope) * G * r[0] + c.weight_slope * e[0]
        product = (1 + h * c.slope) * c.mixed
        product += c.weight_slope * h * c.curvature * (1 + h * c.slope)
        at_start = product * G * r[0] + (1 + h * c.slope) * c.weight_slope * e[0]
        g[0] += h / 2 * at_far_end
        g.insert(0, h / 2 * at_start)
        e.insert(0, e[0] + h * (slope * e[0] + bend * G * r[0]))
    for got, wanted in zip(heun_bounds(c, steps, G, jump), (r, e, g), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-11, atol=1e-15)


def test_the_euler_bound_is_below_the_paper_s_leading_terms():
    """C/N (e^L - 1) for states, and G C (e^L - 1)/N^2 (Lambda + Omega L_df (e^L - 1)/L)."""
    c, G = Constants(0.7, 1.3, 0.9, 1.7, 2.1), 0.6
    grown = math.expm1(c.slope)
    for steps in (1, 5, 50, 500):
        bounds = euler_bounds(c, steps, G)
        states = c.value / steps * grown
        adjoints = grown**2 / c.slope * c.curvature * G * c.value / steps
        bracket = c.mixed + c.weight_slope * c.curvature * grown / c.slope
        assert bounds.states.max() < states
        assert bounds.adjoints.max() < adjoints
        assert bounds.gradients.max() < G * c.value * grown / steps**2 * bracket
    assert bounds.states.max() > 0.99 * states


def random_tanh_layers(dim, count, scale, generator):
    weight = torch.randn(count, dim, dim, generator=generator, dtype=F64)
    weight *= scale / torch.linalg.matrix_norm(weight, 2, keepdim=True)
    return weight, torch.randn(count, dim, generator=generator, dtype=F64)


def test_tanh_constants_bound_what_autograd_measures():
    """All five, at random points and between random pairs of points and of parameters."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = random_tanh_layers(3, 20, 1.7, generator)
    radius = 1.5
    c = tanh_constants(weight, radius)

    def f(x, w, b):
        return torch.tanh(w @ x + b)

    def by_weights(x, w, b):
        rows = torch.func.jacrev(f, argnums=(1, 2))(x, w, b)
        return torch.cat([rows[0].flatten(1), rows[1]], 1)

    def norm(matrix):
        return torch.linalg.matrix_norm(matrix, 2).item()

    by_state = torch.func.jacrev(f)
    for k in range(20):
        x, y = torch.randn(2, 3, generator=generator, dtype=F64)
        x, y = (radius * torch.rand(1, generator=generator, dtype=F64) * v / v.norm()
                for v in (x, y))  # fmt: skip
        w, b, other = weight[k], bias[k], (k + 1) % 20
        assert f(x, w, b).norm() <= c.value
        assert norm(by_state(x, w, b)) <= c.slope
        assert norm(by_state(x, w, b) - by_state(y, w, b)) <= c.curvature * (x - y).norm()
        assert norm(by_weights(x, w, b)) <= c.weight_slope
        assert norm(by_weights(x, w, b) - by_weights(y, w, b)) <= c.mixed * (x - y).norm()
        moved = math.hypot((w - weight[other]).norm(), (b - bias[other]).norm())
        changed = by_state(x, w, b) - by_state(x, weight[other], bias[other])
        assert norm(changed) <= c.mixed * moved
        assert (f(x, w, b) - f(x, weight[other], bias[other])).norm() <= c.weight_slope * moved


def test_tanh_constants_are_attained():
    """In one dimension: saturated, at the origin, and where the second derivative is largest."""
    w, radius = 2.0, 0.7
    c = tanh_constants(torch.full((1, 1), w, dtype=F64), radius)
    steepest = math.atanh(1 / math.sqrt(3))
    assert math.tanh(40.0) == pytest.approx(c.value)
    assert w / math.cosh(0.0) ** 2 == pytest.approx(c.slope)
    h = 1e-5
    slopes = [w / math.cosh(steepest + w * s) ** 2 for s in (-h, h)]
    assert abs(slopes[1] - slopes[0]) / (2 * h) == pytest.approx(c.curvature, rel=1e-6)
    assert math.hypot(radius, 1) == pytest.approx(c.weight_slope)
    assert c.mixed == pytest.approx(4 / (3 * 3**0.5) * w * math.hypot(radius, 1) + 1)


def test_constants_take_the_worst_layer():
    weight = torch.stack([torch.eye(2), 3 * torch.eye(2), torch.eye(2)])
    assert tanh_constants(weight, 0.0).slope == pytest.approx(3.0)


def test_without_jumps_or_curvature_one_heun_layer_attains_its_bound():
    """x' = a x, one step: the round trip multiplies by 1 + a^4/4, the bound is a^4/4 |x|."""
    a, x = 0.8, 1.3
    c = Constants(value=a * x, slope=a, curvature=0.0, weight_slope=x, mixed=1.0)
    for steps in (1, 10):
        bounds = heun_bounds(c, steps, 1.0, jump=0.0)
        assert bounds.states[-2] == pytest.approx((a / steps) ** 4 / 4 * x, rel=1e-12)


def test_with_jumps_alone_the_heun_bound_is_the_paper_s_leading_term():
    """As N grows, N^2 (q - 1)-times less, D tends to Lambda Omega jump^2 / (4 N)."""
    c, jump, steps = Constants(0.7, 1.3, 0.9, 1.7, 2.1), 0.4, 10**6
    last = heun_bounds(c, steps, 1.0, jump).states[-2]
    assert last * 4 * steps**2 == pytest.approx(c.mixed * c.weight_slope * jump**2, rel=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Constants(1.0, 0.0, 1.0, 1.0, 1.0), "slope: 0.0"),
        (lambda: Constants(-1.0, 1.0, 1.0, 1.0, 1.0), "value: -1.0"),
        (lambda: Constants(1.0, 1.0, math.inf, 1.0, 1.0), "curvature: inf"),
        (lambda: tanh_constants(torch.ones(2, 3), 1.0), r"weight: shape \(2, 3\)"),
        (lambda: tanh_constants(torch.eye(2), -1.0), "radius: -1.0"),
        (lambda: tanh_constants(torch.eye(2), math.nan), "radius: nan"),
        (lambda: euler_bounds(Constants(1.0, 1.0, 1.0, 1.0, 1.0), 0, 1.0), "steps: 0"),
        (lambda: euler_bounds(Constants(1.0, 1.0, 1.0, 1.0, 1.0), True, 1.0), "steps: True"),
        (lambda: euler_bounds(Constants(1.0, 1.0, 1.0, 1.0, 1.0), 4, -1.0), "adjoint: -1.0"),
        (lambda: heun_bounds(Constants(1.0, 1.0, 1.0, 1.0, 1.0), 4, 1.0, -1.0), "jump: -1.0"),
        (lambda: heun_bounds(Constants(1.0, 1.0, 1.0, 1.0, 1.0), 4, 1.0, math.inf), "jump: inf"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
