"""Flows against closed forms, autograd's determinants, quadrature, and their own inverse."""

import math

import pytest
import torch
from fields import Tanh, gradients, largest_difference, randn
from torch import nn
from torch.distributions import Categorical, Independent, MultivariateNormal, Normal, Uniform

from companion import counting
from companion.methods import takes
from companion.models.cnf import CNF
from companion.models.planar_fields import PlanarField
from companion.models.tanh_mlp import TanhMLP
from companion.models.traces import hutchinson_trace, random_normals
from companion.running_costs import (
    estimated_jacobian_norm,
    kinetic_energy,
    random_signs,
    solve_with_costs,
)

TIGHT = {"method": "dopri5", "rtol": 1e-11, "atol": 1e-12}
RK4 = {"method": "rk4", "steps": 40}


def normal(d, dtype=torch.float64):
    return Independent(Normal(torch.zeros(d, dtype=dtype), torch.ones(d, dtype=dtype)), 1)


def planar(d=2, units=16, seed=0):
    torch.manual_seed(seed)
    field = PlanarField(d, units).double()
    with torch.no_grad():
        field.weights[2].bias.mul_(6)  # strong: a wrong sign is not hidden by a field near zero
    return field


def two_layers(d=2, seed=0):
    torch.manual_seed(seed)
    field = TanhMLP(d, (12, 12)).double()
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.mul_(2)
    return field


def unknown(field):
    """Return the same field as one that does not know its trace."""

    class Unknown(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = field

        def forward(self, t, x):
            return self.inner(t, x)

    return Unknown()


def plane(points, edge):
    """Return a grid on a square, and the area that belongs to each of its points."""
    axis = torch.linspace(-edge, edge, points, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), (axis[1] - axis[0]).item() ** 2


@pytest.mark.parametrize("span", [(0.0, 1.0), (2.0, -0.5)])
@pytest.mark.parametrize(
    "field",
    [planar(), planar(1), planar(3), two_layers(), unknown(two_layers(2)), Tanh("cpu", seed=1)],
    ids=["planar", "planar 1-D", "planar 3-D", "two layers", "products", "no class of ours"],
)
def test_log_det_is_that_of_the_solved_map_and_inverse_undoes_it(field, span):
    d = 3 if isinstance(field, Tanh) else getattr(field, "width", 2)
    flow = CNF(field, normal(d), span=span, **TIGHT)
    z = randn(4, d, device="cpu") / 2
    x, log_det, _ = flow.forward(z)
    full = torch.autograd.functional.jacobian(lambda z: flow.forward(z).points.sum(0), z)
    wanted = torch.linalg.slogdet(full.movedim(1, 0)).logabsdet
    assert wanted.abs().max() > 0.1
    torch.testing.assert_close(log_det, wanted, rtol=0, atol=1e-8)
    back = flow.inverse(x)
    torch.testing.assert_close(back.points, z, rtol=0, atol=1e-8)
    torch.testing.assert_close(back.log_det, -log_det, rtol=0, atol=1e-8)
    torch.testing.assert_close(flow.log_prob(x), flow.base.log_prob(z) - log_det, rtol=0, atol=1e-8)


@pytest.mark.parametrize("field", [planar(), two_layers()], ids=["planar", "two layers"])
def test_density_integrates_to_one_and_not_with_the_wrong_sign_or_coarse_steps(field):
    grid, area = plane(161, 8.0)
    with torch.no_grad():
        flow = CNF(field, normal(2), **RK4)
        at = flow.inverse(grid)
        assert flow.log_prob(grid).exp().sum() * area == pytest.approx(1, abs=1e-3)
        wrong = (flow.base.log_prob(at.points) - at.log_det).exp().sum() * area
        coarse = CNF(field, normal(2), method="euler", steps=2).log_prob(grid).exp().sum() * area
    assert abs(wrong - 1) > 0.1
    assert abs(coarse - 1) > 0.02


def test_density_of_samples_is_the_density():
    """E over samples of 1/q on a box is its area: a check of sampling against log_prob."""
    torch.manual_seed(0)
    flow = CNF(planar(units=4), normal(2), **RK4)
    x = flow.sample((20_000,))
    inside = (x.abs() < 1).all(1)
    values = torch.where(inside, flow.log_prob(x).detach().neg().exp(), torch.zeros(()).double())
    assert abs(values.mean() - 4) < 4 * values.std() / math.sqrt(len(x))


def test_linear_field_in_closed_form():
    """A Gaussian stays one: x = m + e^A z has mean m and covariance e^A e^A'."""
    a = torch.tensor([[0.4, -1.0], [0.7, -0.1]], dtype=torch.float64)
    c = torch.tensor([0.5, -0.3], dtype=torch.float64)
    flow = CNF(lambda t, x: x @ a.T + c, normal(2), **TIGHT)
    end = torch.linalg.matrix_exp(a)
    mean = torch.linalg.solve(a, (end - torch.eye(2).double()) @ c)
    wanted = MultivariateNormal(mean, end @ end.T)
    x = randn(3, 5, 2, device="cpu")
    torch.testing.assert_close(flow.log_prob(x), wanted.log_prob(x), rtol=0, atol=1e-8)
    log_det = flow.forward(x).log_det
    torch.testing.assert_close(log_det, a.trace().expand(3, 5), rtol=0, atol=1e-8)


class Affine(nn.Module):
    """The field s x + c, whose flow from a normal is N(c (e^s - 1) / s, e^(2s))."""

    def __init__(self):
        super().__init__()
        self.s = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))
        self.c = nn.Parameter(torch.tensor(0.0, dtype=torch.float64))

    def forward(self, t, x):
        return self.s * x + self.c


