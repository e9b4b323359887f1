"""The theorems of chapter 17 and its page of proofs, against loops that share no code with us."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from loops import loop
from torch import nn

from companion import Constant, OdeBlock, PiecewiseConstant, PiecewiseLinear
from companion.analysis.reconstruction import gradient_error, reconstruction, trajectory
from companion.gradients import Reconstruct
from companion.observe import fit_slope
from companion.schemes import SCHEMES

F64 = torch.float64


# A plain reverse sweep: the reference of this file


@dataclass
class Sweep:
    """States the sweep evaluates at (``seen``) and goes on from (``kept``), for n = 0..N."""

    seen: list
    kept: list


def sweep_back(phis, end, rule, order=1, sweeps=0, start=None, trust=math.inf):
    """Go back from ``end`` through x + h phi(x).

    ``start`` sweeps follow a guess without enough known values, by default one for each that is
    missing. A prediction is swept once more if it is ``trust`` times worse than a sweep would be,
    or wrong by more than half.
    """
    h, known, factor = 1 / len(phis), [], 0.0
    seen, kept = [end], [end]
    for phi in reversed(phis):
        after = kept[0]
        values = known[:order] if start is None or len(known) >= order else []
        missing = order - len(values) if start is None or values else start + 1
        predicted = rule == "predicted"
        slopes = [extrapolated(values) if predicted and values else torch.zeros_like(after)]
        for _ in range((missing if predicted else 1) + sweeps):
            slopes.append(phi(after - h * slopes[-1]))
        value = phi(after - h * slopes[-1])
        gaps = [float((p - q).norm()) for p, q in zip(slopes, [*slopes[1:], value], strict=True)]
        factor = min(1.0, max([factor, *(b / a for a, b in pairwise(gaps))]))
        limit = min(trust * factor ** (1 + sweeps), 0.5) if trust < math.inf else math.inf
        if predicted and gaps[-1] > limit * float(value.norm()):
            slopes.append(value)
            value = phi(after - h * slopes[-1])
            factor = min(1.0, max(factor, float((value - slopes[-1]).norm()) / gaps[-1]))
        known = [value, *known[:3]]
        seen.insert(0, after - h * slopes[-1])
        kept.insert(0, seen[0] if rule == "reverse" else after - h * value)
    return Sweep(seen, kept)


def extrapolated(values):
    """Return the next value of the polynomial through ``values``, which run backwards."""
    return sum((-1) ** j * math.comb(len(values), j + 1) * v for j, v in enumerate(values))


def forward(phis, x):
    states = [x]
    for phi in phis:
        states.append(states[-1] + phi(states[-1]) / len(phis))
    return states


def distances(one, other):
    return np.array([float((p - q).norm()) for p, q in zip(one, other, strict=True)])


# Networks


def depth_weights(kind, layers, shape, scale, seed):
    """Smooth, alternating or independent weights of layers, and the generator after drawing."""
    generator = torch.Generator().manual_seed(seed)
    a, b, c = torch.randn(3, *shape, generator=generator, dtype=F64) * scale
    s = torch.linspace(0, 1, layers + 1, dtype=F64)[:-1].view(-1, *[1] * len(shape))
    if kind == "smooth":
        return a + b * s + c * torch.sin(2 * math.pi * s)
    if kind == "zigzag":
        return a + b * torch.cos(math.pi * layers * s).round()
    return torch.randn(layers, *shape, generator=generator, dtype=F64) * scale


class Tanh(nn.Module):
    """tanh(W x + b): every constant of the theorems is known."""

    def __init__(self, dim):
        super().__init__()
        self.W = nn.Parameter(torch.zeros(dim, dim, dtype=F64))
        self.b = nn.Parameter(torch.zeros(dim, dtype=F64))

    def forward(self, x):
        return torch.tanh(x @ self.W.T + self.b)


def tanh_block(kind, layers, seed=0, dim=4, nodes=False, method="euler"):
    """A block of tanh layers, its layers as functions, a start, and its Lipschitz constant."""
    basis = PiecewiseLinear(layers) if nodes else PiecewiseConstant(layers)
    block = OdeBlock(Tanh(dim), basis, method=method, steps=layers)
    count = layers + nodes
    weight = depth_weights(kind, count, (dim, dim), dim**-0.5, seed)
    bias = depth_weights(kind, count, (dim,), 0.5, seed + 1)
    with torch.no_grad():
        block.weights.stacks.get_parameter("W").copy_(weight)
        block.weights.stacks.get_parameter("b").copy_(bias)
    phis = [lambda x, W=W, b=b: torch.tanh(x @ W.T + b) for W, b in zip(weight, bias, strict=True)]
    x = torch.randn(1, dim, generator=torch.Generator().manual_seed(seed + 2), dtype=F64)
    return block, phis, x, torch.linalg.matrix_norm(weight, 2).max().item()


RULES = [("reverse", 0), ("reverse", 1), ("reverse", 3), ("corrected", 0), ("corrected", 2)]
KINDS = ["smooth", "zigzag", "iid"]


@loop("kind", KINDS)
@pytest.mark.parametrize(("rule", "sweeps"), RULES)
def test_the_companion_takes_these_steps(kind, rule, sweeps):
    block, phis, x, _ = tanh_block(kind, 12)
    states = forward(phis, x)
    mine = sweep_back(phis, states[-1], rule, sweeps=sweeps)
    theirs = reconstruction(block, states[-1], Reconstruct(rule, sweeps=sweeps))
    torch.testing.assert_close(trajectory(block, x), torch.stack(states), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(theirs, torch.stack(mine.seen), rtol=1e-12, atol=1e-12)


@loop("kind", KINDS)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@loop("sweeps", [0, 1])
def test_the_companion_takes_these_predicted_steps(kind, order, sweeps):
    block, phis, x, _ = tanh_block(kind, 64)
    states = forward(phis, x)
    mine = sweep_back(phis, states[-1], "predicted", order, sweeps, trust=8)
    gradient = Reconstruct("predicted", order=order, sweeps=sweeps)
    theirs = reconstruction(block, states[-1], gradient)
    torch.testing.assert_close(theirs, torch.stack(mine.seen), rtol=1e-12, atol=1e-12)


# A sweep gains a factor, and the evaluation for the gradient is a sweep


def bound(rule, sweeps, u, amount, layers):
    """The bounds of the theorem on sweeps, for n = 0..N: states seen, states kept."""
    left = np.arange(layers, -1, -1)

    def s(j):
        return sum(u**i for i in range(j + 1))

    if rule == "reverse":
        seen = amount * u**sweeps / s(sweeps) * (s(sweeps + 1) ** left - 1)
        return seen, seen
    kept = amount * u ** (sweeps + 1) / s(sweeps + 1) * (s(sweeps + 2) ** left - 1)
    seen = amount * u ** (sweeps + 1) * s(sweeps + 2) ** (left - 1.0)
    return np.append(seen[:-1], 0), kept


# Bounds fall with the layers, so that the ends of each axis decide.
@loop("kind", ["smooth", "iid"])
@loop("layers", [2, 64])
@pytest.mark.parametrize(("rule", "sweeps"), RULES)
def test_sweeps_stay_below_their_bounds(kind, layers, rule, sweeps):
    for seed in range(3):
        _, phis, x, lipschitz = tanh_block(kind, layers, seed)
        states = forward(phis, x)
        largest = max(float(phi(x).norm()) for phi, x in zip(phis, states, strict=False))
        got = sweep_back(phis, states[-1], rule, sweeps=sweeps)
        seen, kept = bound(rule, sweeps, lipschitz / layers, largest / layers, layers)
        assert np.all(distances(got.seen, states) <= seen + 1e-14)
        assert np.all(distances(got.kept, states) <= kept + 1e-14)


@loop("layers", [3, 10, 50])
@pytest.mark.parametrize(("rule", "sweeps"), RULES)
def test_these_bounds_are_attained_at_every_layer(layers, rule, sweeps):
    """phi_n(x) = C - L (x - x_n) on the line, with x_n = x_0 + n h C: weights smooth in depth."""
    amount, rate, h = 1.3, 1.7, 1 / layers
    start = torch.tensor([0.4], dtype=F64)
    modules = []
    for n in range(layers):
        module = nn.Linear(1, 1).double()
        module.weight.data.fill_(-rate)
        module.bias.data.fill_(amount + rate * (0.4 + n * h * amount))
        modules.append(module)
    block = OdeBlock.from_modules(modules)
    with torch.no_grad():
        states = trajectory(block, start)
        got = reconstruction(block, states[-1], Reconstruct(rule, sweeps=sweeps))
        mine = sweep_back(modules, states[-1], rule, sweeps=sweeps)
    seen, kept = bound(rule, sweeps, h * rate, h * amount, layers)
    np.testing.assert_allclose(distances(got, states), seen, rtol=1e-7, atol=1e-14)
    np.testing.assert_allclose(distances(mine.kept, states), kept, rtol=1e-7, atol=1e-14)


def layerwise(u, amount, sweeps, safe=None):
    """Bounds from a Lipschitz constant for each layer: points seen, states kept.

    Of the corrected rule or, with ``safe`` = max(beta, 2^p), of the predicted one with its switch.
    """
    seen, kept, steepest = [0.0], [0.0], 0.0
    for v in reversed(u):
        steepest = max(steepest, v)
        if safe is None:
            start = sum(v**i for i in range(sweeps + 2)) * kept[0] + v ** (sweeps + 1) * amount
        else:
            start = (kept[0] + safe * steepest ** (sweeps + 1) * amount) / (1 - v)
        seen.insert(0, start)
        kept.insert(0, kept[0] + v * start)
    return np.array(seen), np.array(kept)


@loop("sweeps", [0, 2])
@pytest.mark.parametrize("order", [None, 1, 3])
def test_a_steep_layer_counts_once(order, sweeps):
    """One layer in 64 with hL = 0.9: the bounds grow with the mean of the constants."""
    layers, steep = 64, 20
    block, phis, x, _ = tanh_block("smooth", layers)
    weight = block.weights.stacks.get_parameter("W").data
    weight[steep] *= 0.9 * layers / torch.linalg.matrix_norm(weight[steep], 2)
    bias = block.weights.stacks.get_parameter("b").data[steep]
    phis[steep] = lambda x: torch.tanh(x @ weight[steep].T + bias)
    u = torch.linalg.matrix_norm(weight, 2).numpy() / layers
    states, amount = forward(phis, x), 2.0 / layers  # |tanh| in R^4
    if order is None:
        got = sweep_back(phis, states[-1], "corrected", sweeps=sweeps)
        seen, kept = layerwise(u, amount, sweeps)
        assert np.all(distances(got.kept, states) <= kept + 1e-14)
        found = got.seen
        uniform, _ = bound("corrected", sweeps, u.max(), amount, layers)
    else:
        gradient = Reconstruct("predicted", order=order, sweeps=sweeps)
        found = reconstruction(block, states[-1], gradient)
        seen, _ = layerwise(u, amount, sweeps, safe=max(8, 2**order))
        uniform = [max(8, 2**order) * amount * (1 - u.max()) ** -float(layers)]
    assert np.all(distances(found, states) <= seen + 1e-14)
    assert seen[0] < 1e-6 * uniform[0]  # the largest constant alone says nothing here


def test_layer_by_layer_bounds_are_attained():
    """Slopes that differ from layer to layer, each as in the attained uniform bounds."""
    h, amount = 1 / 12, 1.3
    rates = np.linspace(0.5, 6.0, 12)
    points = 0.4 + h * amount * torch.arange(13, dtype=F64).unsqueeze(1)
    phis = [
        lambda x, a=float(rate), x_n=x_n: amount - a * (x - x_n)
        for rate, x_n in zip(rates, points[:-1], strict=True)
    ]
    for sweeps in (0, 1, 3):
        got = sweep_back(phis, points[-1], "corrected", sweeps=sweeps)
        seen, kept = layerwise(h * rates, h * amount, sweeps)
        np.testing.assert_allclose(distances(got.kept, points), kept, rtol=1e-9, atol=1e-14)
        np.testing.assert_allclose(distances(got.seen, points), seen, rtol=1e-9, atol=1e-14)


@loop("rate", [-1.1, 0.7])
@loop("layers", [4, 32])
def test_a_linear_layer_has_closed_forms(rate, layers):
    """k sweeps leave 1 - (-u)^(k+2) of a state, a layer; the corrected rule keeps 1 + u^3 of it."""
    block = OdeBlock(nn.Linear(1, 1, bias=False).double(), Constant(), steps=layers)
    block.weights.stacks.get_parameter("weight").data.fill_(rate)
    u = rate / layers
    x = torch.tensor([0.8], dtype=F64)
    with torch.no_grad():
        end = block(x)
        for k in range(4):
            ratio = reconstruction(block, end, Reconstruct(sweeps=k))[0] / x
            assert ratio.item() == pytest.approx((1 - (-u) ** (k + 2)) ** layers, rel=1e-12)
        ratio = reconstruction(block, end, Reconstruct("corrected"))[0] / x
    assert ratio.item() == pytest.approx((1 - u * u) * (1 + u**3) ** (layers - 1), rel=1e-12)


# From states to gradients

KAPPA = 4 / (3 * math.sqrt(3))


@loop("kind", KINDS)
@loop("layers", [4, 16, 128])
@pytest.mark.parametrize("rule", ["reverse", "corrected", "predicted"])
def test_gradients_stay_below_their_bound(kind, layers, rule):
    """For every layer, with no remainder; D is measured, all other constants are computed."""
    block, phis, x, lipschitz = tanh_block(kind, layers)
    gradient = Reconstruct(rule)
    states = forward(phis, x)
    seen = reconstruction(block, states[-1], gradient)
    off = distances(seen, states).max()
    reach = max(float(s.norm()) for s in [*states, *seen])
    omega = math.hypot(reach, 1)
    bend, mixed = KAPPA * lipschitz**2, KAPPA * lipschitz * omega + 1
    target = torch.ones_like(x)
    true, adjoint = layer_gradients(phis_of(block), x, target)
    mine = memory_free_gradients(block, x, target, gradient)
    bounds = adjoint * off / layers * (mixed + omega * bend * math.expm1(lipschitz) / lipschitz)
    gaps = [math.sqrt(sum(float((p - q).square().sum()) for p, q in zip(a, b, strict=True)))
            for a, b in zip(mine, true, strict=True)]  # fmt: skip
    assert max(gaps) <= bounds
    assert max(gaps) > 0
    size = math.sqrt(sum(float(p.square().sum()) for pair in true for p in pair))
    gamma = math.sqrt(layers) * size
    whole = math.sqrt(sum(gap**2 for gap in gaps))
    assert whole / size <= bounds * layers / gamma


def test_the_bound_on_gradients_is_attained():
    """Both terms, on the line, by hand: points off by D everywhere, all |a_n| = G.

    For phi = theta x at theta = 0 the adjoint is exact, and P_n = x errs by D in every layer. For
    phi = theta + c (x - x_n)^2 / 2 at theta = 0, P_n is constant and the adjoint grows by
    1 + hcD a layer: Lipschitz constant cD, so that only e^L stands for (1 + h L)^N.
    """
    layers, D, G = 2000, 0.3, 1.7
    h, c = 1 / layers, 2.5
    x = 0.8
    gradient, error = np.full(layers, h * x * G), np.full(layers, h * ((x + D) - x) * G)
    np.testing.assert_allclose(error, G * D / layers, rtol=1e-12)  # Lambda = 1, L_df = 0
    gamma = math.sqrt(layers) * np.linalg.norm(gradient)
    relative = np.linalg.norm(error) / np.linalg.norm(gradient)
    assert relative == pytest.approx(G * D / gamma, rel=1e-12)

    adjoint = np.full(layers + 1, G)
    for n in reversed(range(layers)):
        adjoint[n] = (1 + h * c * D) * adjoint[n + 1]
    off = h * (adjoint[1:] - G)  # Omega = 1, Lambda = 0, L_df = c
    slope = c * D
    attained = off.max() / (G * D / layers * c * math.expm1(slope) / slope)
    assert 0.995 < attained <= 1


def phis_of(block):
    return list(
        zip(
            block.weights.stacks.get_parameter("W"),
            block.weights.stacks.get_parameter("b"),
            strict=True,
        )
    )


def layer_gradients(weights, x, target):
    """Gradients of half the squared distance to ``target``, layer by layer; the largest |a_n|."""
    leaves = [tuple(p.detach().clone().requires_grad_() for p in pair) for pair in weights]
    states = [x.clone().requires_grad_()]
    for W, b in leaves:
        states.append(states[-1] + torch.tanh(states[-1] @ W.T + b) / len(leaves))
    loss = (states[-1] - target).square().sum() / 2
    flat = [p for pair in leaves for p in pair]
    grads = torch.autograd.grad(loss, [*flat, *states])
    pairs = list(zip(grads[: len(flat) : 2], grads[1 : len(flat) : 2], strict=True))
    return pairs, max(float(a.norm()) for a in grads[len(flat) :])


def memory_free_gradients(block, x, target, gradient):
    y = block.with_graph(gradient=gradient)(x)
    loss = (y - target).square().sum() / 2
    grads = torch.autograd.grad(loss, [block.weights.stacks.get_parameter(n) for n in ("W", "b")])
    return list(zip(*grads, strict=True))


@pytest.mark.parametrize(
    ("rule", "order", "sweeps", "slope"),
    [
        ("reverse", 1, 0, -1), ("reverse", 1, 1, -2), ("reverse", 1, 2, -3),
        ("corrected", 1, 0, -2), ("corrected", 1, 1, -3),
        ("predicted", 1, 0, -2), ("predicted", 2, 0, -3), ("predicted", 3, 0, -4),
        ("predicted", 1, 1, -3), ("predicted", 2, 1, -4),
    ],
)  # fmt: skip
def test_orders_of_the_relative_gradient_error_on_smooth_weights(rule, order, sweeps, slope):
    depths = [32, 64, 128]
    errors = [relative("smooth", n, Reconstruct(rule, order=order, sweeps=sweeps)) for n in depths]
    assert fit_slope(depths, errors).value == pytest.approx(slope, abs=0.12)


def relative(kind, layers, gradient, seed=5, **graph):
    block, _, x, _ = tanh_block(kind, layers, seed, **graph)

    def loss(y):
        return y.square().sum() / 2

    return gradient_error(block, x, loss, gradient).relative


@loop("kind", ["zigzag", "iid"])
@loop("sweeps", [0, 1])
@pytest.mark.parametrize(("rule", "order"), [("corrected", 1), ("predicted", 1), ("predicted", 4)])
def test_corrected_and_safely_predicted_need_no_smoothness(kind, rule, order, sweeps):
    depths = [32, 64, 128]
    gradient = Reconstruct(rule, order=order, sweeps=sweeps)
    errors = [relative(kind, n, gradient) for n in depths]
    slope = fit_slope(depths, errors).value
    assert slope < -2 - sweeps + 0.35
    assert slope > -2 - sweeps - 0.35 or kind == "iid"  # independent errors may cancel


# The predicted rule


@loop("order", [1, 2, 3, 4])
def test_a_prediction_extrapolates_the_kept_states(order):
    """x~_n lies on the polynomial of degree p through the p + 1 kept states after it."""
    _, phis, x, _ = tanh_block("iid", 20)
    got = sweep_back(phis, forward(phis, x)[-1], "predicted", order)
    signs = [(-1) ** j * math.comb(order + 1, j + 1) for j in range(order + 1)]
    for n in range(20 - order):
        expected = sum(c * got.kept[n + 1 + j] for j, c in enumerate(signs))
        torch.testing.assert_close(got.seen[n], expected, rtol=1e-11, atol=1e-11)


@loop(("kind", "layers"), [("smooth", 64), ("zigzag", 256), ("iid", 64)])
@loop("order", [1, 3])
@pytest.mark.parametrize("safe", [False, True])
def test_predictions_stay_below_their_bound(kind, layers, order, safe):
    """Only differences of the true states enter, and u: no smoothness is assumed."""
    block, phis, x, lipschitz = tanh_block(kind, layers)
    states = forward(phis, x)
    u = lipschitz / layers
    kappa, sigma = (2**order - 1) * u, 1 / (1 - u)
    assert kappa < 1
    path = torch.cat(states).numpy()
    rough = np.linalg.norm(np.diff(path, order + 1, axis=0), axis=1).max()
    starts = [
        u ** (order - m) * np.linalg.norm(np.diff(path, m + 1, axis=0)[-1]) for m in range(order)
    ]
    epsilon, growth = max(rough, *starts), 1 + u * sigma / (1 - kappa)
    if safe:
        seen = list(reconstruction(block, states[-1], Reconstruct("predicted", order=order)))
    else:
        seen = sweep_back(phis, states[-1], "predicted", order).seen
    left = np.arange(layers, 0, -1)
    bounds = epsilon / (1 - kappa) * growth ** (left - 1.0)
    assert np.all(distances(seen, states)[:-1] <= bounds)


@pytest.mark.parametrize("kind", KINDS)
@loop("layers", [8, 128])
@loop("order", [1, 4])
@loop("sweeps", [0, 2])
def test_the_switch_bounds_a_prediction_for_any_weights(kind, layers, order, sweeps):
    block, phis, x, lipschitz = tanh_block(kind, layers)
    states = forward(phis, x)
    gradient = Reconstruct("predicted", order=order, sweeps=sweeps)
    seen = reconstruction(block, states[-1], gradient)
    u, amount = lipschitz / layers, 2.0  # |tanh| in R^4
    assert u < 1
    left = np.arange(layers, 0, -1)
    scale = max(8, 2**order) * u ** (sweeps + 1) * amount / layers
    bounds = scale * (1 - u) ** -left.astype(float)
    assert np.all(distances(seen, states)[:-1] <= bounds)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_differences_of_a_smooth_trajectory_fall_with_their_order(order):
    """D^j x = O(h^j) for j up to 5; for zigzag weights only j = 1 does."""
    depths, smooth, zigzag = [64, 128, 256], [], []
    for n in depths:
        for kind, found in (("smooth", smooth), ("zigzag", zigzag)):
            _, phis, x, _ = tanh_block(kind, n, seed=5)
            path = torch.cat(forward(phis, x)).numpy()
            found.append(np.linalg.norm(np.diff(path, order + 1, axis=0), axis=1).max())
    assert fit_slope(depths, smooth).value == pytest.approx(-order - 1, abs=0.15)
    assert fit_slope(depths, zigzag).value == pytest.approx(-1, abs=0.15)


@pytest.mark.parametrize(("rule", "order"), [("corrected", 1), ("predicted", 1), ("predicted", 2)])
def test_scaled_errors_tend_to_their_leading_terms(rule, order):
    """rho' = J (rho + g), rho(1) = 0, with g = -J f or (-1)^p d^(p+1)x; the gap falls like 1/N."""
    power = 2 if rule == "corrected" else order + 1
    gaps = []
    for layers in (128, 256, 512):
        _, phis, x, _ = tanh_block("smooth", layers, seed=5)
        states = forward(phis, x)
        got = sweep_back(phis, states[-1], rule, order)
        path = torch.cat(states)
        slope = torch.cat([phi(s) for phi, s in zip(phis, states, strict=False)])
        jacobian = torch.stack(
            [torch.func.jacrev(phi)(s[0]) for phi, s in zip(phis, states, strict=False)]
        )
        push = -(jacobian @ slope.unsqueeze(-1)).squeeze(-1)
        if rule == "predicted":
            push = (-1) ** order * torch.diff(path, order + 1, dim=0) * layers ** (order + 1)
        rho = torch.zeros(len(push) + 1, x.shape[1], dtype=F64)
        for n in reversed(range(len(push))):
            rho[n] = rho[n + 1] - jacobian[n] @ (rho[n + 1] + push[n]) / layers
        kept, seen = (
            (torch.cat(points) - path)[: len(push)] * layers**power
            for points in (got.kept, got.seen)
        )
        gaps.append(float(max((kept - rho[:-1]).norm(dim=1).max(),
                              (seen - rho[:-1] - push).norm(dim=1).max())))  # fmt: skip
        size = float(rho.norm(dim=1).max())
    assert gaps[2] < 0.1 * size
    assert fit_slope([128, 256, 512], gaps).value == pytest.approx(-1, abs=0.2)


