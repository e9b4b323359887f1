"""Interpolations of networks, their distances and bounds, and smoothness in depth, by value."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import nn

from companion import (
    Chebyshev,
    Constant,
    DiscontinuousLinear,
    Fourier,
    OdeBlock,
    PiecewiseConstant,
    PiecewiseLinear,
    odeint,
)
from companion.analysis.interpolation import (
    Interpolation,
    curvature,
    euler_bound,
    from_block,
    from_field,
    network,
    ode_distance,
    residual_bound,
    residual_interpolation,
    solution,
    speed,
    weight_interpolation,
)
from companion.analysis.smoothness import Smoothness, smoothness, smoothness_of, total_variation
from companion.train import seeded


def perceptron(dim=3, hidden=5):
    return nn.Sequential(nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, dim)).double()


def block_of(layers, basis=None, scale=1.0, seed=0):
    with seeded(seed):
        block = OdeBlock(perceptron, basis or PiecewiseConstant(layers), steps=layers, scale=scale)
    return block.requires_grad_(False)


def states(batch=4, dim=3):
    generator = torch.Generator().manual_seed(7)
    return torch.randn(batch, dim, generator=generator, dtype=torch.float64)


def layer_of(block, n):
    """Layer n of a block as a plain function, put together by hand."""
    w1, b1, w2, b2 = (p[n] for p in block.weights.parameters())
    return lambda x: block.scale * (torch.tanh(x @ w1.T + b1) @ w2.T + b2)


def between(block, n, m, lam):
    """The residual with weights between those of cells n and m."""
    w1, b1, w2, b2 = ((1 - lam) * p[n] + lam * p[m] for p in block.weights.parameters())
    return lambda x: block.scale * (torch.tanh(x @ w1.T + b1) @ w2.T + b2)


# The two interpolations


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_both_interpolations_of_a_block_by_hand(scale):
    block, x = block_of(4, scale=scale), states()
    residual, weight = (from_block(block, kind) for kind in ("residual", "weight"))
    for n, lam in ((0, 0.0), (1, 0.25), (2, 0.9), (3, 0.5), (3, 1.0)):
        t, m = torch.tensor((n + lam) / 4, dtype=torch.float64), min(n + 1, 3)
        mixed = (1 - lam) * layer_of(block, n)(x) + lam * layer_of(block, m)(x)
        torch.testing.assert_close(residual(t, x), mixed, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(weight(t, x), between(block, n, m, lam)(x), rtol=0, atol=1e-13)
    gap = residual(torch.tensor(0.4).double(), x) - weight(torch.tensor(0.4).double(), x)
    assert gap.abs().max() > 1e-3  # the two differ, or this test could not tell them apart


@pytest.mark.parametrize("kind", ["residual", "weight"])
def test_interpolations_pass_through_the_layers_and_continue_the_last(kind):
    block, x = block_of(5), states()
    field = from_block(block, kind)
    for n in range(5):
        wanted = layer_of(block, n)(x)
        torch.testing.assert_close(field.piece(n, 0.0, x), wanted, rtol=0, atol=1e-15)
        if n > 0:
            torch.testing.assert_close(field.piece(n - 1, 1.0, x), wanted, rtol=0, atol=1e-15)
    for local in (0.3, 1.0):
        torch.testing.assert_close(
            field.piece(4, local, x), layer_of(block, 4)(x), rtol=0, atol=1e-14
        )


def test_the_network_of_an_interpolation_is_the_block():
    block, x = block_of(6, scale=3.0), states()
    for kind in ("residual", "weight"):
        torch.testing.assert_close(
            network(from_block(block, kind), x)[-1], block(x), rtol=0, atol=1e-14
        )


def test_linear_weights_give_the_weight_interpolation():
    """A block with piecewise-linear weights is its own weight interpolation, to the last node."""
    block, x = block_of(4, PiecewiseLinear(4)), states()
    field = from_block(block, "weight")
    for t in (0.1, 0.5, 0.97, 1.0):
        n = min(int(4 * t), 3)
        lam = 4 * t - n
        w1, b1, w2, b2 = (p[n] + lam * (p[n + 1] - p[n]) for p in block.weights.parameters())
        wanted = torch.tanh(x @ w1.T + b1) @ w2.T + b2
        torch.testing.assert_close(
            field(torch.tensor(t, dtype=x.dtype), x), wanted, rtol=0, atol=1e-14
        )
    fine = block.with_graph(method="rk4", steps=64)(x)
    torch.testing.assert_close(solution(field, x, steps=16)[-1], fine, rtol=0, atol=1e-12)


def test_layers_read_the_cell_they_fall_in():
    """Six layers on three cells: neighbours share weights, and the field is flat between them."""
    block, x = block_of(6, PiecewiseConstant(3)), states()
    field = from_block(block, "weight")
    torch.testing.assert_close(field.piece(2, 0.5, x), layer_of(block, 1)(x), rtol=0, atol=1e-15)
    torch.testing.assert_close(
        field.piece(1, 0.5, x), between(block, 0, 1, 0.5)(x), rtol=0, atol=1e-15
    )


def test_tied_layers_are_one_ode():
    block, x = block_of(3, Constant()), states()
    for kind in ("residual", "weight"):
        field = from_block(block, kind)
        assert curvature(field, x).min() > 0
        torch.testing.assert_close(
            field(torch.tensor(0.8).double(), x), layer_of(block, 0)(x), rtol=0, atol=1e-14
        )


def test_the_last_function_or_weight_can_be_given():
    x = torch.zeros(1, 1, dtype=torch.float64)
    ends = [lambda x: x + 1, lambda x: x + 3]
    t = torch.tensor(0.5, dtype=torch.float64)
    assert residual_interpolation(ends[:1], last=ends[1])(t, x).item() == 2
    assert residual_interpolation(ends[:1])(t, x).item() == 1
    weights = torch.tensor([1.0, 5.0], dtype=torch.float64)

    def square(x, theta):
        return x + theta**2

    assert weight_interpolation(square, weights[:1], last=weights[1])(t, x).item() == 9
    assert weight_interpolation(square, weights[:1])(t, x).item() == 1


def test_interpolations_are_fields_for_odeint():
    block, x = block_of(5), states()
    for kind in ("residual", "weight"):
        field = from_block(block, kind)
        grid = [n / 5 for n in range(6)]
        by_odeint = odeint(field, x, grid, method="rk4", steps=20)
        torch.testing.assert_close(solution(field, x, steps=20), by_odeint, rtol=0, atol=1e-12)


def test_buffers_count_as_weights_and_training_mode_is_refused():
    with seeded(0):
        block = OdeBlock(
            lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3)).double(),
            PiecewiseConstant(3),
            steps=3,
        ).requires_grad_(False)
        block(states(batch=16) * 3)
    with pytest.raises(ValueError, match="call eval"):
        from_block(block, "weight")
    block.eval()
    x = states()
    mean = block.weights.stacks.get_buffer("0.running_mean")
    before = mean.clone()
    field = from_block(block, "weight")
    torch.testing.assert_close(network(field, x)[-1], block(x), rtol=0, atol=1e-14)
    half = (mean[0] + mean[1]) / 2
    var = block.weights.stacks.get_buffer("0.running_var")[:2].mean(0)
    scale, shift, w, b = (p[:2].mean(0) for p in block.weights.parameters())
    wanted = (((x - half) / (var + 1e-5).sqrt()) * scale + shift) @ w.T + b
    torch.testing.assert_close(field.piece(0, 0.5, x), wanted, rtol=0, atol=1e-12)
    assert torch.equal(mean, before)


def test_the_field_keeps_the_weights_it_was_made_from():
    block, x = block_of(3), states()
    field = from_block(block, "residual")
    before = field.piece(1, 0.0, x)
    for p in block.weights.parameters():
        p.mul_(2)
    assert torch.equal(field.piece(1, 0.0, x), before)


@pytest.mark.parametrize("residual", [nn.BatchNorm1d(3), nn.Dropout(0.5)])
def test_the_field_keeps_the_mode_it_was_made_in(residual):
    block, x = OdeBlock(residual.double(), Constant(), steps=2).eval(), states()
    field = from_block(block.requires_grad_(False), "residual")
    before = field.piece(1, 0.5, x)
    block.train()
    assert torch.equal(field.piece(1, 0.5, x), before)
    assert torch.equal(field.piece(1, 0.5, x), before)  # nor does an evaluation change a buffer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: from_block(block_of(2), "spline"), "kind: 'spline'"),
        (lambda: from_block(block_of(2).with_graph(method="heun"), "weight"), "method='heun'"),
        (lambda: from_block(OdeBlock(nn.Linear(2, 2), time=True), "weight"), "time=True"),
        (lambda: residual_interpolation([]), "layers: 0"),
        (lambda: weight_interpolation(lambda x, w: x, torch.zeros(0)), "layers: 0"),
        (lambda: Interpolation(0, lambda n, local, x: x), "layers: 0"),
        (lambda: euler_bound(1.0, -1.0, 3), r"constants: 1\.0 and -1\.0 are not allowed"),
        (lambda: residual_bound(math.nan, 1.0, 3), "constants: nan and .* at least 0"),
        (lambda: euler_bound(1.0, 1.0, 0), "layers: 0"),
        (lambda: euler_bound(1.0, 1.0, 2.5), r"layers: 2\.5 is not allowed; .* integer"),
        (lambda: residual_bound(1.0, 1.0, True), "layers: True"),
        (lambda: from_field(lambda t, x: x, 2.5), r"layers: 2\.5"),
        (lambda: ode_distance(from_field(lambda t, x: x, 2), states(), steps=0), "steps: 0"),
        (lambda: solution(from_field(lambda t, x: x, 2), states(), steps=1.5), r"steps: 1\.5"),
        (lambda: curvature(from_field(lambda t, x: x, 2), states(), steps=-1), "steps: -1"),
        (lambda: speed(from_field(lambda t, x: x, 2), states(), steps=True), "steps: True"),
        (lambda: smoothness_of({"a": torch.ones(3)}, 0), "cells: 0"),
        (lambda: smoothness_of({"a": torch.ones(3)}, 3.0), r"cells: 3\.0"),
        (lambda: smoothness_of({}, 3), "must be equal"),
        (lambda: smoothness_of({"a": torch.ones(3), "b": torch.ones(4)}, 3), "'b': 4"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Distance, curvature, speed


def test_distance_to_the_solution_by_another_solver():
    block, x = block_of(4, scale=2.0), states(batch=2)
    for kind in ("residual", "weight"):
        field = from_block(block, kind)

        def flat(t, y, field=field):
            y = torch.from_numpy(y).reshape(2, 3)
            return field(torch.tensor(t, dtype=torch.float64), y).flatten().numpy()

        grid = np.linspace(0, 1, 5)
        exact = solve_ivp(
            flat, (0, 1), x.flatten().numpy(), "DOP853", grid, rtol=1e-11, atol=1e-12, max_step=0.05
        )
        wanted = np.linalg.norm(network(field, x).numpy() - exact.y.T.reshape(5, 2, 3), axis=2)
        measured = ode_distance(field, x, steps=40)
        assert measured.shape == (5, 2)
        np.testing.assert_allclose(measured.numpy(), wanted, rtol=0, atol=1e-8)
        assert measured[-1].min() > 1e-3


def test_curvature_is_the_second_derivative_of_the_solution():
    """Against the closed form for x' = sin(s) x, x = exp(1 - cos s): both terms matter."""
    field = from_field(lambda t, x: torch.sin(t) * x, 10)
    x = torch.tensor([[1.0], [-3.0]], dtype=torch.float64)
    s = torch.linspace(0, 1, 10 * 8 + 1, dtype=torch.float64)
    wanted = ((s.cos() + s.sin() ** 2) * torch.exp(1 - s.cos())).max()
    torch.testing.assert_close(curvature(field, x), wanted * x.abs().flatten(), rtol=1e-9, atol=0)


