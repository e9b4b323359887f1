"""A straight line computes what its module computes, bit for bit, or is not used."""

import copy
from types import SimpleNamespace

import pytest
import torch
from fields import gradients, randn
from loops import loop
from torch import nn

import companion.flat
from companion import OdeBlock, PiecewiseConstant, PiecewiseLinear, counting, odeint
from companion.flat import path
from companion.gradients import Reconstruct
from companion.observe import count_nfe, saved_bytes


def conv():
    return nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Conv2d(3, 3, 3, padding=1))


RESIDUALS = {
    "dense": (lambda: nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 6)), (4, 6)),
    "norm": (lambda: nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.GELU()), (4, 6)),
    "dropout": (lambda: nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.SiLU()), (4, 6)),
    "conv": (conv, (2, 3, 4, 4)),
}


def outcome(block, x):
    """Everything a training step leaves: the output, all gradients, the buffers."""
    torch.manual_seed(3)
    x = x.clone().requires_grad_()
    y = block(x)
    found = gradients(y.square().sum(), [x, *block.parameters()])
    return [y.detach(), *found, *(b.clone() for b in block.buffers())]


def same(one, other):
    return len(one) == len(other) and all(map(torch.equal, one, other))


@loop("name", RESIDUALS)
@loop(
    ("basis", "gradient"),
    [
        (PiecewiseConstant(2), "checkpoint"),
        (PiecewiseLinear(2), "backprop"),
        (PiecewiseLinear(2), Reconstruct("predicted")),
    ],
)
def test_a_block_is_the_same_bit_for_bit(name, basis, gradient, device):
    make, shape = RESIDUALS[name]
    x = randn(*shape, device=device)
    torch.manual_seed(0)
    one = OdeBlock(
        lambda: make().double(), basis, "midpoint", steps=4, gradient=gradient, flat=False
    ).to(device)
    other = copy.deepcopy(one)
    other.flat = True
    for block in (one, other):  # a second step meets lines that are there
        outcome(block, x)
    assert same(outcome(one, x), outcome(other, x))
    assert (one.path, other.path) == ("modules", "flat")
    one.eval(), other.eval()
    with torch.no_grad():
        assert torch.equal(one(x), other(x))


class Inside(nn.Module):
    """A density's field: the trace of its Jacobian, by autograd or by transforms."""

    def __init__(self, by):
        super().__init__()
        self.by = by
        self.net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2)).double()

    def forward(self, t, state):
        y, _ = state
        if self.by == "transforms":
            jacobians = torch.func.vmap(torch.func.jacrev(self.net))(y)
            return self.net(y), -jacobians.diagonal(dim1=1, dim2=2).sum(1)
        if self.by == "hand":
            first, _, last = self.net
            slope = 1 - torch.tanh(first(y)).square()
            trace = slope @ (first.weight * last.weight.T).sum(1)
            return t * self.net(y), -trace
        with torch.enable_grad():
            y = y if y.requires_grad else y.detach().requires_grad_()
            value, trace = self.net(y), 0.0
            for k in range(2):
                (row,) = torch.autograd.grad(value[:, k].sum(), y, create_graph=True)
                trace = trace + row[:, k]
        return value, -trace


@loop("by", ["transforms", "hand", "autograd"])
def test_a_field_with_a_trace(by, device):
    """What autograd keeps inside while a line is traced belongs to that one state."""
    torch.manual_seed(0)
    field = Inside(by).to(device)
    found = []
    for flat in (False, True):
        y = randn(4, 2, device=device).requires_grad_()
        start = (y, torch.zeros(4, dtype=y.dtype, device=device))
        ys, logs = odeint(field, start, [0.0, 0.5, 1.0], method="rk4", steps=3, flat=flat)
        loss = (ys.square().sum(2) + logs).sum()
        found.append([ys, logs, *gradients(loss, [y, *field.parameters()])])
    assert same(*found)
    assert path(field, flat=True) == "flat"


