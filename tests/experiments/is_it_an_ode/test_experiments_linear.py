"""The experiments on depth limits: linear networks (S22-P2, S22-F2) and nonlinear ones (FW6)."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from companion.experiments import find, run
from companion.experiments.is_it_an_ode.fw6_nonlinear_limit import (
    VARIANTS,
    _descend,
    _distances,
    _problem,
)
from companion.experiments.is_it_an_ode.linear_tasks import linear_problem
from companion.models.linear_resnet import end_map

CPU = torch.device("cpu")
P2 = {"depths": (4, 16), "starts": 2, "steps": 12}
F2 = {"depths": (4, 8, 16), "reference": 256, "starts": 2, "steps": 6}
NONLINEAR = {"depths": (4, 8, 16), "starts": 3, "steps": 6, "early": 2}

# Starts and targets


def test_starts_by_value():
    problem = linear_problem(2, 3, 5, CPU)
    smooth, rough = (problem.start(kind, 8) for kind in ("smooth", "rough"))
    for n in range(8):
        expected = problem.base + math.sin(math.pi * n / 4) * problem.wave
        torch.testing.assert_close(smooth[:, n], expected)
        torch.testing.assert_close(rough[:, n], problem.base + (-1) ** n * problem.wave)
    torch.testing.assert_close(problem.start("smooth", 16)[:, ::2], smooth)
    norms = torch.linalg.matrix_norm(torch.stack([problem.base, problem.wave]), 2)
    torch.testing.assert_close(norms, torch.tensor([[0.2] * 2, [0.05] * 2], dtype=norms.dtype))
    torch.testing.assert_close(linear_problem(1, 3, 5, CPU).wave, problem.wave[:1])


@pytest.mark.parametrize("kind", ["smooth", "rough"])
def test_deep_networks_start_at_the_chosen_multiple_of_the_threshold(kind):
    problem = linear_problem(2, 3, 5, CPU)
    task = problem.task(kind, 0.7, 0.1)
    shares = task.loss(problem.start(kind, 2048)) / task.loss_threshold(0.1)
    assert shares.tolist() == pytest.approx([0.7, 0.7], rel=0.01)


# S22-P2


def autograd_descent(weights, task, step, steps):
    """Rescaled descent of one network on the task's loss, by autograd."""
    layers, width, _ = weights.shape
    path = [weights]
    for _ in range(steps):
        leaf = path[-1].clone().requires_grad_()
        product = torch.eye(width, dtype=leaf.dtype)
        for layer in leaf:
            product = product + layer @ product / layers
        error = product - task[0]
        loss = torch.trace(error @ task[1] @ error.T) / 2
        (gradient,) = torch.autograd.grad(loss, leaf)
        path.append((leaf - step * layers * gradient).detach())
    return torch.stack(path)


def row(task, number):
    return task.target[number], task.covariance


def test_what_linear_training_does_to_smoothness():
    result = run("S22-P2", **P2)
    assert result.misses == ()
    problem = linear_problem(2, 3, 0, CPU)
    for kind in ("smooth", "rough"):
        path = autograd_descent(
            problem.start(kind, 16)[1], row(problem.task(kind, 0.9, 0.1), 1), 0.1, 12
        )
        gaps = 16 * path.diff(dim=1).norm(dim=(-2, -1)).amax(1)
        np.testing.assert_allclose(result[f"roughness_{kind}"][1, :, 1], gaps, rtol=1e-9)
        drift = 16 * (path - path[0]).diff(dim=1).norm(dim=(-2, -1)).max()
        assert drift.item() <= result[f"drift_{kind}"] * (1 + 1e-9)
        shown = autograd_descent(
            problem.start(kind, 16)[0], row(problem.task(kind, 0.9, 0.1), 0), 0.1, 12
        )
        np.testing.assert_allclose(result[f"before_{kind}"], shown[0, :, 0, -1], rtol=1e-12)
        np.testing.assert_allclose(result[f"after_{kind}"], shown[-1, :, 0, -1], rtol=1e-9)
    np.testing.assert_allclose(result["time"], np.arange(13) / 10, rtol=1e-12)
    assert result["shown"] == 16