def test_curvature_looks_at_both_sides_of_a_node():
    """f = theta^2 with theta = 1, -1, 1: the acceleration jumps from 4N to -4N at every node."""
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    field = weight_interpolation(lambda x, w: w**2 + 0 * x, signs[:3], last=signs[3])
    x = torch.zeros(1, 1, dtype=torch.float64)
    assert curvature(field, x, steps=1).item() == pytest.approx(12, abs=1e-12)
    assert speed(field, x, steps=1).item() == 1


def test_curvature_of_a_constant_field_is_zero():
    constant = residual_interpolation([torch.ones_like, torch.ones_like])
    assert curvature(constant, torch.zeros(2, 3)).tolist() == [0, 0]


def test_speed_is_the_largest_layer_along_the_solution_not_the_mixture():
    """Between f = 3 and f = -3 the field vanishes in the middle; the layers do not."""
    field = residual_interpolation([lambda x: 0 * x + 3, lambda x: 0 * x - 3])
    assert speed(field, torch.zeros(1, 1), steps=2).item() == 3


def test_states_of_any_shape():
    x = torch.ones(2, 3, 4, 5, dtype=torch.float64)
    field = residual_interpolation([lambda x: 0 * x, lambda x: 0 * x + 1])
    distance = ode_distance(field, x)
    torch.testing.assert_close(distance[-1], torch.full((2,), 60**0.5 / 4, dtype=torch.float64))