class Scaled(nn.Module):
    """A field with a constant, a shared weight, and a buffer that it replaces."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(3, 3).double()
        self.two = self.one
        self.factor = 0.5
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

    def forward(self, t, y):
        self.calls = self.calls + 1.0
        return self.factor * torch.sin(self.two(self.one(y))) * t + 1e-3 * self.calls


def test_attributes_buffers_modes_and_kinds_of_input(device):
    one = Scaled().to(device)
    other = copy.deepcopy(one)
    y = randn(4, 3, device=device)

    def both(y, **knobs):
        knobs = {"method": "heun", "steps": 3, **knobs}
        return [odeint(f, y, [0.1, 0.7], flat=flat, **knobs) for f, flat in ((one, 0), (other, 1))]

    assert torch.equal(*both(y))
    assert other.calls.item() == one.calls.item() == 6
    for field in (one, other):
        field.factor = 0.25
    assert torch.equal(*both(y))
    assert torch.equal(*both(y[:2]))
    assert torch.equal(*both(y.t().contiguous().t()))
    for field in (one, other):
        field.float()
    assert torch.equal(*both(y.float()))
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert torch.equal(*both(y.float()))
    with counting() as stats:
        odeint(other, y.float(), [0.1, 0.7], method="heun", steps=3, flat=True)
    assert stats.nfe == 6


def test_what_containers_hold_is_followed(device):
    """A line that has seen one number in a list must not be used for another."""

    class Held(nn.Module):
        def __init__(self, held, read):
            super().__init__()
            self.held, self.read = held, read
            self.w = nn.Parameter(torch.ones((), device=device))

        def forward(self, t, y):
            return -self.read(self.held) * self.w * y

    y0, t = torch.ones(2, device=device), [0.0, 1.0]
    for held, read, write in (
        ({"k": 1.0}, lambda h: h["k"], lambda h, k: h.update(k=k)),
        ([0.0, [1.0]], lambda h: h[1][0], lambda h, k: h[1].__setitem__(0, k)),
        (SimpleNamespace(k=1.0), lambda h: h.k, lambda h, k: setattr(h, "k", k)),
        ({"k": torch.tensor(1.0)}, lambda h: h["k"], lambda h, k: h.update(k=torch.tensor(k))),
    ):
        field = Held(held, read)
        for k in (1.0, 2.0, 1.0):
            write(held, k)
            knobs = {"method": "rk4", "steps": 5}
            for how in ({"flat": True}, {"compile": "eager"}):
                found = odeint(field, y0, t, **knobs, **how)
                torch.testing.assert_close(found, odeint(field, y0, t, flat=False, **knobs))
        assert path(field, flat=True) == "flat"
    loop = [1.0]
    loop.append(loop)  # a container may hold itself
    assert odeint(Held(loop, lambda h: h[0]), y0, t, method="euler", flat=True).shape == (2, 2)


def test_it_happens_by_itself_where_it_is_safe(monkeypatch, device):
    monkeypatch.setattr(companion.flat, "FLAT_AFTER", 7)

    class Custom(nn.Linear):
        pass

    x = randn(2, 2, device=device)
    for residual, expected in ((nn.Linear(2, 2), "flat"), (Custom(2, 2), "modules")):
        block = OdeBlock(residual.double().to(device), steps=4)
        block(x)
        assert block.path == "modules"
        block(x)
        assert block.path == expected
    block = OdeBlock(nn.Sequential(nn.Linear(2, 2), nn.LeakyReLU(0.1)).double().to(device), steps=8)
    before = block(x)
    assert block.path == "flat"
    with count_nfe(block) as nfe:  # by hooks, which are called
        assert torch.equal(block(x), before)
        assert (block.path, nfe.total) == ("modules", 8)
    block.weights.template[1].negative_slope = 0.9
    assert not torch.equal(block(x), before)
    with saved_bytes() as straight:
        block(x[:1])  # traced inside: what it keeps on the way does not count
    block.flat = False
    with saved_bytes() as through:
        block(x[:1])
    assert straight.total == through.total


def test_what_cannot_be_traced(monkeypatch, device):
    class Branching(nn.Module):
        def forward(self, t, y):
            return y if float(y.sum()) > 0 else -y

    y = randn(3, device=device)
    with pytest.raises(ValueError, match=r"flat: Branching cannot be traced: .*; use flat=False"):
        odeint(Branching(), y, [0.0, 1.0], method="euler", flat=True)
    with pytest.raises(ValueError, match="flat: 2 is not allowed"):
        odeint(Branching(), y, [0.0, 1.0], method="euler", flat=2)
    # Momentum None reads a count to a number. Of its own accord nobody is told.
    monkeypatch.setattr(companion.flat, "FLAT_AFTER", 0)
    block = OdeBlock(nn.BatchNorm1d(3, momentum=None).double().to(device), steps=2)
    block(randn(4, 3, device=device))
    assert block.path == "modules"
