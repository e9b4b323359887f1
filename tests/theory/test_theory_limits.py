"""The theorems of chapter 5: the price of turning a line round, by means that know no formula."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from scipy.optimize import minimize, minimize_scalar

from companion import odeint, records
from companion.analysis.reversal import best_angle, best_spiral, least_lipschitz, pair_rates
from companion.pairs import PAIRS

# What stability asks of dopri5


def test_the_steps_that_stability_asks_for():
    """Radius times step: 3.3 for decays, 1 for rotations, by one step of x' = zx."""

    def growth(z):
        tableau = PAIRS["dopri5"].tableau
        start = torch.ones(1, dtype=torch.complex128)
        return abs(tableau.step(lambda i, y: z * y, start, 1.0).item())

    radius = records.load("FW10", "smoke").findings.scalars["radius_none"]
    assert growth(-3.30) < 1 < growth(-3.31)
    assert growth(0.99j) < 1 < growth(1.01j)
    assert growth(-radius / 2) < 1 < growth(-radius)
    assert growth(1j * radius / 5) < 1 < growth(1j * radius / 4)


# The least Lipschitz constant


@pytest.mark.parametrize("factor", [0.01, 0.3, 1.0, 2.0, 50.0])
def test_the_least_constant_is_the_minimum_of_its_formula(factor):
    """By a search on a grid, refined; the formula has one minimum in the interval."""

    def square(b):
        return b**2 + math.log(-factor / math.cos(b)) ** 2

    angles = np.linspace(math.pi / 2 + 1e-6, math.pi, 2001)
    k = int(np.argmin([square(b) for b in angles]))
    near = angles[max(k - 1, 0)], angles[min(k + 1, 2000)]
    found = minimize_scalar(square, bounds=near, method="bounded", options={"xatol": 1e-12})
    assert best_angle(factor) == pytest.approx(found.x, abs=1e-6)
    assert least_lipschitz(factor) == pytest.approx(math.sqrt(found.fun), rel=1e-12)
    rising = np.diff([square(b) for b in angles]) > 0
    assert np.diff(rising.astype(int)).clip(0).sum() <= 1


def test_the_numbers_on_the_page():
    assert best_angle() == pytest.approx(1.9924, abs=5e-5)
    assert least_lipschitz() == pytest.approx(2.1836, abs=5e-5)


