"""The theorems of chapter 11 and its page of proofs, against loops that share no code with us."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from loops import loop
from torch import nn

from companion import OdeBlock
from companion.basis import (
    Chebyshev,
    DiscontinuousLinear,
    Fourier,
    PiecewiseConstant,
    PiecewiseLinear,
    evaluate,
    locate,
    project,
)
from companion.observe import fit_slope
from companion.schemes import SCHEMES

BEST = max(SCHEMES, key=lambda name: SCHEMES[name].order)  # what references are computed with

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


# A solver that is told which weights each stage reads


def stepped(field, x, name, steps, reads, length=1.0):
    """Solve over ``length``; a stage at the fraction c of step n gets ``reads(n, c)``."""
    scheme, h = SCHEMES[name], length / steps
    for n in range(steps):
        slopes = []
        for row, c in zip(scheme.a, scheme.c, strict=True):
            inner = sum(float(a) * k for a, k in zip(row, slopes, strict=True))
            slopes.append(field(x + h * inner, reads(n, c)))
        x = x + h * sum(float(b) * k for b, k in zip(scheme.b, slopes, strict=True))
    return x


def tanh_field(x, weights):
    w, b = weights
    return torch.tanh(w @ x + b)


def draw_sets(cells, seed=0, d=3):
    return list(zip(randn(cells, d, d, seed=seed), randn(cells, d, seed=seed + 50), strict=True))


def naive(sets, steps):
    """Read from the right: a cell is [k/M, (k+1)/M)."""
    return lambda n, c: sets[min(math.floor((n + c) * len(sets) / steps), len(sets) - 1)]


def one_sided(sets, steps):
    """Read the end of a step from inside the step."""

    def reads(n, c):
        point = (n + c) * len(sets) / steps
        return sets[math.ceil(point) - 1 if c == 1 else math.floor(point)]

    return reads


def as_block(sets, name, steps):
    modules = []
    for w, b in sets:
        linear = nn.Linear(*w.shape, dtype=F64)
        linear.weight.data, linear.bias.data = w.clone(), b.clone()
        modules.append(nn.Sequential(linear, nn.Tanh()))
    return OdeBlock.from_modules(modules, method=name, steps=steps)


def exact(sets, x, steps=40):
    """Return the states at all knots, and the derivatives of the last one by each of them."""
    states, factors = [x], []
    for weights in sets:

        def flow(y, weights=weights):
            return stepped(tanh_field, y, BEST, steps, lambda n, c: weights, 1 / len(sets))

        factors.append(torch.autograd.functional.jacobian(flow, states[-1]))
        states.append(flow(states[-1]))
    products = [torch.eye(len(x), dtype=F64)]
    for factor in reversed(factors):
        products.insert(0, products[0] @ factor)
    return states, products


# Stages at a knot


@pytest.mark.parametrize(
    ("name", "share"),
    [("euler", 0), ("midpoint", 0), ("heun", 1 / 2), ("kutta3", 1 / 6), ("rk4", 1 / 6),
     ("rk4_38", 1 / 8)],
)  # fmt: skip
def test_naive_stages_leave_the_first_order_term_of_the_theorem(name, share):
    """N (x_N - x(1)) -> w sum_k V_k (f(x, theta_k+) - f(x, theta_k-)), by extrapolation."""
    sets, x = draw_sets(3), randn(3, seed=9)
    if share == 0:
        found = stepped(tanh_field, x, name, 24, naive(sets, 24))
        assert torch.equal(found, stepped(tanh_field, x, name, 24, one_sided(sets, 24)))
        return
    states, products = exact(sets, x)
    jumps = [tanh_field(states[k], sets[k]) - tanh_field(states[k], sets[k - 1]) for k in (1, 2)]
    wanted = share * sum(products[k] @ jump for k, jump in zip((1, 2), jumps, strict=True))
    scaled = [
        n * (stepped(tanh_field, x, name, n, naive(sets, n)) - states[-1]) for n in (48, 96, 192)
    ]
    first, second = (2 * b - a for a, b in pairwise(scaled))
    assert wanted.norm() > 0.1
    torch.testing.assert_close((4 * second - first) / 3, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SCHEMES)
def test_one_sided_stages_keep_the_order_on_aligned_grids(name):
    """For the block, which equals a plain loop; the naive loop has order 1 with stages at c = 1."""
    sets, x = draw_sets(3), randn(3, seed=9)
    end = exact(sets, x, steps=80)[0][-1]
    steps = (12, 24, 48) if SCHEMES[name].order in (3, 4) else (24, 48, 96)
    errors, naively = [], []
    for n in steps:
        found = as_block(sets, name, n)(x).detach()
        torch.testing.assert_close(
            found, stepped(tanh_field, x, name, n, one_sided(sets, n)), rtol=1e-13, atol=1e-14
        )
        errors.append(float((found - end).norm()))
        naively.append(float((stepped(tanh_field, x, name, n, naive(sets, n)) - end).norm()))
    order = SCHEMES[name].order
    assert fit_slope(steps, errors).value == pytest.approx(-order, abs=0.1)
    leaks = 1 in SCHEMES[name].c
    assert fit_slope(steps, naively).value == pytest.approx(-1 if leaks else -order, abs=0.1)


# Any grid

SMOOTHNESS = {
    PiecewiseConstant(4): -1,
    DiscontinuousLinear(3): -1,
    PiecewiseLinear(4): 0,
    Chebyshev(4): math.inf,
    Fourier(3): math.inf,
}


@pytest.mark.parametrize("basis", SMOOTHNESS, ids=lambda basis: type(basis).__name__)
def test_order_on_any_grid_is_limited_by_the_smoothness(basis):
    """min(p, q + 2). With N = 1 mod 12 the knots keep their places in a step: clean slopes."""
    q = SMOOTHNESS[basis]
    assert basis.continuity == q
    block = OdeBlock(lambda: nn.Sequential(nn.Linear(3, 3), nn.Tanh()).double(), basis)
    for seed, p in enumerate(block.parameters()):
        p.data = randn(*p.shape, seed=seed) * (0.5 if q == math.inf else 1.0)
    x, steps = randn(3, seed=9), (25, 49, 97)
    with torch.no_grad():
        end = block.with_graph(method="rk4", steps=384)(x)  # aligned with all knots
        for name in ("euler", "heun", "kutta3", "rk4"):
            graphs = [block.with_graph(method=name, steps=n) for n in steps]
            errors = [float((graph(x) - end).norm()) for graph in graphs]
            wanted = min(SCHEMES[name].order, q + 2)
            band = 0.3 if q == math.inf else 0.1
            assert fit_slope(steps, errors).value == pytest.approx(-wanted, abs=band), name


@pytest.mark.parametrize("name", SCHEMES)
@loop("q", [-1, 0, 1])
def test_a_knot_inside_a_step_costs_what_the_kernel_says(name, q):
    """Of x' = theta(t) with theta = (t - tau)_+^(q+1), the error is h^(q+2) kappa, exactly."""
    scheme = SCHEMES[name]
    if scheme.order < q + 2:  # it errs on the pieces too
        return
    for steps in (5, 8):
        end = [(3, 1.0)] if steps == 8 else []  # exact in binary: the end stage reads the right
        for cell, sigma in ((0, 0.3), (3, 0.55), (4, 0.9), *end):
            tau, h = (cell + sigma) / steps, 1 / steps

            def theta(t, tau=tau):
                return max(t - tau, 0.0) ** (q + 1) if t >= tau else 0.0

            found = stepped(
                lambda x, value: torch.full_like(x, value),
                torch.zeros(1, dtype=F64),
                name,
                steps,
                lambda n, c, h=h, theta=theta: theta((n + float(c)) * h),
            )
            exactly = (1 - tau) ** (q + 2) / (q + 2)
            kernel = (1 - sigma) ** (q + 2) / (q + 2) - sum(
                float(b) * (float(c) - sigma) ** (q + 1)
                for b, c in zip(scheme.b, scheme.c, strict=True)
                if c >= sigma
            )
            assert exactly - float(found) == pytest.approx(h ** (q + 2) * kernel, abs=1e-14)