# The bounds


@pytest.mark.parametrize("layers", [1, 3, 10, 64])
@pytest.mark.parametrize("lipschitz", [0.2, 1.3, 4.0])
def test_bound_of_proposition_1_is_attained_up_to_its_last_step(layers, lipschitz):
    """With constant acceleration C the error is C ((1 + L/N)^n - 1) / 2LN at every node."""
    c = 2.0

    def path(s):
        return 1 + 0.4 * s + c / 2 * s**2

    field = from_field(lambda t, x: lipschitz * (x - path(t)) + 0.4 + c * t, layers)
    x = torch.ones(1, 1, dtype=torch.float64)
    error = (network(field, x).flatten() - path(torch.arange(layers + 1).double() / layers)).abs()
    closed = c / (2 * lipschitz * layers) * ((1 + lipschitz / layers) ** np.arange(layers + 1) - 1)
    np.testing.assert_allclose(error.numpy(), closed, rtol=0, atol=1e-12)
    bound = euler_bound(c, lipschitz, layers)
    assert (error <= bound + 1e-15).all()
    assert curvature(field, x, steps=16).item() == pytest.approx(c, rel=1e-4)


def test_bound_without_lipschitz_constant_is_its_limit():
    torch.testing.assert_close(
        euler_bound(3.0, 0.0, 7), euler_bound(3.0, 1e-9, 7), rtol=1e-8, atol=0
    )
    assert euler_bound(3.0, 0.0, 7)[-1].item() == pytest.approx(3 / 14)
    assert residual_bound(3.0, 0.0, 7)[-1].item() == pytest.approx(3 / 7)


