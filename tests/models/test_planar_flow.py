"""Planar flows against autograd, finite differences and the integral of their density."""

import math

import pytest
import torch
from fields import randn
from torch.distributions import Independent, Normal

from companion.models.members import Members
from companion.models.planar_flow import PlanarFlow, solve_bent_line


def strong_flow(device, dimension=2, layers=6, by=4.0):
    """A flow that is far from the identity, and still well conditioned unless ``by`` is large."""
    draw = torch.Generator().manual_seed(0)
    flow = PlanarFlow(dimension, layers, generator=draw, dtype=torch.float64).to(device)
    with torch.no_grad():
        flow.u.mul_(by)
        flow.w.mul_(2)
        flow.b.copy_(randn(layers, device=device))
    return flow


def test_layer_by_hand(device):
    """One layer written out with the formulas of the paper."""
    flow = strong_flow(device, layers=1)
    u, w, b = flow.u[0], flow.w[0], flow.b[0]
    z = randn(2, device=device)
    inner = w @ u
    direction = u + (torch.log(1 + torch.exp(inner)) - 1 - inner) * w / (w @ w)
    torch.testing.assert_close(flow(z).points, z + direction * torch.tanh(w @ z + b))


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_log_det_is_that_of_autograd(device, dimension):
    flow, z = strong_flow(device, dimension), randn(40, dimension, device=device)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda z: flow(z).points))(z)
    sign, wanted = torch.linalg.slogdet(jacobian)
    assert (sign == 1).all()
    torch.testing.assert_close(flow(z).log_det, wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_inverse(device, dimension):
    flow, z = strong_flow(device, dimension), randn(200, dimension, device=device)
    x, log_det = flow(z)
    back = flow.inverse(x)
    torch.testing.assert_close(back.points, z, atol=1e-12, rtol=0)
    torch.testing.assert_close(back.log_det, -log_det, atol=1e-12, rtol=0)


def test_inverse_of_layers_that_almost_fold(device):
    """Their Jacobians are almost singular: points are found up to that, their images to the end."""
    flow = strong_flow(device, by=60.0)
    x = flow(3 * randn(200, 2, device=device)).points
    slopes = (flow.w * flow._invertible()[0]).sum(1)
    assert float(slopes.detach().min()) < -0.999
    torch.testing.assert_close(flow(flow.inverse(x).points).points, x, atol=1e-12, rtol=1e-12)


def test_single_precision_where_c_is_minus_1_but_for_its_rounding(device):
    """On the fold itself the determinant is softplus(-30), about exp(-30)."""
    flow = PlanarFlow(2, 1, generator=torch.Generator()).to(device)
    with torch.no_grad():
        flow.u.copy_(torch.tensor([[-30.0, 0.0]]))
        flow.w.copy_(torch.tensor([[1.0, 0.0]]))
    z = torch.tensor([[0.0, 0.5], [1.0, 0.5]], device=device)
    wanted = torch.tensor([-30.0, 2 * math.log(math.tanh(1.0))], device=device)
    torch.testing.assert_close(flow(z).log_det, wanted)
    back = flow.inverse(flow(z).points)
    assert back.points.isfinite().all()
    torch.testing.assert_close(back.points, z, atol=1e-2, rtol=0)


@pytest.mark.parametrize("c", [-0.99, -0.5, 0.0, 1.0, 50.0])
def test_root_of_the_scalar_equation(device, c):
    s = torch.linspace(-60, 60, 481, dtype=torch.float64, device=device)
    c = torch.tensor(c, dtype=torch.float64, device=device)
    torch.testing.assert_close(solve_bent_line(s + c * s.tanh(), c), s, atol=1e-12, rtol=0)


def test_derivatives_of_the_root(device):
    """Of both arguments, against finite differences; a root without a graph has none."""
    y = randn(9, device=device).requires_grad_()
    c = (randn(9, device=device, seed=2).abs() - 0.7).requires_grad_()
    assert torch.autograd.gradcheck(solve_bent_line, (y, c))


def test_log_prob_has_the_gradients_of_the_density(device):
    flow = strong_flow(device, layers=3)
    x = randn(7, 2, device=device).requires_grad_()

    def log_prob(x, u, w, b):
        values = {"u": u, "w": w, "b": b}
        return torch.func.functional_call(Log(flow), {f"flow.{k}": v for k, v in values.items()}, x)

    values = [p.detach().clone().requires_grad_() for p in (flow.u, flow.w, flow.b)]
    assert torch.autograd.gradcheck(log_prob, (x, *values))


class Log(torch.nn.Module):
    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, x):
        return self.flow.log_prob(x)


def test_density_integrates_to_one(device):
    flow = strong_flow(device, layers=3)
    line = torch.linspace(-14, 14, 701, dtype=torch.float64, device=device)
    with torch.no_grad():
        density = flow.log_prob(torch.cartesian_prod(line, line)).exp()
    assert float(density.sum()) * 0.04**2 == pytest.approx(1, abs=1e-6)


def test_samples_carry_their_density(device):
    flow = strong_flow(device)
    x, log_prob = flow.sample_and_log_prob(50, torch.Generator().manual_seed(3))
    torch.testing.assert_close(flow.log_prob(x), log_prob, atol=1e-11, rtol=0)
    base = Independent(Normal(torch.zeros(2).to(x), 1.0), 1)
    z, log_det = flow.inverse(x)
    torch.testing.assert_close(base.log_prob(z) + log_det, log_prob, atol=1e-11, rtol=0)


@pytest.mark.parametrize(("dimension", "layers"), [(2, 1), (2, 32), (7, 3)])
def test_a_layer_has_2d_plus_1_parameters(dimension, layers):
    flow = PlanarFlow(dimension, layers, generator=torch.Generator())
    assert sum(p.numel() for p in flow.parameters()) == layers * (2 * dimension + 1)


def test_members_are_flows_side_by_side():
    flows = [
        PlanarFlow(2, 3, generator=torch.Generator().manual_seed(s), dtype=torch.float64)
        for s in range(3)
    ]
    z = randn(3, 5, 2, device="cpu")
    points, log_det = Members(flows)(z)
    for k, flow in enumerate(flows):
        torch.testing.assert_close(points[k], flow(z[k]).points)
        torch.testing.assert_close(log_det[k], flow(z[k]).log_det)


def test_bad_arguments_are_named():
    draw = torch.Generator()
    with pytest.raises(ValueError, match="layers: 0 "):
        PlanarFlow(2, 0, generator=draw)
    with pytest.raises(TypeError, match="generator: 3 "):
        PlanarFlow(2, 2, generator=3)
    flow = PlanarFlow(2, 2, generator=draw)
    for call in (flow, flow.inverse, flow.log_prob):
        with pytest.raises(ValueError, match=r"x: shape \(5, 3\) .* of 2"):
            call(torch.zeros(5, 3))