def test_maximum_likelihood_finds_mean_and_variance():
    """With the wrong sign of the trace the scale would run away from that of the data."""
    data = 1.5 + 0.5 * randn(200, 1, device="cpu", seed=3)
    flow = CNF(Affine(), normal(1), method="rk4", steps=10)
    optimiser = torch.optim.LBFGS(
        flow.field.parameters(), max_iter=50, line_search_fn="strong_wolfe"
    )

    def loss():
        optimiser.zero_grad()
        value = -flow.log_prob(data).mean()
        value.backward()
        return value

    optimiser.step(loss)
    s, c = flow.field.s.item(), flow.field.c.item()
    assert math.exp(s) == pytest.approx(data.std(correction=0).item(), abs=1e-4)
    assert c * math.expm1(s) / s == pytest.approx(data.mean().item(), abs=1e-4)


def test_density_matching_has_the_gradient_of_the_closed_form():
    """KL between N(m, e^2s) and N(0, 1) is (e^2s + m^2 - 1) / 2 - s, by samples that cancel."""
    field = Affine()
    flow = CNF(field, normal(1), **TIGHT)
    z = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)  # mean 0 and variance 1
    x, log_det, _ = flow.forward(z)
    kl = (flow.base.log_prob(z) - log_det - flow.base.log_prob(x)).mean()
    found = gradients(kl, [field.s, field.c])
    s = 0.1
    assert kl.item() == pytest.approx((math.exp(2 * s) - 1) / 2 - s, abs=1e-9)
    assert found[0].item() == pytest.approx(math.exp(2 * s) - 1, abs=1e-8)
    assert found[1].item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("knows", [True, False])
@pytest.mark.parametrize("gradient", ["checkpoint", "adjoint", "reconstruct"])
def test_gradients_are_those_of_backprop(gradient, knows):
    field, x = two_layers(), randn(5, 2, device="cpu")
    tight = {"rtol": 1e-10, "atol": 1e-12, "method": "dopri5"}
    solver = {"method": "rk4", "steps": 200} if gradient == "reconstruct" else tight
    field = field if knows else unknown(field)
    found = []
    for used in ("backprop", gradient):
        x = x.detach().requires_grad_()
        loss = -CNF(field, normal(2), gradient=used, **solver).log_prob(x).mean()
        found.append(gradients(loss, [x, *field.parameters()]))
    assert max(g.abs().max() for g in found[0]) > 0.01
    bound = {"checkpoint": 1e-13, "adjoint": 1e-7, "reconstruct": 1e-7}[gradient]
    assert largest_difference(*found) < bound


