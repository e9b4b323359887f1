"""Compiled pieces do what eager solves do, and one graph of each kind serves them all.

Most tests hand the graphs to a backend that runs them as they are: what is under test is how they
are traced, called and kept.
"""

import copy
import re

import pytest
import torch
from fields import Tanh, gradients, largest_difference, needs_compile, randn
from torch import nn
from torch._dynamo.utils import counters

import companion.pieces
from companion import OdeBlock, PiecewiseLinear, counting, odeint
from companion.gradients import Checkpoint, Reconstruct
from companion.train import fit

pytestmark = needs_compile

BACKEND = "eager"
T = (0.0, 0.5, 0.8)


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def outcome(field, y0, steps, gradient, compile, t=T):
    y0 = y0.clone().requires_grad_()
    with counting() as stats:
        ys = odeint(field, y0, t, method="heun", steps=steps, gradient=gradient, compile=compile)
        loss = ys[1].square().sum() + ys[-1].sin().sum()
        found = [ys, *gradients(loss, [y0, *field.parameters()])]
    return found, stats


def test_one_graph_of_each_kind_serves_every_grid_and_number_of_steps(monkeypatch, device):
    monkeypatch.setattr(companion.pieces, "STEPS", 2)  # so that three steps need padding
    field, y0 = Tanh(device), randn(5, 3, device=device)
    before = graphs()
    for gradient in ("backprop", "checkpoint", Checkpoint(every=4)):
        for steps in (1, 3, 6):
            eager, _ = outcome(field, y0, steps, gradient, False)
            found, stats = outcome(field, y0, steps, gradient, BACKEND)
            assert largest_difference(eager, found) < 1e-13
            assert (stats.nfe, stats.steps) == (4 * steps, 2 * steps)
            assert stats.nfe_backward >= stats.nfe
            assert graphs() == before + 2  # forward and back
    with torch.no_grad():
        for p in field.parameters():
            p.mul_(0.9)
    eager, _ = outcome(field, y0, 3, "backprop", False, t=(1.0, 0.3))
    found, _ = outcome(field, y0, 3, "backprop", BACKEND, t=(1.0, 0.3))
    assert largest_difference(eager, found) < 1e-13
    start = y0[:1].expand(5, 3).clone().requires_grad_()  # strides of a sum's gradient, of an input
    for one in (start, start.detach()[:1].expand(5, 3)):
        odeint(field, one, T, method="heun", steps=3, compile=BACKEND).sum().backward()
    twin = copy.deepcopy(field)  # the same operations, elsewhere
    outcome(twin, y0, 2, "backprop", BACKEND)
    assert graphs() == before + 2
    with torch.inference_mode():
        eager, found = (
            odeint(field, y0, T, method="heun", steps=3, compile=c) for c in (False, BACKEND)
        )
        assert largest_difference([eager], [found]) < 1e-13
    for gradient in (Reconstruct("corrected"), Reconstruct("predicted", order=2)):
        eager, one = outcome(field, y0, 4, gradient, False)
        found, other = outcome(field, y0, 4, gradient, BACKEND)
        assert largest_difference(eager, found) < 1e-13
        assert one == other


def test_attempts_of_adaptive_solves_and_the_gradient_of_accepted_steps(device):
    """Outputs inside steps, at their ends, and backwards in time; other tolerances too."""
    field, y0 = Tanh(device), randn(5, 3, device=device)

    def outcome(compile, gradient, t, tol):
        leaf = y0.clone().requires_grad_()
        knobs = {"method": "bosh3", "rtol": tol, "atol": tol, "gradient": gradient}
        with counting() as stats:
            ys = odeint(field, leaf, t, compile=compile, **knobs)
            loss = sum((k + 1.0) * y.sin().sum() for k, y in enumerate(ys))
            return [ys, *gradients(loss, [leaf, *field.parameters()])], stats

    seen = None
    for t in ((0.0, 1.5), (0.0, 0.3, 0.31, 0.9, 1.5), (1.0, 0.6, -0.5)):
        for gradient, tol in (
            ("checkpoint", 1e-5),
            (Checkpoint(every=3), 1e-7),
            ("backprop", 1e-6),
        ):
            eager, one = outcome(False, gradient, t, tol)
            found, other = outcome(BACKEND, gradient, t, tol)
            assert largest_difference(eager, found) < 1e-11
            assert (one.nfe, one.steps, one.rejected) == (other.nfe, other.steps, other.rejected)
        if len(t) == 5:
            seen = graphs()
    assert graphs() == seen
    parts = (y0[:2].reshape(-1), y0[2:])

    def double(t, state):
        return tuple(-torch.sin(t + part) for part in state)

    ys = [
        odeint(double, parts, [0.0, 1.0], method="bosh3", compile=compile)
        for compile in (False, BACKEND)
    ]
    assert largest_difference(*ys) < 1e-12


def unit():
    return nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Tanh()).double()


def test_a_block_with_batch_norm_and_weights_between_nodes(device):
    torch.manual_seed(0)
    basis, x = PiecewiseLinear(2), randn(3, 2, 4, 4, device=device)
    block = OdeBlock(unit, basis, "midpoint", steps=4).to(device)
    other = copy.deepcopy(block).compiled(BACKEND)
    assert (block.path, other.path) == ("modules", "compiled")

    def step(block, gradient):
        block.gradient, leaf = gradient, x.clone().requires_grad_()
        y = block(leaf)
        grads = gradients(y.square().sum(), [leaf, *block.parameters()])
        return [y.detach(), *grads, *(b.double() for b in block.buffers())]

    for gradient in ("backprop", "checkpoint", Reconstruct("predicted")):
        pair = [step(one, gradient) for one in (block, other)]
        assert largest_difference(*pair) < 1e-12
    seen = graphs()
    other.steps = block.steps = 8
    pair = [step(one, "checkpoint") for one in (block, other)]
    assert largest_difference(*pair) < 1e-12
    assert graphs() <= seen + 2  # steps that begin between nodes read sums throughout
    with torch.no_grad():
        assert largest_difference([block.eval()(x)], [other.eval()(x)]) < 1e-12