def test_a_jump_of_the_weights_enters_a_second_difference_once():
    """|D^2 x| <= h (u C + eta), an equality for two lines that differ by eta."""
    h, rate, amount, eta = 0.1, 1.7, 1.3, 0.4
    first = amount  # phi_0 at x_0
    x_1 = h * first
    second = amount + rate * x_1 + eta
    difference = h * second - h * first
    assert difference == pytest.approx(h * (h * rate * amount + eta), rel=1e-12)


@loop(("power", "slope"), [(0.0, -1), (0.5, -1.5), (1.0, -2)])
def test_jumps_cost_an_order_gradually(power, slope):
    """Weights that jump by eta = N^-power at every layer: errors O(1/N^2 + eta / N)."""
    depths, errors = [64, 128, 256, 512], []
    for n in depths:
        _, _, x, _ = tanh_block("smooth", n, seed=5)
        weights = depth_weights("smooth", n, (4, 4), 0.5, 5)
        sign = (-1.0) ** torch.arange(n, dtype=F64)
        weights = weights + n**-power * sign.view(-1, 1, 1) * torch.eye(4, dtype=F64)
        phis = [lambda x, W=W: torch.tanh(x @ W.T) for W in weights]
        states = forward(phis, x)
        errors.append(distances(sweep_back(phis, states[-1], "predicted").seen, states).max())
    assert fit_slope(depths, errors).value == pytest.approx(slope, abs=0.12)