@pytest.mark.parametrize("knows", [True, False])
@pytest.mark.parametrize(
    ("method", "gradient", "bound"),
    [
        ("euler", "backprop", 0.2), ("midpoint", "backprop", 1e-3), ("rk4_38", "checkpoint", 1e-6),
        ("bosh3", "backprop", 1e-5), ("tsit5", "checkpoint", 1e-5),
        ("scipy_solver", "adjoint", 1e-5), ("implicit_adams", "adjoint", 1e-5),
        ("async_leapfrog", "reversible", 1e-3),
    ],
)  # fmt: skip
def test_every_kind_of_method(method, gradient, bound, knows):
    wanted_knobs = {"steps": 400, "rtol": 1e-7, "atol": 1e-8}
    solver = {name: value for name, value in wanted_knobs.items() if takes(name, method)}
    field = two_layers()
    x = randn(3, 2, device="cpu") / 2
    wanted = CNF(field, normal(2), **TIGHT).log_prob(x)
    flow = CNF(
        field if knows else unknown(field), normal(2), method=method, gradient=gradient, **solver
    )
    found = flow.log_prob(x)
    assert (found - wanted).abs().max() < bound
    assert all(g.isfinite().all() for g in gradients(found.sum(), list(field.parameters())))


def test_running_costs_are_paid_in_both_directions():
    """For x' = -x the energy is x0^2 (1 - e^-2) / 2, whichever way the flow is followed."""
    flow = CNF(lambda t, x: -x, normal(3), **TIGHT)
    z = randn(4, 3, device="cpu")
    probe = random_signs(z, torch.Generator().manual_seed(0))
    costs = {"kinetic": kinetic_energy, "jacobian": estimated_jacobian_norm(probe)}
    there = flow.forward(z, costs=costs)
    back = flow.inverse(there.points, costs=costs, probe=probe)
    energy = z.square().sum(1) * (1 - math.exp(-2)) / 2
    for at in (there, back):
        torch.testing.assert_close(at.costs["kinetic"], energy, rtol=0, atol=1e-9)
        torch.testing.assert_close(at.costs["jacobian"], torch.full_like(energy, 3.0))
    torch.testing.assert_close(back.log_det, torch.full_like(energy, 3.0))
    with pytest.raises(ValueError, match="costs: the name 'log_det' is taken"):
        flow.forward(z, costs={"log_det": kinetic_energy})


def test_a_field_that_knows_its_trace_keeps_it_beside_costs():
    field, z = planar(3), randn(4, 3, device="cpu")
    flow = CNF(field, normal(3), **RK4)
    with_costs, without = flow.forward(z, costs={"kinetic": kinetic_energy}), flow.forward(z)
    torch.testing.assert_close(with_costs.log_det, without.log_det, rtol=0, atol=1e-13)
    torch.testing.assert_close(with_costs.points, without.points, rtol=0, atol=1e-13)


@pytest.mark.parametrize("draw", [random_signs, random_normals])
def test_estimates_are_unbiased_for_log_density_and_gradient_but_not_for_the_density(draw):
    n, field = 4000, two_layers(3)
    flow = CNF(unknown(field), normal(3), method="rk4", steps=8)
    x = (randn(1, 3, device="cpu") / 2).expand(n, 3)
    exact = flow.log_prob(x[:1])
    probe = draw(x, torch.Generator().manual_seed(2))
    values = flow.estimated_log_prob(x, probe).detach()
    error = values.std() / math.sqrt(n)
    assert error > 1e-4
    assert abs(values.mean() - exact) < 4 * error
    density = (values - exact).exp()
    assert density.mean() - 1 > 2 * density.std() / math.sqrt(n)
    weight = field.last.weight
    slope = torch.stack([
        gradients(flow.estimated_log_prob(x[k : k + 40], probe[k : k + 40]).mean(), [weight])[0]
        for k in range(0, n, 40)
    ])  # fmt: skip
    wanted = gradients(flow.log_prob(x[:1]).sum(), [weight])[0]
    scores = (slope.mean(0) - wanted) / (slope.std(0) / math.sqrt(len(slope)))
    assert scores.abs().max() < 4.5  # 36 of them


