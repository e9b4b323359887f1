"""S22-P1, S22-D1, S22-X3: their claims at a small size, their parts by value, the theorems."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp
from scipy.optimize import root
from torch import nn

from companion import OdeBlock, PiecewiseConstant, PiecewiseLinear
from companion.analysis.interpolation import (
    _acceleration,
    network,
    ode_distance,
    residual_interpolation,
    weight_interpolation,
)
from companion.analysis.smoothness import smoothness_of
from companion.data import load_digits
from companion.exercises import WrongAnswer
from companion.exercises.is_it_an_ode import CERTIFICATE, GAP, MEASURES, OPPOSITE
from companion.experiments.is_it_an_ode import s22_p1_ode_distance as s22_p1
from companion.experiments.is_it_an_ode import s22_x3_steep_layers as s22_x3
from companion.experiments.is_it_an_ode.digits_nets import train_perceptron
from companion.experiments.is_it_an_ode.s22_d1_two_odes import _describe, _draw, _random
from companion.experiments.is_it_an_ode.s22_d1_two_odes import s22_d1 as run_d1
from companion.experiments.is_it_an_ode.s22_p1_ode_distance import s22_p1 as run_p1
from companion.experiments.is_it_an_ode.s22_x3_steep_layers import (
    _digits_net,
    _line,
    jacobians,
    perceptron_lipschitz,
)
from companion.experiments.is_it_an_ode.s22_x3_steep_layers import s22_x3 as run_x3
from companion.experiments.recipes import error_of
from companion.experiments.running import Part
from companion.models.scalar_field import ScalarField
from companion.results import Result
from companion.train import seeded

QUIET = Part(None, lambda fraction: None)
SMALL_P1 = {
    "depths": (1, 5),
    "tight_depths": (1, 500),
    "generic_depths": (32, 64, 128),
    "fields": 3,
    "dimension": 4,
}

# S22-P1: closed forms, bounds, and what the claims would notice


def test_the_closed_forms_and_the_bounds():
    result = run_p1(**SMALL_P1)
    assert result.misses == ()
    assert Result.from_json(result.to_json()) == result
    norm = math.sqrt(1 + 4 + 0.25)
    np.testing.assert_allclose(result["gap_line"], [norm / 2, norm / 10], rtol=1e-14)
    np.testing.assert_allclose(result["gap_counting"], [0.5, 0.5], rtol=1e-14)
    np.testing.assert_allclose(result["bound_counting"], [0.5, 0.5], rtol=1e-14)
    np.testing.assert_allclose(result["gap_zigzag"], [2 / 3, 2 / 3], rtol=1e-14)
    np.testing.assert_allclose(result["bound_zigzag"], [2, 2], rtol=1e-14)
    lipschitz, c = 1.3, 2.0
    bounds = [c * (math.exp(lipschitz) - 1) / (2 * n * lipschitz) for n in (1, 500)]
    gaps = [c * ((1 + lipschitz / n) ** n - 1) / (2 * n * lipschitz) for n in (1, 500)]
    np.testing.assert_allclose(result["bound_tight"], bounds, rtol=1e-12)
    np.testing.assert_allclose(result["gap_tight"], gaps, rtol=1e-12)


def test_the_numbers_of_the_tight_example():
    """For 1000 layers: 2.05092e-3 against the bound 2.05331e-3."""
    result = run_p1(**{**SMALL_P1, "tight_depths": (1000,)})
    assert result["gap_tight"][0] == pytest.approx(2.05092e-3, abs=5e-9)
    assert result["bound_tight"][0] == pytest.approx(2.05331e-3, abs=5e-9)


def test_random_fields_against_another_solver():
    result = run_p1(**SMALL_P1)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).numpy()

    w, c, u, x = draw(3, 4, 4), draw(3, 4), draw(3, 4), draw(3, 4)
    for k in range(3):
        weight = w[k] / np.linalg.norm(w[k], 2)

        def field(s, x, weight=weight, k=k):
            return np.tanh(weight @ x + c[k] * np.sin(3 * s)) + u[k] * np.cos(2 * s)

        exact = solve_ivp(field, (0, 1), x[k], "DOP853", rtol=1e-12, atol=1e-13, dense_output=True)
        for row, layers in enumerate((32, 64, 128)):
            state, gaps = x[k], []
            for n in range(layers):
                state = state + field(n / layers, state) / layers
                gaps.append(np.linalg.norm(state - exact.sol((n + 1) / layers)))
            assert result["gap_generic"][row, k] == pytest.approx(max(gaps), abs=1e-8)
            speed = np.gradient(
                np.array([field(s, exact.sol(s)) for s in np.linspace(0, 1, 4001)]),
                1 / 4000,
                axis=0,
            )
            largest = np.linalg.norm(speed, axis=1).max()
            nodes = np.arange(1, layers + 1) / layers
            bound = largest * np.expm1(nodes) / (2 * layers)
            assert result["ratio_generic"][row, k] == pytest.approx(
                (np.array(gaps) / bound).max(), rel=5e-3
            )


def test_another_continuation_of_the_last_interval_misses(monkeypatch):
    """With f_N = f_{N-1} the counting example has the gap (N - 1) / 2N, not 1/2."""
    monkeypatch.setattr(
        s22_p1.between,
        "residual_interpolation",
        lambda functions, last: residual_interpolation(functions),
    )
    result = run_p1(**SMALL_P1)
    assert [claim.text for claim in result.misses] == ["f = n: distance of the gap to 1/2"]
    np.testing.assert_allclose(result["gap_counting"], [0, 0.4], atol=1e-14)


def test_a_wrong_bound_would_be_noticed(monkeypatch):
    bound = s22_p1.euler_bound
    monkeypatch.setattr(s22_p1, "euler_bound", lambda c, lip, n: bound(c, lip, n) / 1.05)
    assert {claim.text[:9] for claim in run_p1(**SMALL_P1).misses} >= {"as + b: g", "Lx + u: g"}


def test_depths_that_share_no_grid_are_refused():
    with pytest.raises(ValueError, match="must divide the largest"):
        run_p1(**{**SMALL_P1, "generic_depths": (8, 12)})


# S22-D1: random networks


@pytest.mark.parametrize("family", ["smooth", "zigzag", "iid"])
def test_random_distances_against_another_solver(family):
    layers, copies = 4, 2
    found = _random(family, layers, copies, 3, 5, torch.device("cpu"))
    theta, x = (part.numpy() for part in _draw(family, layers, copies, 3, 5))

    def layer(weights, x):
        return np.tanh(weights[:, :-1] @ x + weights[:, -1])

    for copy in range(copies):

        def field(s, x, kind, copy=copy):
            n = min(int(s * layers), layers - 1)
            lam, a, b = s * layers - n, theta[n, copy], theta[n + 1, copy]
            if kind == "weight":
                return layer((1 - lam) * a + lam * b, x)
            return (1 - lam) * layer(a, x) + lam * layer(b, x)

        for kind in ("residual", "weight"):
            state, start, gaps = x[copy], x[copy], []
            for n in range(layers):
                state = state + layer(theta[n, copy], state) / layers
                start = solve_ivp(
                    lambda s, x, kind=kind: field(s, x, kind),
                    (n / layers, (n + 1) / layers),
                    start,
                    rtol=1e-9,
                    atol=1e-11,
                ).y[:, -1]
                gaps.append(np.linalg.norm(state - start))
            assert found[kind][copy] == pytest.approx(max(gaps), abs=1e-5)


def test_families_have_the_smoothness_they_are_called_by():
    slopes = {}
    for family in ("smooth", "zigzag", "iid"):
        for layers in (32, 64):
            weights, x = _draw(family, layers, 1, 4, 0)
            assert weights.shape == (layers + 1, 1, 4, 5)
            assert x.shape == (1, 4)
            slopes[family, layers] = smoothness_of({"w": weights}, layers).total.slope
    assert slopes["smooth", 64] == pytest.approx(slopes["smooth", 32], rel=0.01)
    assert slopes["zigzag", 64] == pytest.approx(2 * slopes["zigzag", 32], rel=1e-12)
    assert slopes["iid", 64] > 1.5 * slopes["iid", 32]


# S22-D1: trained networks


def small_perceptron(**changes):
    data = load_digits()
    options = {"layers": 3, "scaled": True, "equal": True, "seed": 0, "epochs": 1} | changes
    return train_perceptron(QUIET, data.x_train[:300], data.y_train[:300], **options)


def test_equal_start_means_equal_weights(monkeypatch):
    monkeypatch.setattr(
        "companion.experiments.is_it_an_ode.digits_nets.fit", lambda *args, **kwargs: None
    )
    for equal in (True, False):
        net = small_perceptron(equal=equal)
        weight = net.block.weights.stacks.get_parameter("0.weight")
        assert torch.equal(weight[0], weight[2]) == equal
    assert small_perceptron(scaled=False).block.scale == 3


def test_a_layer_keeps_its_pace_at_any_depth(monkeypatch):
    rates = {}

    def record(net, loss, data, optimiser, **options):
        groups = optimiser(net.parameters()).param_groups
        rates[net.block.steps, net.block.scale] = [group["lr"] for group in groups]
        sizes = [sum(p.numel() for p in group["params"]) for group in groups]
        assert sum(sizes) == sum(p.numel() for p in net.parameters())
        assert sizes[1] == sum(p.numel() for p in net.block.parameters())

    monkeypatch.setattr("companion.experiments.is_it_an_ode.digits_nets.fit", record)
    for layers, scaled in ((3, True), (6, True), (6, False)):
        small_perceptron(layers=layers, scaled=scaled)
    assert rates[3, 1.0] == [0.05, pytest.approx(0.15)]
    assert rates[6, 1.0] == [0.05, pytest.approx(0.3)]
    assert rates[6, 6.0] == [0.05, 0.05]


def test_description_of_a_network_by_running_it():
    data = load_digits()
    net = small_perceptron(equal=False).double()
    x, y = data.x_test.double(), data.y_test
    found = _describe(net, x, y)
    with torch.no_grad():
        first = net.stem(x)
        end = net.block(first)
        assert found["error"] == error_of(net(x), y) == (net(x).argmax(1) != y).double().mean()
        assert found["moved"] == pytest.approx((end - first).norm(dim=1).mean().item(), rel=1e-12)
        # The weight ODE is the same block with linear weights, its last node repeated.
        linear = OdeBlock(
            lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)), PiecewiseLinear(3)
        ).double()
        for name, p in linear.weights.stacks.named_parameters():
            values = net.block.weights.stacks.get_parameter(name)
            p.copy_(torch.cat([values, values[-1:]]))
        ode = linear.with_graph(method="rk4", steps=600)(first)
        assert found["error_weight"] == error_of(net.head(ode), y)
        gap = (ode - end).norm(dim=1).mean().item() / found["moved"]
    assert gap - 1e-6 <= found["weight"] <= 3 * gap  # the largest over nodes, not only the last
    weights = dict(net.block.weights.stacks.named_parameters())
    assert found["slope"] == smoothness_of(weights, 3).total.slope


def test_a_small_run_has_all_curves_and_decides_all_claims():
    result = run_d1(depths=(4, 8), copies=2, dimension=3, trained_depths=(2, 4), seeds=2, epochs=1)
    assert {claim.id for claim in result.claims} == {"CL49", "S22-X4"}
    assert Result.from_json(result.to_json()) == result
    assert result["random_iid_weight"].shape == (2, 2)
    assert result["residual_equal"].shape == result["slope_equal"].shape == (2, 2)
    assert result["ratio"] == max(result[f"ratio_{f}"].max() for f in ("smooth", "zigzag", "iid"))
    assert result["deepest_weight_equal"] == np.median(result["weight_equal"][-1])


# Theorems of chapter 15


def quadrature_of_acceleration(field, path, cells):
    """Integrate the norm of the second derivative along a solution, cell by cell."""
    total = 0.0
    for n in range(cells):

        def size(local, n=n):
            state = path((n + local) / cells)
            x = torch.tensor(state, dtype=torch.float64).unsqueeze(0)
            return _acceleration(field, n, local, x).norm().item()

        total += quad(size, 0, 1, epsrel=1e-4, limit=20)[0] / cells
    return total


@pytest.mark.parametrize("layers", [6, 24])
def test_the_total_variation_bounds_the_gap_of_the_weight_ode(layers):
    """exp(L) / N times the integral of |x''|, itself at most Omega V + L C_f: one jump in depth."""
    generator = torch.Generator().manual_seed(2)
    low, high = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    late = (torch.arange(layers + 1) >= layers // 2).double()[:, None, None]
    weights = low + late * (high - low)

    def layer(x, theta):
        return torch.tanh(x @ theta[:, :-1].T + theta[:, -1])

    field = weight_interpolation(layer, weights[:-1], last=weights[-1])
    x = torch.randn(1, 3, generator=generator, dtype=torch.float64)
    gap = ode_distance(field, x, steps=32).max().item()
    path = solve_ivp(
        lambda s, y: field(torch.tensor(s).double(), torch.from_numpy(y)[None])[0].numpy(),
        (0, 1), x[0].numpy(), max_step=0.02, rtol=1e-9, atol=1e-10, dense_output=True,
    ).sol  # fmt: skip
    lam = torch.linspace(0, 1, 101, dtype=torch.float64)
    between = low + lam[:, None, None] * (high - low)
    lipschitz = torch.linalg.matrix_norm(between[..., :-1], 2).max().item()
    acceleration = quadrature_of_acceleration(field, path, layers)
    assert gap <= math.exp(lipschitz) / layers * acceleration
    assert gap > math.exp(lipschitz) / layers * acceleration / 100
    reach = max(np.hypot(1, np.linalg.norm(path(s))) for s in np.linspace(0, 1, 101))
    variation = smoothness_of({"w": weights}, layers).total.variation
    assert acceleration <= reach * variation + lipschitz * math.sqrt(3)


def threshold_network(product, layers=6, dim=3, seed=0):
    """Random perceptron layers whose Lipschitz bounds times 1/N are ``product``."""
    with seeded(seed):
        block = OdeBlock(
            lambda: nn.Sequential(nn.Linear(dim, 5), nn.Tanh(), nn.Linear(5, dim)).double(),
            PiecewiseConstant(layers),
            steps=layers,
        ).requires_grad_(False)
    factor = product * layers / perceptron_lipschitz(block)
    block.weights.stacks.get_parameter("2.weight").mul_(factor[:, None, None])
    return block


@pytest.mark.parametrize("product", [0.3, 0.95])
def test_a_network_below_the_threshold_stretches_within_both_products(product):
    block = threshold_network(product)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 200, 3, generator=generator, dtype=torch.float64)
    end = block(x)
    stretch = (end[0] - end[1]).norm(dim=1) / (x[0] - x[1]).norm(dim=1)
    assert stretch.min() >= (1 - product) ** 6
    assert stretch.max() <= (1 + product) ** 6


@pytest.mark.parametrize(("sign", "factor"), [(-1.0, 0.7**5), (1.0, 1.3**5)])
def test_both_products_are_attained(sign, factor):
    layers = [nn.Linear(2, 2, bias=False).double() for _ in range(5)]
    for layer in layers:
        layer.weight.data = sign * 1.5 * torch.eye(2).double()
    block = OdeBlock.from_modules(layers).requires_grad_(False)
    x = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    torch.testing.assert_close(block(x), factor * x, rtol=1e-14, atol=0)


@pytest.mark.parametrize("seed", range(4))
def test_a_layer_with_both_orientations_sends_two_points_to_one(seed):
    """Find such a layer at random, then two states with the same image by another route."""
    generator = torch.Generator().manual_seed(seed)
    w, v = 2 * torch.randn(2, 2, 2, generator=generator, dtype=torch.float64)

    def step(x):
        return x + torch.tanh(x @ w.T) @ v.T

    x = torch.randn(400, 2, generator=generator, dtype=torch.float64)
    signs = torch.linalg.det(jacobians(step, x)).sign()
    assert signs.min() < 0 < signs.max()

    def excess(y, target):
        return step(torch.from_numpy(y)[None])[0].numpy() - target

    for target in step(x[signs < 0][:20]).numpy():
        found = [root(excess, start, (target,), tol=1e-12) for start in x[:60].numpy()]
        images = np.array([r.x for r in found if r.success])
        spread = np.linalg.norm(images[:, None] - images[None], axis=-1).max()
        if spread > 1e-3:
            return
    pytest.fail("no two states with one image were found")


# S22-X3


def test_layers_on_the_line_have_the_constant_they_are_given():
    found = _line(0.8, layers=5, copies=3, seed=0)
    down = np.array(found["steepest_down"])
    assert down.shape == (3, 5)
    assert down.min() >= 0.2 - 1e-6
    assert found["excess"] == pytest.approx(1.0, rel=1e-12)
    generator = torch.Generator().manual_seed(0)
    field = ScalarField(3, 8, 1.0, generator)  # the first layer, before it is scaled
    x = torch.linspace(-40, 40, 40001, dtype=torch.float64).unsqueeze(1).repeat(1, 3)
    x.requires_grad_()
    (slopes,) = torch.autograd.grad(field(x).sum(), x)
    wanted = 1 + 0.8 * slopes.amin(0) / slopes.abs().amax(0)
    np.testing.assert_allclose(down[:, 0], wanted, atol=5e-6)
    assert found["swaps"] == [0, 0, 0]
    assert sum(_line(3.0, layers=5, copies=3, seed=0)["swaps"]) > 0


def test_a_layer_that_is_steepest_far_out_is_not_mistaken():
    """Among these networks some layer is steepest beyond 8, and states get there."""
    assert sum(_line(0.99, layers=50, copies=20, seed=0)["swaps"]) == 0


def test_jacobians_against_torch():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double().requires_grad_(False)
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = torch.stack([torch.autograd.functional.jacobian(net, row) for row in x])
    torch.testing.assert_close(jacobians(net, x), wanted, rtol=1e-12, atol=1e-12)


def test_a_trained_network_is_measured_where_its_states_pass():
    """Two layers set by hand: the identity plus a fold, and a contraction that has an inverse."""
    data = load_digits()
    net = small_perceptron(layers=2, scaled=False).double().requires_grad_(False)
    weights = dict(net.block.weights.stacks.named_parameters())
    for p in weights.values():
        p.zero_()
    x, y = data.x_test[:50].double(), data.y_test[:50]
    # Layer 0: x - 3 relu(x_0) e_0 reverses one coordinate where it is positive. Layer 1: 0.6 x.
    weights["0.weight"][0, 0, 0], weights["2.weight"][0, 0, 0] = 1.0, -3.0
    for j in range(8):
        weights["0.weight"][1, j, j], weights["0.weight"][1, 8 + j, j] = 0.4, -0.4
        weights["2.weight"][1, j, j], weights["2.weight"][1, j, 8 + j] = -1.0, 1.0
    found = _digits_net(net, x, y)
    first = net.stem(x)[:, 0]
    assert first.min() < 0 < first.max()
    assert found["folds"] == [True, False]
    np.testing.assert_allclose(found["bound"], [3.0, 0.8], rtol=1e-12)
    np.testing.assert_allclose(found["narrow"], [1.0, 0.6], rtol=1e-12)
    np.testing.assert_allclose(found["wide"], [2.0, 0.6], rtol=1e-12)
    assert math.isnan(found["inverse"])
    weights["2.weight"][0, 0, 0] = -0.9
    assert _digits_net(net, x, y)["inverse"] < 1e-12


def test_a_small_run_meets_its_claims():
    result = run_x3(
        factors=(0.5, 0.99, 1.05, 2.0), layers=6, copies=6, depths=(2, 10), seeds=1, epochs=2
    )
    assert result.misses == ()
    assert Result.from_json(result.to_json()) == result
    assert len(result["bound_plain"]) == 12
    assert result["swaps"].shape == (4, 6)
    assert result["swaps"][:2].sum() == 0 < result["swaps"][2:].sum()
    assert np.isfinite(result["inverse_scaled"][1, 0])


def test_a_bound_that_forgets_a_matrix_would_be_noticed(monkeypatch):
    """The Frobenius norm is a bound too, the norm of one matrix alone is not."""
    options = {"factors": (0.5,), "layers": 4, "copies": 2, "depths": (4,), "seeds": 1, "epochs": 1}
    monkeypatch.setattr(
        s22_x3, "perceptron_lipschitz", lambda block: 0.2 * perceptron_lipschitz(block)
    )
    assert any("singular value" in claim.text for claim in run_x3(**options).misses)


# Exercises: answers of another kind, and hints that name the mistake


@pytest.mark.parametrize(
    ("exercise", "mistake", "hint"),
    [
        (GAP, "the ODE minus the network", "the sign is not"),
        (GAP, "no half", "Twice too large"),
        (GAP, "no 1/N", "length 1/N"),
        (MEASURES, "the slope without N", "length in depth"),
        (MEASURES, "the slope with N - 1", "Almost"),
        (MEASURES, "delta not squared", "square of the largest"),
        (MEASURES, "operator norms", "one vector"),
        (CERTIFICATE, "rounded up", "not below 1"),
        (CERTIFICATE, "Frobenius norms", "more layers than it takes"),
        (CERTIFICATE, "always shallow", "not enough"),
        (OPPOSITE, "too large a function", "stay within 1"),
        (OPPOSITE, "a function that jumps", "less steep"),
        (OPPOSITE, "the chapter's example", "never does"),
    ],
)
def test_hints_name_the_mistake(exercise, mistake, hint):
    with pytest.raises(WrongAnswer, match=hint):
        exercise.check(exercise.wrong[mistake])


def test_another_function_that_goes_the_other_way_is_right():
    """A bump at both ends that is narrow and steep, over weights between 0.5 and 1."""
    weights = [1.0, 0.5] * 40
    with pytest.raises(WrongAnswer, match=r"1\.8 apart"):
        OPPOSITE.check((lambda theta: 1 - 2 * (1 - theta).clamp(0, 1), weights))

    def hats(theta):
        return 1 - 2 * (torch.minimum((1 - theta).abs(), (theta + 1).abs()) * 50).clamp(max=1)

    assert OPPOSITE.check((hats, [1.0, -1.0] * 40)).startswith("Right")


def test_the_network_that_the_zigzag_hides():
    """The opening example by quadrature: theta^2 along the polygon 1, -1, 1 integrates to 1/3."""
    integral = quad(lambda s: (1 - 2 * s) ** 2, 0, 1)[0]
    assert integral == pytest.approx(1 / 3)
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0], dtype=torch.float64)
    field = weight_interpolation(lambda x, w: w**2 + 0 * x, signs[:-1], last=signs[-1])
    x = torch.zeros(1, 1, dtype=torch.float64)
    assert network(field, x)[-1].item() == 1
    assert ode_distance(field, x)[-1].item() == pytest.approx(1 - integral, rel=1e-12)