@pytest.mark.parametrize(
    ("name", "q", "places"),
    [("heun", -1, [Fraction(1, 2)]), ("rk4", -1, [Fraction(1, 6), Fraction(5, 6)]),
     ("rk4_38", 0, [Fraction(1, 4), Fraction(1, 2), Fraction(3, 4)])],
)  # fmt: skip
def test_the_kernel_has_zeros(name, q, places):
    """kappa vanishes there, in fractions, and not beside; the next kernel only for 3/8 at 1/2."""
    scheme = SCHEMES[name]

    def kernel(sigma, q=q):
        stages = zip(scheme.b, scheme.c, strict=True)
        caught = sum(b * (c - sigma) ** (q + 1) for b, c in stages if c >= sigma)
        return (1 - sigma) ** (q + 2) / (q + 2) - caught

    for sigma in places:
        assert kernel(sigma) == 0
        assert kernel(sigma + Fraction(1, 50)) != 0
        assert (kernel(sigma, q + 1) == 0) == (name == "rk4_38" and sigma == Fraction(1, 2))


@pytest.mark.parametrize(
    ("name", "q", "place", "order"),
    [("rk4", -1, Fraction(1, 4), 1), ("heun", -1, Fraction(1, 2), 2),
     ("rk4", -1, Fraction(1, 6), 2), ("rk4", -1, Fraction(5, 6), 2),
     ("rk4_38", 0, Fraction(1, 3), 2), ("rk4_38", 0, Fraction(1, 4), 3),
     ("rk4_38", 0, Fraction(3, 4), 3), ("rk4_38", 0, Fraction(1, 2), 4)],
)  # fmt: skip
def test_a_zero_of_the_kernel_gains_one_order(name, q, place, order):
    """N = 1 mod 12 keeps the knot at its place in a step; the truth is solved up to it and on."""
    w, b, turn = randn(3, 3, seed=1), randn(3, seed=2), randn(3, 3, seed=3)

    def weights(t, right):
        bend = float(t - place) ** (q + 1) if right else 0.0
        return w + (math.sin(t) / 2 + bend) * turn, b * float(1 + t)

    def side(x, start, end, right):
        def reads(n, c):
            return weights(start + (n + c) * (end - start) / 200, right)

        return stepped(tanh_field, x, "rk4", 200, reads, float(end - start))

    start = randn(3, seed=9)
    true = side(side(start, Fraction(0), place, False), place, Fraction(1), True)
    steps, errors = (37, 73, 145), []
    for n in steps:

        def reads(k, c, n=n):
            return weights((k + c) / n, (k + c) / n >= place)

        errors.append(float((stepped(tanh_field, start, name, n, reads) - true).norm()))
    assert fit_slope(steps, errors).value == pytest.approx(-order, abs=0.12)