@loop("order", [1, 2, 4, 7])
@loop("side", [0.95, 1.05])
def test_a_prediction_of_high_order_needs_small_steps(order, side):
    """phi = lambda x: a mode with alternating signs grows from (2^(p+1) - 1) u = 2 on.

    Its factor a layer is 1 / (1 - r) with r > 1 and r = u (r^(p+1) - 1).
    """
    limit = 2 / (2 ** (order + 1) - 1)
    u = side * limit
    low, high = 1.0, 1e3
    for _ in range(200):  # bisection; u (r^(p+1) - 1) - r changes its sign once above 1
        middle = (low + high) / 2
        low, high = (middle, high) if u * (middle ** (order + 1) - 1) < middle else (low, middle)
    factor = 1 / (1 - low)
    assert (factor < -1) == (side > 1)
    errors = [factor**-n for n in range(order + 1)]  # of kept states, the latest first
    for n in range(1, 40):
        guess = sum((-1) ** j * math.comb(order + 1, j + 1) * e for j, e in enumerate(errors))
        errors = [errors[0] - u * guess, *errors[:order]]
        assert errors[0] == pytest.approx(factor**n, rel=1e-4)
    if side < 1:  # and no other mode grows
        modes = [-u * (-1) ** j * math.comb(order + 1, j + 1) for j in range(order + 1)]
        modes[0] += 1
        assert np.abs(np.roots([1, *(-m for m in modes)])).max() < 1


