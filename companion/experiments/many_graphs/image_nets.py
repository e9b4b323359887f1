"""ContinuousNets for images: how they are trained, and what is measured under other graphs.

What Q20-T1a, Q20-T1b and Q20-F10-T share, for CIFAR-10, CIFAR-100, Tiny-ImageNet and the small
images of scikit-learn's digits.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from companion.analysis.smoothness import total_variation
from companion.basis import PiecewiseConstant
from companion.block import ode_blocks
from companion.experiments import Findings, Part, Run, recipes
from companion.experiments.continuous_digits import SCHEMES, Tables, by_seed, named
from companion.experiments.images import EVALUATION_BATCH, Images
from companion.experiments.registry import Declared
from companion.models import ContinuousNet, Stitch
from companion.models.continuous_net import pre_activation_unit
from companion.models.layers import basic_branch, convolution
from companion.train import Refinement, error_rate, seeded, step_decay

RATE, DECAY = 0.1, 5e-4
"""Learning rate and weight decay."""


KINDS = {
    "euler": ("euler", False),
    "rk4": ("rk4", True),
    "rk4_deep": ("rk4", False),
    "midpoint": ("midpoint", True),
}
"""The scheme of every network that is continuous in depth, and whether it is refined: from one cell
and one step on, with epsilon = 1. Else it has all cells from the start, and epsilon is their
number, as in a residual network. Beside them ``"resnet"`` is a plain one."""


@dataclass(frozen=True)
class Settings:
    r"""What the trainings of a run have in common.

    Cells and steps double before the epochs ``refine_at``: a network ends with $2^{\mathrm{len}}$
    of both. ``autocast`` computes convolutions in bfloat16; ``compiled`` uses
    :func:`torch.compile`, in which sums may round differently.
    """

    channels: tuple[int, ...]
    refine_at: tuple[int, ...]
    epochs: int
    autocast: bool
    compiled: bool

    @property
    def cells(self) -> int:
        """Cells and steps at the end."""
        return 1 << len(self.refine_at)

    @property
    def steps(self) -> tuple[int, ...]:
        """Numbers of steps to run trained networks with: from an eighth of the cells to four times.

        Among them are the paper's third and fifth of the depth (11 and 6 of 32), and one step more
        than there are cells.
        """
        m = self.cells
        parts = {m // 8, m // 4, m // 2, round(m / 5), self.third, m, m + 1, 2 * m, 4 * m}
        return tuple(sorted(parts - {0}))

    @property
    def third(self) -> int:
        """A third of the steps, rounded up."""
        return -(-self.cells // 3)


class PlainResNet(nn.Module):
    """The residual network that a ContinuousNet with Euler's method copies, without any block."""

    def __init__(self, classes: int, inputs: int, channels: Sequence[int], layers: int) -> None:
        super().__init__()
        first = channels[0]
        parts: list[nn.Module] = [convolution(inputs, first, 3), nn.BatchNorm2d(first), nn.ReLU()]
        before = first
        for k, width in enumerate(channels):
            if k > 0:
                parts.append(Stitch(before, width, basic_branch(before, width, stride=2)))
            parts += [_Residual(width) for _ in range(layers)]
            before = width
        self.layers = nn.Sequential(*parts)
        self.head = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.head(self.layers(x).mean((2, 3)))
        return logits


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.unit = pre_activation_unit(width)

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = x + self.unit(x)
        return value


def make_network(name: str, data: Images, settings: Settings, seed: int, full: bool) -> nn.Module:
    """Return a network before its training, or with ``full`` of the size it ends with."""
    x, _ = data.in_memory
    with seeded(seed, dtype=x.dtype):
        if name == "resnet":
            plain = PlainResNet(data.classes, data.channels, settings.channels, settings.cells)
            return plain.to(x.device)
        method, refined = KINDS[name]
        size = 1 if refined and not full else settings.cells
        net = ContinuousNet(
            data.classes, inputs=data.channels, channels=settings.channels,
            basis=PiecewiseConstant(size), method=method, steps=size,
            scale=1.0 if refined else float(settings.cells),
        )  # fmt: skip
    return net.to(x.device)


def objective(net: nn.Module, settings: Settings) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """Return the mean cross-entropy of a batch, computed as the settings say."""
    loss = recipes.bfloat16_loss if settings.autocast else recipes.classification_loss
    if not settings.compiled:
        return loss
    torch.compiler.reset()  # past a number of networks it would fall back to eager silently
    compiled: Any = torch.compile(net)
    return lambda _, x, y: loss(compiled, x, y)


def train_and_swap(
    part: Part, name: str, seed: int, data: Images, settings: Settings
) -> dict[str, Any]:
    """Train one network; return its curves, and what it does under other graphs.

    The learning rate falls to a tenth after 2/3 and 13/15 of the epochs. A network whose state
    stops being finite counts as guessing.
    """
    net = make_network(name, data, settings, seed, full=False)
    refined = name != "resnet" and KINDS[name][1]
    history = recipes.train(
        part, net, data.train, seed,
        loss=objective(net, settings),
        optimiser=recipes.sgd(RATE, DECAY),
        epochs=settings.epochs,
        batch_size=data.batch_size,
        schedule=step_decay(2 / 3, 13 / 15),
        augment=data.augment,
        refinement=Refinement(settings.refine_at) if refined else None,
        on_epoch=lambda: {"error": error_rate(net, data.test, batch_size=EVALUATION_BATCH)},
    )  # fmt: skip
    if history is None:
        return _lost(name, data, settings)
    found: dict[str, Any] = {"error": history["error"], "loss": history["loss"]}
    if refined:
        found["refined_error"] = history["refined_error"]
    if isinstance(net, ContinuousNet):
        found |= _swapped(net, data, settings)
        found["variation"] = [total_variation(block) for block in ode_blocks(net)]
    return found


