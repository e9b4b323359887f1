r"""S22-X5: two things that the published code of the memory-free paper does, and what they change.

Sander et al. (2022) published their code. The layers that it trains on CIFAR-10 keep a copy of each
output, so that the input of a layer is guessed from the true output (``copied``); the paper
describes a chain, in which it is guessed from a reconstructed one (``chained``). The code for
ImageNet puts batch norm into evaluation mode in the backward pass (``frozen`` statistics), while
the forward pass used those of the batch. Whether the runs in the paper were made by this code is
not known to us. Here the four combinations differentiate the same small convolutional networks.
"""

import copy
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from companion.analysis.reconstruction import trajectory
from companion.block import OdeBlock
from companion.data import load_digits
from companion.experiments import Findings, Part, Run, experiment, grids, named
from companion.experiments.gradient_rules import layer_rates
from companion.experiments.recipes import train
from companion.models import ResidualConvNet
from companion.models.layers import basic_branch, pre_activation
from companion.train import seeded

_WAYS = tuple(product(("chained", "copied"), ("batch", "frozen")))
"""Where a layer's output comes from, and whose statistics its batch norms use on the way back."""

BATCH = 64
"""Samples that the gradients are taken of."""


@experiment(
    "S22-X5",
    "Gradient errors with copied states and with frozen batch norm",
    paper="the published code of Sander et al. 2022, Figs. 3b, 3c and 4",
    claims=(
        ("S22-X5", "copied_over_chained_euler", None, 1.0,
         "relative gradient error, copied over chained, Euler, {depths[-1]} layers, largest over "
         "seeds"),
        ("S22-X5", "copied_over_chained_heun", None, 1.0,
         "relative gradient error, copied over chained, Heun, {depths[-1]} layers, largest over "
         "seeds"),
        ("S22-X5", "frozen_over_batch", 2.0, None,
         "relative gradient error, frozen over batch statistics, chained, Euler, {depths[-1]} "
         "layers, smallest over seeds"),
    ),
    full={"depths": (4, 8, 16, 23, 32, 64), "epochs": 6},
    tiny={"depths": (2, 3), "seeds": 1, "channels": 2, "epochs": 1},
    tolerance=1e-2,  # trained in single precision
)  # fmt: skip
def s22_x5(
    run: Run, *, depths: tuple[int, ...] = (4, 8, 23), seeds: int = 8, channels: int = 8,
    epochs: int = 3, rate: float = 0.05,
) -> Findings:  # fmt: skip
    """Train by backprop, then compare four ways back on one batch, in double precision.

    Curves: ``depths``; for each method, way and statistics ``error_METHOD_WAY_STATISTICS`` of shape
    ``(depths, seeds)``, the relative error of the gradient of all layers. Scalars: their means over
    seeds at the largest depth, ``mean_METHOD_WAY_STATISTICS``.
    """
    data = load_digits(as_images=True, device=run.device, dtype=run.dtype)

    def compare(part: Part, method: str, depth: int, seed: int) -> dict[str, float]:
        with seeded(seed, dtype=run.dtype):
            net = ResidualConvNet(depth, images="digits", channels=channels, method=method)
        net = net.to(run.device)
        samples = (data.x_train, data.y_train)
        train(
            part, net, samples, seed, optimiser=layer_rates(net, rate, depth), epochs=epochs,
            batch_size=BATCH, clip=1.0,
        )  # fmt: skip
        x, y = (values[:BATCH] for values in samples)
        return errors(net.double(), x.double(), y)

    found = grids(run, compare, method=("euler", "heun"), depth=depths, seed=run.seeds(seeds))
    tables = named(found, "method")  # chained_batch_euler, ...
    curves: dict[str, Any] = {"depths": depths}
    for way, method in product(("_".join(pair) for pair in _WAYS), ("euler", "heun")):
        curves[f"error_{method}_{way}"] = tables[f"{way}_{method}"]
    scalars = {
        name.replace("error", "mean"): float(np.mean(rows[-1]))
        for name, rows in curves.items()
        if name != "depths"
    }
    return Findings(scalars, curves, data=data.provenance, deciding=_deciding(curves))