@pytest.mark.parametrize("layers", [1, 2, 5, 50])
def test_residual_bound_is_attained_for_layers_that_ignore_the_state(layers):
    """f = -C, ..., -C, C: the gap at the end is (f_N - f_0) / 2N = C / N, the bound."""
    ends = [lambda x: 0 * x - 1.5] * layers
    field = residual_interpolation(ends, last=lambda x: 0 * x + 1.5)
    x = torch.zeros(1, 1, dtype=torch.float64)
    gap = ode_distance(field, x, steps=1)[-1].item()
    assert gap == pytest.approx(1.5 / layers, rel=1e-12)
    assert gap == pytest.approx(residual_bound(1.5, 0.0, layers)[-1].item(), rel=1e-12)


def rough_field(layers, seed, size=1.0):
    """Independent layers tanh(Wx + b), and the Lipschitz constant of the steepest."""
    generator = torch.Generator().manual_seed(seed)
    w = size * torch.randn(layers + 1, 3, 3, generator=generator, dtype=torch.float64)
    b = torch.randn(layers + 1, 3, generator=generator, dtype=torch.float64)
    functions = [lambda x, w=w[n], b=b[n]: torch.tanh(x @ w.T + b) for n in range(layers + 1)]
    field = residual_interpolation(functions[:-1], last=functions[-1])
    return field, torch.linalg.matrix_norm(w, 2).max().item()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("layers", [1, 4, 32])
