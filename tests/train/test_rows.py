"""Gradients of blocks that arrive row by row, in one process and in two."""

import copy
import gc

import pytest
import torch
import torch.distributed as dist
from loops import loop
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from companion import (
    Constant,
    DiscontinuousLinear,
    OdeBlock,
    PiecewiseConstant,
    PiecewiseLinear,
    refine,
)
from companion.gradients import Checkpoint, Reconstruct
from companion.train import data_parallel, seeded
from companion.train.rows import RowByRow

F64 = torch.float64
LAYERS = 4
PASSED = []
"""The layers whose own backward pass is over, and the rows whose gradient came, in their order."""


class Noted(nn.Module):
    """A layer that notes when the gradient has passed it."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, t, x):
        layer = f"layer {round(float(t) * LAYERS)}"
        if x.requires_grad:
            x.register_hook(lambda grad: PASSED.append(layer))
        return torch.tanh(self.inner(x))


class Tied(nn.Module):
    """A layer with a parameter under two names."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.bias = self.inner.bias

    def forward(self, t, x):
        return torch.tanh(self.inner(x) + self.bias)


def model(gradient, basis=None, method="euler", steps=LAYERS, layer=Noted):
    with seeded(0):
        basis = PiecewiseConstant(LAYERS) if basis is None else basis
        block = OdeBlock(layer, basis, method, steps, gradient, time=True)
        return nn.Sequential(nn.Linear(3, 3), block, nn.Linear(3, 1)).double()


def data(rows=8):
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(1), dtype=F64)


def loss(net, x):
    return net(x).square().mean()


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


def names(module):
    """Return the layer of every row by identity; of stacks, that they are."""
    if not isinstance(module, RowByRow):
        return {id(p): "stack" for p in module[1].parameters()}
    stacks = len(module.rows) // LAYERS
    return {id(row): f"row {k // stacks}" for k, row in enumerate(module.rows)}


def in_turn(events):
    """Say whether rows come from the last to the first, each before the layer below is passed."""
    rows = [events.index(f"row {k}") for k in reversed(range(LAYERS))]
    below = [events.index(f"layer {k}") for k in reversed(range(LAYERS - 1))]
    return rows == sorted(rows) and all(a < b for a, b in zip(rows, below, strict=False))


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


# --- two processes --------------------------------------------------------------------------------


def connected(function, folder):
    """Run a function in two processes, and return what each of them saved."""
    torch.multiprocessing.spawn(process, (function, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def process(rank, function, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(function(rank, folder), f"{folder}/{rank}.pt")
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


COMPARED = ["backprop", "checkpoint", "reconstruct", "sparse", "stacks"]


def average(rank, folder):
    """Return the gradients of two steps, and the order of the second's: DDP sorts in the first."""
    found = {}
    for name in COMPARED:
        gradient = name if name in GRADIENTS else "backprop"
        net = model(gradient, steps=2 if name == "sparse" else LAYERS)
        wrap = DistributedDataParallel if name == "stacks" else data_parallel
        network = wrap(net, bucket_cap_mb=1e-6)  # a bucket for each
        layer = names(network.module)

        def averaged(state, bucket, layer=layer):
            PASSED.extend(layer[id(p)] for p in bucket.parameters() if id(p) in layer)
            return (
                dist.all_reduce(bucket.buffer() / 2, async_op=True)
                .get_future()
                .then(lambda done: done.value()[0])
            )

        network.register_comm_hook(None, averaged)
        for _ in range(2):
            net.zero_grad()
            value = loss(network, data().chunk(2)[rank])
            PASSED.clear()
            value.backward()
        found[name] = [p.grad for p in net.parameters()], list(PASSED)
        del network
    return found


def test_two_processes_average_rows_while_others_come(tmp_path):
    for found in connected(average, tmp_path):
        for name in COMPARED:
            gradient = name if name in GRADIENTS else "backprop"
            alone = model(gradient, steps=2 if name == "sparse" else LAYERS)
            loss(alone, data()).backward()
            grads, events = found[name]
            for one, p in zip(grads, alone.parameters(), strict=True):
                torch.testing.assert_close(one, p.grad, rtol=1e-12, atol=1e-14)
            if name == "stacks":
                assert events.index("stack") > events.index("layer 1")
            elif name != "sparse":
                assert in_turn(events)