def test_estimate_is_the_integral_of_one_probe():
    """For a linear field the estimate is log p0 - e' A e, with one e for the whole solve."""
    a = randn(2, 2, device="cpu") / 2
    flow = CNF(lambda t, x: x @ a.T, normal(2), **TIGHT)
    x = randn(3, 4, 2, device="cpu")
    probe = random_normals(x, torch.Generator().manual_seed(0))
    z = x @ torch.linalg.matrix_exp(-a).T
    wanted = flow.base.log_prob(z) - torch.einsum("...i,ij,...j", probe, a, probe)
    torch.testing.assert_close(flow.estimated_log_prob(x, probe), wanted, rtol=0, atol=1e-8)


@pytest.mark.parametrize("d", [1, 3])
def test_solved_density_of_euler_steps_is_a_product_of_determinants(d):
    field, steps = two_layers(d), 5
    flow = CNF(field, normal(d), method="euler", steps=steps)
    x = randn(2, 2, d, device="cpu")
    z, wanted = x.reshape(4, d), torch.zeros(4, dtype=torch.float64)
    for n in range(steps, 0, -1):
        t = torch.tensor(n / steps, dtype=torch.float64)
        step = torch.func.vmap(
            torch.func.jacrev(lambda row, t=t: row - field(t, row[None])[0] / steps)
        )
        wanted = wanted + torch.linalg.slogdet(step(z)).logabsdet
        z = z - field(t, z) / steps
    wanted = (wanted + flow.base.log_prob(z)).reshape(2, 2)
    found = flow.solved_log_prob(x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    parameters = list(field.parameters())
    slopes = gradients(found.sum(), parameters)
    assert largest_difference(slopes, gradients(wanted.sum(), parameters)) < 1e-11
    with torch.no_grad():
        assert not flow.solved_log_prob(x).requires_grad
    assert flow.solved_log_prob(x[:0]).shape == (0, 2)


def test_solved_density_integrates_to_one_where_the_quadrature_does_not():
    grid, area = plane(161, 8.0)
    flow = CNF(planar(), normal(2), method="rk4", steps=2)
    with torch.no_grad():
        solved, by_trace = flow.solved_log_prob(grid), flow.log_prob(grid)
    assert solved.exp().sum() * area == pytest.approx(1, abs=1e-4)
    assert abs(by_trace.exp().sum() * area - 1) > 1e-3
    for bad, says in (
        ({}, "method: None"),
        ({**RK4, "gradient": "adjoint"}, "gradient: 'adjoint'"),
    ):
        with pytest.raises(ValueError, match=says):
            CNF(planar(), normal(2), **bad).solved_log_prob(grid)


def test_samples_are_carried_points_of_the_base():
    flow = CNF(planar(), normal(2), **RK4)
    torch.manual_seed(3)
    x = flow.sample((4, 3))
    torch.manual_seed(3)
    z = flow.base.sample((4, 3))
    torch.testing.assert_close(x, flow.forward(z).points.detach(), rtol=0, atol=1e-13)
    assert not x.requires_grad
    y = flow.rsample((5,))
    assert y.shape == (5, 2)
    assert all(g.any() for g in gradients(y.square().sum(), list(flow.field.parameters())))
    assert flow.sample().shape == flow.rsample().shape == (2,)


def test_shapes_of_a_distribution():
    flow = CNF(
        lambda t, x: -x, Independent(Normal(torch.zeros(2, 3), 1.0), 2), steps=3, method="rk4"
    )
    assert (flow.batch_shape, flow.event_shape) == (torch.Size(), torch.Size((2, 3)))
    assert flow.has_rsample
    x = torch.zeros(7, 5, 2, 3)
    assert flow.log_prob(x).shape == (7, 5)
    assert flow.log_prob(x[0, 0]).shape == ()
    assert flow.estimated_log_prob(x, torch.ones_like(x)).shape == (7, 5)
    assert flow.support.check(x).shape == (7, 5)


@pytest.mark.parametrize("solver", [TIGHT, RK4])
@pytest.mark.parametrize("field", [planar(), unknown(planar())], ids=["knows", "products"])
@pytest.mark.parametrize(
    "base", [normal(2), MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())]
)
def test_an_empty_batch(base, field, solver):
    flow = CNF(field, base, **solver)
    x = torch.zeros(0, 2, dtype=torch.float64)
    assert flow.log_prob(x).shape == (0,)
    assert flow.estimated_log_prob(x, x).shape == (0,)
    assert flow.sample((0,)).shape == (0, 2)
    assert flow.log_prob(x.reshape(3, 0, 2)).shape == (3, 0)


