"""A block that notes in which order its gradients arrive, for one process and for several."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from companion import OdeBlock, PiecewiseConstant
from companion.train import data_parallel, seeded
from companion.train.rows import RowByRow

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


def model(gradient, basis=None, method="euler", steps=LAYERS, layer=Noted):
    with seeded(0):
        basis = PiecewiseConstant(LAYERS) if basis is None else basis
        block = OdeBlock(layer, basis, method, steps, gradient, time=True)
        return nn.Sequential(nn.Linear(3, 3), block, nn.Linear(3, 1)).double()


def data(rows=8):
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def loss(net, x):
    return net(x).square().mean()


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


COMPARED = ["backprop", "checkpoint", "reconstruct", "sparse", "stacks"]
"""Gradients of a block of rows; one whose steps skip every other row; one without rows."""


def compared(name):
    gradient = "backprop" if name in ("sparse", "stacks") else name
    return model(gradient, steps=2 if name == "sparse" else LAYERS)


def average(name, rank, size):
    """Return averaged gradients, and the order in a second step: DDP sorts in the first."""
    net = compared(name)
    wrap = DistributedDataParallel if name == "stacks" else data_parallel
    network = wrap(net, bucket_cap_mb=1e-6)  # a bucket for each
    layer = names(network.module)

    def averaged(state, bucket):
        PASSED.extend(layer[id(p)] for p in bucket.parameters() if id(p) in layer)
        work = dist.all_reduce(bucket.buffer() / size, async_op=True)
        return work.get_future().then(lambda done: done.value()[0])

    network.register_comm_hook(None, averaged)
    for _ in range(2):
        net.zero_grad()
        value = loss(network, data().chunk(size)[rank])
        PASSED.clear()
        value.backward()
    return [p.grad.tolist() for p in net.parameters()], list(PASSED)