def _deciding(curves: dict[str, Any]) -> dict[str, float]:
    def ratio(above: str, below: str) -> Any:
        return curves[f"error_{above}"][-1] / curves[f"error_{below}"][-1]

    return {
        "copied_over_chained_euler": ratio("euler_copied_batch", "euler_chained_batch").max(),
        "copied_over_chained_heun": ratio("heun_copied_batch", "heun_chained_batch").max(),
        "frozen_over_batch": ratio("euler_chained_frozen", "euler_chained_batch").min(),
    }


def errors(net: ResidualConvNet, x: Tensor, y: Tensor) -> dict[str, float]:
    """Return ``WAY_STATISTICS``: relative errors of the gradient of all layers, in training mode.

    Buffers of the net stay as they are.
    """
    net = copy.deepcopy(net).train()
    start = net.stem(x).detach()
    states = list(trajectory(net.block, start).unbind())
    end = states[-1].clone().requires_grad_()
    (a,) = torch.autograd.grad(nn.functional.cross_entropy(net.head(end), y), end)
    units, heun = units_of(net.block), net.block.method == "heun"
    with torch.enable_grad():
        out = net.block(start)
    grads = torch.autograd.grad(out, tuple(net.block.parameters()), a)
    true = torch.cat([g.flatten(1) for g in grads], dim=1)
    found = {}
    for way, statistics in _WAYS:
        got = sweep(units, states, a, heun=heun, chained=way == "chained",
                    frozen=statistics == "frozen")  # fmt: skip
        found[f"{way}_{statistics}"] = float((got - true).norm() / true.norm())
    return found


def units_of(block: OdeBlock) -> list[nn.Module]:
    """Return the layers of a convolutional block as modules of their own."""
    stacks = block.weights.stacks.state_dict()
    units: list[nn.Module] = []
    for n in range(block.weights.basis.cells):
        values = {name: value[n] for name, value in stacks.items()}
        channels = values["conv1.weight"].shape[0]
        unit = pre_activation(basic_branch(channels, channels)).to(values["conv1.weight"])
        unit.load_state_dict(values)
        units.append(unit)
    return units


def sweep(
    units: Sequence[nn.Module], states: Sequence[Tensor], a: Tensor, *, heun: bool, chained: bool,
    frozen: bool,
) -> Tensor:  # fmt: skip
    r"""Go back through all layers; return the gradient, one row a unit.

    Args:
        units: $N$ for Euler's method, $N + 1$ for Heun's.
        states: the true $x_0, \dots, x_N$.
        a: the loss's gradient at $x_N$.
        heun: whether a layer is a step of Heun's method.
        chained: go on from the reconstructed state, not from the true one.
        frozen: evaluate in evaluation mode, with running statistics.
    """
    own = [copy.deepcopy(unit).train(not frozen) for unit in units]
    steps, end = len(states) - 1, states[-1]
    total = [torch.zeros(sum(p.numel() for p in unit.parameters())).to(a) for unit in own]
    for n in reversed(range(steps)):
        pair = (n, n + 1) if heun else (n, n)
        first, second = (own[k] for k in pair)
        step = partial(_heun if heun else _euler, h=1 / steps)
        with torch.no_grad():
            start = step(second, first, end, h=-1 / steps)
        start.requires_grad_()
        params = [*first.parameters(), *(second.parameters() if heun else ())]
        a, *grads = torch.autograd.grad(step(first, second, start), (start, *params), a)
        rows = torch.cat([g.flatten() for g in grads])
        for k, row in zip(dict.fromkeys(pair), rows.chunk(len(set(pair))), strict=True):
            total[k] += row
        end = start.detach() if chained else states[n]
    return torch.stack(total)


def _euler(first: nn.Module, second: nn.Module, x: Tensor, h: float) -> Tensor:
    after: Tensor = x + h * first(x)
    return after


def _heun(first: nn.Module, second: nn.Module, x: Tensor, h: float) -> Tensor:
    slope = first(x)
    after: Tensor = x + h / 2 * (slope + second(x + h * slope))
    return after