@pytest.mark.parametrize("knows", [True, False])
def test_single_precision(knows):
    double = two_layers()
    x = randn(6, 2, device="cpu")
    wanted = CNF(double, normal(2), method="rk4", steps=20).log_prob(x)
    single = two_layers().float()
    field = single if knows else unknown(single)
    flow = CNF(field, normal(2, torch.float32), method="rk4", steps=20)
    found = flow.log_prob(x.float())
    assert found.dtype == torch.float32
    assert flow.sample((2,)).dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=3e-5)


def test_a_flow_can_be_the_base_of_a_flow():
    inner = CNF(lambda t, x: x, normal(2), **TIGHT)
    outer = CNF(lambda t, x: 0.5 * x, inner, **TIGHT)
    x = randn(3, 2, device="cpu")
    scale = math.exp(1.5) * torch.ones(2, dtype=torch.float64)
    wanted = Independent(Normal(torch.zeros(2, dtype=torch.float64), scale), 1)
    torch.testing.assert_close(outer.log_prob(x), wanted.log_prob(x), rtol=0, atol=1e-8)


def test_scores_by_torch_func_are_those_of_autograd():
    """A field that knows its trace needs no derivative of its own, so transforms go through."""
    flow = CNF(planar(), normal(2), **RK4)
    x = randn(4, 2, device="cpu").requires_grad_()
    (wanted,) = gradients(flow.log_prob(x).sum(), [x])
    found = torch.func.grad(lambda x: flow.log_prob(x).sum())(x.detach())
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_parameters_of_the_base_have_gradients():
    scale = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)
    base = Independent(Normal(torch.zeros(2, dtype=torch.float64), scale), 1)
    CNF(lambda t, x: 0 * x, base, **RK4).log_prob(torch.zeros(2, dtype=torch.float64)).backward()
    torch.testing.assert_close(scale.grad, -1 / scale.detach())


