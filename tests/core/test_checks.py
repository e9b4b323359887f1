"""Tensors unseen, second derivatives, gradients inside fields, modules that differ."""

import gc

import pytest
import torch
import torch.utils.checkpoint
from fields import knobs
from torch import nn

from companion import OdeBlock, PiecewiseConstant, odeint
from companion.observe import count_nfe

SILENT = ("adjoint", "checkpoint")
KNOBS = {"method": "rk4", "steps": 20}


class TraceField(nn.Module):
    """A continuous normalising flow: the field differentiates inside itself."""

    def __init__(self, device):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        weight = torch.randn(2, 2, dtype=torch.float64, generator=generator)
        self.weight = nn.Parameter(weight.to(device))

    def forward(self, t, state):
        z, _ = state
        with torch.enable_grad():
            z = z.requires_grad_(True)
            slope = torch.tanh(z @ self.weight.T)
            trace = sum(
                torch.autograd.grad(slope[:, i].sum(), z, create_graph=True)[0][:, i]
                for i in range(2)
            )
        return slope, -trace


@pytest.mark.parametrize("gradient", SILENT)
def test_a_field_may_differentiate_inside(gradient, device):
    field = TraceField(device)
    z0 = torch.tensor([[0.3, -1.0], [2.0, 0.1]], dtype=torch.float64, device=device)

    def gradient_by(name):
        start = (z0.clone(), torch.zeros(2, dtype=z0.dtype, device=device))
        _, change = odeint(field, start, [0.0, 1.0], **KNOBS, gradient=name)
        return torch.autograd.grad(change[-1].sum(), field.weight)[0]

    assert gradient_by("backprop").abs().min() > 1e-3
    torch.testing.assert_close(gradient_by(gradient), gradient_by("backprop"), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("gradient", ["backprop", *SILENT])
def test_forward_mode_is_exact_where_nothing_needs_a_gradient(gradient, device):
    one = torch.ones((), dtype=torch.float64, device=device)

    def end(y0):
        return odeint(lambda t, y: -y, y0, [0.0, 1.0], method="rk4", steps=2, gradient=gradient)[-1]

    value, tangent = torch.func.jvp(end, (one,), (one,))
    torch.testing.assert_close(tangent, value, rtol=1e-14, atol=0)  # the solve is linear in y0


class Scaled(nn.Module):
    """A residual that reads a tensor which is not its parameter."""

    def __init__(self, factor):
        super().__init__()
        self.inner = nn.Linear(3, 3, dtype=torch.float64, device=factor.device)
        self.read = lambda: factor

    def forward(self, x):
        return torch.tanh(self.inner(x) * self.read())


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_a_block_sees_named_tensors_and_refuses_others(method, device):
    factor = torch.tensor(1.5, dtype=torch.float64, device=device, requires_grad=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = OdeBlock(
            lambda: Scaled(factor), PiecewiseConstant(cells=2), method, **knobs(method, steps=40)
        )
    x = torch.ones(4, 3, dtype=torch.float64, device=device)
    (expected,) = torch.autograd.grad(block(x).sum(), factor)
    assert expected.abs() > 1e-3
    with pytest.raises(ValueError, match=r"residual reads a tensor of shape \(\)"):
        block.with_graph(gradient="adjoint")(x)
    for gradient in ("adjoint", "checkpoint") if method == "rk4" else ("adjoint",):
        view = block.with_graph(gradient=gradient)
        view.params = (factor,)
        (got,) = torch.autograd.grad(view(x).sum(), factor)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)


def test_params_add_to_those_of_a_module(device):
    inner = nn.Linear(2, 2, dtype=torch.float64, device=device)
    factor = torch.tensor(0.5, dtype=torch.float64, device=device, requires_grad=True)

    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, t, y):
            return factor * self.inner(y)

    y0 = torch.ones(2, dtype=torch.float64, device=device)
    wanted = (inner.weight, factor)
    expected = torch.autograd.grad(odeint(Field(), y0, [0.0, 1.0], **KNOBS)[-1].sum(), wanted)
    y = odeint(Field(), y0, [0.0, 1.0], **KNOBS, gradient="checkpoint", params=(factor,))
    torch.testing.assert_close(torch.autograd.grad(y[-1].sum(), wanted), expected)