@pytest.mark.parametrize("factor", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("dim", [2, 4])
def test_a_spiral_attains_the_constant(factor, dim):
    """Solved by odeint, in the plane and with coordinates that do not move."""
    matrix = torch.zeros(dim, dim, dtype=torch.float64)
    matrix[:2, :2] = best_spiral(factor)
    start = torch.zeros(21, dim, dtype=torch.float64)
    start[:, 0] = torch.linspace(-1, 1, 21)
    times = [0.0, 0.3, 1.0]
    ys = odeint(lambda t, x: x @ matrix.T, start, times, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(ys[-1, :, 0], -factor * start[:, 0])
    assert np.linalg.norm(matrix.numpy(), 2) == pytest.approx(least_lipschitz(factor), rel=1e-9)
    rates, norms = pair_rates(lambda t, x: x @ matrix.T, times, ys)
    wanted = torch.full((3,), least_lipschitz(factor), dtype=torch.float64)
    torch.testing.assert_close(rates, wanted)
    torch.testing.assert_close(norms, wanted)


def norms_and_product(matrices):
    """The integral of the Lipschitz constants of linear fields, one after another; the flow."""
    product, total = np.eye(matrices.shape[-1]), 0.0
    for matrix in matrices:
        product = expm(matrix / len(matrices)) @ product
        total += np.linalg.norm(matrix, 2) / len(matrices)
    return total, product


def test_no_random_field_does_better():
    """Linear fields that change with time, in two to four dimensions, near the spiral and not."""
    draw = np.random.default_rng(0)
    ratios = []
    for trial in range(900):
        dim = 2 + trial % 3
        matrices = draw.normal(size=(3, dim, dim)) * draw.uniform(0.2, 3)
        if trial % 2:  # around a spiral
            matrices *= 0.1
            matrices[:, :2, :2] += best_spiral(draw.uniform(0.3, 3)).numpy()
        total, product = norms_and_product(matrices)
        if product[0, 0] < -1e-3:
            ratios.append(total / least_lipschitz(-product[0, 0]))
    assert len(ratios) > 400
    assert min(ratios) > 1
    assert min(ratios) < 1.05  # the search came close


def test_no_nonlinear_field_does_better_between_two_points():
    """What the proof bounds: the rate of the pair itself, integrated, for fields of two layers."""
    draw = torch.Generator().manual_seed(0)
    times = torch.linspace(0, 1, 61, dtype=torch.float64).tolist()
    ratios = []
    for _ in range(12):
        w = 1.5 * torch.randn(2, 16, 2, generator=draw, dtype=torch.float64)
        shift = torch.randn(16, generator=draw, dtype=torch.float64)

        def field(t, x, w=w, shift=shift):
            return torch.tanh(x @ w[0].T + shift * t) @ w[1] + x @ best_spiral().T

        pair = torch.tensor([[-0.5, 0.0], [0.5, 0.0]], dtype=torch.float64)
        ys = odeint(field, pair, times, method="rk4", steps=2)
        factor = -float(ys[-1, 1, 0] - ys[-1, 0, 0])
        if factor > 0.01:
            rates, _ = pair_rates(field, times, ys)
            total = float(torch.trapezoid(rates, torch.tensor(times).double()))
            ratios.append(total / least_lipschitz(factor))
    assert len(ratios) > 5
    assert min(ratios) > 1 - 1e-4  # the trapezium rule


@pytest.mark.parametrize("dim", [2, 3])
def test_a_search_over_linear_fields_ends_at_the_constant(dim):
    """Three matrices, one after another, free but for the first entry of the flow."""
    shape = (3, dim, dim)
    start = np.random.default_rng(dim).normal(size=shape) * 0.3
    start[:, :2, :2] += [[0.3, -2.6], [2.6, 0.3]]

    def constant(flat):
        return norms_and_product(flat.reshape(shape))[0]

    def reversal(flat):
        return norms_and_product(flat.reshape(shape))[1][0, 0] + 1

    found = minimize(
        constant, start.ravel(), method="SLSQP", options={"maxiter": 150, "ftol": 1e-12},
        constraints={"type": "eq", "fun": reversal}, bounds=[(-6, 6)] * start.size,
    )  # fmt: skip
    assert abs(reversal(found.x)) < 1e-6
    assert least_lipschitz() - 1e-5 < constant(found.x) < 1.005 * least_lipschitz()


def test_other_padding_makes_it_cheaper():
    """From (x, kx) a turn by twice the angle to the vertical is enough: why zeros are asked for."""
    for slope in (1.0, 3.0, 10.0):
        angle = 2 * math.atan(1 / slope)
        turn = expm(angle * np.array([[0.0, -1.0], [1.0, 0.0]]))
        assert (turn @ [1.0, slope])[0] == pytest.approx(-1.0)
        assert angle < least_lipschitz()


# What flows can and cannot represent


def test_one_dimension_more_for_each_output_represents_any_map():
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    start = torch.cat([x, 0 * x], 1)

    def lift(t, s):
        return torch.stack([0 * s[:, 0], torch.sin(7 * s[:, 0])], 1)

    end = odeint(lift, start, [0.0, 1.0], method="euler", steps=3)[-1]
    torch.testing.assert_close(end[:, 1:], torch.sin(7 * x))


def test_as_many_dimensions_more_represent_any_map_in_place():
    """Half the time to write down where to go, half to go there."""
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    start = torch.cat([x, 0 * x], 1)

    def target(x):
        return torch.cos(5 * x) - 2 * x

    def field(t, s):
        place, plan = s[:, 0], s[:, 1]
        first = torch.stack([0 * place, 2 * (target(place) - place)], 1)
        return first if t < 0.5 else torch.stack([2 * plan, 0 * plan], 1)

    end = odeint(field, start, [0.0, 0.5, 1.0], method="midpoint", steps=1)[-1]
    torch.testing.assert_close(end[:, :1], target(x))


def test_samples_in_the_plane_can_trade_places():
    """One at a time, along tubes that the others do not touch."""
    places = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    moves = [(0, (0.0, 1.0)), (0, (2.5, 1.0)), (2, (2.0, -1.0)), (2, (0.0, -1.0)),
             (2, (0.0, 0.0)), (0, (2.0, 0.0))]  # fmt: skip
    state, radius = places.clone(), 0.4
    for point, goal in moves:
        way = torch.tensor(goal, dtype=torch.float64) - state[point]
        start = state[point].clone()

        def field(t, x, start=start, way=way):
            far = (x - start - t * way).norm(dim=1, keepdim=True) / radius
            return torch.where(far < 1, torch.exp(1 - 1 / (1 - far**2).clamp_min(1e-9)), 0.0) * way

        state = odeint(field, state, [0.0, 1.0], rtol=1e-9, atol=1e-11)[-1]
    torch.testing.assert_close(state, places[[2, 1, 0]], atol=1e-6, rtol=0)


def test_what_a_circle_surrounds_stays_between_its_ends():
    """In every direction the image of the inside lies between the extremes of the circle's."""
    draw = torch.Generator().manual_seed(1)
    angle = 2 * torch.pi * torch.arange(2000, dtype=torch.float64) / 2000
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    inside = circle * torch.rand(2000, 1, generator=draw, dtype=torch.float64) * 0.8
    for _ in range(20):
        w = torch.randn(2, 16, 2, generator=draw, dtype=torch.float64)
        shift = torch.randn(16, generator=draw, dtype=torch.float64)

        def field(t, x, w=w, shift=shift):
            return torch.tanh(x @ w[0].T + shift * (1 + t)) @ w[1] / 2

        start = torch.cat([circle, inside])
        end = odeint(field, start, [0.0, 1.0], rtol=1e-6, atol=1e-8)[-1]
        scores = end @ torch.randn(2, 30, generator=draw, dtype=torch.float64)
        rim, within = scores[:2000], scores[2000:]
        slack = 1e-3 * (rim.amax(0) - rim.amin(0))  # the circle has only 2000 points
        assert (within.amax(0) <= rim.amax(0) + slack).all()
        assert (within.amin(0) >= rim.amin(0) - slack).all()