def test_bounded_layers_are_close_to_their_residual_ode_however_rough(layers, seed):
    field, lipschitz = rough_field(layers, seed, size=0.5)
    x = states()
    gap, size = ode_distance(field, x), speed(field, x)
    for sample in range(len(x)):
        bound = residual_bound(size[sample].item(), lipschitz, layers)
        assert (gap[:, sample] <= bound).all()
        assert gap[-1, sample] > bound[-1] / 200  # not so slack that anything passes


@pytest.mark.parametrize("layers", [8, 64, 512])
def test_one_jump_costs_no_more_than_its_variation(layers):
    """Weights 0 then 1: N max is N, the variation 1, and the weight ODE is O(1/N) away."""
    weights = (torch.arange(layers + 1) >= layers // 2).double()
    field = weight_interpolation(
        lambda x, w: torch.sin(3 * w) + 0 * x, weights[:-1], last=weights[-1]
    )
    x = torch.zeros(1, 1, dtype=torch.float64)
    gap = ode_distance(field, x)[-1].item()
    # sin has slope at most 3 in 3w; no state dependence. The bound is |df/dw| TV / N.
    assert 0.1 / layers < gap <= 3.0 / layers
    assert smoothness_of({"w": weights}, layers).total == Smoothness(layers, 1.0, 1.0)


# Smoothness in depth


def test_measures_of_a_hand_made_stack():
    weights = {
        "a": torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0]]),  # steps 5, 0
        "b": torch.tensor([0.0, 12.0, 11.0]),  # steps 12, 1
    }
    found = smoothness_of(weights, cells=3)
    assert found.parameters["a"] == Smoothness(15.0, 5.0, 25.0)
    assert found.parameters["b"] == Smoothness(36.0, 13.0, 144.0)
    assert found.total == Smoothness(39.0, 14.0, 169.0)


def test_measures_of_complex_weights_see_both_parts():
    stack = torch.tensor([0.0, 3.0 + 4.0j, 3.0 - 8.0j])
    assert smoothness_of({"a": stack}, 2).total == Smoothness(24.0, 17.0, 144.0)


def test_measures_of_a_block_of_smooth_and_of_independent_weights():
    def block(layers, smooth):
        block = block_of(layers, seed=layers)
        if smooth:
            for p in block.weights.parameters():
                s = torch.arange(layers).double() / layers
                p.copy_(torch.einsum("n,...->n...", torch.sin(s), torch.ones_like(p[0])))
        return smoothness(block)

    for layers in (16, 64):
        found = block(layers, smooth=True)
        size = math.sqrt(15 + 5 + 15 + 3)
        assert found.total.slope == pytest.approx(size, rel=1 / layers)
        assert found.total.variation == pytest.approx(size * math.sin(1 - 1 / layers), rel=1e-12)
        assert found.parameters["0.bias"].slope == pytest.approx(5**0.5, rel=1 / layers)
    assert block(64, smooth=False).total.slope > 3 * block(16, smooth=False).total.slope


def test_measures_of_linear_weights_count_cells_not_nodes():
    block = block_of(4, PiecewiseLinear(4))
    for p in block.weights.parameters():
        p.zero_()
    block.weights.stacks.get_parameter("0.bias")[:, 0] = torch.linspace(0, 2, 5)
    assert smoothness(block).total.slope == pytest.approx(2.0)  # the slope of the function
    assert smoothness(block_of(2, Constant())).total == Smoothness(0.0, 0.0, 0.0)


@pytest.mark.parametrize("basis", [Chebyshev(3), Fourier(3), DiscontinuousLinear(2)], ids=repr)
def test_coefficients_that_are_no_values_are_refused(basis):
    """Their differences say nothing about depth."""
    with pytest.raises(TypeError, match=r"block: .*block\.project\(PiecewiseConstant"):
        smoothness(OdeBlock(nn.Linear(2, 2), basis))


def test_weights_of_zero_do_not_vary():
    """Zero over zero: nothing varies, whatever the size."""
    block = OdeBlock(nn.Linear(2, 2), PiecewiseConstant(3))
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    assert total_variation(block) == 0.0