@pytest.mark.parametrize("gradient", ["backprop", *SILENT])
def test_a_field_that_changes_its_input_is_refused(gradient, device):
    y0 = torch.ones(2, dtype=torch.float64, device=device)
    with pytest.raises(ValueError, match="func: changed its input in place"):
        odeint(lambda t, y: y.mul_(-1.0), y0, [0.0, 1.0], **KNOBS, gradient=gradient)
    block = OdeBlock(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(2, 2)), gradient=gradient)
    with pytest.raises(ValueError, match="residual: changed its input in place"), torch.no_grad():
        block(torch.ones(1, 2) - 2.0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (nn.ReLU(), nn.Tanh()),
        (nn.LeakyReLU(0.1), nn.LeakyReLU(0.9)),
        (nn.Dropout(0.1), nn.Dropout(0.5)),
        (nn.Dropout(0.1), nn.Dropout(0.1).eval()),
    ],
    ids=["class", "slope", "rate", "mode"],
)
def test_modules_that_compute_differently_are_not_stacked(one, other):
    layers = [nn.Sequential(nn.Linear(2, 2), part) for part in (one, other)]
    with pytest.raises(ValueError, match=r"modules: number 1 differs .* structure"):
        OdeBlock.from_modules(layers)


def test_partly_frozen_modules_are_not_stacked():
    layers = [nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)]
    with pytest.raises(ValueError, match="modules: number 1 differs"):
        OdeBlock.from_modules(layers)


def test_an_old_graph_refuses_to_run_after_refinement():
    block = OdeBlock(lambda: nn.Linear(3, 3), PiecewiseConstant(cells=1))
    loss = block(torch.ones(2, 3, requires_grad=True)).sum()
    block.refine(steps=False)
    with pytest.raises(ValueError, match="refined or projected between forward and backward"):
        loss.backward()


def test_views_have_hooks_of_their_own():
    block = OdeBlock(lambda: nn.Linear(3, 3), PiecewiseConstant(cells=2), steps=2)
    view = block.eval().with_graph(steps=4)
    block.register_forward_hook(lambda module, args, out: out * 0)
    assert not view.training
    assert view(torch.ones(1, 3)).abs().min() > 0


def test_an_empty_batch_passes_an_adaptive_method(device):
    y0 = torch.empty(0, 3, device=device)
    assert odeint(lambda t, y: -y, y0, [0.0, 0.5, 1.0]).shape == (3, 0, 3)


def test_evaluations_inside_evaluations_are_counted():
    inner = OdeBlock(nn.Linear(2, 2), method="rk4", steps=3)
    outer = OdeBlock(inner, method="rk4", steps=2)
    with count_nfe(outer) as nfe:
        outer(torch.ones(1, 2))
    assert nfe.total == 8 + 8 * 12


@pytest.mark.parametrize("gradient", SILENT)
def test_inside_torchs_own_checkpoint(gradient, device):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = OdeBlock(nn.Linear(2, 2, device=device), method="rk4", steps=3)
    x = torch.ones(1, 2, device=device)
    block(x).sum().backward()
    expected = [p.grad.clone() for p in block.parameters()]
    block.zero_grad()
    view = block.with_graph(gradient=gradient)
    torch.utils.checkpoint.checkpoint(view, x, use_reentrant=False).sum().backward()
    for p, grad in zip(block.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gradient", ["checkpoint", "adjoint", "reconstruct"])
def test_the_graph_of_the_first_evaluation_is_freed(gradient, device):
    """Operations that save their own result (ReLU, tanh) once kept themselves alive for good."""
    block = OdeBlock(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Tanh()), gradient=gradient)
    block, x = block.to(device), torch.ones(2, 3, device=device, requires_grad=True)

    def alive():
        gc.collect()
        return sum(type(item) is torch.Tensor for item in gc.get_objects())

    block(x)
    before = alive()
    for _ in range(20):
        block(x)
    assert alive() - before < 10
