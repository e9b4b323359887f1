"""Paths from noise to data, scores and the exact field, against closed forms."""

import math

import numpy as np
import pytest
import torch
from fields import randn

from companion.models import TanhMLP
from companion.models.interpolants import (
    Interpolant,
    linear,
    matching_errors,
    times_like,
    trigonometric,
)
from companion.models.marginal_field import MarginalField
from companion.ode import odeint

PATHS = {
    "linear": (linear(), lambda t: (t, 1 - t, 1.0, -1.0)),
    "trigonometric": (
        trigonometric(),
        lambda t: (
            math.sin(math.pi / 2 * t),
            math.cos(math.pi / 2 * t),
            math.pi / 2 * math.cos(math.pi / 2 * t),
            -math.pi / 2 * math.sin(math.pi / 2 * t),
        ),
    ),
    "curved": (
        Interpolant(lambda t: t**2, lambda t: (1 - t) ** 3),
        lambda t: (t**2, (1 - t) ** 3, 2 * t, -3 * (1 - t) ** 2),
    ),
}
MEAN, DEVIATION = 1.5, 0.5


def gaussian_velocity(numbers, x):
    """The closed form for data of the law N(m, s^2), from the covariance of two normal numbers."""
    a, s, da, ds = numbers
    share = (a * da * DEVIATION**2 + s * ds) / (a**2 * DEVIATION**2 + s**2)
    return da * MEAN + share * (x - a * MEAN)


def gaussian_score(numbers, x):
    a, s = numbers[:2]
    return -(x - a * MEAN) / (a**2 * DEVIATION**2 + s**2)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_points_and_velocities(device, name, t):
    path, exact = PATHS[name]
    x0, x1 = randn(6, 2, device=device), randn(6, 2, device=device, seed=2)
    a, s, da, ds = exact(t)
    torch.testing.assert_close(path.point(t, x0, x1), a * x1 + s * x0)
    torch.testing.assert_close(path.velocity(t, x0, x1), da * x1 + ds * x0)


@pytest.mark.parametrize("name", PATHS)
def test_a_time_for_each_point(device, name):
    path, _ = PATHS[name]
    x0, x1 = randn(4, 3, 2, device=device), randn(4, 3, 2, device=device, seed=2)
    t = torch.tensor([0.0, 0.2, 0.5, 0.9], dtype=torch.float64, device=device)
    for call in (path.point, path.velocity):
        together = call(t, x0, x1)
        for k in range(4):
            torch.testing.assert_close(together[k], call(t[k], x0[k : k + 1], x1[k : k + 1])[0])
        torch.testing.assert_close(call(t.view(4, 1, 1), x0, x1), together)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_score_and_velocity_of_a_normal_law(device, name, t):
    path, exact = PATHS[name]
    x = torch.linspace(-3, 3, 9, dtype=torch.float64, device=device).unsqueeze(1)
    velocity, score = gaussian_velocity(exact(t), x), gaussian_score(exact(t), x)
    torch.testing.assert_close(path.velocity_from_score(t, x, score), velocity)
    torch.testing.assert_close(path.score_from_velocity(t, x, velocity), score)


def test_score_at_the_start_is_that_of_the_noise(device):
    x = randn(5, 2, device=device)
    velocity = linear().velocity(0.0, x, torch.full_like(x, MEAN))
    torch.testing.assert_close(linear().score_from_velocity(0.0, x, velocity), -x)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("t", [0.1, 0.6, 0.95])
def test_exact_field_is_that_of_the_score(device, name, t):
    """The law of the path is a mixture of normal laws, whose score autograd has."""
    path, exact = PATHS[name]
    data, x = randn(7, 3, device=device), randn(11, 3, device=device, seed=2).requires_grad_()
    a, s, *_ = exact(t)
    squares = (x.unsqueeze(1) - a * data).square().sum(-1)
    (score,) = torch.autograd.grad(torch.logsumexp(-squares / (2 * s**2), 1).sum(), x)
    found = MarginalField(data, path)(t, x.detach())
    wanted = path.velocity_from_score(t, x.detach(), score)
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-10)


def test_exact_field_written_out_on_the_linear_path(device):
    data, x, t = randn(5, 2, device=device), randn(3, 2, device=device, seed=2), 0.7
    weights = torch.softmax(-(torch.cdist(x, t * data) ** 2) / (2 * 0.3**2), 1)
    wanted = sum(weights[:, i : i + 1] * (data[i] - x) / 0.3 for i in range(5))
    field = MarginalField(data, linear())
    torch.testing.assert_close(field(t, x), wanted)
    torch.testing.assert_close(field.weights(t, x), weights)


def test_exact_field_with_a_time_for_each_row(device):
    data, x = randn(5, 1, 2, device=device), randn(3, 1, 2, device=device, seed=2)
    t, field = torch.tensor([0.1, 0.5, 0.99], device=device), MarginalField(data, linear())
    for k in range(3):
        torch.testing.assert_close(field(t, x)[k], field(t[k], x[k : k + 1])[0])


def test_trajectories_of_the_exact_field_end_on_data(device):
    """From afar all data look alike, and the first velocity is the way to their mean."""
    data, start = randn(20, 4, device=device), randn(30, 4, device=device, seed=2)
    field = MarginalField(data, linear())
    torch.testing.assert_close(field(0.0, start), data.mean(0) - start)
    times = torch.tensor([0.0, 1.0], dtype=torch.float64, device=device)
    end = odeint(field, start, times, method="euler", steps=400)[-1]
    nearest = torch.cdist(end, data).argmin(1)
    torch.testing.assert_close(end, data[nearest], atol=1e-12, rtol=0)
    assert len(nearest.unique()) > 5