def test_roughness_at_the_start_has_a_closed_form():
    result, wave = run("S22-P2", **P2), linear_problem(2, 3, 0, CPU).wave
    size = torch.linalg.matrix_norm(wave).max().item()
    steps = np.abs(np.diff(np.sin(2 * np.pi * np.arange(16) / 16))).max()
    assert result["first_smooth_16"] == pytest.approx(16 * size * steps)
    assert result["first_rough_16"] == pytest.approx(32 * size)
    assert result["first_rough_4"] == pytest.approx(8 * size)


def test_extremes_of_linear_training_against_a_loop():
    result, problem = run("S22-P2", **P2, seed=3), linear_problem(2, 3, 3, CPU)
    task = problem.task("smooth", 0.9, 0.1)
    low, high = task.gradient_bounds()
    ratios, paths, norms = [], [], []
    for depth in (4, 16):
        for number in range(2):
            path = autograd_descent(
                problem.start("smooth", depth)[number], row(task, number), 0.1, 13
            )
            moves = path.diff(dim=0).norm(dim=(-2, -1))
            error = end_map(path[:-1]) - task.target[number]
            loss = ((error @ task.covariance) * error).sum((-2, -1)) / 2
            ratios.append((moves / 0.1).square() / loss[:, None])
            paths.append(moves[:-1].sum(0).max())
            norms.append(torch.linalg.matrix_norm(path[:-1], 2).max())
    assert result["lower_smooth"] == pytest.approx(min(r.min().item() for r in ratios) / low)
    assert result["upper_smooth"] == pytest.approx(max(r.max().item() for r in ratios) / high)
    assert result["travel_smooth"] == pytest.approx(max(paths).item())
    assert result["norm_smooth"] == pytest.approx(max(norms).item())
    decay = np.diff(np.log(result["loss_smooth"]), axis=1).max() / -0.1
    assert result["rate_smooth"] == pytest.approx(decay / low)
    assert result["slowest"] == pytest.approx(low)


def test_networks_that_grow_rougher_miss_the_claims():
    result, entry = run("S22-P2", **P2), find("S22-P2")
    smooth, rough = (result[f"roughness_{kind}"] for kind in ("smooth", "rough"))
    assert result["excess_smooth"] == (smooth - smooth[:, :1]).max()
    assert result["left_rough"] == (rough[:, -1] / rough[:, 0]).min()
    scalars = {**result.findings.scalars, "excess_smooth": 0.3, "left_rough": 0.9}
    claims = [row.decide(scalars, entry.tiers["smoke"]) for row in entry.rows]
    assert [claim.text for claim in claims if not claim.holds] == [
        "largest N times a difference, minus C_0, smooth start",
        "roughness after training over roughness before, rough start",
    ]


# S22-F2