class Normed(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.first, self.norm = nn.Linear(2, 4).double(), norm.double()
        self.last = nn.Linear(4, 2).double()

    def forward(self, t, x):
        return self.last(torch.tanh(self.norm(self.first(x))))


@pytest.mark.parametrize(
    ("norm", "says"),
    [(nn.BatchNorm1d(4), "rows depend on each other"), (nn.Dropout(0.5), "two evaluations")],
)
def test_fields_without_a_density_are_refused_in_training_mode(norm, says):
    flow = CNF(Normed(norm), normal(2), **RK4)
    x = randn(5, 2, device="cpu")
    calls = (
        lambda: flow.log_prob(x), lambda: flow.forward(x), lambda: flow.sample((5,)),
        lambda: flow.estimated_log_prob(x, torch.ones_like(x)),
    )  # fmt: skip
    for call in calls:
        with pytest.raises(ValueError, match=f"field: {says}"):
            call()
    flow.field.eval()
    assert flow.log_prob(x).shape == (5,)
    flow.field.train()  # the check is not done with once and for all
    with pytest.raises(ValueError, match=says):
        flow.log_prob(x)


def test_fresh_noise_is_refused_and_one_probe_is_not():
    def noisy(t, x):
        return -x + 0.1 * torch.randn_like(x)

    x, draw = randn(5, 2, device="cpu"), torch.Generator().manual_seed(0)

    def fresh(at):
        return hutchinson_trace(random_normals(at.y, draw))(at)

    with pytest.raises(ValueError, match="noise drawn at every evaluation"):
        CNF(noisy, normal(2)).log_prob(x)
    field = two_layers()
    with pytest.raises(ValueError, match="costs: 'trace' differs between two evaluations"):
        CNF(field, normal(2)).inverse(x, costs={"trace": fresh})
    CNF(field, normal(2), **RK4).inverse(x, costs={"trace": fresh})  # refines nothing
    once = hutchinson_trace(random_normals(x, draw))
    with counting() as stats:
        CNF(field, normal(2), rtol=1e-3, atol=1e-3).inverse(x, costs={"trace": once})
    with counting() as alone:
        costs = {"trace": once, "exact": lambda at: field.velocity_and_trace(at.t, at.y)[1]}
        solve_with_costs(field, x, (1.0, 0.0), costs, rtol=1e-3, atol=1e-3)
    assert stats.nfe == alone.nfe  # checks are not counted


def test_arguments_are_checked():
    field, base = planar(), normal(2)
    flow = CNF(field, base, validate_args=True)  # torch.compile turns the default off
    x = torch.zeros(3, 2, dtype=torch.float64)
    wrong = [
        (lambda: CNF(3, base), TypeError, "field: 3 is not allowed"),
        (lambda: CNF(field, 3), TypeError, "base: 3 is not allowed"),
        (lambda: CNF(field, Normal(x[0], 1.0)), ValueError, r"base: batch_shape \(2,\)"),
        (lambda: CNF(field, Normal(0.0, 1.0)), ValueError, r"base: event_shape \(\)"),
        (lambda: CNF(field, base, span=(1.0, 1.0)), ValueError, "span: .* two different times"),
        (lambda: CNF(field, base, span=(0.0, math.inf)), ValueError, "span: inf"),
        (lambda: CNF(field, base, span=(0.0, 0.5, 1.0)), ValueError, "span: .* two different"),
        (lambda: CNF(field, base, method="rk5"), ValueError, "method: 'rk5' is not allowed"),
        (lambda: CNF(field, base, steps=3), ValueError, "steps: 3 is not allowed"),
        (lambda: CNF(field, base, gradient="?"), ValueError, "gradient: '\\?' is not allowed"),
        (lambda: CNF(field, base, dense=True), ValueError, "dense: True is not allowed"),
        (lambda: flow.log_prob(x[:, :1]), ValueError, r"x: shape \(3, 1\) is not allowed"),
        (lambda: flow.forward(torch.zeros(())), ValueError, r"z: shape \(\) is not allowed"),
        (lambda: flow.log_prob([0.0, 0.0]), TypeError, "x: .* is not allowed"),
        (lambda: flow.log_prob(x * math.nan), ValueError, "x: nan is not allowed"),
        (lambda: flow.inverse(x, probe=x[0]), ValueError, r"probe: shape \(1, 2\)"),
    ]
    for call, error, says in wrong:
        with pytest.raises(error, match=says):
            call()
    box = Independent(Uniform(x[0], x[0] + 1), 1)
    assert CNF(lambda t, x: 0 * x, box).log_prob(x[0] + 0.5) == 0
    assert not CNF(field, Independent(Categorical(torch.ones(2, 3)), 1)).has_rsample
