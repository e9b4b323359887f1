"""Linear residual networks: values against loops and autograd, and every bound of their theory."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import nn

from companion import OdeBlock, PiecewiseConstant
from companion.models.linear_resnet import (
    LinearTask,
    descend,
    end_map,
    layer_products,
    roughness,
    time_one_map,
)

E = math.e


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def operator_norm(matrices):
    return torch.linalg.matrix_norm(matrices, 2)


def bounded(*shape, norm=0.5, seed=0):
    """Random matrices, all of the same operator norm."""
    matrices = draw(*shape, seed=seed)
    return norm * matrices / operator_norm(matrices)[..., None, None]


def loop_products(weights):
    """The products before and from every layer, one layer after the other."""
    layers, width, _ = weights.shape
    factors = [torch.eye(width, dtype=weights.dtype) + w / layers for w in weights]
    before, after = [torch.eye(width, dtype=weights.dtype)], [torch.eye(width, dtype=weights.dtype)]
    for factor in factors:
        before.append(factor @ before[-1])
    for factor in reversed(factors):
        after.insert(0, after[0] @ factor)
    return torch.stack(before), torch.stack(after)


def task(width=3, seed=1, condition=1.0):
    inputs = draw(width, 50, seed=seed)
    covariance = inputs @ inputs.T / 50
    stretch = torch.linspace(1, condition, width, dtype=torch.float64).sqrt()
    return LinearTask(draw(width, width, seed=seed + 1), stretch[:, None] * covariance * stretch)


# Values


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 7, 8, 13])
def test_products_against_a_loop(layers):
    weights = draw(layers, 3, 3)
    before, after = loop_products(weights)
    found = layer_products(weights)
    torch.testing.assert_close(found[0], before, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(found[1], after, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(end_map(weights), before[-1], rtol=1e-14, atol=1e-14)


def test_the_network_is_an_euler_block_of_linear_layers():
    torch.manual_seed(0)
    block = OdeBlock(lambda: nn.Linear(3, 3, bias=False), PiecewiseConstant(cells=5), steps=5)
    block.double()
    (weights,) = block.parameters()
    x = draw(4, 3)
    torch.testing.assert_close(x @ end_map(weights).T, block(x), rtol=1e-13, atol=1e-13)


def test_time_one_map_against_another_solver():
    weights = draw(3, 2, 2)

    def field(cell):
        return lambda t, x: (weights[cell].numpy() @ x.reshape(2, 2)).ravel()

    x = np.eye(2).ravel()
    for cell in range(3):
        x = solve_ivp(field(cell), (0, 1 / 3), x, rtol=1e-11, atol=1e-12).y[:, -1]
    np.testing.assert_allclose(time_one_map(weights), x.reshape(2, 2), rtol=1e-9)


def test_the_loss_is_half_the_mean_squared_error():
    inputs, target, weights = draw(3, 50, seed=1), draw(3, 3, seed=2), draw(4, 3, 3)
    found = LinearTask(target, inputs @ inputs.T / 50).loss(weights)
    errors = (end_map(weights) - target) @ inputs
    torch.testing.assert_close(found, errors.square().sum(0).mean() / 2, rtol=1e-13, atol=0)


@pytest.mark.parametrize("layers", [1, 2, 5, 8])
def test_gradients_against_autograd(layers):
    weights = draw(2, layers, 3, 3).requires_grad_()
    loss = task().loss(weights)
    assert loss.shape == (2,)
    (expected,) = torch.autograd.grad(loss.sum(), weights)
    both = task().loss_and_gradients(weights.detach())
    torch.testing.assert_close(both[0], loss.detach(), rtol=1e-13, atol=0)
    torch.testing.assert_close(both[1], layers * expected, rtol=1e-12, atol=1e-12)
    only = task().rescaled_gradients(weights.detach())
    torch.testing.assert_close(only, both[1], rtol=0, atol=0)


def test_every_network_of_a_batch_has_its_own_target():
    weights = draw(2, 4, 3, 3)
    targets = draw(2, 3, 3, seed=5)
    together = LinearTask(targets, task().covariance).rescaled_gradients(weights)
    for row in range(2):
        alone = LinearTask(targets[row], task().covariance).rescaled_gradients(weights[row])
        torch.testing.assert_close(together[row], alone, rtol=1e-14, atol=1e-14)


def test_descent_takes_the_steps_it_says():
    start, step = draw(4, 3, 3), 0.01
    stages = list(descend(task(), start, step, 3))
    weights = start.clone()
    for stage in stages:
        torch.testing.assert_close(stage.weights, weights, rtol=1e-13, atol=1e-13)
        loss, gradients = task().loss_and_gradients(weights)
        torch.testing.assert_close(stage.loss, loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(stage.gradients, gradients, rtol=1e-12, atol=1e-12)
        leaf = weights.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(task().loss(leaf), leaf)
        weights = weights - step * 4 * gradient
    assert len(stages) == 4


def test_descent_tends_to_the_flow():
    start, quiet = 0.2 * draw(3, 2, 2), task(2)

    def velocity(t, flat):
        weights = torch.from_numpy(flat).reshape(3, 2, 2)
        return -quiet.rescaled_gradients(weights).flatten().numpy()

    exact = solve_ivp(velocity, (0, 1), start.flatten().numpy(), rtol=1e-10, atol=1e-12).y[:, -1]
    errors = []
    for steps in (50, 100, 200):
        *_, last = descend(quiet, start, 1 / steps, steps)
        errors.append(np.linalg.norm(last.weights.flatten().numpy() - exact))
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.1)


def test_roughness_is_the_largest_difference_times_the_depth():
    weights = draw(2, 5, 3, 3)
    for row in range(2):
        gaps = [torch.linalg.norm(weights[row, n + 1] - weights[row, n]) for n in range(4)]
        torch.testing.assert_close(roughness(weights)[row], 5 * max(gaps))


# Gradients and their bounds


def test_neighbouring_gradients_are_tied_by_an_identity():
    """(I + th_{n+1}/N)^T G_{n+1} = G_n (I + th_n/N)^T; swapped sides or indices would miss."""
    weights = draw(6, 3, 3)
    gradients = task().rescaled_gradients(weights)
    layers = torch.eye(3, dtype=torch.float64) + weights / 6
    left = layers[1:].mT @ gradients[1:]
    right = gradients[:-1] @ layers[:-1].mT
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)
    assert (left - gradients[:-1]).abs().max() > 1e-2


@pytest.mark.parametrize("layers", [2, 3, 16])
@pytest.mark.parametrize("seed", range(5))
def test_neighbouring_gradients_are_close(layers, seed):
    gradients = task(condition=8.0).rescaled_gradients(bounded(layers, 3, 3, seed=seed))
    sizes = gradients.norm(dim=(-2, -1))
    gaps = gradients.diff(dim=0).norm(dim=(-2, -1))
    assert torch.all(gaps <= (sizes[1:] + sizes[:-1]) / (2 * layers))
    assert torch.all(gaps <= 2 * sizes[:-1] / layers)


@pytest.mark.parametrize("layers", [1, 2, 16])
@pytest.mark.parametrize("seed", range(5))
def test_gradient_bounds(layers, seed):
    chosen = task(condition=8.0)
    low, high = chosen.gradient_bounds()
    loss, gradients = chosen.loss_and_gradients(bounded(layers, 3, 3, seed=seed))
    ratios = gradients.square().sum((-2, -1)) / loss
    assert torch.all(ratios >= low)
    assert torch.all(ratios <= high)


def test_gradient_bounds_are_the_best_for_deep_networks():
    """Weights +I/2 and -I/2, and an error along one eigenvector of the covariance."""
    covariance = torch.diag(torch.tensor([0.3, 2.0], dtype=torch.float64))
    eye = torch.eye(2, dtype=torch.float64)
    for sign, axis, which in ((-1, 0, 0), (1, 1, 1)):
        weights = sign * eye.expand(4000, 2, 2) / 2
        error = torch.outer(eye[0], eye[axis])
        chosen = LinearTask(end_map(weights) - error, covariance)
        loss, gradients = chosen.loss_and_gradients(weights)
        ratios = gradients.square().sum((-2, -1)) / loss
        bound = chosen.gradient_bounds()[which]
        assert ratios.min().item() == pytest.approx(bound, rel=1e-3)
        assert ratios.max().item() == pytest.approx(bound, rel=1e-3)
    assert chosen.gradient_bounds() == pytest.approx((0.6 / E, 4 * E))


def test_a_gradient_far_outside_the_ball_breaks_the_bounds():
    weights = torch.eye(3, dtype=torch.float64).expand(8, 3, 3) * 1.5
    loss, gradients = task().loss_and_gradients(weights)
    assert (gradients.square().sum((-2, -1)) / loss).max() > task().gradient_bounds()[1]


# Training from below the threshold


def task_at(start, share, condition, step, seed):
    """A task on which every network of the batch starts at ``share`` times the threshold."""
    direction = draw(*start.shape[:-3], *start.shape[-2:], seed=seed)
    covariance = task(start.shape[-1], seed, condition).covariance
    unit = LinearTask(end_map(start) + direction, covariance)
    scale = (share * unit.loss_threshold(step) / unit.loss(start)).sqrt()
    return LinearTask(end_map(start) + scale[..., None, None] * direction, covariance)


@pytest.mark.parametrize("condition", [1.0, 5.0, 20.0])
@pytest.mark.parametrize("layers", [2, 9, 64])
@pytest.mark.parametrize("relative_step", [0.02, 1.0])
def test_training_from_below_the_threshold(layers, condition, relative_step):
    """Loss, norms, paths and differences, for small and for the largest allowed steps."""
    start = bounded(4, layers, 3, 3, norm=0.25, seed=layers)
    high = task(3, 7, condition).spectrum[1]
    step = relative_step / (E * high) * (1 - 1e-12)
    chosen = task_at(start, 0.999, condition, step, 7)
    low = chosen.spectrum[0]
    factor = 1 - step * low / E * (1 - E * step * high / 8)
    path, before = torch.zeros(4, layers, dtype=torch.float64), None
    assert torch.all(chosen.loss(start) > 0.99 * chosen.loss_threshold(step))
    for stage in descend(chosen, start, step, 120):
        assert operator_norm(stage.weights).max() < 0.5
        assert path.max() < 0.25
        assert roughness(stage.weights - start).max() <= 0.25
        assert stage.gradients.norm(dim=(-2, -1)).max() <= low / (4 * E)
        if before is not None:
            assert torch.all(stage.loss.sqrt() <= factor * before.sqrt() + 1e-14)
        path = path + step * stage.gradients.norm(dim=(-2, -1))
        before = stage.loss


def test_equal_scalar_layers_travel_to_the_root_of_the_target():
    """Closed form: all layers stay equal and end where (1 + theta/N)^N = B."""
    one = torch.ones(1, 1, dtype=torch.float64)
    *_, last = descend(LinearTask(1.3 * one, one), 0.1 * one.expand(5, 1, 1), 0.1, 300)
    assert last.weights.flatten().tolist() == pytest.approx([5 * (1.3**0.2 - 1)] * 5, rel=1e-12)


def test_the_threshold_by_value():
    chosen = LinearTask(torch.zeros(2, 2), torch.diag(torch.tensor([0.5, 2.0])))
    assert chosen.loss_threshold() == pytest.approx(0.25 / (64 * E**3))
    assert chosen.loss_threshold(0.1) == pytest.approx((1 - 0.025 * E) ** 2 * 0.25 / (64 * E**3))


# Depth to infinity


@pytest.mark.parametrize("layers", [1, 2, 5, 40])
def test_products_are_close_to_flows(layers):
    """At both ends of every cell, and over the whole depth with the smaller constant."""
    weights = bounded(layers, 3, 3, seed=layers)
    before, after = layer_products(weights)
    exponentials = torch.linalg.matrix_exp(weights / layers)
    flow = [torch.eye(3, dtype=torch.float64)]
    for factor in exponentials:
        flow.append(factor @ flow[-1])
    bound = 5 / 8 * E**0.5 / layers
    for n in range(layers):
        for s in (n, n + 1):
            assert operator_norm(before[n] - flow[s]) <= bound
            rest = flow[-1] @ torch.linalg.inv(flow[s])
            assert operator_norm(after[n + 1] - rest) <= bound
    whole = operator_norm(end_map(weights) - time_one_map(weights))
    assert whole <= E**0.5 / (8 * layers)


def test_that_bound_is_the_best_for_deep_networks():
    weights = torch.full((1000, 1, 1), 0.5, dtype=torch.float64)
    gap = (time_one_map(weights) - end_map(weights)).item()
    assert gap == pytest.approx(E**0.5 / 8000, rel=2e-3)


@pytest.mark.parametrize("seed", range(5))
def test_flows_of_close_weights_are_close(seed):
    """||U - U'||_F <= sqrt(e) sup ||psi - psi'||_F, on weights that differ at every depth."""
    one = bounded(12, 3, 3, seed=seed)
    other = one - 0.3 * (one - bounded(12, 3, 3, seed=seed + 100))
    gap = torch.linalg.norm(time_one_map(one) - time_one_map(other))
    assert gap <= E**0.5 * (one - other).norm(dim=(-2, -1)).max()


def comparison(seed, condition=5.0):
    """Two networks, 6 and 15 layers, near one function of depth; on a common grid of 30 cells."""
    rough, target = bounded(5, 3, 3, norm=0.45, seed=seed), draw(3, 3, seed=seed + 50)
    chosen = LinearTask(target, task(3, seed, condition).covariance)
    found = []
    for layers in (6, 15):
        depth = torch.arange(layers, dtype=torch.float64)[:, None, None] / layers
        weights = torch.lerp(rough[0].expand(layers, -1, -1), rough[1], depth)
        weights = weights + bounded(layers, 3, 3, norm=0.04, seed=seed + layers)
        before, after = layer_products(weights)
        index = torch.arange(30) * layers // 30
        found.append(
            {
                "layers": layers,
                "weights": weights[index],
                "before": before[:-1][index],
                "after": after[1:][index],
                "residual": (before[-1] - target) @ square_root(chosen.covariance),
                "gradients": chosen.rescaled_gradients(weights)[index],
            }
        )
    return chosen, *found


def square_root(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.sqrt()) @ vectors.mT


def product_gap(one, other):
    """D = sqrt(e) (sup ||psi - psi'||_F + 5 sqrt(d) (1/N + 1/N') / 8)."""
    sup = (one["weights"] - other["weights"]).norm(dim=(-2, -1)).max()
    width = one["weights"].shape[-1]
    return E**0.5 * (sup + 5 / 8 * width**0.5 * (1 / one["layers"] + 1 / other["layers"]))


def rate_operator(net, chosen):
    """The matrix of X -> mean over depth of (V V^T) X (S W^T W S)."""
    root = square_root(chosen.covariance)
    left = net["after"] @ net["after"].mT
    right = root @ net["before"].mT @ net["before"] @ root
    return torch.stack([torch.kron(p, q) for p, q in zip(left, right, strict=True)]).mean(0)


@pytest.mark.parametrize("seed", range(6))
def test_the_steps_that_compare_two_depths(seed):
    """Products, gradients and rates of two depths differ by no more than the proof says."""
    chosen, one, other = comparison(seed)
    low, high = chosen.spectrum
    gap = product_gap(one, other)
    for name in ("before", "after"):
        assert (one[name] - other[name]).norm(dim=(-2, -1)).max() <= gap
    size = torch.linalg.norm(one["residual"]), torch.linalg.norm(other["residual"])
    apart = torch.linalg.norm(one["residual"] - other["residual"])
    assert apart <= high**0.5 * gap
    change = (one["gradients"] - other["gradients"]).norm(dim=(-2, -1)).max()
    assert change <= (E * high) ** 0.5 * (gap * (size[0] + size[1]) + apart)
    operators = [rate_operator(net, chosen) for net in (one, other)]
    assert operator_norm(operators[0] - operators[1]) <= 4 * E * high * gap
    for operator in operators:
        rates = torch.linalg.eigvalsh(operator)
        assert low / E <= rates[0] <= rates[-1] <= E * high


def test_the_residual_decays_by_the_rate_operator():
    """d/dt (Pi - B) S = -K (Pi - B) S along the rescaled flow."""
    chosen, net, _ = comparison(0)
    weights = net["weights"][::5]
    root = square_root(chosen.covariance)
    velocity = -chosen.rescaled_gradients(weights)
    _, change = torch.func.jvp(end_map, (weights,), (velocity,))
    expected = -(rate_operator(net, chosen) @ net["residual"].flatten()).view(3, 3)
    torch.testing.assert_close(change @ root, expected, rtol=1e-12, atol=1e-12)


def test_the_second_derivative_of_the_map_along_a_step():
    """||p''||_F <= sqrt(e) max ||G||_F^2 for p(tau) = Pi(theta - tau G)."""
    weights, direction = bounded(7, 3, 3, norm=0.4), bounded(7, 3, 3, norm=0.1, seed=3)

    def slope(tau):
        return torch.func.jvp(lambda t: end_map(weights - t * direction), (tau,), (one,))[1]

    one = torch.ones((), dtype=torch.float64)
    for tau in torch.linspace(0, 1, 5, dtype=torch.float64):
        second = torch.func.jvp(slope, (tau,), (one,))[1]
        bound = E**0.5 * direction.norm(dim=(-2, -1)).max() ** 2
        assert torch.linalg.norm(second) <= bound


def test_the_gradients_of_deep_networks_tend_to_those_of_the_limit():
    """The right-hand side of the limit flow, from the flow of x' = psi(s) x by another solver."""
    chosen = task(2)
    base, wave = bounded(2, 2, 2, norm=0.25)

    def psi(s):
        return (base + wave * math.sin(2 * math.pi * s)).numpy()

    def end(s):
        """U(s, 0)."""
        field = lambda r, u: (psi(r) @ u.reshape(2, 2)).ravel()  # noqa: E731
        solved = solve_ivp(field, (0, s), np.eye(2).ravel(), rtol=1e-10, atol=1e-12)
        return torch.from_numpy(solved.y[:, -1].reshape(2, 2))

    errors = []
    for layers in (16, 32, 64):
        depth = torch.arange(layers) / layers
        weights = torch.stack([torch.from_numpy(psi(s)) for s in depth.tolist()])
        gradients = chosen.rescaled_gradients(weights)
        gaps = []
        for n in (0, layers // 4, layers // 2):
            before, whole = end(n / layers), end(1.0)
            after = whole @ torch.linalg.inv(before)
            limit = after.mT @ (whole - chosen.target) @ chosen.covariance @ before.mT
            gaps.append(torch.linalg.norm(gradients[n] - limit).item())
        errors.append(max(gaps))
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.1)


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: end_map(torch.zeros(3, 3)), r"weights: shape \(3, 3\) is not allowed"),
        (
            lambda: layer_products(torch.zeros(2, 3, 2)),
            r"weights: shape \(2, 3, 2\) is not allowed",
        ),
        (lambda: time_one_map(torch.zeros(0, 2, 2)), r"weights: shape \(0, 2, 2\) is not allowed"),
        (lambda: roughness(torch.zeros(1, 2, 2)), "weights: 1 layer is not allowed.* at least two"),
        (
            lambda: LinearTask(torch.zeros(2, 2), torch.eye(3)),
            r"shapes \(2, 2\) and \(3, 3\) are not allowed",
        ),
        (
            lambda: LinearTask(torch.zeros(2, 2), torch.eye(2, dtype=torch.float64)),
            r"torch\.float32 on cpu and torch\.float64 on cpu .* one type and device",
        ),
        (
            lambda: LinearTask(torch.zeros(2, 2), torch.tensor([[1.0, 0.5], [0.0, 1.0]])),
            "symmetric and positive definite",
        ),
        (
            lambda: LinearTask(torch.zeros(2, 2), torch.diag(torch.tensor([1.0, -1.0]))),
            "symmetric and positive definite",
        ),
        # Not iterated over: descend itself checks.
        (
            lambda: descend(task(), draw(2, 3, 3), 0.0, 1),
            r"step: 0\.0 is not allowed; it must be positive",
        ),
        (
            lambda: descend(task(), draw(2, 3, 3), -1, 1),
            "step: -1 is not allowed; it must be positive and finite",
        ),
        (
            lambda: descend(task(), draw(2, 3, 3), math.inf, 1),
            "step: inf is not allowed; it must be positive",
        ),
        (lambda: descend(task(), draw(2, 3, 3), 0.1, -1), "steps: -1 is not allowed"),
        (lambda: descend(task(), draw(2, 3, 3), 0.1, 1.5), r"steps: 1\.5 is not allowed"),
        (
            lambda: descend(task(), draw(2, 1, 1), 0.1, 1),
            r"weights: shape \(2, 1, 1\) .*layers, 3, 3\)",
        ),
        (
            lambda: task().loss(draw(2, 1, 1)),
            r"weights: shape \(2, 1, 1\) .*layers, 3, 3\), as the target's",
        ),
        (lambda: task().rescaled_gradients(draw(2, 4, 4)), r"weights: shape \(2, 4, 4\)"),
        (
            lambda: LinearTask(torch.zeros(0, 0), torch.zeros(0, 0)),
            r"shapes \(0, 0\) and \(0, 0\) .*d at least 1",
        ),
        (
            lambda: LinearTask(*[torch.eye(2).half()] * 2),
            r"torch\.float16 is not allowed.*float32 or float64",
        ),
        (
            lambda: LinearTask(*[torch.eye(2).long()] * 2),
            r"torch\.int64 is not allowed.*float32 or float64",
        ),
        (
            lambda: task().loss_threshold(9.0),
            r"step: 9\.0 is not allowed; it must lie between 0 and 0\.\d+",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_task_is_made_of_tensors():
    with pytest.raises(
        TypeError, match=r"covariance: 1\.0 is not allowed; it must be of type Tensor"
    ):
        LinearTask(torch.eye(1), 1.0)