def test_flow_of_a_normal_law_is_a_change_of_scale(device):
    """x_t = t m + sqrt(t^2 s^2 + (1 - t)^2) x_0."""
    times = torch.linspace(0, 1, 5, dtype=torch.float64, device=device)
    start = randn(6, 1, device=device)
    found = odeint(
        lambda t, x: gaussian_velocity(PATHS["linear"][1](float(t)), x),
        start, times, method="rk4", steps=50,
    )  # fmt: skip
    scale = (times**2 * DEVIATION**2 + (1 - times) ** 2).sqrt().view(5, 1, 1)
    wanted = times.view(5, 1, 1) * MEAN + scale * start
    torch.testing.assert_close(found, wanted, atol=1e-7, rtol=0)


def pairs_and_times():
    """Return points and weights that integrate exactly over two normal numbers, and well over t."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    weights = weights / math.sqrt(2 * math.pi)
    times, shares = np.polynomial.legendre.leggauss(60)
    grid = np.meshgrid(nodes, nodes, (times + 1) / 2, indexing="ij")
    mass = np.einsum("i,j,k->ijk", weights, weights, shares / 2)
    return [torch.from_numpy(x.ravel()) for x in (*grid, mass)]


def test_loss_is_the_distance_to_the_mean_field_and_a_floor():
    """For data of N(m, s^2) the floor is pi s / 2, and no field is below it."""
    noise, other, t, mass = pairs_and_times()
    x0, x1 = noise.unsqueeze(1), MEAN + DEVIATION * other.unsqueeze(1)

    def loss(field):
        return float((mass * matching_errors(field, linear(), t, x0, x1)).sum())

    def mean_field(t, x):
        share = (t * DEVIATION**2 - (1 - t)) / (t**2 * DEVIATION**2 + (1 - t) ** 2)
        return MEAN + share * (x - t * MEAN)

    floor = math.pi / 2 * DEVIATION
    assert loss(mean_field) == pytest.approx(floor, abs=1e-10)
    x = linear().point(t, x0, x1)
    apart = (0.7 * x + 0.3 - mean_field(t.unsqueeze(1), x)).square().squeeze(1)
    assert loss(lambda t, x: 0.7 * x + 0.3) == pytest.approx(
        floor + float((mass * apart).sum()), abs=1e-10
    )


def test_exact_field_within_transforms_and_without_gradients(device):
    """What solvers and traces do with a field."""
    data, x = randn(5, 2, device=device), randn(4, 2, device=device, seed=2)
    field = MarginalField(data, trigonometric())
    wanted = field(0.3, x)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(field(0.3, x), wanted)
    jacobian = torch.func.jacrev(lambda x: field(0.3, x))(x)
    step = 1e-6 * torch.tensor([1.0, 0.0], dtype=torch.float64, device=device)
    quotient = (field(0.3, x + step) - field(0.3, x - step)) / 2e-6
    for k in range(4):
        torch.testing.assert_close(jacobian[k, :, k, 0], quotient[k], atol=1e-7, rtol=1e-7)


def test_errors_add_coordinates_up(device):
    x0, x1 = randn(3, 2, 2, device=device), randn(3, 2, 2, device=device, seed=2)
    t = torch.tensor([0.1, 0.5, 0.8], dtype=torch.float64, device=device)
    found = matching_errors(lambda t, x: t * x, linear(), t, x0, x1)
    column = t.view(3, 1, 1)
    wanted = (column * (column * x1 + (1 - column) * x0) - (x1 - x0)).square().sum((1, 2))
    torch.testing.assert_close(found, wanted)


def test_fields_of_the_companion_take_the_times(device):
    field = TanhMLP(2, (8, 8)).double().to(device)
    x0, x1 = randn(3, 2, device=device), randn(3, 2, device=device, seed=2)
    t = torch.tensor([0.1, 0.5, 0.8], dtype=torch.float64, device=device)
    found = matching_errors(field, linear(), t, x0, x1)
    for k in range(3):
        one = field(t[k], linear().point(t[k], x0[k : k + 1], x1[k : k + 1]))
        torch.testing.assert_close(found[k], (one - (x1 - x0)[k]).square().sum())


def test_bad_arguments_are_named():
    x, field = torch.zeros(3, 2), MarginalField(torch.ones(4, 2), linear())
    for call, message in (
        (lambda: times_like(torch.zeros(2), x), r"t: shape \(2,\) "),
        (lambda: linear().velocity_from_score(0.0, x, x), "t: 0.0 .* not entered"),
        (lambda: linear().score_from_velocity(1.0, x, x), "t: 1.0 .* left"),
        (lambda: field(1.0, x), "t: 1.0 .* sigma > 0"),
        (lambda: field(0.5, torch.zeros(3, 5)), r"x: shape \(3, 5\) "),
        (lambda: MarginalField(torch.zeros(0, 2), linear()), r"data: shape \(0, 2\) "),
        (lambda: matching_errors(field, linear(), torch.tensor(0.5), x, x), r"t: shape \(\) "),
        (
            lambda: matching_errors(lambda t, x: x[:, :1], linear(), torch.zeros(3), x, x),
            r"field: .* \(3, 1\) ",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