def test_without_the_switch_rough_weights_cost_an_order():
    depths, errors = [32, 64, 128, 256], []
    for n in depths:
        _, phis, x, _ = tanh_block("zigzag", n, seed=5)
        states = forward(phis, x)
        errors.append(distances(sweep_back(phis, states[-1], "predicted").seen, states).max())
    assert fit_slope(depths, errors).value == pytest.approx(-1, abs=0.15)


def test_a_careless_start_costs_an_order():
    """Order 2 and 3 with one evaluation at each start: the last layers keep an error O(h^2)."""
    depths = [128, 256, 512]
    for order in (2, 3):
        careless, careful = [], []
        for n in depths:
            _, phis, x, _ = tanh_block("smooth", n, seed=5)
            states = forward(phis, x)
            for start, found in ((0, careless), (None, careful)):
                seen = sweep_back(phis, states[-1], "predicted", order, start=start).seen
                found.append(distances(seen, states).max())
        assert fit_slope(depths, careless).value == pytest.approx(-2, abs=0.15)
        assert fit_slope(depths, careful).value == pytest.approx(-order - 1, abs=0.15)


# Every explicit scheme


@pytest.mark.parametrize("method", SCHEMES)
def test_correction_gains_an_order_for_every_scheme(method):
    """The relative gradient error: the order of the round trip, and one more.

    Forward and back, the leading error terms of a scheme of even order cancel.
    """
    depths, order = [32, 64, 128], SCHEMES[method].order
    round_trip = order + 1 if order % 2 == 0 else order
    for rule, gain in (("reverse", 0), ("corrected", 1)):
        graph = {"method": method, "nodes": method != "euler"}
        errors = [relative("smooth", n, Reconstruct(rule), **graph) for n in depths]
        assert fit_slope(depths, errors).value == pytest.approx(-(round_trip + gain), abs=0.15)


