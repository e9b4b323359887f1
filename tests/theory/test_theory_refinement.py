"""The theorems of chapter 13, against loops that share no code with the package."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from loops import loop
from torch import nn

from companion import OdeBlock, PiecewiseConstant

F64 = torch.float64
HALF, THIRD = Fraction(1, 2), Fraction(1, 3)
TABLEAUS = {  # rows of a, then b; c are the row sums
    "euler": ([[]], [1]),
    "midpoint": ([[], [HALF]], [0, 1]),
    "heun": ([[], [1]], [HALF, HALF]),
    "rk4": ([[], [HALF], [0, HALF], [0, 0, 1]], [THIRD / 2, THIRD, THIRD, THIRD / 2]),
    "rk4_38": ([[], [THIRD], [-THIRD, 1], [1, -1, 1]], [Fraction(k, 8) for k in (1, 3, 3, 1)]),
}
ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "rk4_38": 4}


# Plain loops: the reference of this file


def cell_of(step, steps, c, cells, naive=False):
    """The far end of a step belongs to it; read naively, it belongs to the next cell."""
    s = Fraction(step + c) * cells / steps
    if c == 1 and not naive:
        return math.ceil(s) - 1
    return min(math.floor(s), cells - 1)


def solve(field, weights, x, method, steps, naive=False):
    """Integrate with ``weights[cell]`` over [0, 1]."""
    rows, b = TABLEAUS[method]
    h = 1 / steps
    for n in range(steps):
        slopes = []
        for row in rows:
            place = cell_of(n, steps, sum(row), len(weights), naive)
            y = x + h * sum(float(a) * k for a, k in zip(row, slopes, strict=True))
            slopes.append(field(y, weights[place]))
        x = x + h * sum(float(w) * k for w, k in zip(b, slopes, strict=True))
    return x


def tanh_field(x, theta):
    return torch.tanh(x @ theta.T)


def split(weights):
    return [theta for theta in weights for _ in range(2)]


def draw(cells, seed=0, dim=4, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    weights = size * torch.randn(cells, dim, dim, generator=generator, dtype=F64)
    return list(weights), torch.randn(3, dim, generator=generator, dtype=F64)


def slope(steps, errors):
    return np.polyfit(np.log(steps), np.log(errors), 1)[0]


# The split


@loop("cells", [1, 3, 4])
@loop("steps", [1, 3, 4, 6, 8])
def test_a_stage_reads_a_copy_of_what_it_read_before(cells, steps):
    for c in (Fraction(0), THIRD, HALF, 2 * THIRD, Fraction(1)):
        for n in range(steps):
            for naive in (False, True):
                fine = cell_of(n, steps, c, 2 * cells, naive)
                assert fine // 2 == cell_of(n, steps, c, cells, naive)


@pytest.mark.parametrize("method", TABLEAUS)
@loop("train", [True, False])
def test_a_split_keeps_every_bit_of_the_output(method, train):
    torch.manual_seed(0)

    def unit():
        return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 5))

    block, x = OdeBlock(unit, PiecewiseConstant(4)), torch.randn(6, 5)
    for buffer in block.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    block.train(train)
    steps = (4, 8, 3, 7)  # the last two are not aligned with the cells
    before = [block.with_graph(method=method, steps=n).train(train)(x) for n in steps]
    block.refine(steps=False)
    for n, old in zip(steps, before, strict=True):
        assert torch.equal(block.with_graph(method=method, steps=n).train(train)(x), old)


def test_the_reference_agrees_with_the_block():
    weights, x = draw(4)
    layers = [nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh()).double() for _ in weights]
    for layer, theta in zip(layers, weights, strict=True):
        layer[0].weight.data = theta
    for method in TABLEAUS:
        block = OdeBlock.from_modules(layers, method=method, steps=8)
        torch.testing.assert_close(
            block(x), solve(tanh_field, weights, x, method, 8), rtol=1e-12, atol=1e-12
        )


# Twice the steps


def euler_bound(weights, x, steps):
    """Return the change under twice the steps, and the bound of the theorem."""
    lipschitz = max(float(torch.linalg.matrix_norm(theta, 2)) for theta in weights)
    z, speed, h = x, 0.0, 1 / steps
    for n in range(steps):
        theta = weights[cell_of(n, steps, 0, len(weights))]
        speed = max(speed, float(tanh_field(z, theta).norm(dim=1).max()))
        for _ in range(2):
            z = z + h / 2 * tanh_field(z, theta)
    change = z - solve(tanh_field, weights, x, "euler", steps)
    bound = speed / (4 * steps) * ((1 + lipschitz / steps) ** steps - 1)
    return float(change.norm(dim=1).max()), bound


@loop("size", [0.3, 1.0, 3.0])
@loop(("cells", "steps"), [(1, 1), (4, 4), (4, 8), (16, 16), (64, 64)])
def test_doubled_euler_steps_stay_below_the_bound(cells, steps, size):
    for seed in range(3):
        change, bound = euler_bound(*draw(cells, seed, size=size), steps)
        assert change <= bound
        assert change > 0


def test_one_linear_layer_attains_the_bound():
    rate, x = 1.7, torch.tensor([[0.6]], dtype=F64)
    weights = [torch.tensor([[rate]], dtype=F64)]
    once, twice = (solve(lambda x, w: x @ w.T, weights, x, "euler", n) for n in (1, 2))
    bound = abs(rate * x) / 4 * ((1 + rate) - 1)
    torch.testing.assert_close((twice - once).abs(), bound, rtol=1e-13, atol=0)


@pytest.mark.parametrize("method", TABLEAUS)
def test_the_change_has_the_order_of_the_method_and_is_a_share_of_its_error(method):
    weights, x = draw(4, size=0.7)
    exact = solve(tanh_field, weights, x, "rk4", 1024)
    order, steps = ORDERS[method], (16, 32, 64)
    values = [solve(tanh_field, weights, x, method, n) for n in (*steps, 128)]
    changes = [float((b - a).norm()) for a, b in pairwise(values)]
    assert slope(steps, changes) == pytest.approx(-order, abs=0.15)
    error = float((values[2] - exact).norm())
    assert changes[2] / error == pytest.approx(1 - 2.0**-order, abs=0.02)


def order_bound(tau, lipschitz, order, steps):
    """What doubled steps move the output by at most, before and after the exponential."""
    h = 1 / steps
    local = tau * h**order * (1 + 2.0**-order * (1 + h * lipschitz / 4))
    growth = (1 + h * lipschitz) ** steps
    return local * (growth - 1) / lipschitz, local * (math.exp(lipschitz) - 1) / lipschitz


@pytest.mark.parametrize("method", TABLEAUS)
@loop("rate", [0.5, 2.0, 5.0])
@loop("steps", [1, 4, 16])
def test_doubled_steps_of_any_scheme_stay_below_the_bound(method, rate, steps):
    """A growing linear field: both constants are exact, for whole steps and for halves."""
    order, h = ORDERS[method], 1 / steps
    theta = [torch.tensor([[rate]], dtype=F64)]

    def factor(h):
        x = torch.ones(1, 1, dtype=F64)
        return float(solve(lambda x, w: h * (x @ w.T), theta, x, method, 1))

    lipschitz = max((factor(g) - 1) / g for g in (h, h / 2))
    assert lipschitz == (factor(h) - 1) / h
    fine = factor(h / 2) ** 2
    reach = max(1.0, fine ** (steps - 1)) * math.exp(rate * h / 2)
    tau = max((math.exp(rate * g) - factor(g)) / g ** (order + 1) for g in (h, h / 2)) * reach
    change = abs(fine**steps - factor(h) ** steps)
    sharp, bound = order_bound(tau, lipschitz, order, steps)
    assert 0 < change <= sharp <= bound


@loop(("order", "steps"), [(1, 1), (1, 5), (2, 3), (4, 8)])
@loop("lipschitz", [0.4, 3.0])
def test_maps_with_these_constants_attain_the_bound(order, steps, lipschitz):
    """A flow at rest; whole steps err to one side, half steps to the other, all by the most."""
    tau, h = 0.7, 1 / steps
    x = z = 0.0

    def step(x, at, h, side):
        """Err by tau h^(p+1) at the state ``at``, and stretch distances from it by 1 + h L."""
        return at + side * tau * h ** (order + 1) + (1 + h * lipschitz) * (x - at)

    for _ in range(steps):
        start = z
        x = step(x, start, h, 1)
        z = step(step(z, start, h / 2, -1), start, h / 2, -1)
        assert (z - start) < 0 < x - z
    sharp, bound = order_bound(tau, lipschitz, order, steps)
    assert x - z == pytest.approx(sharp, rel=1e-12)
    assert sharp <= bound


@pytest.mark.parametrize("method", TABLEAUS)
def test_naive_stages_change_a_field_without_state_by_a_closed_form(method):
    weights = [torch.tensor([t], dtype=F64) for t in (0.4, -1.0, 2.5, 1.1)]
    rows, b = TABLEAUS[method]
    far = float(sum(w for row, w in zip(rows, b, strict=True) if sum(row) == 1))
    for steps in (4, 8):

        def ends(naive, steps=steps):
            x = torch.zeros(1, dtype=F64)
            coarse = solve(lambda x, w: w, weights, x, method, steps, naive)
            return coarse - solve(lambda x, w: w, split(weights), x, method, 2 * steps, naive)

        torch.testing.assert_close(
            ends(True), far / (2 * steps) * (weights[-1] - weights[0]), rtol=0, atol=1e-14
        )
        torch.testing.assert_close(ends(False), torch.zeros(1, dtype=F64), rtol=0, atol=1e-14)


@pytest.mark.parametrize("method", ["heun", "rk4", "rk4_38"])
def test_naive_stages_have_order_one(method):
    weights, x = draw(4, size=0.7)
    steps = (32, 64, 128)
    values = [solve(tanh_field, weights, x, method, n, naive=True) for n in (*steps, 256)]
    changes = [float((b - a).norm()) for a, b in pairwise(values)]
    assert slope(steps, changes) == pytest.approx(-1, abs=0.1)


# Two copies


def gradients(field, weights, x, method, steps):
    leaves = [theta.clone().requires_grad_() for theta in weights]
    y = solve(field, leaves, x, method, steps)
    target = torch.linspace(-1, 1, y.numel(), dtype=F64).reshape(y.shape)
    return torch.autograd.grad((y * target).sum(), leaves, materialize_grads=True)


@pytest.mark.parametrize("method", TABLEAUS)
def test_gradients_of_copies_add_up(method):
    weights, x = draw(3)
    coarse = gradients(tanh_field, weights, x, method, 3)
    fine = gradients(tanh_field, split(weights), x, method, 3)
    for k, whole in enumerate(coarse):
        torch.testing.assert_close(fine[2 * k] + fine[2 * k + 1], whole, rtol=1e-12, atol=1e-14)
    if method == "euler":  # its only stage reads the first half
        assert all(not fine[2 * k + 1].any() for k in range(3))


def test_copies_separate_by_the_bracket_of_the_field_and_its_variation():
    theta = draw(1, seed=3)[0][0]
    x = torch.tensor([[0.3, -0.5, 0.8, 0.1]], dtype=F64)
    a = torch.linspace(-1, 1, 4, dtype=F64)

    value = tanh_field(x, theta)[0]
    slopes = 1 - value**2
    bend = -2 * value * slopes * (theta @ value)  # of the slopes, along the field
    along = torch.outer(a * bend, x[0]) + torch.outer(a * slopes, value)
    wanted = along - torch.outer(slopes * (theta.T @ (a * slopes)), x[0])
    ratios = []
    for h in (1e-2, 5e-3):
        leaves = [theta.clone().requires_grad_() for _ in range(2)]
        y = x + h / 2 * tanh_field(x, leaves[0])
        y = y + h / 2 * tanh_field(y, leaves[1])
        first, second = torch.autograd.grad((y * a).sum(), leaves)
        ratios.append(float(((second - first) / (h**2 / 4) - wanted).norm()))
    assert ratios[1] == pytest.approx(ratios[0] / 2, rel=0.05)
    assert ratios[0] < 0.05 * float(wanted.norm())


def test_copies_of_a_doubled_step_stay_below_the_bound():
    for cells in (1, 4, 16):
        weights, x = draw(cells, seed=cells)
        x = x[:1]
        lipschitz = max(float(torch.linalg.matrix_norm(theta, 2)) for theta in weights)
        h, states = 1 / cells, [x]
        for theta in split(weights):
            states.append(states[-1] + h / 2 * tanh_field(states[-1], theta))
        target = torch.linspace(-1, 1, 4, dtype=F64)
        adjoint = float(target.norm()) * (1 + lipschitz * h / 2) ** (2 * cells)
        reach = max(float(y.norm()) for y in states)
        # tanh: |f| <= sqrt d, |P| <= |x|, and the change of P with x is at most 1 + |W| |x|
        speed, share, bend = 2.0, reach, 1 + lipschitz * reach
        bound = h**2 / 4 * (bend * speed + share * lipschitz) * adjoint
        found = gradients(tanh_field, split(weights), x, "euler", 2 * cells)
        gaps = [float((found[2 * k + 1] - found[2 * k]).norm()) for k in range(cells)]
        assert 0 < max(gaps) <= bound


@pytest.mark.parametrize("method", TABLEAUS)
@loop("field", [lambda x, w: w, lambda x, w: w * x])
def test_copies_of_a_field_that_commutes_with_its_variation_stay_equal(method, field):
    weights = [torch.tensor([[t]], dtype=F64) for t in (0.8, -1.3)]
    x = torch.tensor([[0.7]], dtype=F64)
    found = gradients(field, split(weights), x, method, 4)
    for k in range(2):
        torch.testing.assert_close(found[2 * k], found[2 * k + 1], rtol=1e-13, atol=0)
    first, second = gradients(lambda x, w: torch.tanh(w * x), split(weights), x, method, 4)[:2]
    assert not torch.allclose(first, second, rtol=1e-3)


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4"])
@loop("field", [lambda x, w: w, lambda x, w: w * x])
def test_even_these_copies_differ_without_whole_steps_of_their_own(method, field):
    weights = [torch.tensor([[t]], dtype=F64) for t in (0.8, -1.3)]
    x = torch.tensor([[0.7]], dtype=F64)
    found = gradients(field, split(weights), x, method, 2)
    for first, second in zip(found[::2], found[1::2], strict=True):
        assert not torch.allclose(first, second, rtol=0.1)
    if method == "euler":  # its only stage reads the first copy
        assert all(not g.any() for g in found[1::2])


# Momentum and speed


@pytest.mark.parametrize("kept", [1.0, 0.0])
def test_copies_part_by_at_most_what_their_gradients_differ(kept):
    """The largest gradients that are allowed, for long: split or dropped, the bound is close."""
    rate, momentum, gap, updates = 0.1, 0.9, 0.3, 2000
    copies = nn.Parameter(torch.zeros(2, dtype=F64))
    sgd = torch.optim.SGD([copies], lr=rate, momentum=momentum)
    copies.grad = torch.full((2,), 5.0, dtype=F64)
    sgd.step()
    sgd.state[copies]["momentum_buffer"] *= kept
    copies.data.zero_()
    copies.grad = torch.tensor([1.0, 1.0 + gap], dtype=F64)
    for _ in range(updates):
        sgd.step()
    bound = rate * updates * gap / (1 - momentum)
    apart = float((copies[1] - copies[0]).abs())
    assert 0.99 * bound < apart <= bound


@pytest.mark.parametrize(("kept", "sign"), [(1.0, 1.0), (0.0, -1.0), (0.5, 0.0)])
def test_kept_and_dropped_momentum_miss_the_steady_path_by_the_same(kept, sign):
    rate, momentum, force = 0.1, 0.8, torch.tensor([3.0], dtype=F64)
    weight = nn.Parameter(torch.zeros(1, dtype=F64))
    sgd = torch.optim.SGD([weight], lr=rate, momentum=momentum)
    weight.grad = force / 2  # what a copy sees of the force on both
    sgd.step()
    sgd.state[weight]["momentum_buffer"] = kept * force / (1 - momentum)
    weight.data.zero_()
    for _ in range(100):
        sgd.step()
    steady = -rate * 100 * force / 2 / (1 - momentum)
    extra = -sign * rate * momentum * force / (2 * (1 - momentum) ** 2)
    torch.testing.assert_close(weight.detach() - steady, extra, rtol=1e-9, atol=1e-11)


def test_a_refinement_halves_the_speed_of_the_weight_function():
    weights, x = draw(8, size=0.5)
    coarse = gradients(tanh_field, weights, x, "rk4", 8)
    fine = gradients(tanh_field, split(weights), x, "rk4", 16)
    means = [(fine[2 * k] + fine[2 * k + 1]) / 2 for k in range(8)]
    for mean, whole in zip(means, coarse, strict=True):
        assert float((mean - whole / 2).norm() / whole.norm()) < 1e-4


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_output_moves_with_the_square_of_the_scale_over_the_depth(scale):
    for layers in (1, 3, 8):
        weights, x = draw(layers, seed=layers)
        x, a = x[:1], torch.linspace(-1, 1, 4, dtype=F64)

        def output(weights, x=x, layers=layers):
            for theta in weights:
                x = x + scale / layers * tanh_field(x, theta)
            return x[0]

        leaves = [theta.clone().requires_grad_() for theta in weights]
        grads = torch.autograd.grad(output(leaves) @ a, leaves)
        rate = 1e-6
        up, down = (
            output([theta + sign * rate * g for theta, g in zip(weights, grads, strict=True)])
            for sign in (-1, 1)
        )
        moved = (up - down) / (2 * rate)
        # A_n by hand: later layers, times the slope of tanh, times the input of the layer
        states = [x]
        for theta in weights:
            states.append(states[-1] + scale / layers * tanh_field(states[-1], theta))
        kernel, later = torch.zeros(4, 4, dtype=F64), torch.eye(4, dtype=F64)
        for theta, state in zip(reversed(weights), reversed(states[:-1]), strict=True):
            slopes = (1 - tanh_field(state, theta)[0] ** 2).diag()
            kernel += later @ slopes @ slopes @ later.T * float(state.square().sum()) / layers
            later = later @ (torch.eye(4, dtype=F64) + scale / layers * slopes @ theta)
        wanted = -(scale**2) / layers * kernel @ a
        torch.testing.assert_close(moved, wanted, rtol=1e-6, atol=1e-9)


# The cost model


def test_two_numbers_give_the_papers_minutes():
    slope_, start = (394 - 16) / (32 - 1), 16 - (394 - 16) / (32 - 1)
    plan = {1: 20, 2: 20, 4: 20, 8: 10, 16: 10, 32: 80}
    grown = sum(epochs * (start + slope_ * n) for n, epochs in plan.items()) / 60
    deep = 160 * (start + slope_ * 32) / 60
    assert grown == pytest.approx(608, abs=1)
    assert deep == pytest.approx(1053, abs=3)