class Switched(nn.Module):
    def forward(self, x, shift, sign):
        return shift * x if sign == "plus" else -shift * x


def test_what_a_block_is_called_with_beside_the_state(device):
    x, shift = randn(2, 3, device=device), torch.tensor(0.5, dtype=torch.float64, device=device)
    block = OdeBlock(Switched(), method="heun", steps=3)
    for sign in ("plus", "minus"):
        found = []
        for one in (block, block.compiled(BACKEND)):
            leaf = shift.clone().requires_grad_()
            y = one(x, leaf, sign)
            found.append([y, *gradients(y.sum(), [leaf])])
        assert largest_difference(*found) < 1e-13


def test_autocast_is_part_of_a_piece(device):
    torch.manual_seed(0)
    block = OdeBlock(nn.Sequential(nn.Linear(3, 3), nn.Tanh()), method="heun", steps=5).to(device)
    x = randn(4, 3, device=device, dtype=torch.float32)
    full = block.compiled(BACKEND)(x)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        eager, found = block(x), block.compiled(BACKEND)(x)
    assert found.dtype == eager.dtype == torch.float32
    assert (full - found).abs().max() > 1e-4  # the casts are there
    assert (eager - found).abs().max() < 1e-2


def test_training_compiles_by_one_argument(device):
    """Steps of training are compiled, and nothing else: what runs between them has other shapes."""
    x, losses, seen = randn(8, 3, device=device), [], []
    for compile in (False, BACKEND):
        torch.manual_seed(0)
        block = OdeBlock(nn.Linear(3, 3), method="heun", steps=5).double().to(device)

        def loss(model, x, seen=seen):
            seen.append(model.path)
            return model(x).square().mean()

        history = fit(
            block, loss, (x,), optimiser=lambda p: torch.optim.SGD(p, lr=0.1), epochs=2,
            batch_size=4, generator=torch.Generator().manual_seed(0), compile=compile,
            on_epoch=lambda block=block: {"paths": float(block.path == "compiled")},
        )  # fmt: skip
        losses.append(history["loss"])
        assert history["paths"] == [0.0, 0.0]
    assert seen == ["modules"] * 4 + ["compiled"] * 4
    assert losses[0] == pytest.approx(losses[1], rel=1e-13)


class Changing(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("level", torch.ones((), dtype=torch.float64))

    def forward(self, t, y):
        self.level.add_(1.0)
        return self.level * y


def test_refusals(monkeypatch, device):
    y = randn(2, 3, device=device)

    def solve(func, **knobs):
        knobs = {"method": "euler", "compile": BACKEND, **knobs}
        return odeint(func, y, knobs.pop("t", [0.0, 1.0]), **knobs)

    def refused(message, func=lambda t, y: -y, error=ValueError, **knobs):
        with pytest.raises(error, match=message):
            solve(func, **knobs)

    refused("method='implicit_adams' has no compiled steps", method="implicit_adams")
    refused("compile: not with dense=", method="bosh3", dense=True)
    refused("compile: not with event_fn=", method="bosh3", event_fn=lambda t, y: y)
    refused("compile: gradient='adjoint' has no compiled", gradient="adjoint")
    refused("compile: 3 is not allowed; pass True", compile=3, error=TypeError)
    refused("compile: times that need gradients", t=torch.tensor([0.0, 1.0], requires_grad=True))
    refused("draws random numbers", lambda t, y: torch.dropout(y, 0.5, True))
    refused("compile: func changes and reads its buffer 'level'", Changing().to(device))
    refused("cannot be traced", lambda t, y: y if float(y.detach().sum()) > 0 else -y)
    refused("func: returned shape", lambda t, y: y[0])
    with pytest.raises(ValueError, match=r"compile: True means operations which torch.func"):
        torch.func.vmap(lambda y: solve(lambda t, y: -y))(y)
    weight = torch.ones(3, device=device, dtype=y.dtype, requires_grad=True)
    refused(re.escape("name all such tensors with params=(...)"), lambda t, y: weight * y)
    named = solve(lambda t, y: weight * y, params=(weight,))
    (grad,) = gradients(named[-1].sum(), [weight])
    assert torch.allclose(grad, y.sum(0))
    monkeypatch.setattr(companion.pieces, "MOST_GRAPHS", 2)

    def func(t, y):
        return -y

    for rows in (1, 2):
        odeint(func, y[:1].expand(rows, 3).clone(), [0.0, 1.0], method="euler", compile=BACKEND)
    with pytest.raises(
        ValueError, match=r"2 graphs .* because shape, strides, dtype or device of the"
    ):
        odeint(func, y.repeat(2, 1), [0.0, 1.0], method="euler", compile=BACKEND)
    monkeypatch.setattr(companion.pieces.shutil, "which", lambda name: None)
    refused("no C\\+\\+ compiler", lambda t, y: y.cosh(), error=RuntimeError, compile=True)


@pytest.mark.slow
def test_inductor_agrees(monkeypatch):
    """A thin product, tanh by exp, padding, and an output inside a piece, in single precision."""
    monkeypatch.setattr(companion.pieces, "STEPS", 2)
    field, y0 = Tanh("cpu"), randn(6, 3, device="cpu")
    reference, _ = outcome(field, y0, 3, "backprop", False)
    found, _ = outcome(field.float(), y0.float(), 3, "backprop", True)
    assert largest_difference(reference, found) < 2e-6