def test_a_step_inside_one_cell_needs_no_smoothness():
    """Heun with one set of weights a layer: independent weights, and still orders 3 and 4."""
    depths = [16, 32, 64]
    for rule, order in (("reverse", 3), ("corrected", 4)):
        errors = [
            sum(relative("iid", n, Reconstruct(rule), seed, method="heun") for seed in range(4))
            for n in depths
        ]
        assert fit_slope(depths, errors).value < -order + 0.15


# Beyond Lip / N = 1


@loop("u", [0.5, 0.9, 1.0, 1.5])
def test_sweeps_multiply_an_error_by_the_slope(u):
    """One layer x + u x: the guess is off by u^2 x, and every sweep multiplies by -u."""
    block = OdeBlock(nn.Linear(1, 1, bias=False).double())
    block.weights.stacks.get_parameter("weight").data.fill_(u)
    x = torch.tensor([0.8], dtype=F64)
    for k in range(6):
        with torch.no_grad():
            got = reconstruction(block, block(x), Reconstruct(sweeps=k))[0]
        assert abs((got - x).item()) == pytest.approx(0.8 * u ** (k + 2), rel=1e-12)


def test_enough_sweeps_invert_to_rounding_below_the_threshold():
    block, phis, x, lipschitz = tanh_block("iid", 4)
    assert lipschitz / 4 < 0.8
    states = forward(phis, x)
    seen = reconstruction(block, states[-1], Reconstruct(sweeps=200))
    assert distances(seen, states).max() < 1e-13


def test_leapfrog_grows_where_the_field_contracts():
    """x' = -rate x: the two roots are sqrt(1 + w^2) - w and -(sqrt(1 + w^2) + w), w = rate / N."""
    rate, layers = 20.0, 64
    block = OdeBlock(nn.Linear(1, 1, bias=False).double(), method="async_leapfrog", steps=layers)
    block.weights.stacks.get_parameter("weight").data.fill_(-rate)
    w, h = rate / layers, 1 / layers
    step = np.array([[1 - w, -w * h / 2], [-2 * w / h, -(1 + w)]])
    expected = np.linalg.matrix_power(step, layers) @ [1.0, -rate]
    with torch.no_grad():
        end = block(torch.ones(1, dtype=F64)).item()
    assert end == pytest.approx(expected[0], rel=1e-9)
    roots = [math.hypot(1, w) - w, -(math.hypot(1, w) + w)]
    np.testing.assert_allclose(sorted(np.linalg.eigvals(step)), sorted(roots), rtol=1e-9)
    assert abs(end) > 1
