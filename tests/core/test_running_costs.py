"""Integrated costs against closed forms, quadrature and autograd, in double precision."""

import math

import pytest
import torch
from fields import Tanh, gradients, largest_difference, randn

from companion import counting, odeint
from companion.running_costs import (
    estimated_jacobian_norm,
    jacobian_norm,
    kinetic_energy,
    random_signs,
    solve_with_costs,
)

MATRIX = torch.tensor([[0.3, -1.1, 0.2], [0.9, 0.1, 0.0], [0.4, -0.2, -0.5]], dtype=torch.float64)


def linear(t, y):
    return y @ MATRIX.T


def probes(y):
    return random_signs(y, torch.Generator().manual_seed(3))


def test_costs_of_a_linear_field_in_closed_form():
    """The Jacobian is constant; the energy is an integral of exponentials, by Gauss's rule."""
    x = randn(4, 3, device="cpu")
    times = [0.0, 0.4, 1.5]
    probe = probes(x)
    costs = {
        "energy": kinetic_energy, "norm": jacobian_norm, "estimate": estimated_jacobian_norm(probe),
    }  # fmt: skip
    ys, paid = solve_with_costs(linear, x, times, costs, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ys[-1], x @ torch.linalg.matrix_exp(1.5 * MATRIX).T)
    for k, t in enumerate(times):
        ones = torch.full((4,), t, dtype=torch.float64)
        torch.testing.assert_close(paid["norm"][k], ones * MATRIX.square().sum())
        torch.testing.assert_close(paid["estimate"][k], t * (probe @ MATRIX).square().sum(1))
        nodes, weights = torch.tensor(GAUSS, dtype=torch.float64)
        speeds = torch.stack([
            x @ torch.linalg.matrix_exp(t * (1 + n) / 2 * MATRIX).T @ MATRIX.T for n in nodes
        ])  # fmt: skip
        wanted = t / 2 * (weights[:, None] * speeds.square().sum(2)).sum(0)
        torch.testing.assert_close(paid["energy"][k], wanted, rtol=1e-8, atol=1e-12)


GAUSS = (
    [-0.9602898564975363, -0.7966664774136267, -0.5255324099163290, -0.1834346424956498,
     0.1834346424956498, 0.5255324099163290, 0.7966664774136267, 0.9602898564975363],
    [0.1012285362903763, 0.2223810344533745, 0.3137066458778873, 0.3626837833783620,
     0.3626837833783620, 0.3137066458778873, 0.2223810344533745, 0.1012285362903763],
)  # fmt: skip
"""Nodes and weights of eight points on [-1, 1]."""


def test_any_cost_of_time_and_state():
    """A distance from a moving target: int (e^-t - sin t)^2 dt in closed form."""
    _, paid = solve_with_costs(
        lambda t, y: -y, torch.ones(1, 1, dtype=torch.float64), [0.0, 2.0],
        {"away": lambda at: (at.y - torch.sin(at.t)).square().sum(1)}, rtol=1e-10, atol=1e-12,
    )  # fmt: skip
    square = (1 - math.exp(-4)) / 2
    mixed = (1 - math.exp(-2) * (math.sin(2) + math.cos(2))) / 2
    sine = 1 - math.sin(4) / 4
    assert paid["away"][-1].item() == pytest.approx(square - 2 * mixed + sine, rel=1e-8)


def test_norms_are_those_of_each_row_for_states_of_several_axes():
    kernel = randn(2, 2, 3, 3, device="cpu") / 3
    y = randn(3, 2, 3, 3, device="cpu")

    def field(t, y):
        return torch.tanh(torch.nn.functional.conv2d(y, kernel, padding=1))

    costs = {"norm": jacobian_norm, "energy": kinetic_energy}
    _, paid = solve_with_costs(field, y, [0.0, 1e-3], costs, method="euler")
    for row in range(3):
        dense = torch.func.jacrev(lambda z: field(0.0, z[None])[0])(y[row])
        assert paid["norm"][-1, row].item() == pytest.approx(1e-3 * dense.square().sum().item())
        speed = field(0.0, y[row : row + 1]).square().sum().item()
        assert paid["energy"][-1, row].item() == pytest.approx(1e-3 * speed)