# Refinement and projection


def test_a_split_cell_is_read_where_its_whole_was():
    """Half cells 2k and 2k + 1 are read exactly where cell k was, at all stages and grids."""
    for cells in (1, 2, 3, 5):
        for steps in (1, 2, 3, 4, 7, 12):
            for c in (Fraction(0), Fraction(1, 3), Fraction(1, 2), Fraction(2, 3), Fraction(1)):
                for n in range(steps):
                    whole = locate(n, steps, c, cells)
                    half = locate(n, steps, c, 2 * cells)
                    assert half.cell // 2 == whole.cell
                    assert half.cell % 2 + half.local == pytest.approx(2 * whole.local, abs=1e-12)


@pytest.mark.parametrize("name", SCHEMES)
@loop("steps", [3, 4, 7])
def test_splitting_constants_keeps_every_bit(name, steps):
    block, x = as_block(draw_sets(4), name, steps), randn(3, seed=9)
    before = block(x)
    block.refine(steps=False)
    assert block.weights.basis.cells == 8
    assert torch.equal(block(x), before)


def test_projection_onto_cells_is_the_mean_and_undoes_refinement():
    theta = randn(12, 2)
    coarse = project(theta, PiecewiseConstant(12), PiecewiseConstant(4))
    torch.testing.assert_close(coarse, theta.reshape(4, 3, 2).mean(1))
    for basis in (PiecewiseConstant(3), DiscontinuousLinear(3), PiecewiseLinear(3), Chebyshev(4)):
        theta = randn(basis.size, 2)
        back = project(basis.refine(theta), basis.refined(), basis)
        torch.testing.assert_close(back, theta, rtol=1e-11, atol=1e-11)


@loop("cells", [1, 3, 8])
def test_half_a_wave_in_each_cell_attains_the_bound_on_projection(cells):
    """For theta = cos(pi M t), P theta = 0 and |theta| = (H / pi) |theta'|; others lose less."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    t = ((np.arange(cells)[:, None] + (nodes + 1) / 2) / cells).ravel()
    w = np.tile(weights, cells) / (2 * cells)
    rate = math.pi * cells
    bumps = {
        "attains": (np.cos(rate * t), -rate * np.sin(rate * t)),
        "below": (np.exp(t) + np.sin(5 * t), np.exp(t) + 5 * np.cos(5 * t)),
    }
    ratio = {}
    for name, (theta, slope) in bumps.items():
        means = (theta * w).reshape(cells, -1).sum(1) * cells
        gap = theta - np.repeat(means, 20)
        ratio[name] = math.sqrt((gap**2 @ w) / (slope**2 @ w)) * math.pi * cells
    assert ratio["attains"] == pytest.approx(1, rel=1e-10)
    assert 0.3 < ratio["below"] < 1


def test_means_move_the_output_by_the_square_of_the_cell():
    """Output differences: order 2 with means, 1 with left ends, 4 with linear pieces."""
    fine, x = 64, randn(3, seed=9)
    smooth = Chebyshev(3)
    coefficients = randn(3, 3, 4, seed=3) / 4

    def output(basis, theta):
        def weights(n, c):
            place = locate(n, fine, c, basis.cells)
            value = sum(w * theta[k] for k, w in basis.at(place))
            return value[:, :3], value[:, 3]

        return stepped(tanh_field, x, "rk4", fine, weights)

    end = output(smooth, coefficients)
    cells = (8, 16, 32)
    errors = {"means": [], "left": [], "linear": []}
    for m in cells:
        means = project(coefficients, smooth, PiecewiseConstant(m))
        ends = evaluate(smooth, coefficients, torch.arange(m, dtype=F64) / m)
        lines = project(coefficients, smooth, DiscontinuousLinear(m))
        errors["means"].append(float((output(PiecewiseConstant(m), means) - end).norm()))
        errors["left"].append(float((output(PiecewiseConstant(m), ends) - end).norm()))
        errors["linear"].append(float((output(DiscontinuousLinear(m), lines) - end).norm()))
    assert fit_slope(cells, errors["means"]).value == pytest.approx(-2, abs=0.1)
    assert fit_slope(cells, errors["left"]).value == pytest.approx(-1, abs=0.1)
    assert fit_slope(cells, errors["linear"]).value == pytest.approx(-4, abs=0.2)