def test_distances_of_linear_networks_against_autograd():
    result, problem = run("S22-F2", **F2), linear_problem(2, 3, 0, CPU)
    for size, factor in (("small", 0.9), ("large", 50.0)):
        task = problem.task("smooth", factor, 0.25)
        worst = {"weights": [], "doubling": [], "map": []}
        for number in range(2):
            paths = {
                depth: autograd_descent(
                    problem.start("smooth", depth)[number], row(task, number), 0.25, 6
                )
                for depth in (4, 8, 256)
            }
            far = [
                (paths[4][:, s * 4 // 256] - paths[256][:, s]).norm(dim=(-2, -1))
                for s in range(256)
            ]
            worst["weights"].append(torch.stack(far).amax(0))
            gaps = (paths[4] - paths[8][:, ::2]).norm(dim=(-2, -1))
            worst["doubling"].append(gaps.amax(1))
            flow = torch.eye(3, dtype=torch.float64).expand(7, 3, 3)
            for cell in range(256):
                flow = torch.linalg.matrix_exp(paths[256][:, cell] / 256) @ flow
            worst["map"].append((end_map(paths[4]) - flow).norm(dim=(-2, -1)))
        for name, values in worst.items():
            expected = torch.stack(values).amax(0)
            np.testing.assert_allclose(
                result[f"{name}_{size}"][:, 0], expected, rtol=1e-8, atol=1e-14
            )


def test_the_linear_limit_at_a_small_size():
    result = run("S22-F2", **F2 | {"depths": (16, 32, 64), "reference": 1024})
    assert result.misses == ()
    assert np.all(result["doubling_large"][0, :2] == 0)
    assert np.all(result["doubling_large"][1:, :2] > 0)
    assert np.all(np.isnan(result["doubling_small"][:, 2]))
    assert result["weights_small"].shape == (7, 3)
    assert np.all(result["map_small"][-1] < result["map_small"][0])
    assert result["norm_small"] < result["norm_large"]
    assert result["loss_large"][0, 0] / result["loss_small"][0, 0] == pytest.approx(
        50 / 0.9, rel=0.05
    )


def test_the_slope_is_that_of_the_start_farthest_from_one():
    alone = [run("S22-F2", **F2 | {"starts": 1}, seed=seed) for seed in range(2)]
    for result in alone:
        for name, known in (("weights", 3), ("doubling", 2), ("map", 3)):
            worst = result[f"{name}_small"].max(0)[:known]
            fitted = np.polyfit(np.log([4, 8, 16][:known]), np.log(worst), 1)[0]
            assert result[f"slope_{name}_small"] == pytest.approx(fitted)
    several = run("S22-F2", **F2)
    assert abs(several["slope_doubling_small"] + 1) >= abs(alone[0]["slope_doubling_small"] + 1)


@pytest.mark.parametrize(
    "changes", [{"depths": (4, 8)}, {"depths": (4, 8, 32)}, {"reference": 250}]
)
def test_depths_that_do_not_double_are_refused(changes):
    with pytest.raises(ValueError, match="depths must be at least three, double, and divide"):
        run("S22-F2", **F2 | changes)


# FW6


class Layer(nn.Module):
    def __init__(self, numbers, activation, layers):
        super().__init__()
        self.inner = nn.Parameter(numbers[:12].view(2, 6).clone())
        self.outer = nn.Parameter(numbers[12:24].view(6, 2).clone())
        self.shift = nn.Parameter(numbers[24:].clone())
        self.activation, self.layers = activation, layers

    def forward(self, x):
        return x + self.activation(x @ self.inner + self.shift) @ self.outer / self.layers

    def numbers(self):
        return torch.cat([p.detach().flatten() for p in (self.inner, self.outer, self.shift)])


@pytest.mark.parametrize("variant", VARIANTS)
def test_nonlinear_descent_against_modules(variant):
    """Every variant, every start, against a stack of modules and torch's own descent."""
    kind, activation = ("relu", torch.relu) if variant == "relu" else ("tanh", torch.tanh)
    problem = _problem(3, 7, CPU, kind)
    which = problem.variants.index(variant)
    for start in range(3):
        n = torch.arange(6, dtype=torch.float64)[:, None]
        wave = (-1) ** n if variant == "rough" else torch.sin(2 * math.pi * n / 6)
        weights = problem.base[start] + wave * problem.wave[start]
        net = nn.Sequential(*(Layer(numbers, activation, 6) for numbers in weights))
        optimiser = torch.optim.SGD(net.parameters(), lr=0.1 * 6)
        x = problem.inputs
        y = torch.stack([torch.sin(x[:, 0]), 0.3 * x[:, 0] * x[:, 1]], 1)
        y = 5 * y if variant == "large" else y
        for found, loss in _descend(problem, 6, 0.1, 3):
            expected = torch.stack([layer.numbers() for layer in net])
            torch.testing.assert_close(found[which, start], expected, rtol=1e-11, atol=1e-12)
            error = (net(x) - y).square().sum(1).mean() / 2
            torch.testing.assert_close(loss[which, start], error.detach(), rtol=1e-11, atol=0)
            optimiser.zero_grad()
            error.backward()
            optimiser.step()


def test_distances_between_depths_by_layer():
    shallow, deep = torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 8, 2)
    deep[0, 0, :, 0] = torch.arange(8.0)
    shallow[0, 0, :, 0] = torch.tensor([0.0, 2.0, 4.0, 6.0])
    assert _distances([(shallow, deep)], parity=False)[0, 0, 0] == 0
    assert _distances([(shallow, deep)], parity=True)[0, 0, 0] == 1
    shallow[0, 0, :, 0] = torch.tensor([0.0, 1.0, 4.0, 5.0])
    assert _distances([(shallow, deep)], parity=True)[0, 0, 0] == 0
    assert _distances([(shallow, deep)], parity=False)[0, 0, 0] == 1
    assert _distances([(shallow, deep)], parity=False)[0, 1].isnan().all()


def test_what_depth_does_to_nonlinear_training():
    """Rows of the curves belong to the variants they name, and scalars to the curves."""
    result = run("FW6", **NONLINEAR)
    start = {variant: result[f"roughness_{variant}"][0] for variant in VARIANTS}
    np.testing.assert_array_equal(start["smooth"], start["large"])
    np.testing.assert_array_equal(start["smooth"], start["relu"])
    assert np.all(start["rough"] > 1.5 * start["smooth"])
    assert np.all(result["loss_large"][0] > 2 * result["loss_smooth"][0])
    for variant in VARIANTS:
        doubling = result[f"doubling_{variant}"]
        assert doubling.shape == (7, 3, 3)
        ratios = doubling[:, 0].max(0) / doubling[:, 1].max(0)
        assert np.isclose(result[f"ratio_{variant}"], ratios).any()
        assert abs(result[f"ratio_{variant}"] - 2) == pytest.approx(np.abs(ratios - 2).max())
        early = doubling[:3, 0].max(0) / doubling[:3, 1].max(0)
        assert np.isclose(result[f"early_{variant}"], early).any()
        growth = result[f"roughness_{variant}"].max(0)
        growth = growth[2] / growth[1]
        assert result[f"growth_{variant}"] == np.median(growth)
        assert result[f"most_growth_{variant}"] == growth.max()
        assert result[f"least_growth_{variant}"] == growth.min()
        assert result[f"before_{variant}"].shape == result[f"after_{variant}"].shape == (16,)


def test_the_nonlinear_limit_at_a_small_size():
    """Short training: the limit exists but for alternating weights, whose halves have one each."""
    result = run("FW6", depths=(16, 32, 64), starts=2, steps=20, early=20)
    for name in ("ratio_smooth", "ratio_large", "parity_rough_ratio"):
        assert 1.7 < result[name] < 2.3
    assert 0.99 < result["ratio_rough"] < 1.01
    assert result["parity_smooth_ratio"] != result["ratio_smooth"]
    assert 1.9 < result["growth_rough"] < 2.1
    assert result["growth_smooth"] < 1.1 < result["growth_relu"]


def test_the_profile_is_that_of_the_weight_with_the_largest_jump():
    result, problem = run("FW6", **NONLINEAR), _problem(3, 0, CPU, "relu")
    *_, (weights, _) = _descend(problem, 16, 0.1, 6)
    jumps = weights[0, 0].diff(dim=0).abs().amax(0)
    np.testing.assert_array_equal(result["after_relu"], weights[0, 0, :, jumps.argmax()])
    np.testing.assert_array_equal(result["before_relu"], problem.start(16)[0, 0, :, jumps.argmax()])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": (4, 8)}, r"depths must be at least three and double; got \(4, 8\)"),
        ({"depths": (4, 8, 12)}, "depths must be at least three and double"),
        ({"early": 0}, "early: 0 is not allowed; it must be at least 1"),
        ({"early": 7}, "early must lie between 1 and steps = 6; got 7"),
    ],
)
def test_bad_sizes_of_nonlinear_training(changes, message):
    with pytest.raises(ValueError, match=message):
        run("FW6", **NONLINEAR | changes)