def test_the_estimate_is_unbiased():
    """Over all sign vectors of three entries the mean is exact."""
    field, y = Tanh("cpu"), randn(1, 3, device="cpu").expand(8, 3)
    probe = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)
    costs = {"exact": jacobian_norm, "estimate": estimated_jacobian_norm(probe)}
    _, paid = solve_with_costs(field, y, [0.0, 1.0], costs, method="rk4", steps=10)
    assert paid["estimate"][-1].mean().item() == pytest.approx(paid["exact"][-1, 0].item())
    assert paid["estimate"][-1].std() > 0.01


METHODS = [
    ("rk4", "backprop", {"steps": 60}),
    ("rk4", "checkpoint", {"steps": 60}),
    ("rk4", "adjoint", {"steps": 60}),
    ("rk4", "reconstruct", {"steps": 60}),
    ("dopri5", "backprop", {}),
    ("dopri5", "checkpoint", {}),
    ("dopri5", "adjoint", {}),
    ("tsit5", "checkpoint", {}),
    ("scipy_solver", "adjoint", {}),
]


@pytest.mark.parametrize(("method", "gradient", "knobs"), METHODS)
def test_gradients_of_costs(method, gradient, knobs):
    """Every method and gradient gives what autograd gives for a plain sum, Simpson's rule."""
    field, y0 = Tanh("cpu"), randn(4, 3, device="cpu").requires_grad_()
    probe = probes(y0.detach())
    costs = {"energy": kinetic_energy, "estimate": estimated_jacobian_norm(probe)}
    if method != "rk4":
        knobs = {"rtol": 1e-9, "atol": 1e-11}
    ys, paid = solve_with_costs(
        field, y0, [0.0, 1.0], costs, method=method, gradient=gradient, **knobs
    )
    loss = ys[-1].sum() + paid["energy"][-1].mean() + 0.1 * paid["estimate"][-1].mean()
    found = gradients(loss, [y0, *field.parameters()])
    wanted = gradients(by_simpson(field, y0, probe), [y0, *field.parameters()])
    assert largest_difference(found, wanted) < 2e-6


def by_simpson(field, y0, probe, pieces=200):
    """The same loss from states of odeint alone."""
    times = torch.linspace(0, 1, pieces + 1, dtype=torch.float64)
    ys = odeint(field, y0, times.tolist(), method="rk4", steps=1)
    energy, estimate = [], []
    for t, y in zip(times, ys, strict=True):
        value, pull = torch.func.vjp(lambda y, t=t: field(t, y), y)
        energy.append(value.square().sum(1).mean())
        estimate.append(pull(probe)[0].square().sum(1).mean())
    weights = torch.ones(pieces + 1, dtype=torch.float64)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    weights /= 3 * pieces
    return ys[-1].sum() + weights @ torch.stack(energy) + 0.1 * weights @ torch.stack(estimate)


def test_nothing_is_kept_without_gradients():
    field, y0 = Tanh("cpu"), randn(4, 3, device="cpu")
    with torch.no_grad(), counting() as stats:
        ys, paid = solve_with_costs(
            field, y0, [0.0, 1.0], {"norm": jacobian_norm}, method="rk4", steps=5
        )
    assert not ys.requires_grad
    assert not paid["norm"].requires_grad
    assert stats.nfe == 20
    start = torch.zeros(4, dtype=torch.float64)
    torch.testing.assert_close(paid["norm"][0], start)


def test_only_what_depends_on_something_has_a_graph():
    """Under grad mode, of a field and a start that need no gradient, nothing does."""
    y0 = randn(4, 3, device="cpu")
    ys, paid = solve_with_costs(linear, y0, [0.0, 1.0], {"norm": jacobian_norm}, method="rk4")
    assert not ys.requires_grad
    assert not paid["norm"].requires_grad
    ys, paid = solve_with_costs(Tanh("cpu"), y0, [0.0, 1.0], {"norm": jacobian_norm}, method="rk4")
    assert ys.requires_grad
    assert paid["norm"].requires_grad


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "adjoint"])
@pytest.mark.parametrize("kind", ["function", "module"])
def test_a_weight_that_only_a_cost_has(gradient, kind):
    """2 w int |f|^2 of f = -y, which ends at w (1 - e^-2) |y|^2: the slope is in closed form."""
    y0, w = randn(2, 3, device="cpu"), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    cost = Weighted(w)
    params = () if kind == "module" else (cost.w,)
    named = cost if kind == "module" else lambda at: cost(at)
    knobs = {"rtol": 1e-9, "atol": 1e-11, "gradient": gradient, "params": params}
    costs = {"mine": named, "energy": kinetic_energy}
    ys, paid = solve_with_costs(lambda t, y: -y, y0, [0.0, 1.0], costs, **knobs)
    (found,) = torch.autograd.grad((paid["mine"] + paid["energy"])[-1].sum() + ys.sum(), [cost.w])
    wanted = (1 - math.exp(-2)) * y0.square().sum().item()
    assert found.item() == pytest.approx(wanted, rel=1e-7)