def _lost(name: str, data: Images, settings: Settings) -> dict[str, Any]:
    """Return what stands for a network whose state stopped being finite."""
    guess, epochs = recipes.guessing(data.classes), settings.epochs
    found: dict[str, Any] = {"error": [guess] * epochs, "loss": [math.nan] * epochs}
    if name == "resnet":
        return found
    if KINDS[name][1]:
        found["refined_error"] = [guess] * len(settings.refine_at)
    shape = (len(SCHEMES), len(settings.steps))
    found["swap_error"] = np.full(shape, guess).tolist()
    found["deviation"] = np.full(shape, math.nan).tolist()
    found["variation"] = [math.nan] * len(settings.channels)
    return found


def _swapped(net: ContinuousNet, data: Images, settings: Settings) -> dict[str, Any]:
    """Return test error and logit deviation under every scheme with every number of steps."""
    x, y = data.in_memory
    own = recipes.scores(net, x, EVALUATION_BATCH)
    graphs = [[net.with_graph(method=m, steps=n) for n in settings.steps] for m in SCHEMES]
    tables = [[recipes.scores(graph, x, EVALUATION_BATCH) for graph in row] for row in graphs]
    return {
        "swap_error": [[recipes.error_of(table, y) for table in row] for row in tables],
        "deviation": [[recipes.deviation(table, own) for table in row] for row in tables],
    }


def images_per_second(
    part: Part, names: Sequence[str], data: Images, settings: Settings, rounds: int
) -> dict[str, float]:
    """Return how fast each network trains at full size: the best of several rounds, in turn."""
    x, y = (tensor[: data.batch_size] for tensor in data.in_memory)
    nets = {name: make_network(name, data, settings, 0, full=True) for name in names}
    losses = {name: objective(net, settings) for name, net in nets.items()}
    optimisers = {name: recipes.sgd(RATE, DECAY)(net.parameters()) for name, net in nets.items()}
    seconds = dict.fromkeys(names, math.inf)
    for k in range(rounds + 1):  # the first one warms up
        for name, net in nets.items():
            start = _clock(x.device)
            optimisers[name].zero_grad()
            losses[name](net, x, y).backward()  # type: ignore[no-untyped-call]
            optimisers[name].step()
            if k > 0:
                seconds[name] = min(seconds[name], _clock(x.device) - start)
        part.report((k + 1) / (rounds + 1))
    return {name: len(x) / seconds[name] for name in names}


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass(frozen=True)
class Study:
    """What a run found: the tables of :func:`train_and_swap`, one row a seed, and no claims yet."""

    settings: Settings
    tables: Tables
    findings: Findings

    def error(self, name: str) -> float:
        """Return the mean test error of a network over seeds."""
        return float(self.tables[name]["error"][:, -1].mean())

    def rise(self, name: str, method: str, steps: int) -> float:
        """Return by how much the mean test error rises when a network gets another graph."""
        i, j = SCHEMES.index(method), self.settings.steps.index(steps)
        return float(self.tables[name]["swap_error"][:, i, j].mean()) - self.error(name)

    def deciding(self) -> dict[str, float]:
        """Return what RK4 does to Euler's network, and the numbers of steps that claims name."""
        deviation = self.tables["euler"]["deviation"][:, SCHEMES.index("rk4"), -1]
        return {
            "cells": self.settings.cells,
            "third": self.settings.third,
            "most": self.settings.steps[-1],
            "moved": float(deviation.mean()),
            "broken": self.rise("euler", "rk4", self.settings.cells),
        }


def broken(claim: str, dataset: str) -> tuple[Declared, Declared]:
    """Return how RK4 is seen to break Euler's network; on digits the error has no room for it."""
    return (
        (claim, "moved", {"digits": 0.25}, None,
         "digits, logit deviation of Euler's network under RK4 with {most} steps"),
        (claim, "broken", {dataset: 0.05}, None,
         "{dataset}, test error, Euler to RK4 at equal steps, after the swap minus before"),
    )  # fmt: skip


def study(
    run: Run, networks: Sequence[str], needed: Sequence[str], count: int, data: Images,
    settings: Settings,
) -> Study:  # fmt: skip
    """Train every network from every seed, and measure how fast each trains.

    Raises:
        ValueError: an unknown network, or one missing that the claims need.
    """
    known = ("resnet", *KINDS)
    if not set(needed) <= set(networks) <= set(known):
        raise ValueError(
            f"networks: {tuple(networks)} is not allowed; it must hold some of "
            f"{', '.join(known)}, with {', '.join(needed)}"
        )

    def trained(part: Part, name: str, seed: int) -> dict[str, Any]:
        return train_and_swap(part, name, seed, data, settings)

    def speed(part: Part) -> dict[str, float]:
        return images_per_second(part, networks, data, settings, rounds=10)

    own = run.seeds(count)
    parts = {f"{name}, seed {seed}": (name, seed) for name in networks for seed in own}
    found = run.map(trained, parts)
    rates = run.map(speed, {"images per second": ()})["images per second"]
    tables: Tables = {}
    scalars: dict[str, float] = {}
    for name in networks:
        tables[name] = by_seed([found[f"{name}, seed {seed}"] for seed in own])
        net = make_network(name, data, settings, 0, full=True)
        scalars[f"mean_error_{name}"] = float(tables[name]["error"][:, -1].mean())
        scalars[f"parameters_{name}"] = sum(p.numel() for p in net.parameters())
        scalars[f"images_per_second_{name}"] = rates[name]
    curves = {"steps": settings.steps, **named(tables)}
    return Study(settings, tables, Findings(scalars, curves, data=data.provenance))
