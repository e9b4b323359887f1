"""Gradients of blocks that arrive row by row, in one process; test_torchrun.py has two."""

import copy

import pytest
import torch
from arrivals import LAYERS, PASSED, data, in_turn, loss, model, names
from loops import loop
from torch import nn

from companion import (
    Constant,
    DiscontinuousLinear,
    PiecewiseConstant,
    PiecewiseLinear,
    refine,
)
from companion.gradients import Checkpoint, Reconstruct
from companion.train import data_parallel
from companion.train.rows import RowByRow


class Tied(nn.Module):
    """A layer with a parameter under two names."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.bias = self.inner.bias

    def forward(self, t, x):
        return torch.tanh(self.inner(x) + self.bias)


BASES = [PiecewiseConstant(LAYERS), PiecewiseLinear(2), DiscontinuousLinear(2), Constant()]
GRADIENTS = [
    "backprop",
    "checkpoint",
    Checkpoint(every=3),
    "reconstruct",
    Reconstruct(rule="predicted", order=2, every=3),
    "reversible",
    "adjoint",
]


@loop(
    ("gradient", "basis"),
    [(g, BASES[0]) for g in GRADIENTS] + [(g, b) for g in GRADIENTS[:2] for b in BASES[1:]],
)
def test_rows_fill_the_gradients_of_their_stacks(gradient, basis):
    """Whenever they are set to None, and where they add up; the optimiser moves the rows."""
    method = "async_leapfrog" if gradient == "reversible" else "heun"
    plain = model(gradient, basis, method, layer=Tied)
    net = copy.deepcopy(plain)
    rows, x = RowByRow(net), data()
    steppers = [torch.optim.SGD(n.parameters(), lr=0.1, momentum=0.9) for n in (plain, net)]
    for cleared in ("before", "between", "never", "zeroed"):
        if cleared == "before":
            [stepper.zero_grad() for stepper in steppers]
        losses = loss(plain, x), loss(rows, x)
        if cleared in ("between", "zeroed"):
            [stepper.zero_grad(set_to_none=cleared == "between") for stepper in steppers]
        assert torch.equal(*losses)
        [value.backward() for value in losses]
        for one, other in zip(plain.parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-13, atol=1e-15)
            other.grad.copy_(one.grad)  # the order of sums differs, and steps shall not
        [stepper.step() for stepper in steppers]
    assert net.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(loss(net, x), loss(plain, x))
    again = copy.deepcopy(net)
    assert torch.equal(loss(again, x), loss(net, x))


@loop("gradient", ["backprop", "checkpoint", "reconstruct", Reconstruct(rule="predicted")])
def test_a_row_has_its_gradient_before_the_layer_below_is_passed(gradient):
    net = model(gradient)
    for module in (RowByRow(net), net):
        layer = names(module)
        for p in module.parameters():
            if id(p) in layer:
                p.register_post_accumulate_grad_hook(lambda p, n=layer: PASSED.append(n[id(p)]))
        value = loss(module, data())
        PASSED.clear()
        value.backward()
        if module is net:
            assert PASSED.index("stack") > PASSED.index("layer 1")
        else:
            assert in_turn(PASSED)


@loop("gradient", ["backprop", "checkpoint", "adjoint"])
def test_adaptive_methods_hand_on_the_rows_of_cells_one_by_one(gradient):
    """Each cell is a solve of its own."""
    net = model(gradient, PiecewiseConstant(LAYERS), "bosh3", None)
    rows = RowByRow(net)
    layer, arrived = names(rows), []
    for row in rows.rows:
        row.register_post_accumulate_grad_hook(lambda p: arrived.append(layer[id(p)]))
        row.register_post_accumulate_grad_hook(lambda p: PASSED.append(layer[id(p)]))
    value = loss(rows, data())
    PASSED.clear()
    value.backward()
    assert arrived == [f"row {k}" for k in reversed(range(LAYERS)) for _ in range(2)]
    assert PASSED.index("row 1") < PASSED.index("layer 0")
    plain = model(gradient, PiecewiseConstant(LAYERS), "bosh3", None)
    loss(plain, data()).backward()
    for one, other in zip(plain.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-13, atol=1e-15)


@loop("gradient", ["checkpoint", "reconstruct"])
def test_a_solve_in_parts_is_gone_back_through_again(gradient):
    net = model(gradient)
    value, first = loss(RowByRow(net), data()), list(net[0].parameters())
    once = torch.autograd.grad(value, first, retain_graph=True)
    again = torch.autograd.grad(value, first)
    plain = torch.autograd.grad(loss(net, data()), first)
    for grads in (again, plain):
        assert all(map(torch.equal, once, grads))


def test_what_changes_the_weights_asks_to_wrap_them_again():
    for change in (
        refine,
        lambda n: n.float(),
        lambda n: setattr(n[1].weights.stacks.inner.weight, "data", data()),
    ):
        net = model("backprop")
        rows = RowByRow(net)
        change(net)
        with pytest.raises(
            ValueError, match=r"model: .* refined, moved or replaced .* wrap it again"
        ):
            rows(data().to(net[0].weight.dtype))
    rows = RowByRow(model("backprop"))
    with pytest.raises(ValueError, match="create_graph: True is not allowed"):
        loss(rows, data()).backward(create_graph=True)
    with pytest.raises(ValueError, match="gradient_as_bucket_view: True is not allowed"):
        data_parallel(model("backprop"), gradient_as_bucket_view=True)