class Weighted(torch.nn.Module):
    """Twice the kinetic energy, times a weight."""

    def __init__(self, w):
        super().__init__()
        self.w = torch.nn.Parameter(w.detach().clone())

    def forward(self, at):
        return 2 * self.w * kinetic_energy(at)


def test_inference_mode_changes_no_cost():
    field, y0 = Tanh("cpu"), randn(4, 3, device="cpu")
    found = []
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            start = y0 * 1  # in inference mode a tensor of its own kind
            costs = {"norm": jacobian_norm, "estimate": estimated_jacobian_norm(probes(start))}
            times = torch.tensor([0.0, 1.0], dtype=torch.float64)
            found.append(solve_with_costs(field, start, times, costs, method="rk4", steps=5))
    (ys, paid), (others, again) = found
    assert paid["norm"][-1].min() > 0.01
    assert torch.equal(ys, others)
    assert all(torch.equal(paid[name], again[name]) for name in paid)


@pytest.mark.parametrize("frozen", [True, False])
def test_every_evaluation_calls_the_field_once(frozen):
    """Also where gradients are on and nothing needs one."""
    field, y0, calls = Tanh("cpu").requires_grad_(not frozen), randn(4, 3, device="cpu"), []

    def counted(t, y):
        calls.append(t)
        return field(t, y)

    costs = {"norm": jacobian_norm, "energy": kinetic_energy}
    with counting() as stats:
        ys, _ = solve_with_costs(counted, y0, [0.0, 1.0], costs, method="rk4", steps=5)
    assert ys.requires_grad is not frozen
    assert stats.nfe == len(calls) == 20


def test_a_field_that_ignores_the_state_has_no_jacobian():
    y = torch.ones(2, 2, dtype=torch.float64)
    for field in (lambda t, y: torch.ones_like(y), lambda t, y: 0 * y + t):
        _, paid = solve_with_costs(field, y, [0.0, 1.0], {"norm": jacobian_norm}, method="rk4")
        assert paid["norm"][-1].tolist() == [0.0, 0.0]


def test_what_is_refused():
    y = torch.ones(2, 2)
    with pytest.raises(TypeError, match="y0: tuple is not allowed"):
        solve_with_costs(linear, (y, y), [0.0, 1.0], {"e": kinetic_energy})
    with pytest.raises(ValueError, match=r"y0: shape \(2,\)"):
        solve_with_costs(linear, y[0], [0.0, 1.0], {"e": kinetic_energy})
    for name, value in (("event_fn", lambda t, y: t), ("dense", True), ("per_sample", True)):
        with pytest.raises(ValueError, match=f"{name}: .* is not allowed with running costs"):
            solve_with_costs(linear, y, [0.0, 1.0], {"e": kinetic_energy}, **{name: value})
    with pytest.raises(ValueError, match="costs: an empty mapping"):
        solve_with_costs(linear, y, [0.0, 1.0], {})
    for wrong in ([kinetic_energy], kinetic_energy):
        with pytest.raises(TypeError, match=r"costs: \w+ is not allowed; pass a mapping"):
            solve_with_costs(linear, y, [0.0, 1.0], wrong)
    with pytest.raises(TypeError, match="func: it returned tuple"):
        solve_with_costs(lambda t, y: (y, y), y, [0.0, 1.0], {"e": kinetic_energy})
    for drawn in (torch.ones(2, 2, dtype=torch.bool), torch.ones(2, 2, dtype=torch.uint8)):
        with pytest.raises(TypeError, match=r"y: torch\.\w* is not allowed"):
            random_signs(drawn, torch.Generator())
    with pytest.raises(TypeError, match=r"costs: 'e' is 1\.0"):
        solve_with_costs(linear, y, [0.0, 1.0], {"e": 1.0})
    with pytest.raises(ValueError, match=r"costs: 'e' returned \(\)"):
        solve_with_costs(lambda t, y: -y, y, [0.0, 1.0], {"e": lambda at: at.y.sum()})
    with pytest.raises(ValueError, match=r"probe: shape \(3,\)"):
        solve_with_costs(
            lambda t, y: -y, y, [0.0, 1.0], {"e": estimated_jacobian_norm(torch.ones(3))}
        )
